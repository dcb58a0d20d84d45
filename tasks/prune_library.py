"""Takes images out of the library: those that are too old, or that are gone from their place."""

import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from tasks import storage
from tasks.errors import MissingArtifactError
from tasks.library import ROWS_PER_GROUP, file_names, latest, pruned_name
from tasks.schemas import LIBRARY, SCHEMA_VERSION
from tasks.stores import store_of

logger = logging.getLogger(__name__)

_LOOKS_AT_ONCE = 16


@dataclass(frozen=True)
class Pruning:
    """What the library loses, and why."""

    captured_before: datetime | None = None
    """Images captured before it go."""
    partition: str | None = None
    """Regular expression: only images of partitions in which it is found go."""
    is_gone: bool = False
    """Only images that are no longer in their place go, or that are another file by now."""


@dataclass(frozen=True)
class PrunedSegment:
    """What became of one segment."""

    url: str
    num_images: int
    num_pruned: int


def prune_library(workspace_url: str, pruning: Pruning, *, execute: bool) -> list[PrunedSegment]:
    """Take images out of the libraries of a workspace. No image is touched.

    Args:
        workspace_url: The workspace.
        pruning: Which images go.
        execute: Do it; otherwise only say what would be done.

    Returns:
        The segments that lose images.
    """
    folder_url = storage.join(storage.absolute_url(workspace_url), "library")
    pruned: list[PrunedSegment] = []
    for library in storage.list_names(folder_url):
        for name in latest(file_names(library)):
            pruned += _prune_segment(library, name, pruning, execute=execute)
    return pruned


def _prune_segment(
    library: str, name: str, pruning: Pruning, *, execute: bool
) -> Iterator[PrunedSegment]:
    url = storage.join(library, name)
    try:
        version = storage.read_metadata(url).get("schema_version", str(SCHEMA_VERSION))
        if version != str(SCHEMA_VERSION):
            logger.info("left alone, for another release wrote it: %s", url)
            return
        state = store_of(url).stat(url)
        table = storage.read_table(url, LIBRARY)
    except MissingArtifactError:
        return
    left = table.filter(pc.invert(goes(table, pruning)))
    if left.num_rows == table.num_rows or state is None:
        return
    if execute and left.num_rows:
        new_url = storage.join(library, pruned_name(name, left["image_id"].to_pylist()))
        storage.publish_table(new_url, left, rows_per_group=ROWS_PER_GROUP)
    if execute:
        store_of(url).discard(url, state)
    logger.info(
        "%d of %d images leave the library: %s", table.num_rows - left.num_rows, table.num_rows, url
    )
    yield PrunedSegment(url, table.num_rows, table.num_rows - left.num_rows)


def goes(table: pa.Table, pruning: Pruning) -> pa.Array:
    """Tell which rows of `schemas.LIBRARY` go: all that everything said of them holds for."""
    found = pa.array([True] * table.num_rows, pa.bool_())
    if pruning.captured_before is not None:
        before = pa.scalar(pruning.captured_before, table.schema.field("captured_at").type)
        found = pc.and_(found, pc.less(table["captured_at"], before))
    if pruning.partition is not None:
        pattern = re.compile(pruning.partition)
        is_named = [pattern.search(camera) is not None for camera in table["camera"].to_pylist()]
        found = pc.and_(found, pa.array(is_named, pa.bool_()))
    if pruning.is_gone:
        with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
            rows = table.select(["url", "size_bytes", "etag"]).to_pylist()
            found = pc.and_(found, pa.array(list(pool.map(_is_gone, rows)), pa.bool_()))
    return found


def _is_gone(row: dict[str, object]) -> bool:
    url = str(row["url"])
    state = store_of(url).stat(url)
    return state is None or (state.size_bytes, state.etag) != (row["size_bytes"], row["etag"])
