"""The plan: what is listed and not yet embedded, cut into shards."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from config import DedupConfig, GateSettings
from tasks import storage
from tasks.feature_store import GONE, feature_metadata, store_url
from tasks.references import Inventory, Shard
from tasks.schemas import FEATURES, INVENTORY, SHARD
from tasks.stage01_list_images import INVALID_NAME
from tasks.stage02_plan_shards import (
    equal_lengths,
    images_per_shard,
    pending_images,
    plan_shards,
    publish_plan,
    read_shard,
)


def inventory_of(*names: str, invalid: tuple[str, ...] = ()) -> pa.Table:
    rows = [
        {
            "image_id": f"id-{name}",
            "url": f"s3://bucket/{name}.jpg",
            "size_bytes": 10,
            "etag": "e",
            "camera": "",
            "captured_at": datetime(2026, 1, 1, tzinfo=UTC),
            "error": INVALID_NAME if name in invalid else None,
        }
        for name in names
    ]
    return pa.Table.from_pylist(rows, INVENTORY)


def shard_row(name: str) -> dict[str, Any]:
    return {
        "image_id": f"id-{name}",
        "url": f"s3://bucket/{name}.jpg",
        "size_bytes": 10,
        "etag": "e",
        "camera": "",
        "captured_at": datetime(2026, 1, 1, tzinfo=UTC),
        "view": None,
    }


def pending_of(listed: pa.Table, settled: pa.ChunkedArray) -> pa.Table:
    return pending_images(listed, pa.nulls(listed.num_rows, pa.string()), settled)


def published(workspace: str, listed: pa.Table) -> Inventory:
    url = f"{workspace}/nights/night-1/inventory.parquet"
    storage.publish_table(url, listed)
    return Inventory(url=url, night_id="night-1", num_images=listed.num_rows)


def config(workspace: str, shard_size: int = 2) -> DedupConfig:
    return DedupConfig(
        source_url="s3://bucket",
        workspace_url=workspace,
        execution={"images_per_shard": shard_size},
    )


def embed(workspace: str, file: str, **errors: str | None) -> None:
    """Write a feature file of some images, with their errors; the features do not matter here."""
    settings = config(workspace).features
    rows = [shard_row(name) | {"error": error} for name, error in errors.items()]
    table = pa.Table.from_pylist(rows, FEATURES)
    storage.publish_table(
        f"{store_url(workspace, settings)}/{file}.parquet",
        table.replace_schema_metadata(feature_metadata(settings)),
    )


def ids(*image_ids: str) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(image_ids, pa.string())])


def test_pending_images_are_those_not_settled_in_the_order_of_the_inventory() -> None:
    pending = pending_of(inventory_of("d", "a", "c", "b"), ids("id-a", "id-unknown"))
    assert pending.schema.equals(SHARD)
    assert pending.to_pylist() == [shard_row("d"), shard_row("c"), shard_row("b")]


def test_images_whose_name_cannot_be_kept_are_not_pending() -> None:
    pending = pending_of(inventory_of("a", "b", "c", invalid=("b",)), ids())
    assert pending["image_id"].to_pylist() == ["id-a", "id-c"]


def test_nothing_is_pending_when_all_is_settled() -> None:
    assert pending_of(inventory_of("a"), ids("id-a")).num_rows == 0
    assert pending_of(inventory_of(), ids()).num_rows == 0


@pytest.mark.parametrize(
    ("num_images", "wanted", "size"),
    [
        (1, 256, 256),
        (0, 256, 256),
        (256_000, 256, 256),
        (256_001, 256, 257),
        (1_000, 1, 1),
        (1_001, 1, 2),
        (2_000, 1, 2),
        (2_001, 1, 3),
        (10_000_000, 256, 10_000),
    ],
)
def test_shards_grow_when_there_would_be_more_than_a_thousand(
    num_images: int, wanted: int, size: int
) -> None:
    assert images_per_shard(num_images, wanted) == size
    assert -(-num_images // size) <= 1_000


def test_shards_name_the_row_groups_of_the_plan(tmp_path: Path) -> None:
    pending = pending_of(inventory_of("a", "b", "c", "d", "e"), ids())
    url = str(tmp_path / "plan.parquet")
    assert publish_plan(url, pending, [3, 2]) == [
        Shard(url, 0, num_images=3, first_url="s3://bucket/a.jpg"),
        Shard(url, 1, num_images=2, first_url="s3://bucket/d.jpg"),
    ]


def test_lengths_are_equal_but_for_the_last() -> None:
    assert equal_lengths(5, 2) == [2, 2, 1]
    assert equal_lengths(4, 2) == [2, 2]
    assert equal_lengths(5, 9) == [5]
    assert equal_lengths(0, 2) == []


def test_gate_wants_whole_chains_camera_by_camera(tmp_path: Path) -> None:
    workspace = storage.absolute_url(str(tmp_path))
    names = [f"{n:03}" for n in range(140)]
    rows = inventory_of(*names).to_pylist()
    for number, image in enumerate(rows):
        image["camera"] = "north" if number % 2 else "east"
    inventory = published(workspace, pa.Table.from_pylist(rows, INVENTORY))
    gated = config(workspace, shard_size=10).model_copy(update={"gate": GateSettings(enabled=True)})

    shards = plan_shards.fn(inventory, gated)

    assert [shard.num_images for shard in shards] == [64, 70, 6]
    assert [set(read_shard(shard)["camera"].to_pylist()) for shard in shards] == [
        {"east"},
        {"east", "north"},
        {"north"},
    ]


def test_every_shard_reads_exactly_its_rows(place: str) -> None:
    workspace = storage.absolute_url(place)
    inventory = published(workspace, inventory_of("a", "b", "c", "d", "e"))

    shards = plan_shards.fn(inventory, config(workspace))

    assert [shard.number for shard in shards] == [0, 1, 2]
    assert [read_shard(shard).to_pylist() for shard in shards] == [
        [shard_row("a"), shard_row("b")],
        [shard_row("c"), shard_row("d")],
        [shard_row("e")],
    ]
    assert read_shard(shards[0]).schema.equals(SHARD)
    (url,) = {shard.plan_url for shard in shards}
    assert url.startswith(f"{workspace}/nights/night-1/plan-")


def test_plan_leaves_out_what_is_settled(tmp_path: Path) -> None:
    workspace = storage.absolute_url(str(tmp_path))
    inventory = published(workspace, inventory_of("a", "b", "c", "d"))
    embed(workspace, "1", a=None, b="empty file", c=GONE)

    (shard,) = plan_shards.fn(inventory, config(workspace))

    assert read_shard(shard).to_pylist() == [shard_row("c"), shard_row("d")]


def test_plan_looks_only_at_features_of_the_same_settings(tmp_path: Path) -> None:
    workspace = storage.absolute_url(str(tmp_path))
    inventory = published(workspace, inventory_of("a", "b"))
    embed(workspace, "1", a=None, b=None)
    other = config(workspace).model_copy(
        update={"features": config(workspace).features.model_copy(update={"power": 1.0})}
    )
    assert plan_shards.fn(inventory, config(workspace)) == []
    assert [shard.num_images for shard in plan_shards.fn(inventory, other)] == [2]


def test_no_plan_is_written_when_nothing_is_pending(tmp_path: Path) -> None:
    workspace = storage.absolute_url(str(tmp_path))
    inventory = published(workspace, inventory_of("a"))
    embed(workspace, "1", a=None)
    assert plan_shards.fn(inventory, config(workspace)) == []
    assert list(tmp_path.rglob("plan-*")) == []


def test_plan_is_the_same_however_the_features_are_spread_over_files(tmp_path: Path) -> None:
    plans = []
    spreads: list[list[dict[str, str | None]]] = [
        [{"b": None, "d": "empty file"}, {"f": GONE}],
        [{"f": GONE, "d": "empty file"}, {}, {"b": None}],
        [{"d": GONE, "f": GONE}, {"d": "empty file"}, {"b": None}, {"b": None}],
    ]
    for number, spread in enumerate(spreads):
        workspace = storage.absolute_url(str(tmp_path / str(number)))
        inventory = published(workspace, inventory_of(*"abcdefg"))
        for file, errors in enumerate(spread):
            embed(workspace, str(file), **errors)
        shards = plan_shards.fn(inventory, config(workspace))
        url = shards[0].plan_url
        plans.append((url.removeprefix(workspace), storage.read_bytes(url), len(shards)))
    assert plans[0][2] == 3
    assert plans == [plans[0]] * 3


def test_another_shard_size_writes_another_plan(tmp_path: Path) -> None:
    workspace = storage.absolute_url(str(tmp_path))
    inventory = published(workspace, inventory_of("a", "b", "c"))
    two, three = (plan_shards.fn(inventory, config(workspace, size)) for size in (2, 3))
    assert two[0].plan_url != three[0].plan_url
    assert [len(two), len(three)] == [2, 1]
    assert read_shard(two[0]).num_rows == 2
