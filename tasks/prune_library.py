"""Takes images out of the library: those that are too old, or that are gone from their place."""

import itertools
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
from tasks.library import ROWS_PER_GROUP, latest, not_empty, pruned_name, segment_names
from tasks.schemas import LIBRARY
from tasks.segments import is_of_another_release, look_at_segments, read_segments
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
    return [
        segment
        for library in storage.list_names(folder_url)
        for segment in _prune_segments(library, pruning, execute=execute)
    ]


def _prune_segments(library: str, pruning: Pruning, *, execute: bool) -> Iterator[PrunedSegment]:
    names = not_empty(latest(segment_names(library)))
    if is_of_another_release(library):
        return
    try:
        parts = read_segments(library, names, LIBRARY.names)
        for name, of_segment in itertools.groupby(parts, key=lambda part: part[0]):
            table = pa.concat_tables([rows for _, rows in of_segment])
            left = table.filter(pc.invert(goes(table, pruning)))
            if left.num_rows == table.num_rows:
                continue
            if execute:
                _replace(library, name, left)
            url = storage.join(library, name)
            num_pruned = table.num_rows - left.num_rows
            logger.info("%d of %d images leave the library: %s", num_pruned, table.num_rows, url)
            yield PrunedSegment(url, table.num_rows, num_pruned)
    except MissingArtifactError as error:
        logger.info("somebody else tidies this library: %s", error)


def _replace(library: str, name: str, left: pa.Table) -> None:
    """Publish what is left of a segment, and then delete its file if it has one of its own."""
    url = storage.join(library, name)
    state = store_of(url).stat(url)
    (segment,) = look_at_segments(library, [name])
    # Even if it is empty: it hides the segment where that lies in a merged file, now or soon.
    storage.publish_table(
        storage.join(library, pruned_name(name, left["image_id"].to_pylist())),
        left.replace_schema_metadata(segment.metadata),
        rows_per_group=ROWS_PER_GROUP,
    )
    if state is not None:
        store_of(url).discard(url, state)


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
