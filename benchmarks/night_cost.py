"""A whole night of real frames beside ever larger libraries.

    python -m benchmarks.night_cost DATA [--sizes 10000 …] [--json FILE]

A thousand frames of five cameras are embedded once, for real, and that is timed. Then the same
night is run by `dedup run` beside each library, in a process of its own and a workspace of its own
that has these features already; its seconds are those of the run plus those of the embedding. The
kept images of a library are made up, in 400 nights and ten partitions, of which the night has five;
some are near frames of the night.
"""

import argparse
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.deliveries import CAMERAS, deliver, frames_of, plan_frames
from benchmarks.large_night import peak_of
from benchmarks.library_growth import write_segment
from benchmarks.made_features import kept_features
from config import FeatureSettings
from tasks import storage
from tasks.library import library_url
from tasks.machine import resolved, this_machine
from tasks.schemas import FEATURE_DIM, IMAGES

SIZES = (10_000, 100_000, 300_000, 1_000_000)
NUM_SEGMENTS = 400
OTHER_CAMERAS = tuple(f"elsewhere-{number}" for number in range(5))
IMAGES_OF_A_CAMERA = 565
"""So that five cameras have a thousand."""
FRAMES_PER_TWIN = 10
"""Of so many frames of the night one has a near image in the library."""
BLUR = 0.003
"""Standard deviation of its components around the frame's: some 0.002 in cosine distance."""

STAGES = ("list", "collect", "library", "neighbors", "cluster", "sweep", "manifest", "index")


def main() -> None:
    """Measure each size and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.night_cost")
    parser.add_argument("data", type=Path, help="folder that the cameras' folders lie in")
    parser.add_argument("--cameras", nargs="+", default=CAMERAS, help="folders of frames below it")
    parser.add_argument("--images", type=int, default=IMAGES_OF_A_CAMERA, help="of each camera")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--segments", type=int, default=NUM_SEGMENTS)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    settings = resolved(FeatureSettings(image_size=options.image_size), this_machine())
    frames = frames_of(options.data, options.cameras, at_most=options.images)
    with tempfile.TemporaryDirectory(prefix="dedup-bench-") as name:
        folder = Path(name)
        (night,) = plan_frames(frames, [date(2026, 3, 10)])
        deliver(folder / "source", night)
        embedded = run(folder, "embedded", settings, "--no-library")
        print(f"{len(night)} frames embedded in {embedded['stages']['embed']:.1f} s", flush=True)
        print("".join(f"{name:>11}" for name in COLUMNS), flush=True)
        runs = []
        for size in options.sizes:
            runs.append(measure(folder, size, options.segments, settings, embedded))
            print("".join(f"{column(runs[-1], name):>11}" for name in COLUMNS), flush=True)
    figures = {
        "images": len(night),
        "embed_seconds": embedded["stages"]["embed"],
        "runs": runs,
        "exponent_of_library": exponent(options.sizes, [run["stages"]["library"] for run in runs]),
        "exponent_of_night": exponent(options.sizes, [run["seconds"] for run in runs]),
    }
    for name in ("exponent_of_library", "exponent_of_night"):
        print(f"{name:<22}{figures[name]}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


COLUMNS = ("kept", "seconds", "embed", *STAGES, "around", "peak_mib", "matched")


def column(run: dict[str, Any], name: str) -> str:
    """One figure of a run for people."""
    value = run["stages"].get(name, run.get(name))
    return f"{value:.2f}" if isinstance(value, float) else f"{value:,}"


def measure(
    folder: Path, size: int, num_segments: int, settings: FeatureSettings, embedded: dict[str, Any]
) -> dict[str, Any]:
    """Run the night beside a library of so many images."""
    workspace = folder / f"{size}"
    shutil.copytree(folder / "embedded" / "features", workspace / "features")
    write_library(str(workspace), size, num_segments, settings, *night_features(folder))
    found = run(folder, workspace.name, settings)
    shutil.rmtree(workspace)
    seconds = round(found["seconds"] + embedded["stages"]["embed"], 1)
    stages = found["stages"] | {"embed": embedded["stages"]["embed"]}
    return found | {"kept": size, "seconds": seconds, "stages": stages}


def run(folder: Path, workspace: str, settings: FeatureSettings, *more: str) -> dict[str, Any]:
    """Run the night once; what it took as a process, and what its stages took."""
    dedup = str(Path(sys.executable).parent / "dedup")
    arguments = [str(folder / "source"), "--workspace", str(folder / workspace)]
    shape = ["--image-size", str(settings.image_size), "--dtype", settings.dtype]
    partitions = ["--partition-by", "^([^/]+)/"]
    done = peak_of([dedup, "run", *arguments, *shape, *partitions, *more, "--json"])
    summary = json.loads(done["output"])
    return {
        "seconds": done["seconds"],
        "stages": summary["seconds"],
        "around": round(done["seconds"] - sum(summary["seconds"].values()), 2),
        "peak_mib": done["peak_alone_mib"],
        "matched": summary["num_remove_for_earlier"],
    }


def night_features(folder: Path) -> tuple[np.ndarray[Any, Any], list[str]]:
    """Some features of the night, `(n, 512)` float32, and the camera of each."""
    (images_path,) = folder.glob("embedded/runs/*/images.parquet")
    images = storage.read_table(str(images_path), IMAGES).sort_by("item_id")
    features = np.load(images_path.with_name("features.npy"))
    some = slice(None, None, FRAMES_PER_TWIN)
    return features[some], images["camera"].to_pylist()[: len(features)][some]


def write_library(
    workspace: str,
    size: int,
    num_segments: int,
    settings: FeatureSettings,
    near: np.ndarray[Any, Any],
    cameras_of_near: Sequence[str],
) -> None:
    """Write what so many nights have kept.

    Args:
        workspace: Its place.
        size: Images in all segments together.
        num_segments: Nights.
        settings: Whose features they are.
        near: `(n, 512)` float32 features that one of the images is near to.
        cameras_of_near: Their cameras.
    """
    library = library_url(storage.absolute_url(workspace), settings)
    cameras = np.array([*sorted(set(cameras_of_near)), *OTHER_CAMERAS])
    for number, rows in enumerate(np.array_split(np.arange(size), num_segments)):
        rng = np.random.default_rng([7, number])
        features = kept_features(len(rows), number)
        of_camera = cameras[rng.integers(0, len(cameras), len(rows))]
        for row, twin in enumerate(range(number, len(near), num_segments)):
            blurred = near[twin] + BLUR * rng.standard_normal(FEATURE_DIM, np.float32)
            features[row] = blurred / np.linalg.norm(blurred)
            of_camera[row] = cameras_of_near[twin]
        order = np.argsort(of_camera, kind="stable")
        write_segment(library, number, features[order], of_camera[order].tolist())


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float | None:
    """How seconds grow with the library between its smallest and its largest size."""
    if len(sizes) < 2:
        return None
    growth = math.log(seconds[-1] / seconds[0])
    return round(growth / math.log(sizes[-1] / sizes[0]), 2)


if __name__ == "__main__":
    main()
