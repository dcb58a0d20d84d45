"""Embedding: a bad image is a row, a bad disk is an exception."""

import errno
import hashlib
import io
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from config import DedupConfig, FeatureSettings, GateSettings
from tasks import storage
from tasks.change_gate import ChangeGate
from tasks.feature_store import feature_metadata, store_url
from tasks.images import make_thumbnail
from tasks.memo import FeatureMemo
from tasks.schemas import FEATURES, SHARD
from tasks.stage02_plan_shards import publish_plan
from tasks.stage03_embed_shard import change_gate, embed_images, embed_shard, read_ahead, read_image

Row = dict[str, Any]
NIGHT = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = FeatureSettings(image_size=32, max_file_bytes=1_000, max_image_pixels=10_000)
UNREAD = dict.fromkeys(
    (
        *("view", "background", "width", "height", "sharpness", "feature"),
        *("stands_on", "gate_error", "thumbnail"),
    )
)


def png(red: int, width: int = 40, height: int = 30) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (red, 0, 0)).save(file, "PNG")
    return file.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def stored_in(folder: str, files: dict[str, bytes]) -> list[Row]:
    """Write some files and give their rows of `schemas.SHARD`."""
    rows = []
    for name, content in files.items():
        url = storage.join(storage.absolute_url(folder), name)
        storage.publish_bytes(url, content)
        named = {"image_id": f"id-{name}", "url": url, "camera": "", "captured_at": NIGHT}
        rows.append(named | {"size_bytes": len(content), "etag": "e"})
    return rows


