"""Stage 4: bring the features of the night together and give the run its name."""

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from config import DedupConfig
from tasks import storage
from tasks.feature_store import gate_name, iterate_features, read_image_rows, store_url
from tasks.paths import slug
from tasks.references import Collection, GateCheck, Heeded, Inventory, Library
from tasks.schemas import FEATURE_DIM, IMAGES, INVENTORY, ITEMS, SCHEMA_VERSION, fingerprint
from tasks.stage import stage
from tasks.stage01_list_images import rows_digest
from tasks.verdicts import Verdicts, read_verdicts
from tasks.views import view_names
from tasks.weights import WEIGHTS_DIGEST

logger = logging.getLogger(__name__)

DECISION_VERSION = 4
"""Raised when the code of stages 4 to 9 decides differently on the same features."""

NOT_EMBEDDED = "not embedded: its shard failed"


@stage("collect_features")
def collect_features(
    inventory: Inventory,
    config: DedupConfig,
    gate: GateCheck | None = None,
    library: Library | None = None,
) -> Collection:
    """Publish the table of all images of the run and the matrix of their features."""
    is_gated = gate is not None and gate.is_trusted
    workspace_url = storage.absolute_url(config.workspace_url)
    source_url = storage.absolute_url(config.source_url)
    store = store_url(workspace_url, config.features)
    listed = storage.read_table(inventory.url, INVENTORY)
    views = view_names(listed["camera"], config)
    gate_of_night = gate_name(config) if is_gated else None
    rows = read_image_rows(store, listed["image_id"], gate_of_night, views=views)
    images = image_table(listed, views, rows)
    readable = images.filter(pc.is_valid(images["item_id"]))

    settings = config.deciding_settings()
    versions = [WEIGHTS_DIGEST, DECISION_VERSION, SCHEMA_VERSION]
    read = rows_digest(
        images,
        ["url", "etag", "camera", "captured_at", "background", "sha256", "error", "stands_on"],
    )
    checked = None if gate is None else asdict(gate)
    earlier = None if library is None else library.names
    decided_by = fingerprint(
        source_url, inventory.night_id, earlier, settings, versions, read, checked
    )
    undisputed_id = f"{slug(source_url)}-{decided_by}"
    verdicts = verdicts_among(images, read_verdicts(workspace_url))
    run_id = reviewed_id(undisputed_id, verdicts)
    run_url = storage.join(workspace_url, "runs", run_id)
    collection = Collection(
        run_id=run_id,
        run_url=run_url,
        images_url=storage.join(run_url, "images.parquet"),
        features_url=storage.join(run_url, "features.npy"),
        num_images=images.num_rows,
        num_items=readable.num_rows,
        largest_partition=pc.max(pc.value_counts(readable["camera"]).field("counts")).as_py() or 0,
        num_missing=pc.sum(pc.equal(images["error"], NOT_EMBEDDED)).as_py() or 0,
        heeded=publish_verdicts(verdicts, run_url, undisputed_id),
    )
    storage.publish_table(
        collection.images_url,
        images.replace_schema_metadata(
            {
                "source_url": source_url,
                "night_id": inventory.night_id,
                "settings": json.dumps(settings, sort_keys=True),
            }
        ),
    )
    featured = rows.filter(pc.is_in(rows["image_id"], value_set=readable["image_id"]))
    position = pc.index_in(featured["image_id"], value_set=readable["image_id"])
    items = readable["item_id"].take(position).to_numpy()
    storage.publish(
        collection.features_url,
        lambda path: write_matrix(
            path,
            len(items),
            ((items[at], features) for at, features in iterate_features(store, featured)),
        ),
    )
    logger.info("run %s: %d of %d images have a feature", run_id, len(items), images.num_rows)
    return collection


