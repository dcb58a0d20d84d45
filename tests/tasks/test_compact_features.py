"""Compaction: fewer files, the same rows for every reader, whatever is killed when."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from config import FeatureSettings
from tasks import compact_features, storage, store_local, store_s3
from tasks.compact_features import compact_store, content_digest, merged_rows
from tasks.errors import ArtifactError, StorageError
from tasks.feature_store import (
    GONE,
    feature_metadata,
    iterate_features,
    read_image_rows,
    settled_image_ids,
    store_url,
)
from tasks.references import Compaction
from tasks.schemas import FEATURES

SETTINGS = FeatureSettings()
OTHER_DECODER = "pillow 1.0, pillow-heif none"


def row(image_id: str, value: float = 1.0, /, **values: Any) -> dict[str, Any]:
    known = {"image_id": image_id, "url": f"/{image_id}.jpg", "size_bytes": 1, "etag": "e"}
    if "error" in values:
        return known | values
    read = {"sha256": "ab", "width": 4, "height": 3, "sharpness": 0.5, "thumbnail": b"small"}
    return known | read | {"feature": np.full(512, value, np.float32)} | values


def write(store: str, name: str, *rows: dict[str, Any], decoder: str | None = None) -> str:
    table = pa.Table.from_pylist(list(rows), FEATURES)
    metadata = feature_metadata(SETTINGS) | ({"decoder": decoder} if decoder else {})
    url = f"{store}/{name}.parquet"
    storage.publish_table(url, table.replace_schema_metadata(metadata))
    return url


@pytest.fixture
def store(place: str) -> str:
    """An empty store with a few small files."""
    store = store_url(storage.absolute_url(place), SETTINGS)
    write(store, "1", row("a", 1), row("b", error=GONE), row("broken", error="empty file"))
    write(store, "2", row("c", 3), row("b", 2))
    write(store, "3", row("old", error="empty file"), row("d", 4), decoder=OTHER_DECODER)
    write(store, "4", row("e", 5), row("gone", error=GONE))
    write(store, "5", row("f", 6), row("old", error="truncated"), decoder=OTHER_DECODER)
    return store


IDS = pa.chunked_array([["a", "b", "broken", "c", "d", "e", "f", "gone", "old", "unknown"]])


def seen(store: str) -> dict[str, Any]:
    """All that any reader gets to know of a store."""
    rows = read_image_rows(store, IDS)
    featured = rows.filter(pc.is_null(rows["error"]))
    features = {
        featured["image_id"][position].as_py(): float(feature[0])
        for positions, features in iterate_features(store, featured)
        for position, feature in zip(positions.tolist(), features, strict=True)
    }
    settled = settled_image_ids(store, IDS).to_pylist()
    return {"rows": rows.to_pylist(), "features": features, "settled": settled}


def names(store: str) -> list[str]:
    return [url.rpartition("/")[2] for url in storage.list_parquet(store)]


def test_small_files_become_one_of_each_decoder_and_readers_see_the_same(store: str) -> None:
    before = seen(store)
    assert before["settled"] == ["a", "b", "broken", "c", "d", "e", "f"]
    assert before["features"] == {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6}

    assert compact_store(store) == Compaction(store, num_files_before=5, num_files=2)

    assert seen(store) == before
    merged = [storage.read_table(url, FEATURES) for url in storage.list_parquet(store)]
    assert {
        table.schema.metadata[b"decoder"].decode(): table["image_id"].to_pylist()
        for table in merged
    } == {
        feature_metadata(SETTINGS)["decoder"]: ["a", "b", "broken", "c", "e", "gone"],
        OTHER_DECODER: ["d", "f", "old"],
    }


def test_compacting_again_changes_nothing(store: str) -> None:
    compact_store(store)
    files = names(store)
    assert compact_store(store) == Compaction(store, num_files_before=2, num_files=2)
    assert names(store) == files


def test_large_files_are_left_alone(store: str) -> None:
    compact_store(store, rows_per_file=6)
    assert names(store)[0] == "1.parquet"  # three rows; the others have two
    assert [name[:7] for name in names(store)[1:]] == ["merged-", "merged-"]


def test_merged_files_hold_images_that_lie_side_by_side(tmp_path: Path) -> None:
    store = store_url(storage.absolute_url(str(tmp_path)), SETTINGS)
    for number in (3, 0, 2, 1):
        write(store, f"{-number}", row(f"{number}a"), row(f"{number}b"))
    compact_store(store, rows_per_file=5)
    alone, merged = storage.list_parquet(store)
    assert alone.endswith("/-3.parquet")
    assert storage.read_table(merged, FEATURES)["image_id"].to_pylist() == [
        f"{number}{letter}" for number in range(3) for letter in "ab"
    ]


def test_every_view_of_an_image_stays(tmp_path: Path) -> None:
    store = store_url(storage.absolute_url(str(tmp_path)), SETTINGS)
    write(store, "1", row("a", 1), row("a", 2) | {"view": "v"})
    write(store, "2", row("a", 3) | {"view": "w"}, row("a", error=GONE) | {"view": "v"})
    compact_store(store, rows_per_file=5)
    (merged,) = storage.list_parquet(store)
    rows = storage.read_table(merged, FEATURES)
    assert rows["view"].to_pylist() == ["v", "w", None]
    assert [feature[0] for feature in rows["feature"].to_pylist()] == [2, 3, 1]


def test_same_rows_have_the_same_name_however_they_lay(tmp_path: Path) -> None:
    rows = [row("a", 1), row("b", error=GONE), row("c", 3), row("d", 4)]
    found = []
    for number, files in enumerate(
        ([rows[:2], rows[2:]], [rows[2:3], rows[3:], rows[:2], rows[1:2]])
    ):
        store = store_url(storage.absolute_url(str(tmp_path / str(number))), SETTINGS)
        for name, part in enumerate(files):
            write(store, str(name), *part)
        compact_store(store)
        found.append(names(store))
    assert found[0] == found[1]
    assert len(found[0]) == 1


def test_features_that_differ_in_their_last_bits_are_chosen_by_their_values(tmp_path: Path) -> None:
    one, other = row("a", 1.0), row("a", float(np.nextafter(np.float32(1), np.float32(2))))
    tables = [
        pa.Table.from_pylist([row], FEATURES).replace_schema_metadata({"a": "b"})
        for row in (one, other)
    ]
    assert merged_rows(tables).equals(merged_rows(tables[::-1]))


def test_metadata_is_in_the_name(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([row("a")], FEATURES)
    digests = {content_digest(table.replace_schema_metadata({"decoder": name})) for name in "ab"}
    digests.add(
        content_digest(
            pa.Table.from_pylist([row("a", 2.0)], FEATURES).replace_schema_metadata(
                {"decoder": "a"}
            )
        )
    )
    for other in (row("a", sharpness=1.0), row("a", thumbnail=b"other")):
        table = pa.Table.from_pylist([other], FEATURES)
        digests.add(content_digest(table.replace_schema_metadata({"decoder": "a"})))
    assert len(digests) == 5


class Killed(BaseException):
    """What stands for the end of the process: nothing of ours runs after it."""


@pytest.mark.parametrize("die_at", range(9))
def test_kill_before_any_step_loses_nothing(
    store: str, monkeypatch: pytest.MonkeyPatch, die_at: int
) -> None:
    before = seen(store)
    num_actions = 0
    lock = threading.Lock()

    def dying(action: Any) -> Any:
        def act(*arguments: Any, **named: Any) -> Any:
            nonlocal num_actions
            with lock:
                num_actions += 1
                if num_actions > die_at:
                    raise Killed
                return action(*arguments, **named)

        return act

    with monkeypatch.context() as patch:
        patch.setattr(storage, "publish_table", dying(storage.publish_table))
        for kind in (store_local.LocalStore, store_s3.S3Store):
            patch.setattr(kind, "discard", dying(kind.discard))
        try:
            compact_store(store)
        except Killed:
            assert die_at < 7
        else:
            assert die_at >= 7  # two publications, five deletions
    assert seen(store) == before

    compact_store(store)

    assert len(names(store)) == 2
    assert seen(store) == before


def test_nothing_goes_that_was_not_read_back(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = seen(store)
    publish = storage.publish_table
    monkeypatch.setattr(
        storage, "publish_table", lambda url, rows, **named: publish(url, rows.slice(1), **named)
    )
    with pytest.raises(ArtifactError, match="expected the rows that were published, found others"):
        compact_store(store)
    assert {"1.parquet", "2.parquet", "3.parquet", "4.parquet", "5.parquet"} <= set(names(store))
    assert seen(store) == before


def test_shard_that_is_embedded_again_meanwhile_keeps_its_new_file(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = compact_features.read_rows

    def read_and_embed(url: str) -> pa.Table | None:
        rows = read(url)
        if url.endswith("/4.parquet"):
            write(store, "4", row("e", 5), row("gone", 7))
        return rows

    monkeypatch.setattr(compact_features, "read_rows", read_and_embed)
    compact_store(store)
    assert "4.parquet" in names(store)
    assert seen(store)["features"] == {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6, "gone": 7}


def test_two_compactions_and_readers_at_once(store: str) -> None:
    for number in range(20):
        write(store, f"n{number:02}", row(f"n{number:02}", number))
    before = seen(store)
    problems: list[object] = []
    is_done = threading.Event()

    def read() -> None:
        while not is_done.is_set():
            try:
                if (found := seen(store)) != before:
                    problems.append(found)
            except Exception as error:
                problems.append(error)

    def compact(rows_per_file: int) -> None:
        try:
            compact_store(store, rows_per_file)
        except Exception as error:
            problems.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    writers = [threading.Thread(target=compact, args=(size,)) for size in (8, 100, 12)]
    for thread in (*readers, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    is_done.set()
    for thread in readers:
        thread.join()
    assert problems == []
    assert seen(store) == before


def test_every_store_of_a_workspace_is_compacted(place: str) -> None:
    place = storage.absolute_url(place)
    for settings in (SETTINGS, FeatureSettings(power=1.0)):
        store = store_url(place, settings)
        for name in "ab":
            rows = pa.Table.from_pylist([row(name)], FEATURES)
            storage.publish_table(
                f"{store}/{name}.parquet", rows.replace_schema_metadata(feature_metadata(settings))
            )
    found = compact_features.compact_features(place)
    assert [(of_one.num_files_before, of_one.num_files) for of_one in found] == [(2, 1), (2, 1)]


def test_file_of_another_store_is_left_where_it_is(tmp_path: Path) -> None:
    store = store_url(storage.absolute_url(str(tmp_path)), FeatureSettings(power=1.0))
    write(store, "1", row("a"))
    write(store, "2", row("b"))
    compact_store(store)
    assert names(store) == ["1.parquet", "2.parquet"]


def test_workspace_without_features_has_nothing_to_compact(place: str) -> None:
    assert compact_features.compact_features(place) == []


def test_only_local_disks_and_s3_are_compacted() -> None:
    store = store_url("memory://workspace", SETTINGS)
    write(store, "1", row("a"))
    with pytest.raises(StorageError, match="on a local disk or on S3"):
        compact_features.compact_features("memory://workspace")
