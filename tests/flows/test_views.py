"""Regions, masks and scenes in whole runs: what is embedded anew, and with what it is compared."""

import io
import itertools
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from config import load_config
from flows.dedup import dedup
from tasks import storage
from tasks.library import segment_names
from tasks.summary import Summary
from tests.conftest import Night

pytestmark = pytest.mark.usefixtures("prefect_server")

SIDE = 128
WEST, EAST = "west", '<img onerror="x">\u202egpj'
"""Names of two cameras; the second one is hostile."""

ROAD = {"view": {"region": [0.0, 0.0, 1.0, 0.75]}}
SCENES = {"compare": "scene"}
NUM_FRAMES = 30
WITH_CAR = range(12, 18)


def frame_of(
    scene: np.ndarray, number: int, *, light: float = 1.0, car: bool = False
) -> Image.Image:
    """A frame of a scene with noise: in another light, or with a bright car in it."""
    noise = np.random.default_rng(number).integers(-3, 4, scene.shape)
    pixels = scene * light + noise
    if car:
        pixels[70:100, 10 * (number % 6) : 10 * (number % 6) + 60] = (230, 40, 40)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def road(night: Night) -> np.ndarray:
    image = Image.open(night.folder / "junction-1/000.jpg").convert("RGB").resize((SIDE, SIDE))
    return np.asarray(image, np.float64) * 0.8


