"""The server on a real PostgreSQL, two workers, and a server that is killed in the middle."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Night

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PREFECT = str(Path(sys.executable).parent / "prefect")


class Servers:
    """A server of Prefect on a database, and whatever else is started beside it."""

    def __init__(self, home: Path, database_url: str) -> None:
        self._home, self._database_url = home, database_url
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}/api"
        self._environment = os.environ | {"PREFECT_HOME": str(home), "PREFECT_API_URL": self.url}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start_server(self) -> None:
        of_the_server = {
            "PREFECT_API_DATABASE_CONNECTION_URL": self._database_url,
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
                "prefect.server.concurrency.lease_storage.filesystem"
            ),
        }
        self.start("server", "server", "start", "--port", str(self._port), **of_the_server)
        for _ in range(240):
            try:
                self.ask("health")
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)

    def start(self, name: str, *arguments: str, **environment: str) -> None:
        with self.log_of(name).open("ab") as file:
            self._processes[name] = subprocess.Popen(
                [PREFECT, *arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=self._environment | environment,
                start_new_session=True,
            )

    def prefect(self, *arguments: str) -> None:
        subprocess.run([PREFECT, *arguments], check=True, cwd=ROOT, env=self._environment)

    def ask(self, path: str, **body: object) -> Any:
        request = urllib.request.Request(
            f"{self.url}/{path}",
            data=json.dumps(body).encode() if body else None,
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def kill(self, name: str) -> None:
        os.killpg(self._processes[name].pid, signal.SIGKILL)
        self._processes.pop(name).wait()

    def kill_all(self) -> None:
        for name in list(self._processes):
            self.kill(name)

    def log_of(self, name: str) -> Path:
        return self._home / f"{name}.log"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def program(name: str) -> str | None:
    """A program of PostgreSQL; Debian keeps them in a folder for each version."""
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(debian[-1]) if debian else None)


@contextmanager
def run_postgresql(folder: Path) -> Iterator[str]:
    """Run a database server in an empty folder; gives the URL of a database as Prefect wants it."""
    # PostgreSQL refuses to run as root.
    user = "postgres" if os.getuid() == 0 else None
    if user is not None:
        shutil.chown(folder, user)
    port, data = free_port(), folder / "data"
    options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder}"

    def call(name: str, *arguments: object) -> None:
        command = [str(program(name)), *map(str, arguments)]
        with (folder / f"{name}.log").open("ab") as log:
            subprocess.run(command, check=True, user=user, cwd="/", stdout=log, stderr=log)

    call("initdb", "-D", data, "-A", "trust", "-U", "prefect", "--no-sync")
    call("pg_ctl", "-D", data, "-o", options, "-l", data / "log", "-w", "start")
    try:
        yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
    finally:
        call("pg_ctl", "-D", data, "-m", "immediate", "stop")


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    if program("initdb") is None or program("pg_ctl") is None:
        pytest.skip("there is no PostgreSQL on this machine")
    # pytest's own folders are closed to the user that the database runs as.
    folder = Path(tempfile.mkdtemp(prefix="dedup-postgresql-"))
    with run_postgresql(folder) as database_url:
        servers = Servers(tmp_path, database_url)
        try:
            servers.start_server()
            servers.prefect("work-pool", "create", "dedup", "--type", "process")
            prefect_file = ("--prefect-file", "deployments/prefect.yaml")
            servers.prefect("--no-prompt", "deploy", *prefect_file, "--all")
            for name in ("worker-1", "worker-2"):
                servers.start(name, "worker", "start", "--pool", "dedup", "--name", name)
            yield servers
        finally:
            servers.kill_all()
    shutil.rmtree(folder)


def test_night_outlives_a_server_that_is_killed(
    servers: Servers, night: Night, tmp_path: Path
) -> None:
    workspace = tmp_path / "workspace"
    config = {
        "source_url": str(night.folder),
        "workspace_url": str(workspace),
        "features": {"image_size": 64},
        "execution": {"images_per_shard": 1, "workers": 1},
    }
    deployment = servers.ask("deployments/name/dedup/main")
    run = servers.ask(
        f"deployments/{deployment['id']}/create_flow_run", parameters={"config": config}
    )
    while not list(workspace.glob("features/*/*.parquet")):
        time.sleep(0.05)
    servers.kill("server")
    servers.start_server()
    state = "RUNNING"
    for _ in range(600):
        state = servers.ask(f"flow_runs/{run['id']}")["state"]["type"]
        if state in ("COMPLETED", "FAILED", "CRASHED"):
            break
        time.sleep(0.2)
    logs = [servers.log_of(name).read_text()[-3000:] for name in ("worker-1", "worker-2")]
    assert state == "COMPLETED", "\n".join(logs)
    assert len(list(workspace.glob("runs/*/manifest.parquet"))) == 1
    assert len(list(workspace.glob("features/*/*.parquet"))) == night.truth.num_images
