"""`prefect deployment run dedup/main` through a real server and a real worker."""

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from benchmarks.prefect_site import PrefectSite, prefect_site
from tasks import storage
from tasks.approvals import read_decision
from tasks.manifests import read_manifest
from tests.conftest import Night
from tests.written_nights import WrittenNight, write_night

ROOT = Path(__file__).parents[2]
PREFECT = str(Path(sys.executable).parent / "prefect")
DEDUP = str(Path(sys.executable).parent / "dedup")


AUTOMATIONS = ROOT / "deployments/automations.yaml"
DOCUMENTED = ROOT / "docs/alerts.md"


@dataclass(frozen=True)
class Pager:
    """Somebody's webhook: it keeps what it is told."""

    texts: list[str] = field(default_factory=list)

    def wait_for(self, wanted: Callable[[str], bool]) -> str:
        for _ in range(120):
            found = [text for text in self.texts if wanted(text)]
            if found:
                return found[0]
            time.sleep(0.5)
        raise AssertionError(f"not told: {self.texts}")


@dataclass(frozen=True)
class Orchestra:
    """A server with our deployments and automations, and a worker."""

    site: PrefectSite
    pager: Pager

    @property
    def worker_log(self) -> Path:
        return self.site.worker_log

    def prefect(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [PREFECT, *arguments],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=self.site.environment,
            check=False,
        )

    def ask(self, path: str, **body: object) -> Any:
        return self.site.ask(path, **body)

    def get(self, path: str) -> Any:
        return self.site.get(path)

    def events(self, name: str) -> list[dict[str, Any]]:
        """The events of a name, as the server keeps them; it waits for the first."""
        for _ in range(60):
            found: list[dict[str, Any]] = self.ask(
                "events/filter", filter={"event": {"name": [name]}}
            )["events"]
            if found:
                return found
            time.sleep(0.5)
        raise AssertionError(f"no event {name}")

    def wait_for_log(self, text: str) -> str:
        """Wait until the worker has passed on a text: the server knows of a state before that."""
        for _ in range(60):
            log = self.worker_log.read_text()
            if text in log:
                return log
            time.sleep(0.5)
        raise AssertionError(f"not in the log of the worker: {text}\n{log[-4000:]}")

    def wait_for_apply(self, manifest_url: str, wanted: str) -> dict[str, Any]:
        """Wait until the apply of a manifest is in some state."""
        state = None
        for _ in range(240):
            for run in self.ask("flow_runs/filter", flows={"name": {"any_": ["apply"]}}):
                if run["parameters"]["config"]["manifest_url"] == manifest_url:
                    state = str(run["state"]["name"]).upper()
                    if state == wanted:
                        found: dict[str, Any] = run
                        return found
            time.sleep(0.5)
        raise AssertionError(f"{manifest_url} is {state}:\n{self.worker_log.read_text()[-4000:]}")


