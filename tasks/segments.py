"""Where the segments of a library lie: in a file each, or many in a merged one.

A merged file has the rows of each segment as row groups of their own and lists the segments in its
metadata, so a segment keeps its name and its rows wherever it lies. It appears before the files go
that it replaces. What pruning leaves of a segment is a file of its own, even if it is empty. Of the
segments with one number and night only one counts: one with a file of its own before one in a
merged file, and else the smaller one, since pruning only takes away.
"""

import itertools
import json
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import NamedTuple

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from tasks import storage
from tasks.errors import ArtifactError, MissingArtifactError
from tasks.schemas import LIBRARY, SCHEMA_VERSION, fingerprint

logger = logging.getLogger(__name__)

SEGMENTS = "segments"
"""The metadata entry that lists the segments of a merged file."""

SEGMENT_NAME = re.compile(r"(?P<number>\d{6})-(?P<night_id>.+)-(?P<decision>[0-9a-f]{16})\.parquet")

_MERGED_NAME = re.compile(r"merged-[0-9a-f]{16}\.parquet")
_MAX_TRIES = 5


@dataclass(frozen=True)
class Segment:
    """What is known of a segment."""

    name: str
    num_rows: int
    num_groups: int
    metadata: dict[str, str]
    """All that it says of itself: the night and the run that it is of."""


class Place(NamedTuple):
    """Where a segment lies."""

    url: str
    first_group: int = 0
    segment: Segment | None = None
    """None where it is a file of its own, which says all that itself."""


def merged_name(names: list[str]) -> str:
    """Name a merged file by its segments."""
    return f"merged-{fingerprint(names)}.parquet"


def find_segments(library: str) -> dict[str, Place]:
    """Find the segments that count, by name, in the order in which they came.

    Args:
        library: Folder of segments.
    """
    of_head: dict[str, tuple[tuple[bool, int, str], Place]] = {}
    for url, num_bytes in _list(library).items():
        for name, place in places_in(url):
            head = name.rpartition("-")[0]
            size = num_bytes if place.segment is None else place.segment.num_rows
            candidate = ((place.segment is not None, size, name), place)
            of_head[head] = min(candidate, of_head.get(head, candidate), key=lambda each: each[0])
    return {rank[2]: place for rank, place in sorted(of_head.values(), key=lambda each: each[0][2])}


def _list(library: str) -> dict[str, int]:
    """List a folder that others may be changing, and open what is merged in it.

    A listing that was made while a merged file took the place of others may show neither.
    """
    before: dict[str, int] = {}
    for _ in range(_MAX_TRIES):
        found = storage.list_sizes(library, ".parquet")
        try:
            for url in found:
                list(places_in(url))
        except MissingArtifactError:
            continue
        if found == before:
            return found
        before = found
    return before


def places_in(url: str) -> Iterator[tuple[str, Place]]:
    """Say which segments a file holds, and where; none where it is none of a library."""
    name = url.rpartition("/")[2]
    if SEGMENT_NAME.fullmatch(name):
        yield name, Place(url)
    elif _MERGED_NAME.fullmatch(name):
        first_group = 0
        for segment in _contents(url):
            yield segment.name, Place(url, first_group, segment)
            first_group += segment.num_groups


@lru_cache(maxsize=256)
def _contents(url: str) -> list[Segment]:
    """The segments of a merged file, which never changes: its name says what it holds."""
    text = storage.read_metadata(url).get(SEGMENTS, "")
    try:
        segments = TypeAdapter(list[Segment]).validate_json(text)
    except ValidationError:
        segments = []
    if not segments or not all(SEGMENT_NAME.fullmatch(segment.name) for segment in segments):
        raise ArtifactError(f"expected a list of the segments in it: {url}")
    return segments


def read_segments(
    library: str, names: Iterable[str], columns: list[str]
) -> Iterator[tuple[str, pa.Table]]:
    """Read segments, a few thousand rows at a time, while others may be merging them.

    Args:
        library: Folder of segments.
        names: Which, in which order.
        columns: Columns of `schemas.LIBRARY`.

    Yields:
        The name of a segment and some of its rows.

    Raises:
        MissingArtifactError: There is no such segment.
    """
    left = list(names)
    num_groups_read = num_failures = 0
    while left:
        places = find_segments(library)
        missing = [name for name in left if name not in places]
        if missing:
            url = storage.join(library, missing[0])
            raise MissingArtifactError(f"expected a library segment, found nothing: {url}")
        try:
            files = itertools.groupby(list(left), key=lambda name: places[name].url)
            for url, in_file in files:
                with storage.open_table(url, LIBRARY) as table:
                    for name in in_file:
                        for group in groups_of(places[name], table)[num_groups_read:]:
                            yield name, table.read(group, columns)
                            num_groups_read += 1
                            num_failures = 0
                        left.remove(name)
                        num_groups_read = 0
        except MissingArtifactError:
            # It was merged since its place was looked up; its groups are the same there.
            num_failures += 1
            if num_failures == _MAX_TRIES:
                raise


def groups_of(place: Place, table: storage.OpenTable) -> range:
    """The row groups of a segment in the file that it lies in."""
    num_groups = table.num_groups if place.segment is None else place.segment.num_groups
    return range(place.first_group, place.first_group + num_groups)


def look_at_segments(library: str, names: Iterable[str]) -> Iterator[Segment]:
    """Say what is known of some segments."""
    places = find_segments(library)
    for name in names:
        place = places[name]
        yield place.segment or look_at_file(place.url)


def look_at_file(url: str) -> Segment:
    """Say what is known of a segment that is a file of its own."""
    with storage.open_table(url, LIBRARY) as table:
        return Segment(url.rpartition("/")[2], table.num_rows, table.num_groups, table.metadata)


def is_of_another_release(library: str) -> bool:
    """Tell whether a library was written by another release, which knows better what to do with it.

    Its folder is named by the features, whose version is the release's, so one file tells for all.
    """
    for url in storage.list_parquet(library)[:1]:
        if storage.read_metadata(url).get("schema_version") != str(SCHEMA_VERSION):
            logger.info("left alone, for another release wrote it: %s", library)
            return True
    return False


def listed(segments: Iterable[Segment]) -> str:
    """List segments for the metadata of a merged file."""
    return json.dumps([asdict(segment) for segment in segments], sort_keys=True)
