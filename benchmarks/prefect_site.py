"""A real Prefect server with our deployments, and a worker that can be killed like any process."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import yaml

ROOT = Path(__file__).parents[1]
DEPLOYMENTS = ROOT / "deployments" / "prefect.yaml"
PREFECT = str(Path(sys.executable).parent / "prefect")
SECONDS_TO_START = 180
SERVICE_UNAVAILABLE = 503

Found = TypeVar("Found")


@dataclass
class PrefectSite:
    """What an operator has: a server, the `prefect` command and a worker."""

    home: Path
    environment: dict[str, str]
    worker: "subprocess.Popen[bytes]"
    cpu_seconds_before: float = 0.0
    """Processor time of the runs of workers that were killed."""

    @property
    def worker_log(self) -> Path:
        """What the workers and the runs below them print."""
        return self.home / "worker.log"

    def prefect(self, *arguments: str) -> str:
        """Run a `prefect` command and give what it prints.

        Raises:
            RuntimeError: It failed; the message is what it said.
        """
        return _prefect(self.environment, *arguments)

    def ask(self, path: str, **body: object) -> Any:
        """POST to the server's API."""
        return self._send(path, json.dumps(body).encode())

    def get(self, path: str) -> Any:
        """GET from the server's API."""
        return self._send(path, None)

    def _send(self, path: str, body: bytes | None) -> Any:
        url = f"{self.environment['PREFECT_API_URL']}/{path}"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})

        def answered() -> tuple[Any] | None:
            try:
                with urllib.request.urlopen(request) as answer:
                    return (json.load(answer),)
            except urllib.error.HTTPError as error:
                if error.code != SERVICE_UNAVAILABLE:
                    raise
                return None  # its SQLite is locked; Prefect's own client asks again, too

        return wait_until(answered, f"an answer to {path}", 60, self.worker_log, pause=1)[0]

    def schedule(self, deployment: str, start: str, **parameters: object) -> str:
        """Schedule a run of a deployment, as its schedule does, and return the id of the run.

        Args:
            deployment: Its name, such as `dedup/main`.
            start: The time it is scheduled for, in ISO 8601.
            parameters: Where they differ from those of the deployment.
        """
        deployment_id = self.get(f"deployments/name/{deployment}")["id"]
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": start}}
        run = self.ask(
            f"deployments/{deployment_id}/create_flow_run", state=state, parameters=parameters
        )
        return str(run["id"])

    def wait_for(self, run_id: str, *states: str, seconds: float = 300) -> dict[str, Any]:
        """Wait until a run is in one of some states, by default in any final one.

        Raises:
            RuntimeError: It was in none of them in time; the message has the end of the log.
        """
        wanted = states or ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

        def found() -> dict[str, Any] | None:
            run: dict[str, Any] = self.get(f"flow_runs/{run_id}")
            return run if run["state"]["type"] in wanted else None

        return wait_until(found, f"run {run_id} {wanted}", seconds, self.worker_log)

    def process_of(self, run_id: str) -> psutil.Process:
        """The process of a run that a worker has started."""

        def found() -> psutil.Process | None:
            for process in psutil.Process(self.worker.pid).children(recursive=True):
                with suppress(psutil.Error):
                    if process.environ().get("PREFECT__FLOW_RUN_ID") == run_id:
                        return process
            return None

        return wait_until(found, f"a process of run {run_id}", 120, self.worker_log)

    def wait_until_idle(self) -> None:
        """Wait until the worker has no process below it."""

        def found() -> bool | None:
            return not psutil.Process(self.worker.pid).children(recursive=True) or None

        wait_until(found, "an idle worker", 120, self.worker_log)

    def retry(self, run_id: str) -> None:
        """What the button Retry does, after a run that failed or was killed."""
        self.wait_until_idle()
        # Of a run that was killed both the process around it and then the worker report the crash,
        # and the second report would also end a retry that has been scheduled in between.
        time.sleep(3)
        self.prefect("flow-run", "retry", run_id)

    def cpu_seconds(self) -> float:
        """Processor time of all runs so far that have ended by themselves."""
        self.wait_until_idle()
        return self.cpu_seconds_before + self._cpu_seconds_of_worker()

    def _cpu_seconds_of_worker(self) -> float:
        times = psutil.Process(self.worker.pid).cpu_times()
        return float(times.children_user + times.children_system)

    def start_worker(self) -> None:
        """Start a worker in the place of the one before."""
        self.worker = _start_worker(self.home, self.environment)

    def kill_worker(self) -> None:
        """SIGKILL to the worker and to all runs below it, as when the power fails."""
        self.cpu_seconds_before += self._cpu_seconds_of_worker()
        worker = psutil.Process(self.worker.pid)
        for process in [*worker.children(recursive=True), worker]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.worker.wait()


@contextmanager
def prefect_site(home: Path, prefect_file: Path = DEPLOYMENTS) -> Iterator[PrefectSite]:
    """Start a server, deploy, start a worker; at the end all of them are stopped.

    Args:
        home: An empty folder for what Prefect remembers, and for logs.
        prefect_file: What is deployed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
            "prefect.server.concurrency.lease_storage.filesystem"
        ),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PWD": str(ROOT),
        "COLUMNS": "400",
    }
    log = home / "server.log"
    server = _start(log, environment, "server", "start", "--port", str(port))
    site = None
    try:
        url = f"http://127.0.0.1:{port}/api/health"
        wait_until(lambda: _answers(url), "a healthy server", SECONDS_TO_START, log)
        _prefect(environment, "work-pool", "create", "dedup", "--type", "process")
        _prefect(environment, "--no-prompt", "deploy", "--prefect-file", str(prefect_file), "--all")
        site = PrefectSite(home, environment, _start_worker(home, environment))
        yield site
    finally:
        if site is not None:
            _stop(site.worker)
        _stop(server)


def write_deployments(path: Path, parameters: Mapping[str, Mapping[str, object]]) -> Path:
    """Write our deployments with other parameters, as an operator edits them.

    Args:
        path: The new file.
        parameters: The `config` of each deployment, by the module of its flow.
    """
    deployments = yaml.safe_load(DEPLOYMENTS.read_text())
    for deployment in deployments["deployments"]:
        module = deployment["entrypoint"].rpartition(".")[2]
        if module in parameters:
            deployment["parameters"] = {"config": dict(parameters[module])}
    path.write_text(yaml.safe_dump(deployments, sort_keys=False))
    return path


def wait_until(
    look: Callable[[], Found | None], what: str, seconds: float, log: Path, pause: float = 0.2
) -> Found:
    """Look again and again until something is there.

    Args:
        look: Gives it, or None.
        what: It in words.
        seconds: How long to look.
        log: Its end is the message where it never comes.
        pause: Seconds between two looks.

    Raises:
        RuntimeError: It did not come in time.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = look()
        if found is not None:
            return found
        time.sleep(pause)
    raise RuntimeError(f"expected {what} within {seconds:g} s:\n{log.read_text()[-4000:]}")


def _prefect(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [PREFECT, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"prefect {' '.join(arguments)}:\n{done.stdout}{done.stderr}")
    return done.stdout


def _start(log: Path, environment: dict[str, str], *arguments: str) -> "subprocess.Popen[bytes]":
    with log.open("ab") as file:
        return subprocess.Popen(
            [PREFECT, *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )


def _start_worker(home: Path, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    return _start(home / "worker.log", environment, "worker", "start", "--pool", "dedup")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:  # a worker waits for its runs, however long they take
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(url: str) -> bool | None:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return None