def verdicts_among(images: pa.Table, verdicts: Verdicts) -> Verdicts:
    """What people said of the readable images of a run.

    Args:
        images: Columns `url`, `sha256` and `item_id` of `schemas.IMAGES`.
        verdicts: Of all contents.
    """
    readable = images.filter(pc.is_valid(images["item_id"]))
    columns = (readable[name].to_pylist() for name in ("url", "sha256"))
    return verdicts.among(zip(*columns, strict=True))


def reviewed_id(undisputed_id: str, verdicts: Verdicts) -> str:
    """Name a run that heeds verdicts; without any, it keeps its name.

    Args:
        undisputed_id: Its id had nobody said anything.
        verdicts: What people said of its images.
    """
    if not verdicts:
        return undisputed_id
    name = undisputed_id.rpartition("-")[0]
    return f"{name}-{fingerprint(undisputed_id, verdicts.digest)}"


def publish_verdicts(verdicts: Verdicts, run_url: str, undisputed_id: str) -> Heeded | None:
    """Publish what a run heeds; None without anything."""
    if not verdicts:
        return None
    url = storage.join(run_url, "verdicts.json")
    storage.publish_bytes(url, verdicts.model_dump_json().encode())
    return Heeded(url=url, digest=verdicts.digest, of_run=undisputed_id)


def image_table(listed: pa.Table, views: pa.ChunkedArray, rows: pa.Table) -> pa.Table:
    """Join the inventory with what was found out about its images.

    Args:
        listed: Table of `schemas.INVENTORY`.
        views: Name of the view of each image.
        rows: Table of `schemas.FEATURES` without `feature`, at most one row per image.

    Returns:
        A table of `schemas.IMAGES`, sorted by URL. Images with a feature have dense item_ids in
        the order of camera and URL, so that a camera is one range of items.
    """
    learned = rows.take(pc.index_in(listed["image_id"], value_set=rows["image_id"]))
    is_unknown = pc.is_null(learned["image_id"])
    error = pc.coalesce(listed["error"], pc.if_else(is_unknown, NOT_EMBEDDED, learned["error"]))
    images = listed.set_column(listed.column_names.index("error"), "error", error)
    order = pc.sort_indices(images, [("camera", "ascending"), ("url", "ascending")])
    order = order.filter(pc.is_null(error.take(order))).to_numpy()
    items = np.full(images.num_rows, -1, np.int32)
    items[order] = np.arange(len(order))
    images = images.append_column("item_id", pa.array(items, mask=items < 0))
    images = images.append_column("view", views)
    for name in ("background", "sha256", "width", "height", "sharpness", "stands_on"):
        images = images.append_column(name, learned[name])
    return images.sort_by("url").select(IMAGES.names).cast(IMAGES)


def item_table(images: pa.Table) -> pa.Table:
    """Map items to images.

    Args:
        images: Columns `item_id` and `image_id` of `schemas.IMAGES`.

    Returns:
        A table of `schemas.ITEMS`, sorted by item_id, dense from 0.
    """
    items = images.filter(pc.is_valid(images["item_id"])).sort_by("item_id")
    return items.select(ITEMS.names).cast(ITEMS)


def write_matrix(
    path: Path, num_items: int, blocks: Iterable[tuple[NDArray[np.int32], NDArray[np.float32]]]
) -> None:
    """Write features as one `.npy` matrix without ever holding it.

    Args:
        path: The file.
        num_items: Rows of the matrix.
        blocks: `(n,)` items and their `(n, 512)` features, in any order, each item once.
    """
    row_bytes = FEATURE_DIM * np.dtype(np.float32).itemsize
    header = {"descr": "<f4", "fortran_order": False, "shape": (num_items, FEATURE_DIM)}
    # Written plainly: on a full disk a memory map would kill the process, and np.save hides why.
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        for items, features in blocks:
            order = np.argsort(items)
            # The images of a shard follow each other, so most of a block is one piece.
            ends = np.flatnonzero(np.diff(items[order]) != 1) + 1
            for piece in np.split(order, ends):
                file.seek(start + int(items[piece[0]]) * row_bytes)
                file.write(np.ascontiguousarray(features[piece], "<f4").data)
