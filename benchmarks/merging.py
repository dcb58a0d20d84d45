"""What it takes to read the segments of many nights, before and after they are merged.

Run as `python -m benchmarks.merging PLACE [NIGHTS]`. PLACE is an empty folder, a path or an S3 URL.
Each night keeps thirty made-up images. Read is all of the library, as a night reads it twice.
"""

import sys
import time
from collections.abc import Callable
from typing import TypeVar

from benchmarks.library_growth import write_segment
from benchmarks.made_features import kept_features
from config import FeatureSettings
from tasks import storage
from tasks.library import iterate_segments, library_url, seen_by
from tasks.merge_library import merge_library
from tasks.references import Library
from tasks.schemas import LIBRARY

Result = TypeVar("Result")

IMAGES_PER_NIGHT = 30


def main(place: str, num_nights: int) -> None:
    """Write a library, read it, merge it, read it again, and print the seconds."""
    place = storage.absolute_url(place)
    library = library_url(place, FeatureSettings())
    for number in range(num_nights):
        features = kept_features(IMAGES_PER_NIGHT, number)
        write_segment(library, number, features, [""] * IMAGES_PER_NIGHT)
    show("apart", library, place)
    seconds, merged = timed(lambda: merge_library(library))
    print(f"merged: {merged.num_files_before} -> {merged.num_files} files in {seconds:.2f} s")
    show("merged", library, place)


def show(state: str, library: str, place: str) -> None:
    """Print what a night does with the library and how long it takes."""
    opening, seen = timed(lambda: seen_by(library, f"{place}/nights/{state}", state))
    reading, num_images = timed(lambda: read(seen))
    print(
        f"{state}: {len(seen.names)} segments named in {opening:.2f} s, "
        f"{num_images:,} images read in {reading:.2f} s"
    )


def read(seen: Library) -> int:
    """Read all columns of all segments and count the images."""
    return sum(rows.num_rows for rows in iterate_segments(seen, LIBRARY.names))


def timed(call: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds of wall time that a call takes, and what it returns."""
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 400)
