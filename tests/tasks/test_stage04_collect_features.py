"""Collecting: every image of the night in one table, and a run named by all that decides."""

import io
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import DedupConfig
from tasks import storage
from tasks.compact_features import compact_features
from tasks.feature_store import feature_metadata, store_url
from tasks.references import Collection, Inventory
from tasks.schemas import FEATURES, IMAGES, INVENTORY, ITEMS
from tasks.stage04_collect_features import collect_features, image_table, item_table, write_matrix

Row = dict[str, Any]
NIGHT = datetime(2026, 1, 1, 2, tzinfo=UTC)


def listed(name: str, camera: str = "", /, **values: Any) -> Row:
    """A row of the inventory."""
    return {
        "image_id": f"id-{name}",
        "url": f"s3://bucket/{name}.jpg",
        "size_bytes": 10,
        "etag": "e",
        "camera": camera,
        "captured_at": NIGHT,
        "error": None,
    } | values


def read(name: str, /, **values: Any) -> Row:
    """What was found out about an image: all of it, or the error that is given."""
    known = {key: listed(name)[key] for key in ("image_id", "url", "size_bytes", "etag")}
    if "error" in values:
        return known | values
    return known | {"sha256": "ab", "width": 640, "height": 480, "sharpness": 0.5} | values


def inventory_of(*rows: Row) -> pa.Table:
    return pa.Table.from_pylist(list(rows), INVENTORY)


def feature_rows(*rows: Row) -> pa.Table:
    return pa.Table.from_pylist(list(rows), FEATURES).drop_columns("feature")


def table_of(listed: pa.Table, rows: pa.Table) -> pa.Table:
    return image_table(listed, pa.nulls(listed.num_rows, pa.string()), rows)


def test_images_are_sorted_by_url_and_items_by_camera_and_url() -> None:
    images = table_of(
        inventory_of(
            listed("a", "south"), listed("b", "north"), listed("c", "south"), listed("d", "north")
        ),
        feature_rows(*map(read, "dcba")),
    )
    assert images["url"].to_pylist() == [f"s3://bucket/{name}.jpg" for name in "abcd"]
    assert images["item_id"].to_pylist() == [2, 0, 3, 1]


def test_image_table_joins_what_is_listed_with_what_was_read() -> None:
    images = table_of(
        inventory_of(
            listed("b", "north"),
            listed("a", "south"),
            listed("broken", "north"),
            listed("failed", "north"),
            listed("name", error="file name is not valid UTF-8"),
        ),
        feature_rows(
            read("a", sha256="cd"),
            read("b", width=320, height=240, sharpness=0.25),
            read("broken", error="empty file", sha256="ef"),
            read("not listed"),
        ),
    )
    unseen = {"view": None, "background": None, "stands_on": None}
    unread = unseen | dict.fromkeys(("item_id", "sha256", "width", "height", "sharpness"))
    assert images.schema.equals(IMAGES)
    assert images.to_pylist() == [
        listed("a", "south")
        | {"item_id": 1, "sha256": "cd", "width": 640, "height": 480, "sharpness": 0.5}
        | unseen,
        listed("b", "north")
        | {"item_id": 0, "sha256": "ab", "width": 320, "height": 240, "sharpness": 0.25}
        | unseen,
        listed("broken", "north", error="empty file") | unread | {"sha256": "ef"},
        listed("failed", "north", error="not embedded: its shard failed") | unread,
        listed("name", error="file name is not valid UTF-8") | unread,
    ]


def test_items_are_dense_whatever_is_unreadable() -> None:
    images = table_of(
        inventory_of(*(listed(name) for name in "abcdef")),
        feature_rows(*(read(name) for name in "bdf"), read("c", error="empty file")),
    )
    assert images["item_id"].to_pylist() == [None, 0, None, 1, None, 2]


def test_no_image_gives_an_empty_table() -> None:
    images = table_of(inventory_of(), feature_rows())
    assert (images.num_rows, images.schema.equals(IMAGES)) == (0, True)


