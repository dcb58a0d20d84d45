"""Stage 12: remember what the night keeps, for the nights to come."""

import logging

import pyarrow as pa
import pyarrow.compute as pc

from config import DedupConfig
from tasks import storage
from tasks.cells import open_features
from tasks.feature_store import same_values
from tasks.library import ROWS_PER_GROUP, library_url, segment_name, segment_names
from tasks.references import Collection, Inventory, Manifest
from tasks.schemas import (
    FEATURE_DIM,
    IMAGES,
    KNOWN,
    LIBRARY,
    MANIFEST,
    MATCHES,
    SCHEMA_VERSION,
)
from tasks.stage import stage

logger = logging.getLogger(__name__)


@stage("extend_library")
def extend_library(
    inventory: Inventory, collection: Collection, manifest: Manifest, config: DedupConfig
) -> str:
    """Publish the segment of the night and return its URL; one that is there already stays."""
    folder_url = library_url(storage.absolute_url(config.workspace_url), config.features)
    return publish_segment(folder_url, inventory.night_id, collection, manifest)


def publish_segment(
    folder_url: str, night_id: str, collection: Collection, manifest: Manifest
) -> str:
    """Publish what a run keeps and return its URL; one that is there already stays.

    Args:
        folder_url: The library.
        night_id: The night of the run.
        collection: All images of the run.
        manifest: What was decided about them.
    """
    names = segment_names(folder_url)
    name = segment_name(names, night_id, collection.run_id)
    url = storage.join(folder_url, name)
    if name in names:
        return url
    matches_url = storage.join(manifest.run_url, "matches.parquet")
    has_matches = storage.exists(matches_url)
    kept = kept_images(
        storage.read_table(manifest.url, MANIFEST),
        storage.read_table(collection.images_url, IMAGES),
        storage.read_table(matches_url, MATCHES) if has_matches else MATCHES.empty_table(),
    )
    features = open_features(collection.features_url)[kept["item_id"].to_numpy()]
    table = pa.table(
        {
            **{column: kept[column] for column in LIBRARY.names if column != "feature"},
            "feature": pa.FixedSizeListArray.from_arrays(features.ravel(), FEATURE_DIM),
        },
        LIBRARY,
    ).replace_schema_metadata(
        {
            "night_id": night_id,
            "run_id": collection.run_id,
            "schema_version": str(SCHEMA_VERSION),
        }
    )
    storage.publish_table(url, table, rows_per_group=ROWS_PER_GROUP)
    logger.info("the library has %d images more", table.num_rows)
    return url


def kept_images(manifest: pa.Table, images: pa.Table, matches: pa.Table) -> pa.Table:
    """Choose the images that later nights are compared with.

    They are all that stay, except those that the library has already in the very view, and frames
    that stand on another: their own feature is not known.

    Args:
        manifest: Table of `schemas.MANIFEST`.
        images: Table of `schemas.IMAGES`, of all images of the run.
        matches: Table of `schemas.MATCHES`.

    Returns:
        Rows of `schemas.IMAGES`, sorted by camera and URL.
    """
    stays = manifest.filter(pc.equal(manifest["action"], "keep"))
    known = stays["url"].filter(pc.equal(stays["reason"], KNOWN))
    kept = images.filter(pc.is_in(images["url"], value_set=stays["url"]))
    position = pc.index_in(kept["image_id"], value_set=matches["image_id"])
    is_seen_alike = same_values(matches["keeper_view"].take(position), kept["view"])
    is_known = pc.is_in(kept["url"], value_set=known)
    kept = kept.filter(pc.invert(pc.and_(is_known, is_seen_alike)))
    own = kept.filter(pc.is_null(kept["stands_on"]))
    return own.sort_by([("camera", "ascending"), ("url", "ascending")])
