"""Backgrounds: once for a night, of what can be read, and remembered for nights of few frames."""

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from config import DedupConfig
from tasks import storage
from tasks.backgrounds import (
    Background,
    background_of,
    background_url,
    read_background,
    recall,
    remember,
)
from tasks.errors import ArtifactError
from tasks.references import Shard
from tasks.schemas import SHARD
from tasks.stage01_list_images import list_images
from tasks.stage02_plan_shards import plan_shards
from tasks.stage02b_make_backgrounds import (
    choose_background,
    make_backgrounds,
    sample_frames,
)
from tasks.views import compares_scenes, open_view, view_name

DAY = datetime(2026, 3, 1, tzinfo=UTC)
HOSTILE = "%2f..\u202e<img src=x>"
SIZE = 32


def flat(step: int) -> np.ndarray:
    return np.full((SIZE, SIZE, 3), step, np.uint8)


def frames(number: int) -> list[dict[str, Any]]:
    return [{"url": str(n), "captured_at": DAY + timedelta(hours=n)} for n in range(number)]


def config_of(place: str, **settings: Any) -> DedupConfig:
    said = {
        "source_url": f"{place}/source",
        "workspace_url": f"{place}/workspace",
        "source": {"partition_by": "^([^/]+)/"},
        "features": {"image_size": SIZE, "dtype": "float32"},
        "view": {"compare": "scene"},
    }
    return DedupConfig.model_validate(said | settings)


def lay_out(place: str, camera: str, steps: list[int | None]) -> None:
    """Write a flat PNG of each step, and for None a file that is no image."""
    for number, step in enumerate(steps):
        file = io.BytesIO(b"no image")
        if step is not None:
            Image.fromarray(flat(step)).save(file, "PNG")
        url = storage.join(storage.absolute_url(place), "source", camera, f"{number:03}.png")
        storage.publish_bytes(url, file.getvalue())


def made(config: DedupConfig) -> tuple[str, list[Shard]]:
    """Run the stages up to the backgrounds; the folder of the night and its shards."""
    inventory = list_images.fn(config)
    shards = plan_shards.fn(inventory, config)
    make_backgrounds.fn(shards, config)
    return inventory.url.rpartition("/")[0], shards


def step_of(night_url: str, partition: str, config: DedupConfig) -> int | None:
    background = open_view(partition, night_url, config).background
    return None if background is None else int(background.pixels[0, 0, 0])


def test_background_is_the_median_of_each_partition(place: str) -> None:
    lay_out(place, "north", [10, 10, 90])
    lay_out(place, HOSTILE, [200, 201, 250])
    config = config_of(place)

    night_url, _ = made(config)

    assert step_of(night_url, "north", config) == 10
    assert step_of(night_url, HOSTILE, config) == 201
    assert step_of(night_url, "south", config) is None


def test_background_of_a_night_stays_whatever_comes_later(tmp_path: Path) -> None:
    lay_out(str(tmp_path), "north", [10, 10, 90])
    config = config_of(str(tmp_path))
    night_url, shards = made(config)
    url = background_url(night_url, config.features, view_name(config.view), "north")
    storage.publish_bytes(url, png_of(55))

    make_backgrounds.fn(shards, config)

    assert step_of(night_url, "north", config) == 55


