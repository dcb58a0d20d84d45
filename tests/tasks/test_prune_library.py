"""Pruning: what leaves the library, and that everything else stays."""

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tasks import storage
from tasks.library import latest, not_empty, segment_names
from tasks.merge_library import merge_libraries
from tasks.prune_library import PrunedSegment, Pruning, goes, prune_library
from tasks.schemas import LIBRARY
from tasks.segments import read_segments

NOON = datetime(2026, 1, 10, 12, tzinfo=UTC)
MONDAY = "000001-monday-0123456789abcdef.parquet"
TUESDAY = "000002-tuesday-0123456789abcdef.parquet"


def kept(name: str, days_ago: float, **values: Any) -> dict[str, Any]:
    return {
        "image_id": name,
        "url": f"file:///nowhere/{name}.jpg",
        "size_bytes": 1,
        "etag": "e",
        "camera": "",
        "captured_at": NOON - timedelta(days=days_ago),
        "sha256": "ab",
        "feature": np.zeros(512, np.float32),
    } | values


@pytest.fixture
def workspace(place: str) -> str:
    segments = {MONDAY: [kept("a", 9), kept("b", 8)], TUESDAY: [kept("c", 8), kept("d", 7)]}
    for name, rows in segments.items():
        table = pa.Table.from_pylist(rows, LIBRARY).replace_schema_metadata({"night_id": name})
        storage.publish_table(f"{place}/library/f/{name}", table)
    return storage.absolute_url(place)


def images_in(workspace: str) -> dict[str, list[str]]:
    library = f"{workspace}/library/f"
    return {
        name[:14]: storage.read_table(f"{library}/{name}", LIBRARY)["image_id"].to_pylist()
        for name in latest(segment_names(library))
    }


def test_old_images_leave_and_the_others_stay(workspace: str) -> None:
    library = f"{workspace}/library/f"
    pruning = Pruning(captured_before=NOON - timedelta(days=7.5))

    pruned = prune_library(workspace, pruning, execute=True)

    assert pruned == [
        PrunedSegment(f"{library}/{MONDAY}", 2, 2),
        PrunedSegment(f"{library}/{TUESDAY}", 2, 1),
    ]
    assert images_in(workspace) == {"000001-monday-": [], "000002-tuesday": ["d"]}
    monday, tuesday = segment_names(library)
    assert not_empty([monday, tuesday]) == [tuesday]
    assert storage.read_metadata(f"{library}/{tuesday}")["night_id"] == TUESDAY
    assert prune_library(workspace, pruning, execute=True) == []


def test_without_execute_nothing_changes(workspace: str) -> None:
    before = segment_names(f"{workspace}/library/f")

    pruned = prune_library(workspace, Pruning(captured_before=NOON), execute=False)

    assert [segment.num_pruned for segment in pruned] == [2, 2]
    assert segment_names(f"{workspace}/library/f") == before


def test_workspace_without_library_has_nothing_to_prune(place: str) -> None:
    assert prune_library(place, Pruning(is_gone=True), execute=True) == []


@pytest.mark.parametrize(
    ("pruning", "found"),
    [
        (Pruning(), [True, True, True]),
        (Pruning(captured_before=NOON - timedelta(days=5)), [True, False, False]),
        (Pruning(partition="^ea"), [False, True, True]),
        (Pruning(captured_before=NOON, partition="east"), [False, True, True]),
        (Pruning(captured_before=NOON - timedelta(days=5), partition="east"), [False] * 3),
    ],
)
def test_everything_said_must_hold(pruning: Pruning, found: list[bool]) -> None:
    rows = [kept("a", 9), kept("b", 5, camera="east"), kept("c", 1, camera="east")]
    assert goes(pa.Table.from_pylist(rows, LIBRARY), pruning).to_pylist() == found


def test_gone_is_what_is_no_longer_the_file_it_was(place: str) -> None:
    for name in "abc":
        storage.publish_bytes(f"{place}/images/{name}.jpg", name.encode())
    files = storage.list_files(storage.absolute_url(f"{place}/images"))
    rows = [
        kept("x", 1, url=file.url, size_bytes=file.size_bytes, etag=file.etag) for file in files
    ]
    storage.publish_bytes(files[1].url, b"another one")
    fs, path = storage.filesystem(files[2].url)
    fs.rm_file(path)

    found = goes(pa.Table.from_pylist(rows, LIBRARY), Pruning(is_gone=True))

    assert found.to_pylist() == [False, True, True]


def test_images_in_a_merged_file_leave_as_well(workspace: str) -> None:
    merge_libraries(workspace)
    pruning = Pruning(captured_before=NOON - timedelta(days=7.5))

    pruned = prune_library(workspace, pruning, execute=True)

    assert [segment.num_pruned for segment in pruned] == [2, 1]
    assert prune_library(workspace, pruning, execute=True) == []
    merge_libraries(workspace)
    library = f"{workspace}/library/f"
    assert len(storage.list_parquet(library)) == 1
    parts = read_segments(library, segment_names(library), ["image_id"])
    assert [rows["image_id"].to_pylist() for _, rows in parts] == [["d"]]
