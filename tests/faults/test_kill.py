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

from tasks import storage
from tasks.schemas import FEATURES
from tests.conftest import Night

pytestmark = pytest.mark.faults

DEDUP = str(Path(sys.executable).parent / "dedup")
NUM_KILLS = 20


def command(night: Night, workspace: Path) -> list[str]:
    arguments = ["--image-size", "224", "--images-per-shard", "4", "--workers", "2", "--json"]
    return [DEDUP, "run", str(night.folder), "--workspace", str(workspace), *arguments]


@pytest.mark.parametrize(
    ("task_runner", "name_of_workers"),
    [("processes", "spawn_main"), ("dask", "spawn_main"), ("ray", "ray::embed_shard")],
)
def test_killed_worker_process_is_replaced(
    night: Night, tmp_path: Path, prefect_server: None, task_runner: str, name_of_workers: str
) -> None:
    def command(workspace: str) -> list[str]:
        shape = ["--image-size", "64", "--images-per-shard", "4", "--workers", "2", "--json"]
        return [DEDUP, "run", str(night.folder), "--workspace", str(tmp_path / workspace), *shape]

    environment = os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value()}
    calm = subprocess.run(command("calm"), stdout=subprocess.PIPE, env=environment, check=True)
    profile = tmp_path / "profile.yaml"
    profile.write_text(f"execution: {{task_runner: {task_runner}}}\n")
    process = subprocess.Popen(
        [*command("killed"), "--config", str(profile)], stdout=subprocess.PIPE, env=environment
    )
    while not features(tmp_path / "killed"):
        assert process.poll() is None
        time.sleep(0.05)
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if name_of_workers in " ".join(child.cmdline())
    ]
    workers[0].kill()
    stdout, _ = process.communicate()
    assert process.returncode == 0
    killed = json.loads(stdout)
    assert killed["num_images"] == 43
    assert storage.read_bytes(killed["manifest_url"]) == storage.read_bytes(
        json.loads(calm.stdout)["manifest_url"]
    )


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


@pytest.mark.parametrize("where", ["local", "s3"])
def test_killed_runs_end_with_the_bytes_of_an_undisturbed_one(
    request: pytest.FixtureRequest,
    night: Night,
    tmp_path: Path,
    prefect_server: None,
    capsys: pytest.CaptureFixture[str],
    where: str,
) -> None:
    environment = os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value()}
    if where == "local":
        place, source = str(tmp_path), str(night.folder)
    else:
        place = request.getfixturevalue("s3_url")
        source = f"{place}/source"
        environment |= {name: os.environ[name] for name in os.environ if name.startswith("AWS_")}
        for path in sorted(night.folder.rglob("*")):
            if path.is_file():
                url = f"{source}/{path.relative_to(night.folder)}"
                storage.publish_bytes(url, path.read_bytes())

    def command(workspace: str) -> list[str]:
        shape = ["--image-size", "64", "--images-per-shard", "4", "--workers", "2", "--json"]
        return [DEDUP, "run", source, "--workspace", f"{place}/{workspace}", *shape]

    started = time.monotonic()
    undisturbed = subprocess.run(
        command("undisturbed"), stdout=subprocess.PIPE, env=environment, check=True
    )
    seconds = time.monotonic() - started
    rng = random.Random(7)
    num_killed = 0
    while num_killed < NUM_KILLS:
        process = subprocess.Popen(
            command("killed"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        try:
            # The first half is spent importing; and a run that ends has nothing left to disturb.
            process.wait(rng.uniform(0.4, 1.0) * seconds)
            remove_features(f"{place}/killed", rng)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            num_killed += 1
    resumed = subprocess.run(command("killed"), stdout=subprocess.PIPE, env=environment, check=True)
    expected = json.loads(undisturbed.stdout)
    found = json.loads(resumed.stdout)
    assert storage.read_bytes(found["manifest_url"]) == storage.read_bytes(expected["manifest_url"])
    for url in storage.list_files(f"{place}/killed/features"):
        storage.read_table(url.url, FEATURES)
    with capsys.disabled():
        print(f"\n{where}: {num_killed} kills of dedup run, the manifest has the same bytes")


def remove_features(workspace: str, rng: random.Random) -> None:
    """Take half of the features away, so that there is something to do again."""
    fs, path = storage.filesystem(workspace)
    for name in fs.find(f"{path}/features"):
        if rng.random() < 0.5:
            fs.rm_file(name)
