"""The feature store: a folder of Parquet files for each way of turning an image into a feature."""

import json
import logging
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from config import FeatureSettings
from tasks import storage
from tasks.images import DECODER
from tasks.schemas import FEATURE_DIM, FEATURES, SCHEMA_VERSION, fingerprint
from tasks.vgg16_openvino import QUANTIZATION_DIGEST
from tasks.weights import WEIGHTS_DIGEST

logger = logging.getLogger(__name__)

STAGE_VERSION = 1
"""Raised when the code turns the same bytes into another feature."""

GONE = "file is gone"
"""Error of an image that vanished between listing and reading. It is looked for again next time."""


def feature_fingerprint(settings: FeatureSettings) -> str:
    """Name everything that shapes a feature: weights, settings, 8-bit ranges and code."""
    shaping = settings.model_dump(mode="json")
    if settings.pooling != "gem":
        del shaping["gem_p"]
    if settings.engine == "tensorflow":
        del shaping["engine"]  # so features of the time before there were two are still found
    if settings.dtype == "int8":
        shaping["quantization"] = QUANTIZATION_DIGEST
    return fingerprint(WEIGHTS_DIGEST, shaping, STAGE_VERSION, SCHEMA_VERSION)


def store_url(workspace_url: str, settings: FeatureSettings) -> str:
    """The folder of the feature files that these settings give."""
    return storage.join(workspace_url, "features", feature_fingerprint(settings))


def feature_metadata(settings: FeatureSettings) -> dict[str, str]:
    """What every feature file says of itself."""
    return {
        "fingerprint": feature_fingerprint(settings),
        "weights_digest": WEIGHTS_DIGEST,
        "settings": json.dumps(settings.model_dump(mode="json"), sort_keys=True),
        "decoder": DECODER,
        "schema_version": str(SCHEMA_VERSION),
    }


def feature_files(store: str) -> list[str]:
    """The files of a store, sorted; one with another fingerprint does not belong there."""
    files = []
    for url in storage.list_parquet(store):
        found = storage.read_metadata(url).get("fingerprint")
        if store.endswith(f"/{found}"):
            files.append(url)
        else:
            logger.warning("left out, because its fingerprint is %s: %s", found, url)
    return files


def settled_image_ids(store: str) -> set[str]:
    """The images that need no further look.

    Those are all with a feature, and the unreadable ones that this very decoder could not read.
    """
    settled: set[str] = set()
    for url in feature_files(store):
        rows = storage.read_table(url, FEATURES, ["image_id", "error"])
        is_settled = pc.is_null(rows["error"])
        if storage.read_metadata(url).get("decoder") == DECODER:
            is_settled = pc.or_(is_settled, pc.fill_null(pc.not_equal(rows["error"], GONE), False))
        settled.update(rows["image_id"].filter(is_settled).to_pylist())
    return settled


def read_image_rows(store: str, image_ids: set[str]) -> pa.Table:
    """Read all but the features of some images.

    Args:
        store: Folder of feature files.
        image_ids: The images wanted.

    Returns:
        A table of `schemas.FEATURES` without `feature`, at most one row per image, sorted by
        image_id; a row with a feature wins over one with an error, and any error over
        "file is gone".
    """
    columns = [name for name in FEATURES.names if name != "feature"]
    wanted = pa.array(sorted(image_ids), pa.string())
    tables = [FEATURES.empty_table().select(columns)]
    for url in feature_files(store):
        rows = storage.read_table(url, FEATURES, columns).replace_schema_metadata(None)
        tables.append(rows.filter(pc.is_in(rows["image_id"], value_set=wanted)))
    found = pa.concat_tables(tables)
    rank = pc.case_when(
        pc.make_struct(pc.is_null(found["error"]), pc.equal(found["error"], GONE)),
        pa.scalar(0),
        pa.scalar(2),
        pa.scalar(1),
    )
    rows = found.append_column("rank", rank).sort_by(
        [("image_id", "ascending"), ("rank", "ascending"), ("error", "ascending")]
    )
    names = rows["image_id"].to_numpy(zero_copy_only=False).astype(str)
    _, first = np.unique(names, return_index=True)
    return rows.take(pa.array(first, pa.int64())).drop_columns("rank")


def iterate_features(
    store: str, item_of: dict[str, int]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Read the features of some images, file by file.

    Args:
        store: Folder of feature files.
        item_of: Item of each wanted image_id.

    Yields:
        `(n,)` int64 items and their `(n, 512)` float32 features; an item may come twice.
    """
    wanted = pa.array(sorted(item_of), pa.string())
    for url in feature_files(store):
        rows = storage.read_table(url, FEATURES, ["image_id", "feature"])
        keep = pc.and_(pc.is_valid(rows["feature"]), pc.is_in(rows["image_id"], value_set=wanted))
        rows = rows.filter(keep).combine_chunks()
        if rows.num_rows:
            items = np.array([item_of[name] for name in rows["image_id"].to_pylist()], np.int64)
            values = rows["feature"].chunk(0).flatten().to_numpy()
            yield items, values.reshape(-1, FEATURE_DIM)
