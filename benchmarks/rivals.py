"""This project beside fastdup and imagededup: `python -m benchmarks.rivals FOLDER [FOLDER ...]`.

Every tool gets the same copy of the images, in one session and one after the other, with its own
default settings and as a process of its own. A folder with a groups.csv (path and group of each
image) shows quality too; one without shows what would be removed, the speed and the memory.

The rivals are installed from the package index into build/rivals, in the versions of
benchmarks/rivals.txt, and never into this project's environment; see LEGEND for what is left out.
"""

import argparse
import csv
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.large_night import MEBIBYTE, resident_bytes
from benchmarks.quality import Features, find_image, measure
from config.models import IMAGE_SUFFIXES
from tasks import storage
from tasks.schemas import IMAGES, MANIFEST

HERE = Path(__file__).resolve().parent
ENVIRONMENT = HERE.parent / "build" / "rivals"

REQUIREMENTS = {
    "fastdup": ["fastdup"],
    "imagededup": [
        *("--no-deps", "imagededup", "PyWavelets", "joblib", "numpy", "pillow", "scikit-learn"),
        *("scipy", "threadpoolctl", "tqdm"),
    ],
}
"""What pip is asked for. imagededup without its dependencies, for those bring torch."""

INSTALLATION_SECONDS = 600

QUIET = {
    "SENTRY_OPT_OUT": "1",
    "FASTDUP_PRODUCTION": "1",
    **dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9"),
}
"""No telemetry and no look for newer versions; what asks the network nevertheless meets a proxy
that refuses at once, instead of a firewall that lets it hang."""

SLACK = 1e-6
"""Similarities are summed up in float32, so one at the threshold may come out just below it."""


@dataclass(frozen=True)
class Answer:
    """What a tool says about the images it could read.

    `features` are `(N, D)` float32 of unit length, `threshold` is the smallest cosine similarity
    that makes two images alike for the tool, and `removed` are those of `images` that can go.
    """

    name: str
    images: list[str]
    features: Features
    removed: set[str]
    threshold: float
    stages: dict[str, float] | None = None


@dataclass(frozen=True)
class Cost:
    """What a process took, its children included."""

    seconds: float
    peak_mib: int


class NoAnswerError(Exception):
    """A tool failed or took too long."""


