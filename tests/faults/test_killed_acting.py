"""SIGKILL at random moments of `dedup apply` and `dedup undo`: nothing lost, nothing done twice."""

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tasks import storage
from tasks.apply03_lock_source import LOCK_NAME
from tasks.stores import store_of
from tests.written_nights import WrittenNight, write_night

DEDUP = str(Path(sys.executable).parent / "dedup")
PROFILE = "apply: {acting: {images_per_batch: 40, workers: 8}}\n"


@dataclass
class Bench:
    """A night that is applied and undone again and again, and killed meanwhile."""

    night: WrittenNight
    profile: Path
    rng: random.Random
    lock_seconds: int
    kills: Counter[str] = field(default_factory=Counter)
    num_checks: int = 0
    num_lost: int = 0
    num_orphans: int = 0

    def apply(self, *options: str) -> list[str]:
        arguments = [self.night.manifest_url, "--delete", "--execute", *options]
        return [DEDUP, "apply", *arguments, "--config", str(self.profile)]

    def undo(self, apply_id: str) -> list[str]:
        return [DEDUP, "undo", apply_id, "--workspace", self.night.workspace_url]

    def finish(self, command: list[str]) -> dict[str, object]:
        """Let a command end by itself; it waits for the lock of one that was killed."""
        while True:
            done = subprocess.run(
                [*command, "--lock-seconds", str(self.lock_seconds), "--json"],
                capture_output=True,
                check=False,
            )
            if b"holds the lock" not in done.stderr:
                break
            time.sleep(0.2)
        assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()[-2000:]
        summary: dict[str, object] = json.loads(done.stdout)
        return summary

    def kill(self, command: list[str], seconds: float) -> None:
        """Start a command and kill it at a random moment, if it still lives then."""
        while not self.is_lock_expired():
            time.sleep(0.1)  # of the one that was killed before
        process = subprocess.Popen(
            [*command, "--lock-seconds", str(self.lock_seconds)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        time.sleep(self.rng.uniform(0.35, 1.0) * seconds)
        process.send_signal(signal.SIGKILL)
        _, stderr = process.communicate()
        if process.returncode == -signal.SIGKILL:
            self.kills[command[1]] += 1
        else:
            assert process.returncode == 0, stderr.decode()
        self.check()

    def is_lock_expired(self) -> bool:
        url = storage.join(self.night.source_url, LOCK_NAME)
        found = store_of(url).get(url)
        if found is None:
            return True
        return (found.seen_at - found.state.modified_at).total_seconds() > self.lock_seconds

    def disturb(
        self, name: str, command: list[str], seconds: dict[str, float]
    ) -> dict[str, object]:
        """Kill a command several times, then let it end; the first time it is only timed."""
        if seconds[name]:
            for _ in range(self.rng.randint(2, 8)):
                self.kill(command, seconds[name])
            return self.finish(command)
        started = time.monotonic()
        summary = self.finish(command)
        seconds[name] = time.monotonic() - started
        return summary

    def files(self) -> dict[str, str]:
        """Digest of every file in source and quarantine that is no journal, lock or probe."""
        quarantine = storage.join(self.night.workspace_url, "quarantine")
        return {
            file.url: hashlib.md5(storage.read_bytes(file.url)).hexdigest()
            for folder in (self.night.source_url, quarantine)
            for file in (storage.list_files(folder) if storage.exists(folder) else ())
        }

    def check(self) -> None:
        """Every image is in its place, or in quarantine and its keeper in place."""
        files = self.files()
        self.num_checks += 1
        digests = {
            path: hashlib.md5(content).hexdigest() for path, content in self.night.contents.items()
        }
        keeper_of = {row["url"]: row["keeper_url"] for row in self.night.rows}
        away = {
            url.split("-quarantine-", 1)[1].split("/", 1)[1]: digest
            for url, digest in files.items()
            if "/quarantine/" in url
        }
        for path, digest in digests.items():
            url = self.night.url(path)
            # Deleting for good moves an image aside for a moment.
            folder = url.rpartition("/")[0]
            name = hashlib.sha256(url.rpartition("/")[2].encode()).hexdigest()[:16]
            aside = f"{folder}/.image-dedup.removing-{name}"
            if digest in (files.get(url), away.get(path), files.get(aside)):
                continue
            self.num_lost += 1
        for path in self.night.removed():
            url = self.night.url(path)
            keeper = keeper_of[url]
            if url not in files and keeper not in files:
                self.num_orphans += 1
        assert (self.num_lost, self.num_orphans) == (0, 0)


def make_bench(place: str, tmp_path: Path, num_images: int) -> Bench:
    groups = {
        f"camera {n}/keeper.jpg": [f"camera {n}/{i:03d} ü.jpg" for i in range(num_images // 30 - 1)]
        for n in range(30)
    }
    profile = tmp_path / "profile.yaml"
    profile.write_text(PROFILE)
    # Short, because each kill leaves a lock; but a busy machine must manage to renew it.
    lock_seconds = 3 if place.startswith("s3:") else 1
    return Bench(write_night(place, groups), profile, random.Random(7), lock_seconds)


@pytest.mark.parametrize(
    ("where", "num_images", "num_kills"),
    [
        pytest.param("local", 600, 4, id="few"),
        pytest.param("local", 1_500, 100, marks=pytest.mark.faults, id="local"),
        pytest.param("s3", 300, 60, marks=pytest.mark.faults, id="s3"),
    ],
)
def test_killed_applies_and_undos_end_as_if_undisturbed(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    where: str,
    num_images: int,
    num_kills: int,
) -> None:
    place = str(tmp_path) if where == "local" else request.getfixturevalue("s3_url") + "/place"
    bench = make_bench(place, tmp_path, num_images)
    before = bench.files()
    removed, kept = bench.night.removed(), bench.night.kept()
    # The first round runs undisturbed, and says how long it takes.
    seconds = {"apply": 0.0, "undo": 0.0}
    num_rounds = 0
    while sum(bench.kills.values()) < num_kills:
        applied = bench.disturb("apply", bench.apply(), seconds)
        assert (applied["num_done"], applied["num_problems"]) == (len(removed), 0)
        to_folder = str(applied["to_folder"])
        assert bench.files() == {
            **{bench.night.url(path): before[bench.night.url(path)] for path in kept},
            **{f"{to_folder}/{path}": before[bench.night.url(path)] for path in removed},
        }
        undone = bench.disturb("undo", bench.undo(str(applied["apply_id"])), seconds)
        assert undone["num_problems"] == 0
        assert bench.files() == before
        num_rounds += 1
    with capsys.disabled():
        print(
            f"\n{where}: {dict(bench.kills)} kills in {num_rounds} rounds, {bench.num_checks} "
            f"checks of {len(before)} images: {bench.num_lost} lost, {bench.num_orphans} orphans"
        )
