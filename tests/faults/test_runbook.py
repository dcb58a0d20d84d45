"""What docs/runbook.md shows is what the commands say, and what it tells people to do helps."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tasks import storage
from tasks.apply03_lock_source import LOCK_NAME, lock_source
from tests.one_bucket import as_client
from tests.s3_server import S3Server
from tests.written_nights import WrittenNight, write_night

RUNBOOK = (Path(__file__).parents[2] / "docs/runbook.md").read_text()
DEDUP = Path(sys.executable).parent / "dedup"
pytestmark = pytest.mark.faults

GROUPS = {"cam/k.jpg": ["cam/a.jpg", "cam/b.jpg"]}


def dedup(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [DEDUP, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


def apply(night: WrittenNight, **environment: str) -> "subprocess.CompletedProcess[str]":
    return dedup("apply", night.manifest_url, "--delete", "--execute", **environment)


def paths(night: WrittenNight) -> list[str]:
    return [file.relative_path for file in storage.list_files(night.source_url)]


def assert_shown(failed: "subprocess.CompletedProcess[str]", *names: tuple[str, str]) -> None:
    """Find the last line of a failed command in the runbook, with the names that it has there."""
    assert failed.returncode == 1, failed.stdout + failed.stderr
    line = failed.stderr.splitlines()[-1]
    for ours, theirs in names:
        line = line.replace(ours, theirs)
    assert line in RUNBOOK.splitlines()


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """A folder without any room left."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1024))
    yield
    filler.unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_disk_stops_an_apply_and_room_lets_it_go_on(small_disk: Path) -> None:
    night = write_night(str(small_disk), GROUPS)
    with full_disk(small_disk):
        assert_shown(apply(night), (night.source_url, "file:///data/night"))
        assert len(paths(night)) == 3
    assert apply(night).returncode == 0
    assert paths(night) == ["cam/k.jpg"]


def test_lost_credentials_are_told_apart(s3_server: S3Server, s3_url: str) -> None:
    night = write_night(f"{s3_url}/place", GROUPS)
    shown = [
        (night.source_url, "s3://cameras/incoming/2026-02-26"),
        (night.workspace_url, "s3://cameras/dedup"),
        ("night-0123456789abcdef", "…"),
    ]
    assert_shown(apply(night, AWS_SECRET_ACCESS_KEY="wrong"), *shown)
    assert_shown(apply(night, **s3_server.reader), *shown)
    nobody = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    with as_client(s3_server.admin):
        assert_shown(apply(night, **nobody, AWS_EC2_METADATA_DISABLED="true"))
        assert len(paths(night)) == 3
        assert apply(night).returncode == 0


def test_lock_says_who_holds_it_and_a_dead_one_is_taken_over(tmp_path: Path) -> None:
    night = write_night(str(tmp_path), GROUPS)
    with lock_source(
        night.source_url, [], purpose="a test", expiry_seconds=60, allow_unlocked=False
    ):
        lock = (tmp_path / "source" / LOCK_NAME).read_bytes()
        held = apply(night)
    said = (
        r"error: \S+, process \d+ holds the lock of \S+ since \S+ for .*; last renewed \S+, "
        r"free 60 s after the last renewal"
    )
    assert re.fullmatch(said, held.stderr.splitlines()[-1])
    (example,) = (line for line in RUNBOOK.splitlines() if "holds the lock" in line)
    assert re.fullmatch(said, example)
    dead = tmp_path / "source" / LOCK_NAME
    dead.write_bytes(lock)
    os.utime(dead, (dead.stat().st_atime, dead.stat().st_mtime - 61))
    assert apply(night).returncode == 0
    assert not dead.exists()


def commands_with(text: str) -> str:
    """The block of commands that a text is in."""
    blocks = re.findall(r"```\n(.*?)```", RUNBOOK, re.DOTALL)
    (found,) = (block for block in blocks if text in block)
    return found


def test_all_applies_are_undone_by_the_commands_of_the_runbook(tmp_path: Path) -> None:
    nights = [write_night(str(tmp_path / day), GROUPS) for day in ("1", "2", "3")]
    workspace = tmp_path / "workspace"
    for number, night in enumerate(nights):
        run_id = f"night-{number:016x}"
        moved = workspace / "runs" / run_id / "manifest.parquet"
        moved.parent.mkdir(parents=True)
        again = night.rewrite(night.rows, run_id=run_id)
        Path(again.manifest_url.removeprefix("file://")).rename(moved)
        done = dedup("apply", str(moved), "--delete", "--execute")
        assert done.returncode == 0, done.stderr
    script = commands_with("for apply in").replace(".venv/bin/dedup", str(DEDUP))
    undone = subprocess.run(
        ["bash", "-euc", script],
        env=os.environ | {"W": str(workspace)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert undone.returncode == 0, undone.stderr
    assert [paths(night) for night in nights] == [["cam/a.jpg", "cam/b.jpg", "cam/k.jpg"]] * 3
