"""The operator at three in the morning: killed runs, full disks, dead stores."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from prefect.settings import PREFECT_API_URL

from tests.conftest import Night

pytestmark = pytest.mark.faults

DEDUP = str(Path(sys.executable).parent / "dedup")
NUM_KILLS = 10


def command(night: Night, workspace: Path) -> list[str]:
    arguments = ["--image-size", "224", "--images-per-shard", "4", "--workers", "2", "--json"]
    return [DEDUP, "run", str(night.folder), "--workspace", str(workspace), *arguments]


def manifest_bytes(finished: "subprocess.CompletedProcess[bytes]") -> bytes:
    assert finished.returncode == 0
    url: str = json.loads(finished.stdout)["manifest_url"]
    return Path(url.removeprefix("file://")).read_bytes()


def test_killed_worker_process_is_replaced(
    night: Night, tmp_path: Path, prefect_server: None
) -> None:
    profile = tmp_path / "profile.yaml"
    profile.write_text("execution: {task_runner: processes}\nfeatures: {image_size: 64}\n")
    arguments = ["--config", str(profile), "--images-per-shard", "4", "--workers", "2", "--json"]
    process = subprocess.Popen(
        [DEDUP, "run", str(night.folder), "--workspace", str(tmp_path / "workspace"), *arguments],
        stdout=subprocess.PIPE,
        env=os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value()},
    )
    while not features(tmp_path / "workspace"):
        assert process.poll() is None
        time.sleep(0.1)
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "spawn_main" in " ".join(child.cmdline())
    ]
    workers[0].kill()
    stdout, _ = process.communicate()
    assert process.returncode == 0
    assert json.loads(stdout)["num_images"] == 43


def test_killed_command_leaves_no_server_behind(night: Night, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(night, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert any("images are embedded already" in line for line in process.stderr)
    servers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "uvicorn" in " ".join(child.cmdline())
    ]
    assert len(servers) == 1
    process.kill()
    process.wait()
    gone, alive = psutil.wait_procs(servers, timeout=30)
    assert (len(gone), alive) == (1, [])


def features(workspace: Path) -> set[Path]:
    return set(workspace.glob("features/*/*.parquet"))


def test_ten_kills_while_embedding_change_no_byte(
    night: Night, tmp_path: Path, prefect_server: None
) -> None:
    environment = os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value()}
    undisturbed = subprocess.run(
        command(night, tmp_path / "undisturbed"),
        stdout=subprocess.PIPE,
        env=environment,
        check=False,
    )
    rng = random.Random(7)
    workspace = tmp_path / "killed"
    num_killed = 0
    while num_killed < NUM_KILLS:
        process = subprocess.Popen(
            command(night, workspace),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert process.stderr is not None
        for line in process.stderr:
            if "VGG16 weights from" in line:
                break
        # The first forward passes begin now; a shard takes about a second.
        time.sleep(rng.uniform(0, 1.5))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        num_killed += 1
        assert not list(workspace.glob("runs/*/manifest.parquet"))
    num_shards_kept = len(features(workspace))
    resumed = subprocess.run(
        command(night, workspace), stdout=subprocess.PIPE, env=environment, check=False
    )
    assert manifest_bytes(resumed) == manifest_bytes(undisturbed)
    assert json.loads(resumed.stdout)["num_embedded"] < 42 or num_shards_kept == 0
    for path in features(workspace):
        assert path.stat().st_size > 0
