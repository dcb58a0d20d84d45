"""Thirty nights of real cameras through a real Prefect server and a real worker.

    python -m benchmarks.thirty_nights DATA [--nights 30] [--json FILE]

`deployments/prefect.yaml` is deployed with its schedule and with `apply` on. Each night delivers
its images into the folder of its day, and then its run is scheduled for the time at which the
schedule fires on the day after. Some images come late, twice, edited or broken, and four nights go
wrong (`Script`). After each night `benchmarks.audit` looks at all that is left.
"""

import argparse
import asyncio
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from benchmarks.audit import Audit, audit, missing, path_of, rows_of
from benchmarks.deliveries import CAMERAS, Delivery, deliver, frames_of, plan_deliveries, renamed
from benchmarks.prefect_site import PrefectSite, prefect_site, wait_until, write_deployments

DEDUP = str(Path(sys.executable).parent / "dedup")
EPS = 0.05
FIRST_NIGHT = datetime(2026, 3, 10, tzinfo=UTC)  # summer time begins in the middle
IMAGES_OF_A_CAMERA = 500
LOCK_SECONDS = 10


@dataclass(frozen=True)
class Script:
    """In which nights what goes wrong."""

    killed_embedding: int = 7
    """The flow run is killed after its first shard, and `prefect flow-run retry` goes on."""
    keeper_deleted: int = 12
    """Somebody deletes an image that an earlier night has kept, and its content arrives again. So
    the apply leaves it alone; `dedup library prune --gone` and a retry put that right."""
    run_again: int = 15
    """Late images arrive in the night's own folder, and the night is run again."""
    killed_applying: int = 19
    """The worker and its runs are killed in the middle of the apply, and it is applied again."""


@dataclass
class Nights:
    """The site, the images and what has happened so far."""

    folder: Path
    site: PrefectSite
    script: Script
    delivered: Counter[str] = field(default_factory=Counter)
    manifests: list[Path] = field(default_factory=list)
    """Of all runs, in the order in which they decided."""
    table: list[dict[str, Any]] = field(default_factory=list)

    @property
    def source(self) -> Path:
        """Folder with a folder for each night."""
        return self.folder / "incoming"

    @property
    def workspace(self) -> Path:
        """Where features, runs and the quarantine are."""
        return self.folder / "workspace"

    def deliver(self, day: date, deliveries: Sequence[Delivery]) -> None:
        """Write files into the folder of a day."""
        deliver(self.source / day.isoformat(), deliveries)
        self.delivered.update(hashlib.sha256(one.content).hexdigest() for one in deliveries)

    def audit(self) -> Audit:
        """What an independent look at all that is left finds."""
        return audit(self.source, self.workspace, self.manifests, eps=EPS)

    def missing(self) -> Counter[str]:
        """Contents that are neither in their place nor in quarantine."""
        return missing(self.delivered, self.source, self.workspace / "quarantine")