class Workspace:
    """An inventory and the features of its images, without the images."""

    def __init__(self, folder: str, source: str = "s3://bucket/night") -> None:
        self.url = storage.absolute_url(folder)
        self.source = source

    def config(self, **settings: Any) -> DedupConfig:
        return DedupConfig(source_url=self.source, workspace_url=self.url, **settings)

    def embed(self, file: str, *rows: Row, **settings: Any) -> None:
        features = self.config(**settings).features
        storage.publish_table(
            f"{store_url(self.url, features)}/{file}.parquet",
            pa.Table.from_pylist(list(rows), FEATURES).replace_schema_metadata(
                feature_metadata(features)
            ),
        )

    def collect(self, *rows: Row, **settings: Any) -> Collection:
        inventory = Inventory(f"{self.url}/inventory.parquet", "night-1", len(rows))
        storage.publish_table(inventory.url, inventory_of(*rows))
        return collect_features.fn(inventory, self.config(**settings))


def feature(value: float) -> np.ndarray:
    return np.full(512, value, np.float32)


ROWS = [listed("a", "south"), listed("b", "north"), listed("c", "south"), listed("d")]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(str(tmp_path))
    workspace.embed("1", read("a", feature=feature(1)), read("b", feature=feature(2)))
    workspace.embed("2", read("c", feature=feature(3)), read("d", error="empty file"))
    return workspace


def test_collect_features_publishes_images_and_matrix(place: str) -> None:
    workspace = Workspace(place)
    workspace.embed("1", read("c", feature=feature(3)), read("d", error="empty file"))
    workspace.embed("2", read("a", feature=feature(1)), read("b", feature=feature(2)))

    collection = workspace.collect(*ROWS, listed("e"))

    assert collection.run_url == f"{workspace.url}/runs/{collection.run_id}"
    assert collection.run_id.startswith("night-")
    assert (collection.num_images, collection.num_items) == (5, 3)
    assert (collection.largest_partition, collection.num_missing) == (2, 1)
    images = storage.read_table(collection.images_url, IMAGES)
    assert images["item_id"].to_pylist() == [1, 0, 2, None, None]
    matrix = np.load(storage.local_path(collection.features_url))
    assert (matrix.dtype, matrix.shape) == (np.float32, (3, 512))
    assert matrix[:, 0].tolist() == matrix[:, 511].tolist() == [2, 1, 3]


@given(st.permutations(range(8)), st.sets(st.integers(1, 7)))
def test_matrix_is_that_of_numpy_whatever_order_features_come_in(
    order: list[int], cuts: set[int]
) -> None:
    matrix = np.random.default_rng(0).random((8, 512), np.float32)
    blocks = [(part, matrix[part]) for part in np.split(np.array(order), sorted(cuts))]
    saved = io.BytesIO()
    np.save(saved, matrix)
    with tempfile.TemporaryDirectory() as folder:
        write_matrix(Path(folder, "features.npy"), 8, blocks)
        assert Path(folder, "features.npy").read_bytes() == saved.getvalue()


def test_compacted_store_gives_the_same_run_and_the_same_bytes(workspace: Workspace) -> None:
    before = workspace.collect(*ROWS)
    artifacts = [storage.read_bytes(url) for url in (before.images_url, before.features_url)]
    (compaction,) = compact_features(workspace.url)
    assert (compaction.num_files_before, compaction.num_files) == (2, 1)
    after = workspace.collect(*ROWS)
    assert after == before
    assert [storage.read_bytes(url) for url in (after.images_url, after.features_url)] == artifacts


def test_no_image_gives_a_run_too(tmp_path: Path) -> None:
    collection = Workspace(str(tmp_path)).collect()
    assert (collection.num_images, collection.num_items, collection.largest_partition) == (0, 0, 0)
    assert np.load(storage.local_path(collection.features_url)).shape == (0, 512)