def main() -> int:
    """Install the rivals, run all on each folder and print a table for each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rivals")
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--images", type=int, default=300, help="at most so many of a folder")
    parser.add_argument("--timeout", type=int, default=600, help="seconds that a tool may take")
    parser.add_argument("--json", type=Path, help="write the result there too")
    options = parser.parse_args()
    missing = {}
    for rival, requirements in REQUIREMENTS.items():
        if error := installation_error(requirements):
            missing[rival] = error
            print(f"{rival} could not be installed and is left out:\n{error}\n")
    if importlib.util.find_spec("openvino") is None:
        missing["openvino"] = "the extra of that name is not installed"
        print(f"image-dedup with OpenVINO is left out: {missing['openvino']}\n")
    folders = [measure_folder(folder, options, missing) for folder in options.folders]
    print(LEGEND)
    if options.json:
        figures = {"not_installed": missing, "folders": folders}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def installation_error(requirements: list[str]) -> str | None:
    """Install into the rivals' environment; what was said when that did not work."""
    python = str(ENVIRONMENT / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
    commands = [[*pip, "--constraint", str(HERE / "rivals.txt"), *requirements]]
    if not Path(python).exists():
        commands.insert(0, [sys.executable, "-m", "venv", str(ENVIRONMENT)])
    try:
        for command in commands:
            subprocess.run(
                command,
                check=True,
                capture_output=True,
                text=True,
                timeout=INSTALLATION_SECONDS,
                env=without_our_packages(),
            )
    except subprocess.CalledProcessError as error:
        return str(error.stderr or error.stdout).strip()
    except subprocess.TimeoutExpired:
        return f"nothing after {INSTALLATION_SECONDS} s"
    return None


def without_our_packages() -> dict[str, str]:
    """The environment, with nothing in it that would let another Python import this project."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def measure_folder(
    folder: Path, options: argparse.Namespace, missing: dict[str, str]
) -> dict[str, Any]:
    """Run every tool on one folder, print their lines as they come, and return the figures."""
    grouped = read_groups(folder, options.images)
    images = list(grouped) if grouped else list_images(folder, options.images)
    groups = np.unique(list(grouped.values()), return_inverse=True)[1] if grouped else None
    about = "no groups" if groups is None else f"{groups.max() + 1} groups"
    print(f"{folder.name}: {len(images)} images, {about}\n{HEADER}", flush=True)
    lines = []
    with tempfile.TemporaryDirectory(prefix="dedup-bench-") as scratch:
        source = Path(scratch, "source")
        for image in images:
            (source / image).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / image, source / image)
        for number, (name, tool, arguments) in enumerate(TOOLS):
            if name in missing:
                continue
            place = Path(scratch, f"tool-{number}")
            place.mkdir()
            try:
                answer, cost = tool(source, place, arguments, options.timeout)
                figures = judge(answer, cost, images, groups)
            except NoAnswerError as error:
                figures = {"tool": " ".join([name, *arguments]), "error": str(error)}
            print(line(figures), flush=True)
            lines.append(figures)
    print()
    return {"folder": folder.name, "images": len(images), "tools": lines}


def read_groups(folder: Path, limit: int) -> dict[str, str]:
    """The group of each image of a groups.csv, by path below the folder; empty without one."""
    if not (folder / "groups.csv").is_file():
        return {}
    with (folder / "groups.csv").open(newline="") as file:
        rows = list(csv.reader(file))[1 : limit + 1]
    return {find_image(folder, row[0]).relative_to(folder).as_posix(): row[1] for row in rows}


def list_images(folder: Path, limit: int) -> list[str]:
    """The first images of a folder by path."""
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path.relative_to(folder).as_posix() for path in paths)[:limit]


def run_ours(
    source: Path, place: Path, arguments: list[str], timeout: float
) -> tuple[Answer, Cost]:
    """Run `dedup run` as a user would, with a fresh workspace."""
    dedup = str(Path(sys.executable).parent / "dedup")
    command = [dedup, "run", str(source), "--workspace", str(place), "--json", *arguments]
    output, cost = watch(command, place, dict(os.environ), timeout)
    summary = json.loads(output)
    manifest = storage.read_table(summary["manifest_url"], MANIFEST)
    settings = json.loads(storage.read_metadata(summary["manifest_url"])["config"])["features"]
    (run,) = place.glob("runs/*")
    rows = storage.read_table(str(run / "images.parquet"), IMAGES).to_pylist()
    items = {row["url"]: row["item_id"] for row in rows if row["item_id"] is not None}
    below = f"{storage.absolute_url(str(source))}/"
    answer = Answer(
        name=f"image-dedup, {settings['engine']} {settings['dtype']}",
        images=[url.removeprefix(below) for url in items],
        features=np.load(run / "features.npy")[list(items.values())],
        removed={
            row["url"].removeprefix(below)
            for row in manifest.to_pylist()
            if row["action"] == "remove"
        },
        threshold=1 - summary["eps"],
        stages=summary["seconds"],
    )
    return answer, cost


def run_rival(
    source: Path, place: Path, arguments: list[str], timeout: float
) -> tuple[Answer, Cost]:
    """Run a rival's adapter with the rivals' own Python, away from everything that is ours."""
    rival, *rest = arguments
    adapter = str(HERE / f"rival_{rival}.py")
    command = [str(ENVIRONMENT / "bin" / "python"), "-I", adapter, str(source), str(place), *rest]
    _, cost = watch(command, place, os.environ | QUIET | {"HOME": str(place)}, timeout)
    found = json.loads((place / "answer.json").read_text())
    answer = Answer(
        name=" ".join([rival, found["version"], *rest]),
        images=found["images"],
        features=np.load(place / "features.npy"),
        removed=set(found["removed"]),
        threshold=found["threshold"],
    )
    return answer, cost


Run = Callable[[Path, Path, list[str], float], tuple[Answer, Cost]]

TOOLS: tuple[tuple[str, Run, list[str]], ...] = (
    ("image-dedup", run_ours, []),
    ("openvino", run_ours, ["--engine", "openvino", "--dtype", "int8"]),
    ("fastdup", run_rival, ["fastdup"]),
    ("imagededup", run_rival, ["imagededup", "PHash"]),
    ("imagededup", run_rival, ["imagededup", "DHash"]),
)
"""What must be there, how it is run, and with which arguments."""


def watch(
    command: list[str], place: Path, environment: dict[str, str], timeout: float
) -> tuple[str, Cost]:
    """Run a command in a folder; its output and its cost from its start to its end.

    Raises:
        NoAnswerError: It failed, or it was killed because it took longer than the timeout.
    """
    started = time.perf_counter()
    peak = 0
    with (place / "stdout").open("wb") as stdout, (place / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            command, cwd=place, env=environment, stdout=stdout, stderr=stderr, process_group=0
        )
        while process.poll() is None:
            if time.perf_counter() - started > timeout:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise NoAnswerError(f"no answer within {timeout:g} s")
            peak = max(peak, resident_bytes(process.pid)[1])
            time.sleep(0.05)
    if process.returncode:
        said = (place / "stderr").read_text(errors="replace").strip().splitlines() or ["nothing"]
        raise NoAnswerError(f"status {process.returncode}, last said: {said[-1]}")
    seconds = round(time.perf_counter() - started, 1)
    return (place / "stdout").read_text(), Cost(seconds, peak // MEBIBYTE)


def judge(
    answer: Answer, cost: Cost, images: list[str], groups: NDArray[np.int64] | None
) -> dict[str, Any]:
    """The figures of a tool on images of which each may belong to a group."""
    features = features_of(answer, images)
    removed = np.isin(images, list(answer.removed))
    figures: dict[str, Any] = {
        "tool": answer.name,
        "seconds": cost.seconds,
        "images_per_second": round(len(images) / cost.seconds, 2),
        "peak_mib": cost.peak_mib,
        "unread": len(images) - len(answer.images),
        "removed": int(removed.sum()),
        "orphans": count_orphans(features, removed, answer.threshold),
    }
    if groups is not None:
        mean_ap, at_99, f1 = measure(features, groups)
        figures |= {"mean_ap": mean_ap, "recall_at_precision_99": at_99, "best_f1": f1}
        figures["of_lost_groups"] = count_of_lost_groups(removed, groups)
    if answer.stages:
        figures["stages"] = answer.stages
    return figures


def features_of(answer: Answer, images: list[str]) -> Features:
    """The features in the order of the images; zeros, like no other, where the tool has none."""
    features = np.zeros((len(images), answer.features.shape[1]), np.float32)
    position = {image: number for number, image in enumerate(images)}
    features[[position[image] for image in answer.images]] = answer.features
    return features


def count_orphans(features: Features, removed: NDArray[np.bool_], threshold: float) -> int:
    """Removed images of which no image that stays is a twin.

    Args:
        features: `(N, D)` float32 of unit length.
        removed: `(N,)` whether the tool would remove the image.
        threshold: Smallest cosine similarity that makes two images alike for the tool.
    """
    similarity = features[removed] @ features[~removed].T
    return int((similarity.max(axis=1, initial=-np.inf) < threshold - SLACK).sum())


def count_of_lost_groups(removed: NDArray[np.bool_], groups: NDArray[np.int64]) -> int:
    """Removed images of groups of which no image stays."""
    return int((~np.isin(groups[removed], groups[~removed])).sum())


HEADER = (
    f"{'':<36}{'seconds':>9}{'images/s':>10}{'peak MiB':>10}{'mAP':>8}{'R@P.99':>8}{'best F1':>9}"
    f"{'removed':>9}{'orphans':>9}{'lost':>6}{'unread':>8}"
)

LEGEND = """\
seconds   the whole process, from its start to its end, imports and servers included
peak MiB  resident memory of all its processes added up, what they share counted for each
mAP       mean average precision; R@P.99 recall of same-group pairs at precision 0.99
removed   what the tool itself says can go: the manifest, fastdup's remove_duplicates,
          imagededup's find_duplicates_to_remove, each with its default threshold
orphans   removed, and nothing that stays is within the tool's own threshold of it
lost      removed, and nothing that stays is of its group
unread    no feature: like no other image for the figures of quality

imagededup is installed without torch and runs its hashes only: the weights of its neural network
are in no package index. fastdup's licence allows non-commercial use only (CC BY-NC-ND 4.0)."""


def line(figures: dict[str, Any]) -> str:
    """A tool in one line under the header; a dash where there are no groups."""
    if "error" in figures:
        return f"{figures['tool']:<36}  {figures['error']}"
    quality = (figures.get(name) for name in ("mean_ap", "recall_at_precision_99", "best_f1"))
    shown = [f"{value:.3f}" if value is not None else "-" for value in quality]
    return (
        f"{figures['tool']:<36}{figures['seconds']:>9.1f}{figures['images_per_second']:>10.1f}"
        f"{figures['peak_mib']:>10}{shown[0]:>8}{shown[1]:>8}{shown[2]:>9}"
        f"{figures['removed']:>9}{figures['orphans']:>9}{figures.get('of_lost_groups', '-'):>6}"
        f"{figures['unread']:>8}"
    )


if __name__ == "__main__":
    sys.exit(main())
