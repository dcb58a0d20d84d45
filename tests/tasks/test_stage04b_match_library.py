"""Matching: the nearest image that an earlier night kept, by exact distance."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import DedupConfig
from tasks import stage04b_match_library as stage04b
from tasks import storage
from tasks.distances import within
from tasks.references import Collection, Library
from tasks.schemas import IMAGES, LIBRARY, MATCHES
from tasks.stage04b_match_library import (
    find_known,
    find_scene_twins,
    find_twins,
    horizons,
    match_library,
    match_table,
    nearest_within,
    without,
)
from tests.made_items import all_distances, eps_for, feature_sets

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SEGMENTS = ("000001-a-0123456789abcdef.parquet", "000002-b-0123456789abcdef.parquet")


def directions(*degrees: float) -> np.ndarray:
    """Features of 512 components that turn in the plane of the first two."""
    features = np.zeros((len(degrees), 512), np.float32)
    radians = np.radians(degrees)
    features[:, 0], features[:, 1] = np.cos(radians), np.sin(radians)
    return features


TEN_DEGREES = float(1 - np.cos(np.radians(10.5)))


def library_of(folder: Path, *segments: list[dict[str, Any]]) -> Library:
    """Segments of rows that say only what matters."""
    for name, rows in zip(SEGMENTS, segments, strict=False):
        whole = [
            {
                "url": f"file:///{row['image_id']}",
                "size_bytes": 1,
                "etag": "e",
                "camera": "",
                "captured_at": NOON,
                "sha256": row["image_id"],
                **row,
            }
            for row in rows
        ]
        storage.publish_table(f"{folder}/{name}", pa.Table.from_pylist(whole, LIBRARY))
    return Library(str(folder), SEGMENTS[: len(segments)])


def kept(image_id: str, degrees: float, **values: Any) -> dict[str, Any]:
    return {"image_id": image_id, "feature": directions(degrees)[0]} | values


def items_of(*image_ids: str, cameras: list[str] | None = None) -> pa.Table:
    rows = [
        {
            "image_id": image_id,
            "url": f"file:///night/{image_id}",
            "size_bytes": 1,
            "etag": "e",
            "camera": camera,
            "captured_at": NOON,
            "item_id": item,
            "sha256": image_id,
        }
        for item, (image_id, camera) in enumerate(
            zip(image_ids, cameras or [""] * len(image_ids), strict=True)
        )
    ]
    return pa.Table.from_pylist(rows, IMAGES)


def twins_of(library: Library, features: np.ndarray, items: pa.Table, **options: Any) -> dict:
    settings = {"is_known": np.zeros(len(features), bool), "eps": TEN_DEGREES} | options
    twins = find_twins(library, features, items, **settings)
    return {name: row["image_id"] for name, row in twins.items()}


@given(data=st.data())
def test_nearest_within_is_what_all_distances_say(data: st.DataObject) -> None:
    features = data.draw(feature_sets())
    eps = data.draw(eps_for(features))
    cut = data.draw(st.integers(0, len(features)))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ROWS_AT_ONCE", "COLUMNS_AT_ONCE"):
            patch.setattr(stage04b, name, data.draw(st.integers(1, 5)))

        distances, positions = nearest_within(features[:cut], features[cut:], eps=eps)

    expected = all_distances(features)[:cut, cut:]
    for row, (distance, position) in enumerate(zip(distances, positions, strict=True)):
        near = np.flatnonzero(within(expected[row], eps))
        if not len(near):
            assert distance == np.inf
            continue
        nearest = min((expected[row, column], column) for column in near)
        assert (distance, position) == nearest


def test_what_was_seen_in_another_view_is_no_twin(tmp_path: Path) -> None:
    library = library_of(
        tmp_path,
        [kept("plain", 0), kept("region", 0, view="v"), kept("of b", 90, view="w", camera="b")],
    )
    items = items_of("a1", "a2", "b1", cameras=["a", "a", "b"])
    views = pa.array(["v", "v", None], pa.string())
    items = items.set_column(items.column_names.index("view"), "view", views)

    assert twins_of(library, directions(0, 90, 90), items) == {}

    library = library_of(
        tmp_path,
        [kept("plain", 0, camera="a"), kept("region", 5, view="v", camera="a")],
        [kept("of b", 88, camera="b"), kept("other of b", 90, view="w", camera="b")],
    )
    assert twins_of(library, directions(0, 90, 90), items) == {"a1": "region", "b1": "of b"}


def test_known_image_is_found_in_any_view_and_in_its_own_before_others(tmp_path: Path) -> None:
    library = library_of(
        tmp_path,
        [kept("a", 0), kept("b", 0), kept("c", 0, view="w")],
        [kept("a", 0, view="v"), kept("b", 0, view="w")],
    )
    items = items_of(*"abcd")
    views = pa.array(["v", None, "v", "v"], pa.string())
    items = items.set_column(items.column_names.index("view"), "view", views)

    found = find_known(library, items)

    assert {name: row["view"] for name, row in found.items()} == {"a": "v", "b": None, "c": "w"}


def test_twin_is_the_nearest_and_of_equals_the_one_kept_first(tmp_path: Path) -> None:
    library = library_of(
        tmp_path,
        [kept("old", 0), kept("near", 12), kept("first", 50)],
        [kept("second", 50), kept("nearer", 41)],
    )

    found = twins_of(library, directions(10, 50, 43, 90), items_of(*"abcd"))

    assert found == {"a": "near", "b": "first", "c": "nearer"}


def test_known_images_need_no_twin(tmp_path: Path) -> None:
    library = library_of(tmp_path, [kept("a", 0), kept("other", 1)])
    items = items_of("a", "b")

    known = find_known(library, items)
    found = twins_of(library, directions(0, 2), items, is_known=np.array([True, False]))

    assert set(known) == {"a"}
    assert known["a"]["url"] == "file:///a"
    assert found == {"b": "other"}


def test_known_image_stands_where_the_night_puts_it(tmp_path: Path) -> None:
    library = library_of(tmp_path, [kept("a", 0, camera="old name")])
    items = items_of("a", "b", cameras=["east", "east"])

    found = twins_of(library, directions(0, 1), items, is_known=np.array([True, False]))

    assert found == {"b": "a"}


def test_image_of_a_scene_goes_for_the_nearest_that_stays_of_its_partition() -> None:
    items = items_of(*"abcdef", cameras=["x", "x", "x", "x", "y", "y"])
    is_known = np.array([True, True, False, False, False, True])
    features = directions(0, 80, 30, 60, 0, 90)

    found = find_scene_twins(features, items, is_known, [("a", "b", "c", "d", "e"), ("f", "z")])

    assert {name: row["image_id"] for name, row in found.items()} == {"c": "a", "d": "b"}
    assert found["c"]["distance"] == pytest.approx(1 - np.cos(np.radians(30)), abs=1e-6)


def test_partitions_and_stores_are_kept_apart(tmp_path: Path) -> None:
    library = library_of(
        tmp_path,
        [kept("east", 0, camera="east"), kept("elsewhere", 0, camera="west", url="s3://b/x")],
        [kept("west", 3, camera="west")],
    )
    items = items_of("a", "b", "c", cameras=["east", "north", "west"])

    assert twins_of(library, directions(1, 1, 1), items) == {"a": "east", "c": "west"}


def test_window_is_measured_from_the_first_image_of_the_night(tmp_path: Path) -> None:
    library = library_of(
        tmp_path,
        [kept("old", 0, captured_at=NOON - timedelta(days=3))],
        [kept("new", 5, captured_at=NOON - timedelta(days=2))],
    )
    items = items_of("a")

    def not_before(window: str | None) -> pa.Array:
        urls = {"source_url": "unused", "workspace_url": "unused"}
        return horizons(items, DedupConfig.model_validate(urls | {"library": {"window": window}}))

    def found(window: str | None) -> dict[str, str]:
        return twins_of(library, directions(1), items, not_before=not_before(window))

    assert found(None) == {"a": "old"}
    assert found("2d") == {"a": "new"}
    assert found("1d") == {}
    assert not_before(None).to_pylist() == [None]


def test_each_partition_has_its_own_eps_and_window(tmp_path: Path) -> None:
    days = [NOON - timedelta(days=number) for number in range(4)]
    rows = [
        kept(f"{camera}{day}", 2 * day, camera=camera, captured_at=days[day])
        for camera in ("east", "west")
        for day in (1, 2, 3)
    ]
    items = items_of("a", "b", "c", cameras=["east", "west", "west"])
    config = {
        "source_url": "s",
        "workspace_url": "w",
        "library": {"window": "2d"},
        "cameras": [{"pattern": "east", "window": "1d", "eps": 0.5}],
    }
    degrees = directions(30, 6, 18)

    found = twins_of(
        library_of(tmp_path, rows),
        degrees,
        items,
        eps=np.array([0.5, TEN_DEGREES, TEN_DEGREES]),
        not_before=horizons(items, DedupConfig.model_validate(config)),
    )

    # In the east the nearest is too old; in the west so, too, and c is too far from the others.
    assert found == {"a": "east1", "b": "west2"}


def test_window_is_counted_from_the_first_image_of_the_partition() -> None:
    items = items_of("a", "b", "c", cameras=["east", "west", "west"])
    times = [NOON, NOON + timedelta(hours=3), NOON + timedelta(hours=1)]
    at = items.column_names.index("captured_at")
    items = items.set_column(at, IMAGES.field("captured_at"), pa.array(times, IMAGES.types[at]))
    config = {"source_url": "s", "workspace_url": "w", "library": {"window": "1h"}}

    found = horizons(items, DedupConfig.model_validate(config))

    assert found.to_pylist() == [NOON - timedelta(hours=1), NOON, NOON]


def test_empty_library_and_empty_night_match_nothing(tmp_path: Path) -> None:
    assert twins_of(Library(str(tmp_path), ()), directions(0), items_of("a")) == {}
    assert twins_of(library_of(tmp_path, [kept("x", 0)]), directions(), items_of()) == {}


def test_table_has_known_images_as_their_own_keepers() -> None:
    row = {"url": "u", "size_bytes": 7, "etag": "e", "sha256": "ab", "camera": "", "view": "v"}

    table = match_table(
        {"b": row | {"image_id": "b"}}, {"a": row | {"image_id": "k", "distance": 0.5}}
    )

    assert table.schema == MATCHES
    keeper = {
        f"keeper_{name}": row[name] for name in ("url", "size_bytes", "etag", "sha256", "view")
    }
    assert table.to_pylist() == [
        {"image_id": "a", "keeper_image_id": "k", **keeper, "distance": 0.5},
        {"image_id": "b", "keeper_image_id": "b", **keeper, "distance": None},
    ]


def collection_of(folder: Path, features: np.ndarray, images: pa.Table) -> Collection:
    np.save(folder / "features.npy", features)
    storage.publish_table(f"{folder}/images.parquet", images)
    return Collection(
        run_id="run",
        run_url=str(folder),
        images_url=f"{folder}/images.parquet",
        features_url=f"{folder}/features.npy",
        num_images=images.num_rows,
        num_items=len(features),
        largest_partition=2,
        num_missing=0,
    )


def test_images_without_a_match_are_numbered_anew(tmp_path: Path) -> None:
    images = items_of(*"abcde", cameras=list("xxyyy"))
    broken = pa.array([0, 1, None, 2, 3], pa.int32())
    images = images.set_column(images.column_names.index("item_id"), "item_id", broken)
    collection = collection_of(tmp_path, directions(0, 10, 20, 30), images)

    fresh = without(collection, images, pa.chunked_array([["a", "d"]]))

    found = storage.read_table(fresh.images_url, IMAGES)
    assert found["item_id"].to_pylist() == [None, 0, None, None, 1]
    assert (fresh.num_items, fresh.largest_partition, fresh.num_images) == (2, 1, 5)
    np.testing.assert_array_equal(np.load(fresh.features_url), directions(10, 30))
    assert without(collection, images, pa.chunked_array([[]], pa.string())) is collection


def test_night_that_is_known_whole_leaves_nothing_to_compare(tmp_path: Path) -> None:
    images = items_of("a", "b")
    collection = collection_of(tmp_path, directions(0, 5), images)
    library = library_of(tmp_path, [kept("a", 0)])
    config = DedupConfig(source_url="unused", workspace_url="unused")

    matches, fresh = match_library.fn(library, collection, config)

    assert (matches.num_known, matches.num_matched) == (1, 1)
    assert (fresh.num_items, fresh.largest_partition) == (0, 0)
    assert storage.read_table(matches.url, MATCHES)["keeper_image_id"].to_pylist() == ["a", "a"]
    assert np.load(fresh.features_url).shape == (0, 512)