def test_same_night_has_the_same_run_id_in_any_workspace(
    workspace: Workspace, tmp_path: Path
) -> None:
    other = Workspace(str(tmp_path / "other"))
    other.embed("all", *(read(name, feature=feature(1)) for name in "cab"))
    other.embed("none", read("d", error="empty file"))
    assert other.collect(*ROWS).run_id == workspace.collect(*ROWS).run_id


@pytest.mark.parametrize(
    "execution",
    [
        {"images_per_shard": 1},
        {"workers": 1},
        {"task_runner": "processes"},
        {"batch_size": 1},
        {"items_per_search": 1},
        {"weights_path": "/weights.h5"},
    ],
    ids=str,
)
def test_execution_does_not_change_the_run_id(
    workspace: Workspace, execution: dict[str, Any]
) -> None:
    usual = workspace.collect(*ROWS)
    assert workspace.collect(*ROWS, execution=execution) == usual
    assert workspace.collect(*ROWS, allow_partial=True, price_per_image=0.1) == usual


@pytest.mark.parametrize(
    "settings",
    [
        {"neighbors": {"eps": 0.1}},
        {"neighbors": {"seed": 1}},
        {"clusters": {"min_samples": 3}},
        {"clusters": {"keepers": "first"}},
        {"source": {"partition_by": "^x"}},
        {"features": {"power": 1.0}},
    ],
    ids=str,
)
def test_what_decides_changes_the_run_id(workspace: Workspace, settings: dict[str, Any]) -> None:
    assert workspace.collect(*ROWS, **settings).run_id != workspace.collect(*ROWS).run_id


def test_source_changes_the_run_id(workspace: Workspace) -> None:
    usual = workspace.collect(*ROWS)
    workspace.source = "s3://other/night"
    assert workspace.collect(*ROWS).run_id != usual.run_id


def test_content_changes_the_run_id(workspace: Workspace) -> None:
    run_ids = {workspace.collect(*ROWS).run_id, workspace.collect(*ROWS[:3]).run_id}
    run_ids.add(workspace.collect(*ROWS, listed("e")).run_id)
    workspace.embed("2", read("c", feature=feature(3), sha256="cd"), read("d", error="empty file"))
    run_ids.add(workspace.collect(*ROWS).run_id)
    workspace.embed("2", read("c", feature=feature(3)), read("d", error="truncated"))
    run_ids.add(workspace.collect(*ROWS).run_id)
    assert len(run_ids) == 5


def test_completed_night_is_another_run_than_the_partial_one(workspace: Workspace) -> None:
    rows = [*ROWS, listed("e")]
    partial = workspace.collect(*rows)
    workspace.embed("3", read("e", feature=feature(5)))
    complete = workspace.collect(*rows)
    assert (partial.num_missing, complete.num_missing) == (1, 0)
    assert partial.run_id != complete.run_id


def test_other_times_are_another_run_because_the_earlier_of_equals_stays(
    workspace: Workspace,
) -> None:
    uploaded_again = [row | {"captured_at": NIGHT + timedelta(hours=1)} for row in ROWS[:1]]
    assert workspace.collect(*uploaded_again, *ROWS[1:]).run_id != workspace.collect(*ROWS).run_id


def test_item_table_is_dense_and_sorted_and_without_unreadable_images() -> None:
    images = pa.table(
        {"item_id": [2, None, 0, 1, None], "image_id": ["c", "x", "a", "b", "y"]},
        pa.schema([IMAGES.field("item_id"), IMAGES.field("image_id")]),
    )

    items = item_table(images)

    assert items.schema == ITEMS
    assert items.to_pydict() == {"item_id": [0, 1, 2], "image_id": ["a", "b", "c"]}


def test_item_table_of_unreadable_images_is_empty() -> None:
    images = pa.table(
        {"item_id": [None], "image_id": ["x"]},
        pa.schema([IMAGES.field("item_id"), IMAGES.field("image_id")]),
    )

    assert item_table(images).num_rows == 0