def png_of(step: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(flat(step)).save(file, "PNG")
    return file.getvalue()


def test_unreadable_and_vanished_frames_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lay_out(str(tmp_path), "north", [None, 50, 50, 10])
    lay_out(str(tmp_path), "south", [None, None])
    config = config_of(str(tmp_path))
    inventory = list_images.fn(config)
    shards = plan_shards.fn(inventory, config)
    (tmp_path / "source" / "north" / "003.png").unlink()

    make_backgrounds.fn(shards, config)

    night_url = inventory.url.rpartition("/")[0]
    assert step_of(night_url, "north", config) == 50
    assert step_of(night_url, "south", config) is None
    assert "no frame of partition 'south' could be read" in caplog.text


def test_only_partitions_whose_scenes_are_compared_have_one(tmp_path: Path) -> None:
    lay_out(str(tmp_path), "north", [10])
    lay_out(str(tmp_path), "south", [20])
    cameras = [{"pattern": "south", "view": {"compare": "scene"}}]
    config = config_of(str(tmp_path), view={}, cameras=cameras)

    night_url, _ = made(config)

    assert step_of(night_url, "south", config) == 20
    assert len(list((tmp_path / "workspace" / "nights").glob("*/background-*"))) == 1
    assert compares_scenes(config)
    assert not compares_scenes(config_of(str(tmp_path), view={"region": [0, 0, 1, 0.5]}))


def test_moved_camera_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Every frame shows another picture, so most differ from any background."""
    pictures = [np.random.default_rng(n).integers(0, 256, (4, 4, 3), np.uint8) for n in range(5)]
    for number, picture in enumerate(pictures):
        file = io.BytesIO()
        Image.fromarray(picture).resize((SIZE, SIZE), Image.Resampling.NEAREST).save(file, "PNG")
        url = f"file://{tmp_path}/source/north/{number}.png"
        storage.publish_bytes(url, file.getvalue())

    made(config_of(str(tmp_path)))

    assert "frames of partition 'north' differ from their background" in caplog.text


def test_enough_frames_are_remembered_and_few_take_what_is_remembered(tmp_path: Path) -> None:
    folder = f"{tmp_path}/remembered"
    many = [flat(10)] * 20 + [flat(90)] * 5
    assert chosen(many[1:], folder) == 10
    assert recall(folder, DAY) is None
    assert chosen(many, folder) == 10
    assert chosen([flat(200)] * 24, folder) == 10
    assert chosen([], folder) == 10
    assert chosen([flat(200)] * 25, folder) == 200
    assert choose_background([], f"{tmp_path}/nothing", frames(3)) is None


def chosen(pixels: list[np.ndarray], folder: str) -> int:
    background = choose_background(pixels, folder, frames(3))
    assert background is not None
    return int(background.pixels[0, 0, 0])


def test_remembered_background_is_the_last_up_to_the_night_or_the_first_after(place: str) -> None:
    folder = f"{place}/remembered"
    for day in (3, 1, 5):
        remember(folder, background_of(flat(day)), DAY + timedelta(days=day))

    def recalled(**later: float) -> int:
        found = recall(folder, DAY + timedelta(**later))
        assert found is not None
        return int(found.pixels[0, 0, 0])

    assert recalled(days=0) == 1
    assert recalled(days=1) == 1
    assert recalled(days=2.5) == 1
    assert recalled(days=3) == 3
    assert recalled(days=400) == 5


def test_background_is_read_as_it_was_written(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    background = background_of(pixels)
    remember(str(tmp_path), background, DAY)

    (path,) = tmp_path.iterdir()
    found = read_background(str(path))

    assert isinstance(found, Background)
    np.testing.assert_array_equal(found.pixels, pixels)
    assert found.digest == background.digest
    assert path.name == f"20260301T000000.000000-{background.digest}.png"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtifactError, match="expected a background, found: "):
        read_background(str(path))
    assert read_background(f"{tmp_path}/none.png") is None


@pytest.mark.parametrize(
    ("num_frames", "first"),
    [
        (3, [0, 1, 2]),
        (64, list(range(64))),
        (65, list(range(64))),
        (640, list(range(0, 640, 10))),
    ],
)
def test_sample_is_spread_over_all_frames(num_frames: int, first: list[int]) -> None:
    asked: list[int] = []

    def read(some: Any) -> list[np.ndarray]:
        asked.extend(int(frame["url"]) for frame in some)
        return [flat(1) for _ in some]

    assert len(sample_frames(frames(num_frames), read)) == len(first)
    assert asked == first


def test_other_frames_are_read_when_none_of_the_sample_can_be() -> None:
    readable = {"5", "7", "199"}

    def read(some: Any) -> list[np.ndarray | None]:
        return [flat(int(frame["url"])) if frame["url"] in readable else None for frame in some]

    (found, other) = sample_frames(frames(200), read)
    assert (found[0, 0, 0], other[0, 0, 0]) == (5, 7)
    assert sample_frames(frames(20), lambda some: [None] * len(some)) == []


def test_plan_says_the_view_of_each_image(tmp_path: Path) -> None:
    lay_out(str(tmp_path), "north", [10])
    config = config_of(str(tmp_path))
    _, shards = made(config)
    plan = storage.read_table(shards[0].plan_url, SHARD)
    assert plan["view"].to_pylist() == [view_name(config.view)]
