"""`prefect deployment run dedup/main` through a real server and a real worker."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import Night

ROOT = Path(__file__).parents[2]
PREFECT = str(Path(sys.executable).parent / "prefect")


@dataclass(frozen=True)
class Orchestra:
    """A server with our deployment and a worker."""

    environment: dict[str, str]
    worker_log: Path

    def prefect(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [PREFECT, *arguments],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=self.environment,
            check=False,
        )

    def ask(self, path: str, **body: object) -> list[dict[str, object]]:
        request = urllib.request.Request(
            f"{self.environment['PREFECT_API_URL']}/{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            found: list[dict[str, object]] = json.load(answer)
        return found


@pytest.fixture(scope="module")
def orchestra(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orchestra]:
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
            "prefect.server.concurrency.lease_storage.filesystem"
        ),
        "COLUMNS": "400",
    }
    processes = []

    def start(name: str, *arguments: str) -> Path:
        log = home / f"{name}.log"
        with log.open("wb") as file:
            processes.append(
                subprocess.Popen(
                    [PREFECT, *arguments],
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    cwd=ROOT,
                    env=environment,
                    start_new_session=True,
                )
            )
        return log

    try:
        log = start("server", "server", "start", "--port", str(port))
        _wait_until_healthy(f"http://127.0.0.1:{port}/api/health", log)
        orchestra = Orchestra(environment, home / "worker.log")
        pool = orchestra.prefect("work-pool", "create", "dedup", "--type", "process")
        assert pool.returncode == 0, pool.stderr
        deployed = orchestra.prefect(
            "--no-prompt", "deploy", "--prefect-file", "deployments/prefect.yaml", "--all"
        )
        assert deployed.returncode == 0, deployed.stdout + deployed.stderr
        start("worker", "worker", "start", "--pool", "dedup")
        yield orchestra
    finally:
        for process in reversed(processes):
            _stop(process)


def test_deployment_runs_a_night_and_logs_its_shards(
    orchestra: Orchestra, night: Night, tmp_path: Path
) -> None:
    shutil.copytree(night.folder / "junction-1", tmp_path / "2026-02-28")
    config = {
        "source_url": f"{tmp_path}/{{date}}",
        "workspace_url": f"{tmp_path}/workspace",
        "features": {"image_size": 64},
    }
    # A late run, or a retry, processes the night that it was scheduled for.
    finished = orchestra.prefect(
        *("deployment", "run", "dedup/main", "--watch"),
        *("--start-at", "2026-02-28 03:00:00 UTC", "--param", f"config={json.dumps(config)}"),
    )
    assert finished.returncode == 0, finished.stdout + orchestra.worker_log.read_text()
    (manifest,) = (tmp_path / "workspace").glob("runs/2026-02-28-*/manifest.parquet")
    actions = pq.read_table(manifest)["action"].to_pylist()
    assert sorted(actions) == ["keep", *["remove"] * 5]
    assert "shard 0: 6 images, 0 unreadable" in orchestra.worker_log.read_text()
    keys = [artifact["key"] for artifact in orchestra.ask("artifacts/filter")]
    assert "dedup-summary" in keys


def test_failed_run_fails_and_says_why_in_one_line(orchestra: Orchestra, tmp_path: Path) -> None:
    config = {"source_url": f"{tmp_path}/nowhere", "workspace_url": f"{tmp_path}/workspace"}
    finished = orchestra.prefect(
        "deployment", "run", "dedup/main", "--watch", "--param", f"config={json.dumps(config)}"
    )
    assert finished.returncode == 1
    log = orchestra.worker_log.read_text()
    assert f"expected a folder of images, found nothing: file://{tmp_path}/nowhere" in log
    assert "Traceback" not in log


def test_server_refuses_an_unknown_setting(orchestra: Orchestra) -> None:
    config = {"source_url": "/a", "workspace_url": "/b", "epsilon": 1}
    finished = orchestra.prefect(
        "deployment", "run", "dedup/main", "--param", f"config={json.dumps(config)}"
    )
    assert finished.returncode == 1
    assert "epsilon" in finished.stdout + finished.stderr


def test_nightly_schedule_fires(orchestra: Orchestra) -> None:
    scheduled = []
    for _ in range(60):
        scheduled = orchestra.ask(
            "flow_runs/filter",
            flow_runs={
                "state": {"type": {"any_": ["SCHEDULED"]}},
                "tags": {"all_": ["auto-scheduled"]},
            },
        )
        if scheduled:
            break
        time.sleep(1)
    hours = {str(run["expected_start_time"])[11:16] for run in scheduled}
    assert hours <= {"01:00", "02:00"}  # 03:00 in Berlin, in summer and in winter
    assert hours


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:  # a worker waits for its runs, however long they take
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_healthy(url: str, log: Path) -> None:
    for _ in range(240):
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"the Prefect server did not start:\n{log.read_text()[-3000:]}")