@pytest.fixture(scope="module")
def cameras(road: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cameras that see the same: an empty road, a car for six frames, then less light."""
    folder = tmp_path_factory.mktemp("cameras")
    for camera in (WEST, EAST):
        (folder / camera).mkdir()
        for number in range(NUM_FRAMES):
            light = 0.7 if number >= 24 else 1.0
            frame = frame_of(road, number, light=light, car=number in WITH_CAR)
            frame.save(folder / camera / f"{number:03}.png")
    return folder


def run(source: Path, workspace: Path, /, **settings: Any) -> Summary:
    said = {
        "source_url": str(source),
        "workspace_url": str(workspace),
        "source": {"partition_by": r"^([^/]+)/"},
        "features": {"image_size": 64, "dtype": "float32"},
        **settings,
    }
    return dedup(load_config(None, said))


def images_of(summary: Summary) -> list[dict[str, Any]]:
    url = summary.manifest_url.rpartition("/")[0] + "/images.parquet"
    rows: list[dict[str, Any]] = pq.read_table(url.removeprefix("file://")).to_pylist()
    return rows


def actions_of(summary: Summary) -> dict[str, str]:
    table = pq.read_table(io.BytesIO(storage.read_bytes(summary.manifest_url)))
    return {
        "/".join(row["url"].split("/")[-2:]): row["action"]
        for row in table.select(["url", "action"]).to_pylist()
    }


def kept_of(summary: Summary) -> list[str]:
    return sorted(name for name, action in actions_of(summary).items() if action == "keep")


def test_other_region_of_one_camera_embeds_that_camera_alone(cameras: Path, tmp_path: Path) -> None:
    plain = run(cameras, tmp_path)
    of_west = run(cameras, tmp_path, cameras=[{"pattern": "^west$"} | ROAD], rebuild=True)
    again = run(cameras, tmp_path, cameras=[{"pattern": "^west$"} | ROAD])
    back = run(cameras, tmp_path, rebuild=True)

    assert [plain.num_embedded, of_west.num_embedded, again.num_embedded, back.num_embedded] == [
        *(2 * NUM_FRAMES, NUM_FRAMES, 0, 0)
    ]
    views = {(row["camera"], row["view"]) for row in images_of(of_west)}
    assert {camera for camera, view in views if view is not None} == {WEST}
    assert len(views) == 2
    assert storage.read_bytes(again.manifest_url) == storage.read_bytes(of_west.manifest_url)
    assert back.run_id == plain.run_id


def test_library_of_another_view_is_not_compared_but_what_was_kept_stays(
    road: np.ndarray, tmp_path: Path
) -> None:
    def night(name: str, **frames: int) -> Path:
        for camera, (frame, number) in itertools.product((WEST, EAST), frames.items()):
            (tmp_path / name / camera).mkdir(parents=True, exist_ok=True)
            frame_of(road, number).save(tmp_path / name / camera / f"{frame}.png")
        return tmp_path / name

    def actions(camera: str, summary: Summary) -> dict[str, str]:
        found = actions_of(summary).items()
        return {name[-10:-4]: action for name, action in found if name.startswith(camera)}

    workspace = tmp_path / "workspace"
    run(night("a", first_=1), workspace)
    second = run(night("b", second=2), workspace, **ROAD, rebuild=True)
    third = run(night("a", third_=3), workspace, **ROAD)
    of_west = [{"pattern": "^west$", "view": {}}]
    fourth = run(night("c", fourth=4), workspace, cameras=of_west, **ROAD)

    assert actions(WEST, second) == actions(EAST, second) == {"second": "keep"}
    # The first is known and stays; the third has a twin in it.
    assert actions(EAST, third)["first_"] == "keep"
    assert actions(EAST, third)["third_"] == "remove"
    assert actions(WEST, fourth) == {"fourth": "remove", "first_": "library"}
    assert actions(EAST, fourth)["fourth"] == "remove"
    rows = pa.concat_tables(map(pq.read_table, sorted(workspace.glob("library/*/*.parquet"))))
    found = [(row["url"][-10:-4], row["view"] is None) for row in rows.to_pylist()]
    seen = [("first_", True), ("first_", False), ("second", False)]
    assert Counter(found) == Counter(2 * seen)


@pytest.fixture(scope="module")
def scenes(
    cameras: Path, tmp_path_factory: pytest.TempPathFactory, prefect_server: None
) -> tuple[Path, Summary]:
    workspace = tmp_path_factory.mktemp("scenes")
    return workspace, run(cameras, workspace, view=SCENES)


def test_scene_keeps_the_car_and_one_empty_road_in_any_light(
    scenes: tuple[Path, Summary],
) -> None:
    _, summary = scenes

    numbers = [int(name.rpartition("/")[2][:3]) for name in kept_of(summary)]
    empty = [number for number in numbers if number not in WITH_CAR]
    assert len(empty) == 2
    assert len(numbers) > 4
    assert Counter(row["background"] is None for row in images_of(summary)) == {False: 60}


def test_scenes_are_the_same_bytes_whatever_the_shards_and_workers(
    cameras: Path, scenes: tuple[Path, Summary], tmp_path: Path
) -> None:
    _, whole = scenes
    execution = {"images_per_shard": 7, "workers": 2, "batch_size": 3}
    cut = run(cameras, tmp_path, view=SCENES, execution=execution)
    assert storage.read_bytes(cut.manifest_url) == storage.read_bytes(whole.manifest_url)

    lost = min((tmp_path / "features").glob("*/*.parquet"))
    lost.unlink()
    resumed = run(cameras, tmp_path, view=SCENES)
    assert 0 < (resumed.num_embedded or 0) <= 7
    assert storage.read_bytes(resumed.manifest_url) == storage.read_bytes(whole.manifest_url)


def test_night_of_few_frames_is_compared_with_the_background_of_an_earlier_one(
    road: np.ndarray, scenes: tuple[Path, Summary], tmp_path: Path
) -> None:
    first, summary = scenes
    workspace = tmp_path / "workspace"
    shutil.copytree(first, workspace)
    (tmp_path / "few" / EAST).mkdir(parents=True)
    for number in range(3):
        frame = frame_of(road, 100 + number, car=number == 2)
        frame.save(tmp_path / "few" / EAST / f"{number}.png")
    few = run(tmp_path / "few", workspace, view=SCENES)

    backgrounds = {row["background"] for row in images_of(few)}
    assert backgrounds == {row["background"] for row in images_of(summary) if row["camera"] == EAST}
    actions = {name: action for name, action in actions_of(few).items() if action != "library"}
    assert actions == {f"{EAST}/{n}.png": "remove" for n in range(3)}
    (library,) = (workspace / "library").iterdir()
    assert len(segment_names(str(library))) == 2


def test_camera_without_a_readable_frame_does_not_end_the_night(
    road: np.ndarray, tmp_path: Path
) -> None:
    for camera in (WEST, EAST):
        (tmp_path / "source" / camera).mkdir(parents=True)
    (tmp_path / "source" / EAST / "broken.png").write_bytes(b"no image")
    frame_of(road, 1).save(tmp_path / "source" / WEST / "one.png")
    summary = run(tmp_path / "source", tmp_path / "workspace", view=SCENES)

    assert actions_of(summary) == {f"{EAST}/broken.png": "skip", f"{WEST}/one.png": "keep"}
    assert len(list((tmp_path / "workspace" / "nights").glob("*/background-*.png"))) == 1


def test_gate_sees_scenes(cameras: Path, tmp_path: Path) -> None:
    gate = {"enabled": True, "sample_fraction": 0.2}
    summary = run(cameras, tmp_path, view=SCENES, gate=gate)

    assert summary.gate is not None
    assert summary.gate.is_trusted
    assert summary.gate.num_gated > NUM_FRAMES
    cut = {"images_per_shard": 1, "workers": 2}
    again = run(cameras, tmp_path / "cut", view=SCENES, gate=gate, execution=cut)
    assert storage.read_bytes(again.manifest_url) == storage.read_bytes(summary.manifest_url)
