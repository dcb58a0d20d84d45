"""The change gate in whole runs: what it saves, that it is checked, that shards do not matter."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from config import load_config
from flows.dedup import dedup
from tasks import storage
from tasks.summary import Summary
from tests.conftest import Night

pytestmark = pytest.mark.usefixtures("prefect_server")

NUM_FRAMES = 70


@pytest.fixture(scope="module")
def camera(night: Night, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fixed camera: the same scene with noise, and for five frames another one before it."""
    folder = tmp_path_factory.mktemp("camera")
    scenes = [
        np.asarray(Image.open(night.folder / name).convert("RGB").resize((128, 128)), np.int16)
        for name in ("junction-1/000.jpg", "junction-2/000.jpg")
    ]
    rng = np.random.default_rng(0)
    for number in range(NUM_FRAMES):
        noise = rng.integers(-3, 4, scenes[0].shape)
        frame = (scenes[30 <= number < 35] + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(frame).save(folder / f"{number:03}.png")
    return folder


def run(source: Path, workspace: Path, gate: dict[str, Any], **execution: Any) -> Summary:
    settings = {
        "source_url": str(source),
        "workspace_url": str(workspace),
        "features": {"image_size": 64, "dtype": "float32"},
        "gate": gate,
        "rebuild": True,  # some tests decide one night with and without the gate
        "execution": execution,
    }
    return dedup(load_config(None, settings))


def reasons_of(summary: Summary) -> list[str]:
    table = pq.read_table(summary.manifest_url.removeprefix("file://"))
    found: list[str] = table["reason"].to_pylist()
    return found


def test_most_frames_stand_on_another_and_the_decision_is_the_same(
    camera: Path, tmp_path: Path
) -> None:
    plain = run(camera, tmp_path, {})
    gated = run(camera, tmp_path / "gated", {"enabled": True, "sample_fraction": 0.2})
    assert gated.gate is not None
    assert gated.gate.is_trusted
    # One for each chain of 64 frames and one for each change of scene must be embedded.
    assert gated.gate.num_gated + gated.gate.num_samples == NUM_FRAMES - 4
    assert gated.num_embedded == 4 + gated.gate.num_samples < NUM_FRAMES / 2
    assert (gated.num_keep, gated.num_remove) == (plain.num_keep, plain.num_remove) == (2, 68)
    assert reasons_of(gated).count("within eps, gated") > 40
    assert "within eps, gated" not in reasons_of(plain)


def test_shards_and_resumed_runs_change_no_byte(camera: Path, tmp_path: Path) -> None:
    gate = {"enabled": True, "sample_fraction": 0.2}
    whole = run(camera, tmp_path / "whole", gate, images_per_shard=1_000)
    cut = run(camera, tmp_path / "cut", gate, images_per_shard=1, workers=2, batch_size=3)
    assert storage.read_bytes(cut.manifest_url) == storage.read_bytes(whole.manifest_url)

    files = sorted((tmp_path / "cut").glob("features/*/*.parquet"))
    assert len(files) == 2
    files[0].unlink()
    resumed = run(camera, tmp_path / "cut", gate, images_per_shard=7)
    assert storage.read_bytes(resumed.manifest_url) == storage.read_bytes(whole.manifest_url)
    again = run(camera, tmp_path / "cut", gate)
    assert again.num_embedded == 0
    assert storage.read_bytes(again.manifest_url) == storage.read_bytes(whole.manifest_url)


def test_gate_that_breaks_its_promise_is_off_for_the_night(camera: Path, tmp_path: Path) -> None:
    plain = run(camera, tmp_path / "plain", {})
    loose = {"enabled": True, "max_change": 256, "sample_fraction": 0.5}
    distrusted = run(camera, tmp_path / "work", loose)
    assert distrusted.gate is not None
    assert not distrusted.gate.is_trusted
    assert distrusted.num_embedded == NUM_FRAMES
    assert reasons_of(distrusted) == reasons_of(plain)
    assert distrusted.run_id != run(camera, tmp_path / "work", {}).run_id
    again = run(camera, tmp_path / "work", loose)
    assert (again.num_embedded, again.gate) == (0, distrusted.gate)


def test_gate_without_a_sample_proves_nothing(camera: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    for name in ("000.png", "001.png", "002.png"):
        shutil.copy2(camera / name, small)
    summary = run(small, tmp_path / "work", {"enabled": True, "sample_fraction": 0.0})
    assert summary.gate is not None
    assert (summary.gate.num_gated, summary.gate.is_trusted) == (2, False)
    assert summary.num_embedded == 3
