"""Stage 9: the decision for every image, as the contract that another flow carries out."""

import json
import logging
from typing import Any

import pyarrow as pa

from config import DedupConfig
from tasks import storage
from tasks.manifests import DIGEST, manifest_digest
from tasks.references import Clusters, Collection, Inventory, Keepers, Manifest, Neighbors
from tasks.schemas import CLUSTERS, IMAGES, KEEPERS, MANIFEST, SCHEMA_VERSION
from tasks.stage import stage
from tasks.stage04_collect_features import NOT_EMBEDDED
from tasks.summary import count_decisions
from tasks.weights import WEIGHTS_DIGEST

logger = logging.getLogger(__name__)


@stage("write_manifest")
def write_manifest(
    inventory: Inventory,
    collection: Collection,
    neighbors: Neighbors,
    clusters: Clusters,
    keepers: Keepers,
    config: DedupConfig,
) -> Manifest:
    """Publish the manifest of the run."""
    eps = config.neighbors.eps
    table = manifest_table(
        storage.read_table(collection.images_url, IMAGES),
        storage.read_table(clusters.url, CLUSTERS),
        storage.read_table(keepers.url, KEEPERS),
        eps=eps,
    )
    listing = storage.read_metadata(inventory.url)
    is_search_exact = neighbors.depth == 0
    # Only what shapes the decision: one more setting of how it was computed, and two equal
    # nights would no longer have equal bytes.
    metadata = {
        "run_id": collection.run_id,
        "source_url": listing["source_url"],
        "config": json.dumps(config.deciding_settings(), sort_keys=True),
        "eps": repr(eps),
        "weights_digest": WEIGHTS_DIGEST,
        "is_complete": json.dumps(collection.num_missing == 0),
        "recall": repr(neighbors.recall),
        "is_search_exact": json.dumps(is_search_exact),
        "num_ignored": listing["num_ignored"],
        "counts": count_decisions(table, eps=eps).model_dump_json(),
        "schema_version": str(SCHEMA_VERSION),
    }
    metadata[DIGEST] = manifest_digest(table, metadata)
    table = table.replace_schema_metadata(metadata)
    url = storage.join(collection.run_url, "manifest.parquet")
    storage.publish_table(url, table)
    logger.info("manifest %s", url)
    return Manifest(url=url, run_url=collection.run_url)


def manifest_table(
    images: pa.Table, clusters: pa.Table, keepers: pa.Table, *, eps: float
) -> pa.Table:
    """Write one decision per image.

    Args:
        images: Table of `schemas.IMAGES`, sorted by URL.
        clusters: Table of `schemas.CLUSTERS`.
        keepers: Table of `schemas.KEEPERS`.
        eps: Largest cosine distance at which an image counts as a twin.

    Returns:
        A table of `schemas.MANIFEST`, sorted by URL.
    """
    label_of = dict(
        zip(clusters["image_id"].to_pylist(), clusters["cluster_id"].to_pylist(), strict=True)
    )
    keeper_of = {row["image_id"]: row for row in keepers.to_pylist()}
    rows = images.to_pylist()
    image_of = {row["image_id"]: row for row in rows}
    decisions = []
    for row in rows:
        cluster_id = label_of.get(row["image_id"], -1)
        keeper = keeper_of.get(row["image_id"])
        decision: dict[str, Any] = {
            **{name: row[name] for name in ("url", "size_bytes", "etag", "sha256")},
            "cluster_id": cluster_id,
            "keeper_url": None,
            "distance": None,
        }
        if row["error"] is not None:
            decision |= {"action": "skip", "reason": reason_to_skip(row["error"])}
        elif keeper is None:
            decision |= {"action": "keep", "reason": "unique" if cluster_id == -1 else "keeper"}
        else:
            twin = image_of[keeper["keeper_id"]]
            decision |= {
                "action": "remove",
                "keeper_url": twin["url"],
                "distance": keeper["distance"],
                "reason": reason_to_remove(
                    is_copy=row["sha256"] == twin["sha256"], distance=keeper["distance"], eps=eps
                ),
            }
        decisions.append(decision)
    return pa.Table.from_pylist(decisions, schema=MANIFEST)


def reason_to_skip(error: str) -> str:
    """Why an image without a feature is left alone."""
    return error if error == NOT_EMBEDDED else f"unreadable: {error}"


def reason_to_remove(*, is_copy: bool, distance: float, eps: float) -> str:
    """Why an image can go; `same cluster` says that its keeper is no twin within eps."""
    if is_copy:
        return "exact copy"
    return "within eps" if distance <= eps else "same cluster"