def main() -> int:
    """Run the nights and print the table; the exit status says whether everything held."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.thirty_nights")
    parser.add_argument("data", type=Path, help="folder that the cameras' folders lie in")
    parser.add_argument("--cameras", nargs="+", default=CAMERAS, help="folders of frames below it")
    parser.add_argument("--nights", type=int, default=30)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    frames = frames_of(options.data, options.cameras, at_most=IMAGES_OF_A_CAMERA)
    with tempfile.TemporaryDirectory(prefix="dedup-nights-") as folder:
        figures = run_nights(Path(folder), frames, options.nights, image_size=options.image_size)
    report(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 1 if figures["problems"] else 0


def run_nights(
    folder: Path,
    frames: dict[str, list[Path]],
    num_nights: int,
    *,
    image_size: int,
    script: Script = Script(),
) -> dict[str, Any]:
    """Run all nights on a site of their own and give the figures."""
    home = folder / "prefect"
    home.mkdir()
    config = {
        "source_url": f"{folder}/incoming/{{yesterday}}",
        "workspace_url": f"{folder}/workspace",
        "time_zone": "Europe/Berlin",
        "source": {"partition_by": "^([^/]+)/"},
        "features": {"image_size": image_size},
        "neighbors": {"eps": EPS},
        "execution": {"images_per_shard": 16, "workers": 2},
        "apply": {
            "execute": True,
            "approval": "never",
            "guards": {"max_removed_fraction": 1.0},
            # One image in a batch, so that there is a middle in which an apply can be killed.
            "acting": {"workers": 1, "images_per_batch": 1, "lock_seconds": LOCK_SECONDS},
        },
    }
    prefect_file = write_deployments(home / "prefect.yaml", {"dedup": config})
    with prefect_site(home, prefect_file) as site:
        nights = Nights(folder, site, script)
        times = scheduled_times(site, num_nights)
        days = [(time - timedelta(days=1)).date() for time in times]
        for number, (scheduled, deliveries) in enumerate(
            zip(times, plan_deliveries(frames, days), strict=True), start=1
        ):
            run_night(nights, number, scheduled, deliveries)
    return figures_of(nights)


def scheduled_times(site: PrefectSite, num_nights: int) -> list[datetime]:
    """When the deployment's own schedule fires, as Prefect's scheduler computes it."""
    from prefect.server.schemas.schedules import CronSchedule

    schedule = site.get("deployments/name/dedup/main")["schedules"][0]["schedule"]
    cron = CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
    times = asyncio.run(cron.get_dates(n=num_nights, start=FIRST_NIGHT))
    return [time.astimezone(ZoneInfo(schedule["timezone"])) for time in times]


def run_night(
    nights: Nights, number: int, scheduled: datetime, deliveries: Sequence[Delivery]
) -> None:
    """Deliver a night, let it run and be applied, and look at what is left."""
    day = (scheduled - timedelta(days=1)).date()
    late = list(deliveries[::9]) if number == nights.script.run_again else []
    nights.deliver(day, [one for one in deliveries if one not in late])
    if number == nights.script.keeper_deleted:
        delete_a_keeper(nights, day)
    cost, happened = run_and_apply(nights, number, scheduled, day)
    note_night(nights, number, day, cost, happened)
    if late:
        nights.deliver(day, late)
        cost, _ = run_and_apply(nights, number, scheduled, day)
        note_night(nights, number, day, cost, f"again: {len(late)} late images in its folder")


def run_and_apply(
    nights: Nights, number: int, scheduled: datetime, day: date
) -> tuple[dict[str, float], str]:
    """Schedule a run and wait for it and its apply; what it cost, and what went wrong."""
    site, script = nights.site, nights.script
    started, cpu_seconds = time.perf_counter(), site.cpu_seconds()
    run_id = site.schedule("dedup/main", scheduled.isoformat())
    happened = kill_while_it_embeds(nights, run_id) if number == script.killed_embedding else ""
    note_manifest(nights, run_id, day)
    if number == script.killed_applying:
        happened = kill_while_it_applies(nights)
    elif number == script.keeper_deleted:
        happened = forget_what_was_deleted(nights, run_id, day)
    else:
        require_completed(site.wait_for(apply_run(nights)["id"]))
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(site.cpu_seconds() - cpu_seconds, 1),
    }, happened


def note_manifest(nights: Nights, run_id: str, day: date) -> None:
    """Wait for a run to end well, and remember the manifest that it has written."""
    require_completed(nights.site.wait_for(run_id))
    nights.manifests.append(newest_manifest(nights.workspace, day))


def newest_manifest(workspace: Path, day: date) -> Path:
    """The manifest of the run of a day that ended last."""
    summaries = workspace.glob(f"runs/{day.isoformat()}-*/summary.json")
    return max(summaries, key=lambda path: path.stat().st_mtime_ns).parent / "manifest.parquet"


def apply_run(nights: Nights) -> dict[str, Any]:
    """The apply of the last manifest, as soon as it has been started."""
    name = f"apply-{nights.manifests[-1].parent.name}"

    def found() -> dict[str, Any] | None:
        runs = nights.site.ask("flow_runs/filter", flow_runs={"name": {"any_": [name]}})
        return runs[0] if runs else None

    return wait_until(found, f"a flow run {name}", 60, nights.site.worker_log)


def require_completed(run: dict[str, Any]) -> None:
    """Stop the nights where a run did not end well."""
    if run["state"]["type"] != "COMPLETED":
        raise RuntimeError(f"{run['name']} is {run['state']['name']}: {run['state']['message']}")


def kill_while_it_embeds(nights: Nights, run_id: str) -> str:
    """SIGKILL to the process of a run after its first shard; then `prefect flow-run retry`."""
    shards = set(nights.workspace.glob("features/*/*.parquet"))
    process = nights.site.process_of(run_id)
    new = wait_until(
        lambda: set(nights.workspace.glob("features/*/*.parquet")) - shards or None,
        "the first shard",
        120,
        nights.site.worker_log,
        pause=0.001,
    )
    process.kill()
    state = nights.site.wait_for(run_id)["state"]["name"]
    nights.site.retry(run_id)
    return f"killed after {len(new)} shards, {state}, retried"


def kill_while_it_applies(nights: Nights) -> str:
    """SIGKILL to the worker and its runs in the middle of an apply; then the same apply again."""
    run = apply_run(nights)
    nights.site.process_of(run["id"])
    journals = nights.manifests[-1].parent / "applies"
    wait_until(
        lambda: len(list(journals.glob("*/*.jsonl"))) > 8 or None,
        "an apply in its middle",
        120,
        nights.site.worker_log,
        pause=0.001,
    )
    nights.site.kill_worker()
    going = [path for path, row in rows_of(nights.manifests[-1]).items() if is_going(row)]
    num_done = sum(not path.exists() for path in going)
    nights.site.start_worker()
    time.sleep(LOCK_SECONDS + 1)  # its lock lies in the source until it expires
    again = nights.site.schedule("apply/main", datetime.now(UTC).isoformat(), **run["parameters"])
    require_completed(nights.site.wait_for(again))
    return f"worker killed when {num_done} of {len(going)} were removed, applied again"


def is_going(row: dict[str, Any]) -> bool:
    """Tell whether a row of a manifest lets an image go."""
    return bool(row["action"] == "remove")


def delete_a_keeper(nights: Nights, day: date) -> None:
    """Delete an image that nothing else went for, and deliver its content again."""
    rows = {path: row for manifest in nights.manifests for path, row in rows_of(manifest).items()}
    needed = {path_of(row["keeper_url"]) for row in rows.values() if is_going(row)}
    keeper = next(
        path
        for path, row in sorted(rows.items())
        if row["action"] == "keep" and path not in needed and path.exists()
    )
    taken = datetime.fromtimestamp(keeper.stat().st_mtime, UTC)
    again = Delivery(f"{keeper.parent.name}/{keeper.name}", keeper.read_bytes(), taken, "again")
    keeper.unlink()
    nights.delivered[hashlib.sha256(again.content).hexdigest()] -= 1
    nights.deliver(day, [renamed(again, "deleted ", "again")])


def forget_what_was_deleted(nights: Nights, run_id: str, day: date) -> str:
    """An apply leaves an image alone whose keeper is gone: prune the library, run it again."""
    applied = nights.site.wait_for(apply_run(nights)["id"])
    left_alone = [
        path
        for path, row in rows_of(nights.manifests[-1]).items()
        if is_going(row) and path.exists()
    ]
    subprocess.run(
        [DEDUP, "library", "prune", "--gone", "--execute", "--workspace", str(nights.workspace)],
        check=True,
        env=os.environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    nights.site.retry(run_id)
    note_manifest(nights, run_id, day)
    require_completed(nights.site.wait_for(apply_run(nights)["id"]))
    return f"apply {applied['state']['name']}, {len(left_alone)} left alone, pruned, retried"


def note_night(
    nights: Nights, number: int, day: date, cost: dict[str, float], happened: str
) -> None:
    """Look at what is left and print the line of a night."""
    summary = json.loads((nights.manifests[-1].parent / "summary.json").read_text())
    found = nights.audit()
    line = {
        "night": number,
        "day": day.isoformat(),
        "images": summary["num_images"],
        "embedded": summary["num_embedded"],
        "kept": summary["num_keep"] - summary["num_kept_before"],
        "removed": summary["num_remove"],
        "for_earlier": summary["num_remove_for_earlier"],
        "seconds": cost["seconds"],
        "cpu_seconds": cost["cpu_seconds"],
        "stages": summary["seconds"],
        "left": found.num_left,
        "gone": found.num_gone,
        "orphans": len(found.orphans),
        "kept_again": len(found.kept_again),
        "beside": found.num_beside,
        "undecided": len(found.undecided),
        "missing": nights.missing().total(),
        "audit": asdict(found),
        "happened": happened,
    }
    if not nights.table:
        print("".join(f"{name:>12}" for name in COLUMNS))
    print("".join(f"{line[name]!s:>12}" for name in COLUMNS) + f"  {happened}", flush=True)
    nights.table.append(line)


COLUMNS = (
    *("night", "images", "embedded", "kept", "removed", "seconds", "cpu_seconds"),
    *("left", "orphans", "kept_again", "beside", "undecided", "missing"),
)
MUST_BE_ZERO = ("orphans", "kept_again", "undecided", "missing")


def figures_of(nights: Nights) -> dict[str, Any]:
    """What all nights amount to."""
    table = nights.table
    usual = [line for line in table if not line["happened"]]
    problems = [
        f"night {line['night']}: {line[name]} {name}"
        for line in table
        for name in MUST_BE_ZERO
        if line[name]
    ]
    last = table[-1].pop("audit")
    for line in table[:-1]:
        del line["audit"]
    numbers = np.array([line["night"] for line in usual])
    return {
        "nights": table,
        "images": nights.delivered.total(),
        "removed": last["num_gone"],
        "left": last["num_left"],
        "unreadable": last["num_unreadable"],
        "problems": problems,
        "orphans": last["orphans"],
        "kept_again": last["kept_again"],
        "seconds": trend(numbers, [line["seconds"] for line in usual]),
        "cpu_seconds": trend(numbers, [line["cpu_seconds"] for line in usual]),
        "cpu_seconds_per_new_image": trend(
            numbers, [line["cpu_seconds"] / line["embedded"] for line in usual]
        ),
        "library_seconds": trend(numbers, [line["stages"]["library"] for line in usual]),
    }


def trend(numbers: "np.ndarray[Any, Any]", values: Sequence[float]) -> dict[str, float]:
    """A straight line through what nights cost.

    Args:
        numbers: Of the nights.
        values: What each costs.

    Returns:
        The mean, the slope as a percentage of it per night, the standard error of that, and the
        mean of the last third over that of the first.
    """
    costs = np.array(values)
    third = max(1, len(costs) // 3)
    away = numbers - numbers.mean()
    slope = (away @ costs) / (away @ away)
    rest = costs - costs.mean() - slope * away
    error = np.sqrt((rest @ rest) / max(1, len(costs) - 2) / (away @ away))
    percent = 100 / costs.mean()
    return {
        "mean": round(float(costs.mean()), 3),
        "slope_percent": round(float(slope * percent), 2),
        "error_percent": round(float(error * percent), 2),
        "last_to_first_third": round(float(costs[-third:].mean() / costs[:third].mean()), 3),
    }


def report(figures: dict[str, Any]) -> None:
    """Print what the nights amount to."""
    print(
        f"\n{figures['images']:,} images delivered, {figures['removed']:,} removed, "
        f"{figures['left']:,} left, {figures['unreadable']} unreadable"
    )
    for name in ("seconds", "cpu_seconds", "cpu_seconds_per_new_image", "library_seconds"):
        cost = figures[name]
        slope = f"{cost['slope_percent']:+g} ± {cost['error_percent']:g} % a night"
        print(
            f"{name:<28}mean {cost['mean']:g}, {slope}, "
            f"last third / first {cost['last_to_first_third']:g}"
        )
    print("\n".join(figures["problems"]) or "0 orphans, 0 kept again, 0 undecided, 0 missing")


if __name__ == "__main__":
    sys.exit(main())