class FakeNetwork:
    """Gives the mean red of each image as its feature, and notes the batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        assert pixels.dtype == np.uint8
        assert pixels.shape[1:] == (32, 32, 3)
        reds = pixels[..., 0].mean(axis=(1, 2))
        self.batches.append(reds.astype(int).tolist())
        return np.repeat(reds[:, None], 512, axis=1).astype(np.float32)


def embedded(
    images: list[Row],
    network: FakeNetwork,
    *,
    batch_size: int = 8,
    memo: FeatureMemo | None = None,
) -> list[Row]:
    return embed_images(
        images,
        read=storage.read_bytes,
        embed=network,
        settings=SETTINGS,
        batch_size=batch_size,
        memo=memo or FeatureMemo(),
    )


def reds_of(rows: list[Row]) -> list[int | None]:
    return [None if row["feature"] is None else int(row["feature"][0]) for row in rows]


def test_readable_image_becomes_a_whole_row(place: str) -> None:
    content = png(red=200)
    (image,) = stored_in(place, {"a.png": content})

    (row,) = embedded([image], FakeNetwork())

    np.testing.assert_array_equal(row.pop("feature"), np.full(512, 200, np.float32))
    assert row == image | {
        "sha256": sha256(content),
        "width": 40,
        "height": 30,
        "sharpness": 0.0,
        "error": None,
        "view": None,
        "background": None,
        "stands_on": None,
        "gate_error": None,
        "thumbnail": make_thumbnail(content, max_pixels=SETTINGS.max_image_pixels),
    }
    assert {*row, "feature"} == {*FEATURES.names, "camera", "captured_at"}


@pytest.mark.parametrize(
    ("batch_size", "batches"),
    [
        (1, [[10], [20], [30], [40], [50]]),
        (2, [[10, 20], [30, 40], [50]]),
        (5, [[10, 20, 30, 40, 50]]),
        (8, [[10, 20, 30, 40, 50]]),
    ],
)
def test_images_go_through_the_network_in_order_and_in_batches(
    tmp_path: Path, batch_size: int, batches: list[list[int]]
) -> None:
    images = stored_in(str(tmp_path), {f"{red}.png": png(red) for red in (10, 20, 30, 40, 50)})
    network = FakeNetwork()

    rows = embedded(images, network, batch_size=batch_size)

    assert network.batches == batches
    assert [row["image_id"] for row in rows] == [image["image_id"] for image in images]
    assert reds_of(rows) == [10, 20, 30, 40, 50]


def test_bad_images_do_not_move_the_features_of_the_others(tmp_path: Path) -> None:
    files = {"1": png(10), "2": b"", "3": b"text", "4": png(40), "5": png(50)[:40], "6": png(60)}
    network = FakeNetwork()

    rows = embedded(stored_in(str(tmp_path), files), network, batch_size=3)

    assert network.batches == [[10, 40, 60]]
    assert reds_of(rows) == [10, None, None, 40, None, 60]
    assert [row["error"] is None for row in rows] == [True, False, False, True, False, True]


def test_network_is_left_alone_when_no_image_of_a_batch_is_readable(tmp_path: Path) -> None:
    network = FakeNetwork()
    images = stored_in(str(tmp_path), {"1": b"", "2": b"", "3": png(30)})
    assert reds_of(embedded(images, network, batch_size=2)) == [None, None, 30]
    assert network.batches == [[30]]


def test_no_image_gives_no_row() -> None:
    assert embedded([], FakeNetwork()) == []


def test_unreadable_image_keeps_its_digest_and_says_why(place: str) -> None:
    images = stored_in(place, {"empty.jpg": b"", "text.jpg": b"no image"})
    assert embedded(images, FakeNetwork()) == [
        images[0] | UNREAD | {"sha256": sha256(b""), "error": "empty file"},
        images[1]
        | UNREAD
        | {"sha256": sha256(b"no image"), "error": "not an image in a known format"},
    ]


def test_image_of_too_many_pixels_is_a_row_with_an_error(tmp_path: Path) -> None:
    content = png(0, width=101, height=100)
    (row,) = embedded(stored_in(str(tmp_path), {"a.png": content}), FakeNetwork())
    assert row["sha256"] == sha256(content)
    assert row["error"] == "decompression bomb: 101 x 100 pixels, at most 10000 are allowed"


def test_vanished_image_is_a_row_without_a_digest(place: str) -> None:
    url = storage.join(storage.absolute_url(place), "a.png")
    image = {"image_id": "id-a", "url": url, "size_bytes": 1, "etag": "e", "camera": ""}
    assert embedded([image], FakeNetwork()) == [
        image | UNREAD | {"sha256": None, "error": "file is gone"}
    ]


def test_too_large_file_is_not_read() -> None:
    def read(url: str) -> bytes:
        raise AssertionError(url)

    image = {"image_id": "id-a", "url": "/a.png", "size_bytes": 1_001, "etag": "e"}
    row, pixels = read_image(image, read, SETTINGS)
    assert row == image | UNREAD | {
        "sha256": None,
        "error": "file of 1001 bytes, at most 1000 are read",
    }
    assert pixels is None


def test_file_of_the_largest_size_is_read(tmp_path: Path) -> None:
    content = png(0)
    (image,) = stored_in(str(tmp_path), {"a.png": content})
    settings = SETTINGS.model_copy(update={"max_file_bytes": len(content)})
    row, pixels = read_image(image, storage.read_bytes, settings)
    assert row["error"] is None
    assert pixels is not None
    assert pixels.shape == (32, 32, 3)


def failing(error: BaseException) -> Callable[[str], bytes]:
    def read(url: str) -> bytes:
        raise error

    return read


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        PermissionError(errno.EACCES, "Permission denied"),
        TimeoutError("timed out"),
    ],
    ids=repr,
)
def test_fault_of_the_disk_is_no_fault_of_the_image(tmp_path: Path, error: OSError) -> None:
    images = stored_in(str(tmp_path), {"a.png": png(0)})
    with pytest.raises(type(error)) as failure:
        embed_images(
            images,
            read=failing(error),
            embed=FakeNetwork(),
            settings=SETTINGS,
            batch_size=8,
            memo=FeatureMemo(),
        )
    assert failure.value is error


def test_fault_of_the_network_is_no_fault_of_the_image(tmp_path: Path) -> None:
    def embed(pixels: np.ndarray) -> np.ndarray:
        raise RuntimeError("out of memory")

    images = stored_in(str(tmp_path), {"a.png": png(0)})
    with pytest.raises(RuntimeError, match="out of memory"):
        embed_images(
            images,
            read=storage.read_bytes,
            embed=embed,
            settings=SETTINGS,
            batch_size=8,
            memo=FeatureMemo(),
        )


def test_number_of_features_must_be_the_number_of_images(tmp_path: Path) -> None:
    images = stored_in(str(tmp_path), {"1": png(0), "2": png(1)})
    with pytest.raises(ValueError, match="shorter"):
        embed_images(
            images,
            read=storage.read_bytes,
            embed=lambda pixels: np.zeros((1, 512), np.float32),
            settings=SETTINGS,
            batch_size=8,
            memo=FeatureMemo(),
        )


def test_embed_shard_publishes_the_feature_file_of_its_images(place: str) -> None:
    images = stored_in(f"{place}/night", {"1.jpg": b"", "2.jpg": b"text", "3.jpg": b""})
    workspace = storage.absolute_url(f"{place}/work")
    plan_url = f"{workspace}/plan.parquet"
    plan = pa.Table.from_pylist(images, SHARD)
    (shard,) = publish_plan(plan_url, plan, [3])
    config = DedupConfig(
        source_url=f"{place}/night",
        workspace_url=workspace,
        features=FeatureSettings(dtype="float32"),
    )

    file = embed_shard.fn(shard, config)
    again = embed_shard.fn(shard, config)

    assert file == replace(again, seconds=file.seconds)
    assert (file.num_images, file.num_unreadable, file.num_embedded) == (3, 3, 0)
    store = store_url(workspace, config.features)
    assert storage.list_parquet(store) == [file.url]
    assert storage.read_metadata(file.url) == feature_metadata(config.features)
    rows = storage.read_table(file.url, FEATURES)
    assert rows["url"].to_pylist() == [image["url"] for image in images]
    assert rows["feature"].null_count == 3


def test_embed_shard_wants_a_number_format_with_a_name(tmp_path: Path) -> None:
    workspace = storage.absolute_url(str(tmp_path))
    plan_url = f"{workspace}/plan.parquet"
    plan = pa.Table.from_pylist(stored_in(f"{workspace}/night", {"1.jpg": b""}), SHARD)
    (shard,) = publish_plan(plan_url, plan, [1])
    config = DedupConfig(source_url=f"{workspace}/night", workspace_url=workspace)

    with pytest.raises(ValueError, match="dtype is auto"):
        embed_shard.fn(shard, config)

    assert not (tmp_path / "features").exists()


def test_exact_copies_go_through_the_network_once(tmp_path: Path) -> None:
    reds = {"1": 10, "2": 20, "3": 10, "4": 30, "5": 10, "6": 40, "7": 20}
    images = stored_in(str(tmp_path), {name: png(red) for name, red in reds.items()})
    network, memo = FakeNetwork(), FeatureMemo()

    rows = embedded(images, network, batch_size=2, memo=memo)

    assert network.batches == [[10, 20], [30, 40]]
    assert reds_of(rows) == list(reds.values())
    lonely = [embedded([image], FakeNetwork())[0] for image in images]
    for row, alone in zip(rows, lonely, strict=True):
        assert row.pop("feature").tobytes() == alone.pop("feature").tobytes()
        assert row == alone
    assert reds_of(embedded(images, network, batch_size=2, memo=memo)) == list(reds.values())
    assert len(network.batches) == 2


def test_features_do_not_depend_on_what_the_memo_still_knows(tmp_path: Path) -> None:
    reds = {"1": 10, "2": 20, "3": 30, "4": 10, "5": 40, "6": 10}
    images = stored_in(str(tmp_path), {name: png(red) for name, red in reds.items()})
    rows = embedded(images, FakeNetwork(), batch_size=2, memo=FeatureMemo(max_contents=1))
    assert reds_of(rows) == list(reds.values())


@pytest.mark.parametrize("num_ahead", [1, 3, 100])
def test_reading_ahead_keeps_the_order_and_its_distance(tmp_path: Path, num_ahead: int) -> None:
    images = stored_in(str(tmp_path), {f"{red}": png(red) for red in range(12)})
    begun: list[str] = []

    def read(url: str) -> bytes:
        begun.append(url)
        return storage.read_bytes(url)

    names = []
    for row, pixels in read_ahead(images, read, SETTINGS, num_ahead=num_ahead):
        names.append(row["image_id"])
        assert pixels is not None
        assert len(begun) <= len(names) + num_ahead
    assert names == [image["image_id"] for image in images]
    assert len(begun) == len(images)


def test_reading_runs_ahead_of_the_network(tmp_path: Path) -> None:
    images = stored_in(str(tmp_path), {"1": png(1), "2": png(2), "3": png(3)})
    third_was_read = Event()

    def read(url: str) -> bytes:
        if url == images[2]["url"]:
            third_was_read.set()
        return storage.read_bytes(url)

    def embed(pixels: np.ndarray) -> np.ndarray:
        assert third_was_read.wait(timeout=60)
        return np.zeros((len(pixels), 512), np.float32)

    rows = embed_images(
        images, read=read, embed=embed, settings=SETTINGS, batch_size=2, memo=FeatureMemo()
    )
    assert [row["error"] for row in rows] == [None] * 3


def test_nothing_more_is_read_after_a_fault(tmp_path: Path) -> None:
    images = stored_in(str(tmp_path), {f"{red}": png(red) for red in range(50)})
    begun: list[str] = []

    def read(url: str) -> bytes:
        begun.append(url)
        raise TimeoutError("timed out")

    with pytest.raises(TimeoutError):
        list(read_ahead(images, read, SETTINGS, num_ahead=4))
    assert len(begun) <= 6


class TestGate:
    """Frames that hardly differ: flat pictures whose red is the only thing that changes."""

    REDS: ClassVar = {"1": 100, "2": 105, "3": 150, "4": 150, "5": 155}

    def rows(self, folder: Path, gate: ChangeGate) -> tuple[list[Row], FakeNetwork]:
        images = stored_in(str(folder), {name: png(red) for name, red in self.REDS.items()})
        for image in images:
            image["image_id"] = image["image_id"].removeprefix("id-") * 32
        network = FakeNetwork()
        rows = embed_images(
            images,
            read=storage.read_bytes,
            embed=network,
            settings=SETTINGS,
            batch_size=8,
            memo=FeatureMemo(),
            gate=gate,
        )
        return rows, network

    def test_stand_ins_have_the_feature_of_the_frame_they_stand_on(self, tmp_path: Path) -> None:
        rows, network = self.rows(tmp_path, ChangeGate(16))
        assert network.batches == [[100, 150]]
        assert reds_of(rows) == [100, 100, 150, 150, 150]
        bases = [row["stands_on"] for row in rows]
        assert bases == [None, "1" * 32, None, "3" * 32, "3" * 32]
        assert {row["gate_error"] for row in rows} == {None}
        assert len({row["sha256"] for row in rows}) == 4

    def test_sampled_frame_keeps_its_own_feature_and_notes_the_error(self, tmp_path: Path) -> None:
        # The identity of frame 2 begins with 2222, so a seventh of all frames includes it.
        rows, network = self.rows(tmp_path, ChangeGate(16, sample_fraction=1 / 7))
        assert network.batches == [[100, 105, 150]]
        assert reds_of(rows) == [100, 105, 150, 150, 150]
        assert [row["stands_on"] for row in rows][1] is None
        # Features of a flat picture differ in length only, so the cosine distance is 0.
        errors = [row["gate_error"] for row in rows]
        assert errors == [None, pytest.approx(0, abs=1e-6), None, None, None]

    def test_off_by_default_and_made_of_the_settings(self) -> None:
        assert change_gate(GateSettings()) is None
        gate = change_gate(GateSettings(enabled=True, sample_fraction=1.0))
        assert gate is not None
        assert gate.is_sample("f" * 32)
