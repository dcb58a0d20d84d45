"""Stage 4: bring the features of the night together and give the run its name."""

import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from config import DedupConfig
from tasks import storage
from tasks.feature_store import iterate_features, read_image_rows, store_url
from tasks.paths import slug
from tasks.references import Collection, Inventory
from tasks.schemas import FEATURE_DIM, IMAGES, INVENTORY, SCHEMA_VERSION, fingerprint
from tasks.stage import stage
from tasks.stage01_list_images import rows_digest
from tasks.weights import WEIGHTS_DIGEST

logger = logging.getLogger(__name__)

DECISION_VERSION = 2
"""Raised when the code of stages 4 to 9 decides differently on the same features."""

NOT_EMBEDDED = "not embedded: its shard failed"


@stage("collect_features")
def collect_features(inventory: Inventory, config: DedupConfig) -> Collection:
    """Publish the table of all images of the run and the matrix of their features."""
    workspace_url = storage.absolute_url(config.workspace_url)
    source_url = storage.absolute_url(config.source_url)
    store = store_url(workspace_url, config.features)
    listed = storage.read_table(inventory.url, INVENTORY)
    rows = read_image_rows(store, set(listed["image_id"].to_pylist()))
    images = image_table(listed, rows)
    readable = images.filter(pc.is_valid(images["item_id"]))

    settings = config.deciding_settings()
    versions = [WEIGHTS_DIGEST, DECISION_VERSION, SCHEMA_VERSION]
    read = rows_digest(images, ["url", "etag", "camera", "captured_at", "sha256", "error"])
    decided_by = fingerprint(source_url, inventory.night_id, settings, versions, read)
    run_id = f"{slug(source_url)}-{decided_by}"
    run_url = storage.join(workspace_url, "runs", run_id)
    collection = Collection(
        run_id=run_id,
        run_url=run_url,
        images_url=storage.join(run_url, "images.parquet"),
        features_url=storage.join(run_url, "features.npy"),
        num_images=images.num_rows,
        num_items=readable.num_rows,
        largest_partition=max(Counter(readable["camera"].to_pylist()).values(), default=0),
        num_missing=pc.sum(pc.equal(images["error"], NOT_EMBEDDED)).as_py() or 0,
    )
    storage.publish_table(
        collection.images_url,
        images.replace_schema_metadata(
            {"source_url": source_url, "settings": json.dumps(settings, sort_keys=True)}
        ),
    )
    item_of = dict(
        zip(readable["image_id"].to_pylist(), readable["item_id"].to_pylist(), strict=True)
    )
    storage.publish(collection.features_url, lambda path: _write_matrix(path, store, item_of))
    logger.info("run %s: %d of %d images have a feature", run_id, len(item_of), images.num_rows)
    return collection


def image_table(listed: pa.Table, rows: pa.Table) -> pa.Table:
    """Join the inventory with what was found out about its images.

    Args:
        listed: Table of `schemas.INVENTORY`.
        rows: Table of `schemas.FEATURES` without `feature`, at most one row per image.

    Returns:
        A table of `schemas.IMAGES`, sorted by URL. Images with a feature have dense item_ids in
        the order of camera and URL, so that a camera is one range of items.
    """
    found = {row["image_id"]: row for row in rows.to_pylist()}
    nothing = dict.fromkeys(("sha256", "width", "height", "sharpness"))
    images = []
    for image in listed.to_pylist():
        row = found.get(image["image_id"])
        learned = {name: row[name] for name in nothing} if row else nothing
        error = image["error"] or (row["error"] if row else NOT_EMBEDDED)
        images.append({**image, **learned, "error": error, "item_id": None})
    items = sorted(
        (image for image in images if image["error"] is None),
        key=lambda image: (image["camera"], image["url"]),
    )
    for item_id, image in enumerate(items):
        image["item_id"] = item_id
    images.sort(key=lambda image: image["url"])
    return pa.Table.from_pylist(images, schema=IMAGES)


def _write_matrix(path: Path, store: str, item_of: dict[str, int]) -> None:
    matrix = np.zeros((len(item_of), FEATURE_DIM), np.float32)
    for items, features in iterate_features(store, item_of):
        matrix[items] = features
    # Written plainly: on a full disk a memory map would kill the process, and np.save hides why.
    with path.open("wb") as file:
        header = np.lib.format.header_data_from_array_1_0(matrix)
        np.lib.format.write_array_header_1_0(file, header)
        file.write(matrix.data)
