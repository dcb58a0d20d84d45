"""Merging: fewer files, and every reader finds what it found before, whatever is killed when."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import merge_library as merging
from tasks import prune_library as pruning
from tasks import storage
from tasks.errors import ArtifactError, MissingArtifactError
from tasks.library import (
    features_of,
    head_of,
    iterate_segments,
    latest,
    night_of,
    not_empty,
    seen_by,
    segment_name,
    segment_names,
)
from tasks.merge_library import batches, look_at_files, merge, merge_libraries, merge_library
from tasks.prune_library import Pruning, prune_library
from tasks.references import Library
from tasks.schemas import LIBRARY
from tasks.segments import find_segments, look_at_segments, read_segments
from tasks.stores import store_of

DAY = datetime(2026, 1, 1, tzinfo=UTC)


class Killed(BaseException):
    """Whatever ends a process at once."""


def feature_of(image_id: str) -> np.ndarray:
    seed = int(hashlib.sha256(image_id.encode()).hexdigest()[:8], 16)
    return np.random.default_rng(seed).random(512, np.float32)


def publish(library: str, name: str, image_ids: Sequence[str], rows_per_group: int = 2) -> None:
    """Publish a segment; the last letter of an image says on which day it was captured."""
    rows = [
        {
            "image_id": image_id,
            "url": f"file:///{image_id}",
            "size_bytes": 1,
            "etag": "e",
            "camera": "",
            "captured_at": DAY + timedelta(days=int(image_id[-1])),
            "sha256": "ab",
            "feature": feature_of(image_id),
        }
        for image_id in image_ids
    ]
    about = {"night_id": night_of(name), "run_id": f"run-{name[-24:-8]}"}
    table = pa.Table.from_pylist(rows, LIBRARY).replace_schema_metadata(about)
    storage.publish_table(f"{library}/{name}", table, rows_per_group=rows_per_group)


def read(library: str, names: Sequence[str] | None = None) -> list[str]:
    """The images of segments, by default of the last of each night, with their own features."""
    wanted = not_empty(latest(segment_names(library))) if names is None else names
    found: list[str] = []
    for rows in iterate_segments(Library(library, tuple(wanted)), LIBRARY.names):
        expected = [feature_of(image_id) for image_id in rows["image_id"].to_pylist()]
        assert np.array_equal(features_of(rows), np.array(expected).reshape(-1, 512))
        found += rows["image_id"].to_pylist()
    return found


def files_in(library: str) -> list[str]:
    return [url.rpartition("/")[2] for url in storage.list_parquet(library)]


@contextmanager
def killed_at(module: Any, num_discards: int) -> Iterator[None]:
    """Let a process end when it deletes one more file than so many."""

    class Killing:
        def __init__(self, url: str) -> None:
            self._store = store_of(url)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._store, name)

        def discard(self, url: str, state: Any) -> bool:
            nonlocal num_discards
            if not num_discards:
                raise Killed
            num_discards -= 1
            return self._store.discard(url, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "store_of", Killing)
        with suppress(Killed):
            yield


NAMES = [f"{number:06}-night{number}-{number:016x}.parquet" for number in range(1, 8)]


def six_nights(place: str) -> str:
    library = storage.absolute_url(f"{place}/library/f")
    for number, name in enumerate(NAMES[:6]):
        publish(library, name, [f"{number}-{row}" for row in range(number)])
    return library


ALL = [f"{number}-{row}" for number in range(6) for row in range(number)]


def test_merged_segments_are_read_as_before(place: str) -> None:
    library = six_nights(place)
    about = [segment.metadata for segment in look_at_segments(library, NAMES[:6])]

    (merged,) = merge_libraries(place)

    assert (merged.num_files_before, merged.num_files) == (6, 1)
    assert files_in(library)[0].startswith("merged-")
    assert segment_names(library) == NAMES[:6]
    assert read(library) == ALL
    assert read(library, NAMES[4:2:-1]) == [f"{n}-{row}" for n in (4, 3) for row in range(n)]
    pieces = [rows.num_rows for _, rows in read_segments(library, [NAMES[5]], ["image_id"])]
    assert pieces == [2, 2, 1]
    again = list(look_at_segments(library, NAMES[:6]))
    assert [segment.metadata for segment in again] == about
    assert [segment.num_rows for segment in again] == [0, 1, 2, 3, 4, 5]
    merge_library(library)
    assert len(files_in(library)) == 1


def test_nights_that_come_later_join_the_small_file_and_leave_the_large_one(place: str) -> None:
    library = six_nights(place)
    merge_library(library, rows_per_file=10)
    large, small = sorted(files_in(library), key=lambda name: -read_size(library, name))
    publish(library, NAMES[6], ["6-0"])

    merge_library(library, rows_per_file=10)

    assert large in files_in(library)
    assert small in files_in(library)  # it has more than half of what a file may have
    assert read(library) == [*ALL, "6-0"]


def read_size(library: str, name: str) -> int:
    with storage.open_table(f"{library}/{name}", LIBRARY) as table:
        return table.num_rows


def test_segment_that_was_merged_while_it_is_read_is_read_to_its_end(place: str) -> None:
    library = six_nights(place)
    reading = iterate_segments(Library(library, tuple(NAMES[:6])), ["image_id"])
    first = [next(reading) for _ in range(4)]

    merge_library(library)

    pieces = [rows["image_id"].to_pylist() for rows in [*first, *reading]]
    assert [image for piece in pieces for image in piece] == ALL


def test_segment_whose_file_goes_halfway_is_read_on_where_it_was_merged(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = six_nights(place)
    read_group = storage.OpenTable.read

    def vanishing(table: storage.OpenTable, group: int, columns: list[str]) -> pa.Table:
        if (table.num_rows, group) == (5, 1):
            monkeypatch.undo()
            merge_library(library)
            raise MissingArtifactError("as a store says it of a file that is gone")
        return read_group(table, group, columns)

    monkeypatch.setattr(storage.OpenTable, "read", vanishing)
    assert read(library) == ALL
    assert len(files_in(library)) == 1


def test_segment_that_is_nowhere_is_missing(place: str) -> None:
    library = six_nights(place)
    with pytest.raises(
        MissingArtifactError, match=f"a library segment, found nothing: .*{NAMES[6]}"
    ):
        read(library, [NAMES[0], NAMES[6]])


def test_other_merges_and_prunes_meanwhile_lose_nothing(place: str) -> None:
    library = six_nights(place)
    stale = look_at_files(library)
    merge_library(library, rows_per_file=4)

    with pytest.raises(MissingArtifactError):
        merge(stale, library)
    assert read(library) == ALL

    merge_library(library)
    publish(library, NAMES[6], ["6-9"])
    stale = look_at_files(library)
    prune_library(place, Pruning(captured_before=DAY + timedelta(days=1)), execute=True)
    merge(stale, library)  # it knows nothing of what was pruned
    left = [image for image in [*ALL, "6-9"] if not image.endswith("-0")]
    assert read(library) == left
    merge_library(library)
    assert len(files_in(library)) == 1
    assert read(library) == left


def test_what_was_pruned_while_it_was_merged_stays_away(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = six_nights(str(tmp_path))
    published = merging.publish_merged

    def publish_and_prune(*arguments: Any) -> None:
        published(*arguments)
        prune_library(str(tmp_path), Pruning(captured_before=DAY + timedelta(days=9)), execute=True)

    monkeypatch.setattr(merging, "publish_merged", publish_and_prune)
    merge_library(library)
    monkeypatch.undo()

    assert read(library) == []
    merge_library(library)
    assert read(library) == []
    assert segment_name(segment_names(library), "new", "run-0123456789abcdef").startswith("000007-")


@pytest.mark.parametrize("num_discards", range(8))
def test_what_a_killed_prune_has_left_never_comes_back(tmp_path: Any, num_discards: int) -> None:
    library = six_nights(str(tmp_path))
    with killed_at(pruning, 0):
        prune_library(str(tmp_path), Pruning(captured_before=DAY + timedelta(days=1)), execute=True)
    left = [image for image in ALL if image != "1-0"]  # the first that had something to lose
    assert read(library) == left
    assert NAMES[1] in files_in(library)

    with killed_at(merging, num_discards):
        merge_library(library)

    assert read(library) == left
    merge_library(library)
    assert len(files_in(library)) == 1
    assert read(library) == left


def test_nothing_goes_before_what_replaces_it_was_read_back(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = six_nights(str(tmp_path))

    def damaged(url: str, tables: Iterator[pa.Table], schema: pa.Schema) -> None:
        storage.publish_table(url, next(iter(tables)).replace_schema_metadata(schema.metadata))

    monkeypatch.setattr(merging.storage, "publish_tables", damaged)
    with pytest.raises(ArtifactError, match="expected the rows that were published, found others"):
        merge_library(library)
    assert set(NAMES[:6]) < set(files_in(library))


@pytest.mark.parametrize("text", ["", "[]", "{}", '[{"name": "../x", "num_rows": 1}]'])
def test_merged_file_that_does_not_say_what_it_holds_is_refused(tmp_path: Any, text: str) -> None:
    table = LIBRARY.empty_table().replace_schema_metadata({"segments": text})
    storage.publish_table(f"{tmp_path}/merged-0123456789abcdef.parquet", table)
    with pytest.raises(ArtifactError, match=r"expected a list of the segments in it: .*merged-"):
        find_segments(str(tmp_path))


def test_damaged_features_are_merged_bit_by_bit(tmp_path: Any) -> None:
    library = six_nights(str(tmp_path))
    url = f"{library}/{NAMES[1]}"
    table = storage.read_table(url, LIBRARY)
    feature = pa.array([[float("nan")] * 512], LIBRARY.field("feature").type)
    at = LIBRARY.get_field_index("feature")
    storage.publish_table(url, table.set_column(at, LIBRARY.field("feature"), feature))

    merge_library(library)

    ((_, rows),) = read_segments(library, [NAMES[1]], LIBRARY.names)
    assert np.isnan(features_of(rows)).all()


def test_small_files_side_by_side_become_one() -> None:
    sizes = {"a": 3, "b": 9, "c": 4, "d": 2, "e": 5, "f": 1}
    files = [
        merging.LibraryFile(
            name, None, ((merging.Segment(name, size, 1, {}), merging.Place(name)),), name == "b"
        )
        for name, size in sizes.items()
    ]

    found = [[file.url for file in batch] for batch in batches(files, rows_per_file=9)]

    assert found == [["a", "b"], ["c", "d", "f"]]


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[Any, ...]]:
    """What may be done to a library, one after the other."""
    nights, decisions = st.sampled_from("abcd"), st.sampled_from(["0" * 16, "1" * 16, "2" * 16])
    days = st.integers(0, 5)
    kills = st.integers(0, 9)
    steps = st.one_of(
        st.tuples(st.just("extend"), nights, decisions, st.lists(days, max_size=5)),
        st.tuples(st.just("merge"), st.sampled_from([1, 4, 1_000]), kills),
        st.tuples(st.just("prune"), days, kills),
        st.tuples(st.just("pin"), nights),
    )
    return draw(st.lists(steps, max_size=14))


@settings(max_examples=80)
@given(history=histories())
def test_library_is_what_was_added_to_it_and_not_pruned(
    history: list[tuple[Any, ...]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = storage.absolute_url(str(tmp_path_factory.mktemp("w")))
    library = f"{place}/library/f"
    storage.make_folder(library)
    rows_of: dict[str, list[str]] = {}  # by number and night
    pinned: dict[str, list[str]] = {}  # the same, of what a night has seen

    def last_heads() -> list[str]:
        last: dict[str, str] = {}
        for head in sorted(rows_of):
            last[head[7:]] = head
        return sorted(last.values())

    for step, *said in history:
        if step == "extend":
            night, decision, days = said
            names = segment_names(library)
            name = segment_name(names, night, f"run-{decision}")
            if name not in names:
                images = [f"{name[:6]}{night}{n}-{day}" for n, day in enumerate(days)]
                publish(library, name, images)
                rows_of[head_of(name)] = images
        elif step == "merge":
            with killed_at(merging, said[1]):
                merge_library(library, said[0])
        elif step == "prune":
            day, num_discards = said
            places = find_segments(library)
            alone = {head_of(name) for name, place in places.items() if place.segment is None}
            with killed_at(pruning, num_discards):
                prune_library(place, Pruning(captured_before=DAY + timedelta(day)), execute=True)
            for head in last_heads():
                left = [row for row in rows_of[head] if int(row[-1]) >= day]
                is_discarded = left != rows_of[head] and head in alone
                rows_of[head] = left
                if is_discarded and not num_discards:
                    break
                num_discards -= is_discarded
        else:
            seen = seen_by(library, f"{place}/nights/{said[0]}", said[0])
            heads = [head_of(name) for name in seen.names]
            assert pinned.setdefault(said[0], heads) == heads or all(
                not rows_of[head] for head in set(pinned[said[0]]) - set(heads)
            )

        assert read(library) == [row for head in last_heads() for row in rows_of[head]]
        for night, heads in pinned.items():
            seen = seen_by(library, f"{place}/nights/{night}", night)
            assert read(library, seen.names) == [row for head in heads for row in rows_of[head]]