@pytest.fixture(scope="module")
def webhook() -> Iterator[tuple[str, Pager]]:
    """The address of a pager, and what it is told."""
    pager = Pager()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            pager.texts.append(json.loads(content)["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", pager
        server.shutdown()


@pytest.fixture(scope="module")
def orchestra(
    tmp_path_factory: pytest.TempPathFactory, webhook: tuple[str, Pager]
) -> Iterator[Orchestra]:
    webhook_url, pager = webhook
    home = tmp_path_factory.mktemp("prefect")
    with prefect_site(home) as site:
        orchestra = Orchestra(site, pager)
        _automate(orchestra, webhook_url, home)
        yield orchestra


def test_deployment_runs_a_night_and_applies_its_manifest(
    orchestra: Orchestra, night: Night, tmp_path: Path
) -> None:
    shutil.copytree(night.folder / "junction-1", tmp_path / "2026-02-28")
    config = {
        "source_url": f"{tmp_path}/{{date}}",
        "workspace_url": f"{tmp_path}/workspace",
        "features": {"image_size": 64},
        "apply": {"execute": True},
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
    shown = {artifact["key"] for artifact in orchestra.ask("artifacts/filter")}
    assert shown >= {
        *("dedup-embedding", "dedup-shards", "dedup-summary", "dedup-report"),
        "dedup-kept-over-eps",
    }
    orchestra.wait_for_apply(f"file://{manifest}", "COMPLETED")
    assert len(list((tmp_path / "2026-02-28").iterdir())) == 1
    run_id = manifest.parent.name
    (event,) = orchestra.events("image-dedup.night.finished")
    assert event["payload"]["message"] == "6 images: 1 stay, 5 go"
    assert event["payload"]["report_url"] == f"file://{manifest.parent}/report/index.html"
    assert {"deployment", "flow", "tag"} <= {
        related["prefect.resource.role"] for related in event["related"]
    }
    # No other night finishes in the ten seconds that stand for 26 hours here.
    orchestra.pager.wait_for(lambda text: text == f"No night has finished since {run_id}")


def test_deployment_keeps_a_workspace_tidy(orchestra: Orchestra, tmp_path: Path) -> None:
    config = {"workspace_url": str(tmp_path), "purge_older_than": "30d"}
    finished = orchestra.prefect(
        *("deployment", "run", "maintenance/main", "--watch"),
        *("--param", f"config={json.dumps(config)}"),
    )
    assert finished.returncode == 0, finished.stdout + orchestra.worker_log.read_text()
    orchestra.wait_for_log("0 images in quarantine are deleted for good")


def test_of_two_nights_at_once_the_second_waits_and_embeds_nothing(
    orchestra: Orchestra, night: Night, tmp_path: Path
) -> None:
    shutil.copytree(night.folder / "junction-2", tmp_path / "2026-02-28")
    config = {
        "source_url": f"{tmp_path}/{{date}}",
        "workspace_url": f"{tmp_path}/workspace",
        "features": {"image_size": 32},
    }
    arguments = ("--start-at", "2026-02-28 03:00:00 UTC", "--param", f"config={json.dumps(config)}")
    with ThreadPoolExecutor(2) as pool:
        command = ("deployment", "run", "dedup/main", "--watch", *arguments)
        both = [pool.submit(orchestra.prefect, *command) for _ in range(2)]
        assert [each.result().returncode for each in both] == [0, 0]

    runs = orchestra.ask(
        "flow_runs/filter",
        flows={"name": {"any_": ["dedup"]}},
        flow_runs={"expected_start_time": {"before_": "2026-03-01T00:00:00Z"}},
        sort="START_TIME_DESC",
        limit=2,
    )
    second, first = (
        orchestra.get(f"flow_run_states/?flow_run_id={run['id']}")  # from the first state on
        for run in runs
    )
    started = {
        run[0]["state_details"]["flow_run_id"]: state["timestamp"]
        for run in (first, second)
        for state in run
        if state["type"] == "RUNNING"
    }
    assert "AwaitingConcurrencySlot" in {state["name"] for state in second}
    assert first[-1]["timestamp"] < started[runs[0]["id"]]
    (store,) = (tmp_path / "workspace" / "features").iterdir()
    assert sum(pq.read_metadata(file).num_rows for file in store.iterdir()) == 5
    orchestra.wait_for_log("5 of 5 images are embedded already, 0 to go")
    assert len(list((tmp_path / "workspace").glob("library/*/*.parquet"))) == 1
    assert len(list((tmp_path / "workspace").glob("runs/*/manifest.parquet"))) == 1


@dataclass(frozen=True)
class Waiting:
    """An apply that waits for a person."""

    night: WrittenNight
    run: dict[str, Any]

    def num_images(self) -> int:
        return len(storage.list_files(self.night.source_url))


@pytest.fixture
def waiting(orchestra: Orchestra, tmp_path: Path) -> Waiting:
    night = write_night(str(tmp_path), {"a.jpg": ["b.jpg", "c.jpg"]}, noise=["d.jpg"])
    config = {"manifest_url": night.manifest_url, "execute": True, "approval": "required"}
    started = orchestra.prefect(
        "deployment", "run", "apply/main", "--param", f"config={json.dumps(config)}"
    )
    assert started.returncode == 0, started.stderr
    return Waiting(night, orchestra.wait_for_apply(night.manifest_url, "SUSPENDED"))


def test_approval_in_the_ui_lets_the_apply_go_on(orchestra: Orchestra, waiting: Waiting) -> None:
    keyset = waiting.run["state"]["state_details"]["run_input_keyset"]
    question = orchestra.get(f"flow_runs/{waiting.run['id']}/input/{keyset['description']}")
    assert "quarantine: 2 of 4 images?" in question
    assert "report/index.html" in question
    assert waiting.num_images() == 4
    said = {"is_approved": True, "comment": "looks right"}
    orchestra.ask(f"flow_runs/{waiting.run['id']}/resume", run_input=said)
    orchestra.wait_for_apply(waiting.night.manifest_url, "COMPLETED")
    assert waiting.num_images() == 2
    decision = read_decision(read_manifest(waiting.night.manifest_url))
    assert decision is not None
    assert (decision.is_approved, decision.by, decision.comment) == (
        True,
        "the Prefect UI",
        "looks right",
    )


def test_rejection_in_the_ui_ends_the_apply(orchestra: Orchestra, waiting: Waiting) -> None:
    orchestra.ask(f"flow_runs/{waiting.run['id']}/resume", run_input={"is_approved": False})
    orchestra.wait_for_apply(waiting.night.manifest_url, "COMPLETED")
    assert waiting.num_images() == 4
    assert not storage.exists(storage.join(waiting.night.workspace_url, "quarantine"))


def test_dedup_approve_wakes_the_apply(orchestra: Orchestra, waiting: Waiting) -> None:
    run_id = waiting.night.manifest_url.split("/")[-2]
    approved = subprocess.run(
        [DEDUP, "approve", run_id, "--workspace", waiting.night.workspace_url],
        env=orchestra.site.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert approved.returncode == 0, approved.stderr
    orchestra.wait_for_apply(waiting.night.manifest_url, "COMPLETED")
    assert waiting.num_images() == 2


def test_failed_run_fails_and_says_why_in_one_line(orchestra: Orchestra, tmp_path: Path) -> None:
    config = {"source_url": f"{tmp_path}/nowhere", "workspace_url": f"{tmp_path}/workspace"}
    finished = orchestra.prefect(
        "deployment", "run", "dedup/main", "--watch", "--param", f"config={json.dumps(config)}"
    )
    assert finished.returncode == 1
    log = orchestra.wait_for_log(
        f"expected a folder of images, found nothing: file://{tmp_path}/nowhere"
    )
    assert "Traceback" not in log
    orchestra.pager.wait_for(
        lambda text: (
            text.startswith("prefect.flow-run.Failed: flow run ")
            and f"found nothing: file://{tmp_path}/nowhere" in text
        )
    )


def test_guard_that_refuses_is_told(orchestra: Orchestra, tmp_path: Path) -> None:
    night = write_night(str(tmp_path), {"a.jpg": ["b.jpg", "c.jpg"]})
    config = {
        "manifest_url": night.manifest_url,
        "execute": True,
        "guards": {"max_removed_fraction": 0.5},
    }
    finished = orchestra.prefect(
        "deployment", "run", "apply/main", "--watch", "--param", f"config={json.dumps(config)}"
    )
    assert finished.returncode == 1
    told = orchestra.pager.wait_for(lambda text: night.workspace_url in text)
    name, message, report_url = told.split("\n")
    assert name == "image-dedup.guard.tripped"
    assert "66.67% of the readable images, at most 50.00%" in message
    assert report_url == night.manifest_url.replace("manifest.parquet", "report/index.html")


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
            flows={"name": {"any_": ["dedup"]}},
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


@pytest.mark.slow
def test_lost_run_is_marked_as_crashed(orchestra: Orchestra, night: Night, tmp_path: Path) -> None:
    lost_runs = next(
        automation
        for automation in yaml.safe_load(AUTOMATIONS.read_text())["automations"]
        if automation["name"] == "image-dedup lost runs"
    )
    # Two heartbeats may not be so far apart; five minutes are too long for a test.
    said = json.dumps(lost_runs | {"trigger": lost_runs["trigger"] | {"within": 40}})
    created = orchestra.prefect("automation", "create", "--from-json", said)
    assert created.returncode == 0, created.stderr
    config = {"source_url": str(night.folder), "workspace_url": str(tmp_path)}
    orchestra.prefect(
        *("deployment", "run", "dedup/main", "--flow-run-name", "lost"),
        *("--param", f"config={json.dumps(config)}"),
    )

    def lost() -> dict[str, Any]:
        (run,) = orchestra.ask("flow_runs/filter", flow_runs={"name": {"any_": ["lost"]}})
        return dict(run)

    heard = {"event": {"name": ["prefect.flow-run.heartbeat"]}}
    heard |= {"resource": {"id": [f"prefect.flow-run.{lost()['id']}"]}}
    _wait_until(lambda: orchestra.ask("events/filter", filter=heard)["events"])
    # The worker first, as when the machine is gone: one that lives tells of its dead runs itself.
    processes = _processes_of(lost()["id"])
    worker = next(each for each in processes[0].parents() if "worker" in each.cmdline())
    for process in (worker, *processes):
        process.kill()
    _wait_until(lambda: lost()["state"]["name"] == "Crashed", seconds=120)
    assert lost()["state"]["message"] == lost_runs["actions"][0]["message"]
    orchestra.pager.wait_for(
        lambda text: text.startswith("prefect.flow-run.Crashed: flow run lost")
    )


def _processes_of(flow_run_id: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("PREFECT__FLOW_RUN_ID") == flow_run_id:
                found.append(process)
    return found


def _wait_until(is_so: Callable[[], object], seconds: float = 60) -> None:
    for _ in range(int(2 * seconds)):
        if is_so():
            return
        time.sleep(0.5)
    raise AssertionError("it never was")


def _automate(orchestra: Orchestra, webhook_url: str, home: Path) -> None:
    """Do what docs/alerts.md says, except that a night is overdue after ten seconds."""
    template, created = home / "template.yaml", home / "automations.yaml"
    template.write_text(AUTOMATIONS.read_text().replace("within: 93600", "within: 10"))
    shown = re.search(r"```\n(export DEDUP_WEBHOOK.*?)```", DOCUMENTED.read_text(), re.DOTALL)
    assert shown is not None
    commands = shown[1]
    for documented, ours in {
        "https://chat.example.com/hooks/...": webhook_url,
        ".venv/bin": str(Path(sys.executable).parent),
        "deployments/automations.yaml": str(template),
        "/tmp/automations.yaml": str(created),
    }.items():
        assert documented in commands
        commands = commands.replace(documented, ours)
    finished = subprocess.run(
        ["bash", "-e", "-c", commands],
        cwd=ROOT,
        env=orchestra.site.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stdout.count("image-dedup") >= 4  # as `automation ls` lists them
