"""Merges the many small segments of a library into a few large files, beside running nights.

A merged file appears before what it replaces goes, and what goes has been compared with what was
read back. A file is named by its segments, and a segment by what it holds: so whatever is killed or
merged twice, any two files that hold a segment hold the same rows of it.
"""

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from tasks import storage
from tasks.errors import ArtifactError, MissingArtifactError
from tasks.library import features_of
from tasks.references import Compaction
from tasks.schemas import LIBRARY, SCHEMA_VERSION
from tasks.segments import (
    SEGMENTS,
    Place,
    Segment,
    find_segments,
    is_of_another_release,
    listed,
    look_at_file,
    merged_name,
    places_in,
)
from tasks.stores import FileState, store_of

logger = logging.getLogger(__name__)

ROWS_PER_FILE = 65_536
"""Rows of a merged file, about: 128 MiB of features. A file of half as many is left as it is."""

_LOOKS_AT_ONCE = 16


@dataclass(frozen=True)
class LibraryFile:
    """A file of a library in the state it was seen in, and the segments in it that count."""

    url: str
    state: FileState
    segments: tuple[tuple[Segment, Place], ...]
    num_hidden: int
    """Segments of which pruning has left something else since, or that lie elsewhere too."""

    @property
    def num_rows(self) -> int:
        """Rows that count."""
        return sum(segment.num_rows for segment, _ in self.segments)

    @property
    def first_name(self) -> str:
        """The first of its segments."""
        return min((segment.name for segment, _ in self.segments), default="")


def merge_libraries(workspace_url: str) -> list[Compaction]:
    """Merge the small files of every library of a workspace.

    Raises:
        StorageError: The workspace is neither on a local disk nor on S3.
        ArtifactError: A segment is damaged.
    """
    folder_url = storage.join(storage.absolute_url(workspace_url), "library")
    libraries = storage.list_names(folder_url)
    return [merge_library(url) for url in libraries if not is_of_another_release(url)]


def merge_library(library: str, rows_per_file: int = ROWS_PER_FILE) -> Compaction:
    """Merge the small files of one library.

    Args:
        library: Folder of segments.
        rows_per_file: Rows of a merged file, about.
    """
    num_before = len(storage.list_parquet(library))
    try:
        files = look_at_files(library)
        for batch in batches(files, rows_per_file):
            merge(batch, library)
    except MissingArtifactError as error:
        logger.info("somebody else tidies this library: %s", error)
    return Compaction(library, num_before, len(storage.list_parquet(library)))


def look_at_files(library: str) -> list[LibraryFile]:
    """Look at the files of a library.

    Raises:
        MissingArtifactError: One has gone meanwhile.
    """
    counting = find_segments(library)

    def look(url: str) -> LibraryFile | None:
        state = store_of(url).stat(url)
        places = dict(places_in(url))
        if state is None or not places:
            return None
        own = [(name, place) for name, place in places.items() if counting.get(name) == place]
        return LibraryFile(
            url,
            state,
            tuple((place.segment or look_at_file(url), place) for _, place in own),
            num_hidden=len(places) - len(own),
        )

    with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
        return [file for file in pool.map(look, storage.list_parquet(library)) if file]


def batches(files: Iterable[LibraryFile], rows_per_file: int) -> Iterator[list[LibraryFile]]:
    """Say which files become one: nights side by side, small ones and those with hidden rows."""
    batch: list[LibraryFile] = []
    for file in sorted(files, key=lambda file: (file.first_name, file.url)):
        if file.num_hidden or 2 * file.num_rows < rows_per_file:
            batch.append(file)
        if sum(each.num_rows for each in batch) >= rows_per_file:
            yield batch
            batch = []
    yield batch


def merge(files: Sequence[LibraryFile], library: str) -> None:
    """Publish the segments of some files as one file and delete what it replaces.

    Raises:
        ArtifactError: What was published is not what was read back; nothing was deleted.
        MissingArtifactError: A file has gone meanwhile; nothing was deleted.
    """
    if len(files) < 2 and not any(file.num_hidden for file in files):
        return
    segments = sorted(
        (pair for file in files for pair in file.segments), key=lambda pair: pair[0].name
    )
    url = storage.join(library, merged_name([segment.name for segment, _ in segments]))
    if segments:
        publish_merged(url, segments)
    # First what was hidden: else it would count again, were this killed halfway.
    for file in sorted(files, key=lambda file: bool(file.segments)):
        if file.url != url:
            store_of(file.url).discard(file.url, file.state)
    logger.info("merged %d files with %d segments: %s", len(files), len(segments), url)


def publish_merged(url: str, segments: Sequence[tuple[Segment, Place]]) -> None:
    """Publish segments as one file, and read it back."""
    filled = [(segment, place) for segment, place in segments if segment.num_rows]
    contents = [
        segment if segment.num_rows else replace(segment, num_groups=0) for segment, _ in segments
    ]
    metadata = {SEGMENTS: listed(contents), "schema_version": str(SCHEMA_VERSION)}
    if not storage.exists(url):
        storage.publish_tables(url, row_groups(filled), LIBRARY.with_metadata(metadata))
    with storage.open_table(url, LIBRARY) as merged:
        for group, rows in enumerate(row_groups(filled)):
            if group >= merged.num_groups or not are_same(merged.read(group, LIBRARY.names), rows):
                raise ArtifactError(f"expected the rows that were published, found others: {url}")


def row_groups(segments: Iterable[tuple[Segment, Place]]) -> Iterator[pa.Table]:
    """Read segments row group by row group, as they are cut where they lie."""
    for url, in_file in itertools.groupby(segments, key=lambda pair: pair[1].url):
        with storage.open_table(url, LIBRARY) as table:
            for segment, place in in_file:
                for group in range(place.first_group, place.first_group + segment.num_groups):
                    yield table.read(group, LIBRARY.names).cast(LIBRARY)


def are_same(rows: pa.Table, others: pa.Table) -> bool:
    """Tell whether two tables of `schemas.LIBRARY` are the same, bit by bit."""
    # Arrow finds no feature with a NaN in it equal to itself.
    bits, other_bits = (features_of(table).view(np.uint32) for table in (rows, others))
    same: bool = rows.drop_columns("feature").equals(others.drop_columns("feature"))
    return same and np.array_equal(bits, other_bits)
