"""The library: the images that earlier nights kept, one segment for each night.

A segment is named by a number, the night and the run that decided about it. The number says which
came later; a night that is decided anew gets another segment, which takes the place of the first.
Where segments lie is told by `segments`.
"""

import json
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from config import FeatureSettings
from tasks import storage
from tasks.comparisons import Features
from tasks.errors import ArtifactError
from tasks.feature_store import feature_fingerprint
from tasks.references import Library
from tasks.schemas import FEATURE_DIM, fingerprint
from tasks.segments import SEGMENT_NAME, find_segments, read_segments

ROWS_PER_GROUP = 8_192
"""Rows that a night has in memory at a time: 16 MiB of features."""

_NOTHING = fingerprint([])
"""How the name of a segment ends of which pruning has left nothing."""


def library_url(workspace_url: str, settings: FeatureSettings) -> str:
    """The folder of the segments whose features these settings give."""
    return storage.join(workspace_url, "library", feature_fingerprint(settings))


def seen_by(library: str, night_url: str, night_id: str) -> Library:
    """The segments that a night is compared with: those there were when it first asked.

    That is written down in the night, so that the same night, run again, decides the same. Of what
    was pruned since, it sees what is left.

    Args:
        library: Folder of segments.
        night_url: Folder of the night.
        night_id: Its name; what the night itself kept is not compared with.

    Raises:
        ArtifactError: What was written down is damaged.
    """
    url = storage.join(night_url, f"library-{library.rpartition('/')[2]}.json")
    if not storage.exists(url):
        names = not_empty(latest(segment_names(library), besides=night_id))
        storage.publish_bytes(url, json.dumps(names).encode())
    try:
        written = json.loads(storage.read_bytes(url))
    except ValueError:
        written = None
    if not isinstance(written, list) or not all(
        isinstance(name, str) and SEGMENT_NAME.fullmatch(name) for name in written
    ):
        raise ArtifactError(f"expected a list of library segments: {url}")
    return Library(folder_url=library, names=tuple(_present(written, segment_names(library))))


def _present(names: list[str], found: list[str]) -> Iterator[str]:
    """The segments that are still there, and what has taken the place of the others."""
    there = set(found)
    left_of = {head_of(name): name for name in found}
    last_of = {night_of(name): name for name in latest(found)}
    for name in names:
        now = left_of.get(head_of(name), last_of.get(night_of(name)))
        if name in there:
            yield name
        elif now is not None:
            yield from not_empty([now])


def head_of(name: str) -> str:
    """The number and the night of a segment, which it keeps when it is pruned."""
    return name.rpartition("-")[0]


def night_of(name: str) -> str:
    """The night that a segment is of."""
    match = SEGMENT_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"no library segment: {name}")
    return match["night_id"]


def segment_names(library: str) -> list[str]:
    """Names of the segments of a library, sorted; none where there is no library yet."""
    return list(find_segments(library))


def not_empty(names: Iterable[str]) -> list[str]:
    """Leave out the segments of which pruning has left nothing."""
    return [name for name in names if not name.endswith(f"-{_NOTHING}.parquet")]


def latest(names: Iterable[str], *, besides: str | None = None) -> list[str]:
    """Choose the segment of each night that came last, in the order in which they came.

    Args:
        names: File names; what is no segment is left out.
        besides: A night to leave out.
    """
    of_night: dict[str, str] = {}
    for name in sorted(names):
        match = SEGMENT_NAME.fullmatch(name)
        if match is not None and match["night_id"] != besides:
            of_night[match["night_id"]] = name
    return sorted(of_night.values())


def segment_name(names: Iterable[str], night_id: str, run_id: str) -> str:
    """Name what a run keeps: as the last segment of its night, if that is its own, or anew.

    Args:
        names: File names in the library.
        night_id: The night.
        run_id: The run; the end of its name is that of the decision.
    """
    ending = f"-{night_id}-{run_id[-16:]}.parquet"
    segments = latest(names)
    for name in segments:
        if night_of(name) == night_id and name.endswith(ending):
            return name
    # The last number of all is that of the last segment of some night.
    number = max((int(name[:6]) for name in segments), default=0) + 1
    return f"{number:06}{ending}"


def night_of_run(names: Iterable[str], run_id: str) -> str | None:
    """The night that a run has added to the library; None when it has added nothing."""
    for name in names:
        match = SEGMENT_NAME.fullmatch(name)
        if match is not None and match["decision"] == run_id[-16:]:
            return match["night_id"]
    return None


def pruned_name(name: str, image_ids: list[str]) -> str:
    """Name what is left of a segment, even if that is nothing: number and night are the same."""
    return f"{head_of(name)}-{fingerprint(image_ids)}.parquet"


def iterate_segments(library: Library, columns: list[str]) -> Iterator[pa.Table]:
    """Read the library, a few thousand rows at a time, the oldest night first.

    Args:
        library: What to read.
        columns: Columns of `schemas.LIBRARY`.
    """
    for _, rows in read_segments(library.folder_url, library.names, columns):
        yield rows


def features_of(rows: pa.Table) -> Features:
    """The features of rows of `schemas.LIBRARY`: `(n, 512)` float32."""
    values = rows["feature"].combine_chunks().flatten().to_numpy()
    return np.ascontiguousarray(values.reshape(-1, FEATURE_DIM))
