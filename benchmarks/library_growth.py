"""What a night costs as the library grows: python -m benchmarks.library_growth [--help].

The night has a thousand made-up images and the library ever more, in segments of ten thousand. What
is timed is what the library adds to a night: opening it and matching the night with it; each size
in a process of its own. Embedding the thousand images would take some 85 seconds.
"""

import argparse
import json
import math
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.made_features import write_collection
from benchmarks.synthetic_night import scene_features
from config import DedupConfig
from tasks import storage
from tasks.library import ROWS_PER_GROUP, iterate_segments, library_url, seen_by
from tasks.schemas import FEATURE_DIM, LIBRARY
from tasks.stage04b_match_library import match_library

SIZES = (10_000, 100_000, 1_000_000)
IMAGES_PER_SEGMENT = 10_000


def main() -> None:
    """Measure each size and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.library_growth")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--images", type=int, default=1_000, help="images of the night")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    print(f"{'library':>10}{'seconds':>10}{'MiB':>8}{'matched':>9}", flush=True)
    runs = []
    for size in options.sizes:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            runs.append(pool.apply(measure, (size, options.images)))
        run = runs[-1]
        print(
            f"{size:>10,}{run['seconds']:>10.2f}{run['peak_mib']:>8}{run['matched']:>9}", flush=True
        )
    figures = {"images": options.images, "runs": runs, "exponent": exponent(runs)}
    print(f"seconds of the library grow like its images ** {figures['exponent']}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure(num_kept: int, num_images: int) -> dict[str, Any]:
    """Seconds and memory of one night beside a library of so many images."""
    with tempfile.TemporaryDirectory(prefix="dedup-bench-") as folder:
        config = DedupConfig(source_url=f"{folder}/source", workspace_url=folder)
        library = library_url(folder, config.features)
        for number, start in enumerate(range(0, num_kept, IMAGES_PER_SEGMENT)):
            num_rows = min(IMAGES_PER_SEGMENT, num_kept - start)
            rng = np.random.default_rng([7, number])
            features = scene_features(rng, num_rows, images_per_scene=1)
            write_segment(library, number, features, [""] * num_rows)
        collection = write_collection(Path(folder), num_images)
        started = time.perf_counter()
        seen = seen_by(library, f"{folder}/nights/n", "n")
        matches, _ = match_library.fn(seen, collection, config)
        seconds = time.perf_counter() - started
        assert sum(rows.num_rows for rows in iterate_segments(seen, ["image_id"])) == num_kept
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {
        "library": num_kept,
        "seconds": round(seconds, 2),
        "peak_mib": peak,
        "matched": matches.num_matched,
    }


def write_segment(
    library: str, number: int, features: NDArray[np.float32], cameras: Sequence[str]
) -> None:
    """Write what a night has kept.

    Args:
        library: Folder of segments.
        number: Of the night, which came a day after the one before.
        features: `(n, 512)` float32 of unit length.
        cameras: The partition of each, sorted.
    """
    num_images = len(features)
    names = [f"{number:06}-{row:06}" for row in range(num_images)]
    table = pa.table(
        {
            "image_id": names,
            "url": [f"file:///night/{name}.jpg" for name in names],
            "size_bytes": np.full(num_images, 50_000),
            "etag": names,
            "camera": cameras,
            "captured_at": np.full(num_images, number * 86_400_000_000),
            "view": pa.nulls(num_images, pa.string()),
            "sha256": names,
            "feature": pa.FixedSizeListArray.from_arrays(features.ravel(), FEATURE_DIM),
        },
    ).cast(LIBRARY)
    storage.publish_table(
        f"{library}/{number:06}-night{number}-{number:016x}.parquet",
        table,
        rows_per_group=ROWS_PER_GROUP,
    )


def exponent(runs: list[dict[str, Any]]) -> float | None:
    """How seconds grow with the library between its smallest and its largest size."""
    if len(runs) < 2:
        return None
    first, last = runs[0], runs[-1]
    growth = math.log(last["seconds"] / first["seconds"])
    return round(growth / math.log(last["library"] / first["library"]), 2)


if __name__ == "__main__":
    main()
