"""Stage 9: the decision for every image, as the contract that another flow carries out."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from config import DedupConfig
from tasks import storage
from tasks.comparisons import Eps
from tasks.errors import ArtifactError
from tasks.manifests import DIGEST, GATED, VERDICTS, manifest_digest
from tasks.partitions import eps_of, eps_of_rows
from tasks.references import (
    Clusters,
    Collection,
    GateCheck,
    Heeded,
    Inventory,
    Keepers,
    Manifest,
    Matches,
    Neighbors,
)
from tasks.schemas import (
    CLUSTERS,
    IMAGES,
    KEEPERS,
    KNOWN,
    MANIFEST,
    MANIFEST_VERSION,
    MATCHES,
    REASONS,
)
from tasks.stage import stage
from tasks.stage04_collect_features import NOT_EMBEDDED
from tasks.summary import count_decisions
from tasks.verdicts import SAME_SCENE, STAYS, Verdicts, read_heeded
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
    gate: GateCheck | None = None,
    matches: Matches | None = None,
) -> Manifest:
    """Publish the manifest of the run."""
    images = storage.read_table(collection.images_url, IMAGES)
    eps = eps_of(images["camera"], config)
    table = manifest_table(
        images,
        storage.read_table(clusters.url, CLUSTERS),
        storage.read_table(keepers.url, KEEPERS),
        eps=eps,
        reasons=read_reasons(keepers),
    )
    if matches is not None:
        table = with_library(
            table,
            images,
            storage.read_table(matches.url, MATCHES),
            eps=eps,
            verdicts=read_heeded(collection.heeded),
        )
    listing = storage.read_metadata(inventory.url)
    is_search_exact = neighbors.depth == 0
    # Only what shapes the decision: one more setting of how it was computed, and two equal
    # nights would no longer have equal bytes.
    metadata = {
        "run_id": collection.run_id,
        "source_url": listing["source_url"],
        "config": json.dumps(config.deciding_settings(), sort_keys=True),
        "eps": repr(config.eps),
        "weights_digest": WEIGHTS_DIGEST,
        "is_complete": json.dumps(collection.num_missing == 0),
        "recall": repr(neighbors.recall),
        "is_search_exact": json.dumps(is_search_exact),
        "num_ignored": listing["num_ignored"],
        **({} if gate is None else {"gate": json.dumps(asdict(gate), sort_keys=True)}),
    }
    return publish_manifest(table, metadata, collection.run_url, collection.heeded)


def publish_manifest(
    table: pa.Table, metadata: Mapping[str, str], run_url: str, heeded: Heeded | None
) -> Manifest:
    """Publish a manifest.

    Args:
        table: Table of `schemas.MANIFEST`.
        metadata: What it says of the run, without what can be counted in it.
        run_url: Folder of the run.
        heeded: What people said of its images.
    """
    said = {} if heeded is None else {"digest": heeded.digest, "of_run": heeded.of_run}
    metadata = {
        **metadata,
        **({VERDICTS: json.dumps(said, sort_keys=True)} if said else {}),
        "counts": count_decisions(table, eps=eps_of_rows(table, metadata)).model_dump_json(),
        "schema_version": str(MANIFEST_VERSION),
    }
    metadata[DIGEST] = manifest_digest(table, metadata)
    url = storage.join(run_url, "manifest.parquet")
    storage.publish_table(url, table.replace_schema_metadata(metadata))
    logger.info("manifest %s", url)
    return Manifest(url=url, run_url=run_url)


def read_reasons(keepers: Keepers) -> pa.Table:
    """Why images stay or go of which people have said something."""
    if keepers.reasons_url is None:
        return REASONS.empty_table()
    return storage.read_table(keepers.reasons_url, REASONS)


def manifest_table(
    images: pa.Table,
    clusters: pa.Table,
    keepers: pa.Table,
    *,
    eps: Eps,
    reasons: pa.Table | None = None,
) -> pa.Table:
    """Write one decision per image.

    Args:
        images: Table of `schemas.IMAGES`, sorted by URL.
        clusters: Table of `schemas.CLUSTERS`.
        keepers: Table of `schemas.KEEPERS`.
        eps: Largest cosine distance at which an image counts as a twin, for all or for each.
        reasons: Table of `schemas.REASONS`: what people said wins over the reasons found here.

    Returns:
        A table of `schemas.MANIFEST`, sorted by URL.
    """
    cluster = pc.index_in(images["image_id"], value_set=clusters["image_id"])
    is_skipped = pc.is_valid(images["error"])
    removal = pc.if_else(
        is_skipped, None, pc.index_in(images["image_id"], value_set=keepers["image_id"])
    )
    twin = pc.index_in(keepers["keeper_id"], value_set=images["image_id"]).take(removal)
    if twin.null_count != removal.null_count:
        num_unknown = twin.null_count - removal.null_count
        raise ArtifactError(f"{num_unknown} keepers are no images of the run")
    cluster_id = pc.fill_null(clusters["cluster_id"].take(cluster), -1)
    distance = keepers["distance"].take(removal)
    is_copy = pc.equal(images["sha256"], images["sha256"].take(twin))
    is_gated = pc.is_valid(pc.coalesce(images["stands_on"], images["stands_on"].take(twin)))
    is_removed = pc.is_valid(removal)
    kept_because = pc.if_else(pc.equal(cluster_id, -1), "unique", "keeper")
    reason = pc.case_when(
        pc.make_struct(is_skipped, is_removed),
        reasons_to_skip(images["error"]),
        reasons_to_remove(is_copy, is_gated, distance, eps=eps),
        kept_because,
    )
    if reasons is not None:
        said = pc.index_in(images["image_id"], value_set=reasons["image_id"])
        reason = pc.coalesce(reasons["reason"].take(said), reason)
    action = pc.case_when(pc.make_struct(is_skipped, is_removed), "skip", "remove", "keep")
    return pa.table(
        {
            **{name: images[name] for name in ("url", "size_bytes", "etag", "sha256")},
            "cluster_id": cluster_id,
            "action": action,
            "keeper_url": images["url"].take(twin),
            "distance": distance,
            "reason": reason,
        },
        MANIFEST,
    )


def with_library(
    manifest: pa.Table, images: pa.Table, matches: pa.Table, *, eps: Eps, verdicts: Verdicts
) -> pa.Table:
    """Let images go for what earlier nights kept.

    Args:
        manifest: The decisions without the library, a table of `schemas.MANIFEST`.
        images: Table of `schemas.IMAGES`, sorted by URL as the manifest is.
        matches: Table of `schemas.MATCHES`.
        eps: Largest cosine distance of a twin, for all images or for each.
        verdicts: What people said of the images; whom they want to stay does.

    Returns:
        A table of `schemas.MANIFEST`, sorted by URL. A keeper that is no image of the night has a
        row of its own, and each has a cluster with the images that go for it.
    """
    if not matches.num_rows:
        return manifest
    first_id = (pc.max(manifest["cluster_id"]).as_py() or 0) + 1
    match = pc.index_in(images["image_id"], value_set=matches["image_id"])
    keeper_url = matches["keeper_url"].take(match)
    twins = matches.take(match)
    word = words_that_keep(images, twins, verdicts)
    is_matched = pc.is_valid(twins["distance"])
    is_scene = are_one_scene(images, twins, verdicts)
    is_near = are_twins(twins["distance"], eps)
    goes = pc.and_(pc.is_null(word), pc.or_(is_near, is_scene))
    distance = pc.if_else(pc.fill_null(goes, False), twins["distance"], None)
    is_twin, is_known = pc.is_valid(distance), pc.and_not(pc.is_valid(match), is_matched)
    keeper_urls = pc.unique(keeper_url.filter(is_twin)).sort()
    number = pc.index_in(pc.if_else(is_twin, keeper_url, images["url"]), value_set=keeper_urls)
    reason = reasons_to_remove(
        pc.equal(images["sha256"], twins["keeper_sha256"]),
        pc.is_valid(images["stands_on"]),
        distance,
        eps=eps,
    )
    reason = pc.if_else(pc.fill_null(is_near, True), reason, SAME_SCENE)
    columns = {
        "cluster_id": pc.coalesce(pc.add(number, first_id), manifest["cluster_id"]),
        "action": pc.if_else(is_twin, "remove", manifest["action"]),
        "keeper_url": pc.if_else(is_twin, keeper_url, manifest["keeper_url"]),
        "distance": pc.if_else(is_twin, distance, manifest["distance"]),
        "reason": pc.case_when(
            pc.make_struct(is_twin, pc.is_valid(word), is_known),
            *(reason, word, KNOWN, manifest["reason"]),
        ),
    }
    decided = pa.table(
        {name: columns.get(name, manifest[name]) for name in MANIFEST.names}, MANIFEST
    )
    elsewhere = keeper_urls.filter(pc.invert(pc.is_in(keeper_urls, value_set=images["url"])))
    kept = matches.take(pc.index_in(elsewhere, value_set=matches["keeper_url"]))
    rows = {
        "url": kept["keeper_url"],
        "size_bytes": kept["keeper_size_bytes"],
        "etag": kept["keeper_etag"],
        "sha256": kept["keeper_sha256"],
        "cluster_id": pc.add(pc.index_in(elsewhere, value_set=keeper_urls), first_id),
        "action": ["library"] * len(elsewhere),
        "keeper_url": pa.nulls(len(elsewhere), pa.string()),
        "distance": pa.nulls(len(elsewhere), pa.float32()),
        "reason": [KNOWN] * len(elsewhere),
    }
    return pa.concat_tables([decided, pa.table(rows, MANIFEST)]).sort_by("url")


def words_that_keep(images: pa.Table, twins: pa.Table, verdicts: Verdicts) -> pa.Array:
    """Find the images that stay because a person said so, though the library has a twin.

    Args:
        images: Columns `url` and `sha256` of `schemas.IMAGES`.
        twins: For each of them a row of `schemas.MATCHES`, or nulls.
        verdicts: What people said of the images.

    Returns:
        The reason of each image that stays, null for all others.
    """
    apart = {pair for pair in verdicts.apart for pair in (pair, pair[::-1])}
    columns = (images["url"], images["sha256"], twins["keeper_sha256"], twins["distance"])

    def word(url: str, content: str, keeper: str, distance: float | None) -> str | None:
        stay = verdicts.stays.get(content)
        if distance is None or (stay is None and (content, keeper) not in apart):
            return None
        if stay is None:
            return f"{STAYS}not a duplicate"
        is_copy = content == keeper and not stay.is_every and url not in stay.urls
        return None if is_copy else f"{STAYS}{stay.because}"

    if not verdicts:
        return pa.nulls(images.num_rows, pa.string())
    rows = zip(*(column.to_pylist() for column in columns), strict=True)
    return pa.array([word(*row) for row in rows], pa.string())


def are_one_scene(images: pa.Table, twins: pa.Table, verdicts: Verdicts) -> pa.Array:
    """Tell which images show one scene with their twin, as a person said.

    Args:
        images: Column `sha256` of `schemas.IMAGES`.
        twins: For each of them a row of `schemas.MATCHES`, or nulls.
        verdicts: What people said of the images.
    """
    scene_of = {
        content: number for number, group in enumerate(verdicts.scenes) for content in group
    }
    if not scene_of:
        return pa.array(np.zeros(images.num_rows, bool))
    pairs = zip(images["sha256"].to_pylist(), twins["keeper_sha256"].to_pylist(), strict=True)
    return pa.array([a in scene_of and scene_of[a] == scene_of.get(b) for a, b in pairs])


def reasons_to_skip(errors: pa.ChunkedArray) -> pa.ChunkedArray:
    """Why images without a feature are left alone."""
    return pc.if_else(
        pc.equal(errors, NOT_EMBEDDED),
        errors,
        pc.binary_join_element_wise("unreadable: ", errors, ""),
    )


def reasons_to_remove(
    is_copy: pa.ChunkedArray, is_gated: pa.ChunkedArray, distances: pa.ChunkedArray, *, eps: Eps
) -> pa.ChunkedArray:
    """Why images can go; `same cluster` says that the keeper is no twin within eps.

    Args:
        is_copy: Whether each image has its keeper's content.
        is_gated: Whether the feature of either is that of a frame it stands on.
        distances: float32 cosine distances to the keeper.
        eps: Largest cosine distance of a twin, for all or for each.
    """
    is_within = are_twins(distances, eps)
    return pc.case_when(
        pc.make_struct(is_copy, pc.and_(is_within, is_gated), is_within),
        "exact copy",
        GATED,
        "within eps",
        "same cluster",
    )


def are_twins(distances: pa.ChunkedArray, eps: Eps) -> pa.ChunkedArray:
    """Tell which float32 distances are within eps, as `distances.within` does; null stays null."""
    largest = pa.array(np.broadcast_to(eps, len(distances)), pa.float64())
    return pc.less_equal(pc.cast(distances, pa.float64()), largest)
