"""A store that fails at random: what can be done is done, and else there is one clear error."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL

from config import ActingSettings, ApplyConfig
from flows.acting import apply_manifest, undo_apply
from tasks import storage
from tests.conftest import Night
from tests.faulty_proxy import FaultyProxy, run_faulty_proxy
from tests.s3_server import S3Server
from tests.written_nights import WrittenNight, write_night

DEDUP = str(Path(sys.executable).parent / "dedup")
ACTING = ActingSettings(workers=8, lock_seconds=60)


@pytest.fixture
def proxy(
    s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultyProxy]:
    """A proxy in front of the store that lets everything pass until it is told otherwise."""
    with run_faulty_proxy(s3_server.endpoint, failure_rate=0.0, seed=7) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        storage._filesystem.cache_clear()
        yield proxy


def lay_out(s3_url: str) -> WrittenNight:
    groups = {f"cam {n}/keeper.jpg": [f"cam {n}/{i}.jpg" for i in range(7)] for n in range(5)}
    return write_night(f"{s3_url}/place", groups)


def tree(night: WrittenNight) -> dict[str, bytes]:
    return {
        file.relative_path: storage.read_bytes(file.url)
        for file in storage.list_files(night.source_url)
    }


def apply(night: WrittenNight) -> "ApplyConfig":
    return ApplyConfig(manifest_url=night.manifest_url, execute=True, acting=ACTING)


def test_apply_and_undo_bear_a_store_that_fails_every_twentieth_time(
    proxy: FaultyProxy, s3_url: str
) -> None:
    night = lay_out(s3_url)
    proxy.failure_rate = 0.05
    applied = apply_manifest(apply(night))
    proxy.failure_rate = 0.0
    assert (applied.num_done, applied.num_problems) == (35, 0)
    assert sorted(tree(night)) == sorted(night.kept())
    proxy.failure_rate = 0.05
    assert applied.apply_id is not None
    undone = undo_apply(applied.apply_id, night.workspace_url, ACTING)
    proxy.failure_rate = 0.0
    assert (undone.num_done, undone.num_problems) == (35, 0)
    assert tree(night) == night.contents
    assert sum(proxy.num_faults.values()) > 10


def test_store_that_always_fails_is_one_clear_error(proxy: FaultyProxy, s3_url: str) -> None:
    night = lay_out(s3_url)
    proxy.failure_rate = 1.0
    failed = subprocess.run(
        [DEDUP, "apply", night.manifest_url, "--delete", "--execute"],
        capture_output=True,
        text=True,
        env=os.environ,
        check=False,
    )
    proxy.failure_rate = 0.0
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")
    assert "Traceback" not in failed.stderr
    assert tree(night) == night.contents


@pytest.mark.faults
def test_run_and_apply_bear_a_store_that_fails_every_twentieth_time(
    proxy: FaultyProxy, s3_url: str, night: Night, prefect_server: None
) -> None:
    for path in sorted(night.folder.rglob("*")):
        if path.is_file():
            url = f"{s3_url}/source/{path.relative_to(night.folder)}"
            storage.publish_bytes(url, path.read_bytes())
    environment = os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value()}
    shape = ["--image-size", "64", "--images-per-shard", "4", "--json"]
    command = [DEDUP, "run", f"{s3_url}/source", *shape, "--workspace"]

    def dedup(*arguments: str) -> dict[str, object]:
        done = subprocess.run(
            [DEDUP, *arguments], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        summary: dict[str, object] = json.loads(done.stdout)
        return summary

    calm = dedup(*command[1:], f"{s3_url}/calm")
    proxy.failure_rate = 0.05
    stormy = dedup(*command[1:], f"{s3_url}/stormy")
    applied = dedup("apply", str(stormy["manifest_url"]), "--delete", "--execute", "--json")
    proxy.failure_rate = 0.0
    assert storage.read_bytes(str(stormy["manifest_url"])) == storage.read_bytes(
        str(calm["manifest_url"])
    )
    assert (applied["num_done"], applied["num_problems"]) == (31, 0)
    assert len(storage.list_files(f"{s3_url}/source")) == 12


@pytest.mark.faults
def test_run_on_a_store_that_always_fails_is_one_clear_error(
    proxy: FaultyProxy, s3_url: str, prefect_server: None
) -> None:
    night = lay_out(s3_url)
    proxy.failure_rate = 1.0
    failed = subprocess.run(
        [DEDUP, "run", night.source_url, "--workspace", f"{s3_url}/workspace"],
        capture_output=True,
        text=True,
        env=os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value()},
        check=False,
    )
    proxy.failure_rate = 0.0
    assert failed.returncode == 1
    assert [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in failed.stderr
    assert tree(night) == night.contents


@pytest.mark.faults
def test_store_that_dies_in_the_middle_of_a_run_keeps_what_was_done(
    proxy: FaultyProxy, s3_url: str, night: Night, prefect_server: None, tmp_path: Path
) -> None:
    for path in sorted(night.folder.rglob("*")):
        if path.is_file():
            url = f"{s3_url}/source/{path.relative_to(night.folder)}"
            storage.publish_bytes(url, path.read_bytes())
    profile = tmp_path / "profile.yaml"
    profile.write_text("execution: {retry_delay_seconds: 1}\n")
    shape = ["--image-size", "64", "--images-per-shard", "2", "--workers", "2", "--json"]
    run = [DEDUP, "run", f"{s3_url}/source", "--workspace", f"{s3_url}/work", *shape]

    process = subprocess.Popen(
        [*run, "--config", str(profile)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value()},
    )
    assert process.stderr is not None
    assert any("shard 0: 2 images" in line for line in process.stderr)
    proxy.failure_rate = 1.0
    _, stderr = process.communicate()
    proxy.failure_rate = 0.0
    assert process.returncode == 1
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "more were not tried" in errors[0]
    assert "Traceback" not in stderr

    resumed = subprocess.run(run, capture_output=True, text=True, env=os.environ, check=True)
    summary = json.loads(resumed.stdout)
    assert 0 < summary["num_embedded"] < 42
    assert (summary["num_remove"], summary["num_orphans"]) == (31, 0)
