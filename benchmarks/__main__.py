"""All benchmarks, one after the other: `python -m benchmarks [--full] [PART …]`.

Every figure is a ratio of two things measured in the same session on the same images, because the
machine may be busy. Each part writes its figures to `build/bench/`; the tables and plots in `docs/`
are made of all that lie there, so that the long parts can be run on their own.
"""

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.demo_night import BROKEN_NAME, lay_out_night
from benchmarks.tables import write_docs

PLACE = Path("build/bench")
PHOTOGRAPHS = PLACE / "photographs"


@dataclass(frozen=True)
class Part:
    """One benchmark as a command."""

    name: str
    arguments: tuple[str, ...]
    is_long: bool = False
    """Only in the full benchmark, or when it is named."""
    figures: str | None = None
    """Name of the file of figures, where it is not that of the part."""


def embedding(name: str, *settings: str, is_long: bool = False) -> Part:
    """Embedding with one engine, format and image size."""
    arguments = ("benchmarks.embedding", str(PHOTOGRAPHS), *settings)
    return Part(f"embedding-{name}", arguments, is_long=is_long)


PARTS = (
    embedding("tensorflow", "--engine", "tensorflow"),
    embedding("openvino-int8", "--engine", "openvino", "--dtype", "int8"),
    embedding("tensorflow-112", "--engine", "tensorflow", "--image-size", "112", is_long=True),
    embedding(
        "openvino-int8-112",
        *("--engine", "openvino", "--dtype", "int8", "--image-size", "112"),
        is_long=True,
    ),
    Part(
        "neighbors",
        (
            *("benchmarks.neighbors", "--sizes", "62500", "125000"),
            *("--scikit", "5000", "10000", "20000"),
        ),
    ),
    Part(
        "neighbors-million",
        (
            "benchmarks.neighbors",
            "--sizes",
            "250000",
            "500000",
            "1000000",
            "--scikit",
            "--without-keepers",
        ),
        is_long=True,
        figures="neighbors",
    ),
    Part("overhead", ("benchmarks.overhead", "--images", "500")),
    Part("overhead-10000", ("benchmarks.overhead", "--images", "10000"), is_long=True),
    Part("second-night", ("benchmarks.second_night", "--images", "300", "--dtype", "auto")),
    Part(
        "second-night-9000",
        ("benchmarks.second_night", "--images", "9000", "--dtype", "auto"),
        is_long=True,
    ),
    Part("library-growth", ("benchmarks.library_growth",), is_long=True),
    Part("large-night", ("benchmarks.large_night", "--images", "100000"), is_long=True),
)


def main() -> int:
    """Run the parts and write what they found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("parts", nargs="*", help="names of parts; by default all short ones")
    parser.add_argument("--full", action="store_true", help="the long parts too")
    options = parser.parse_args()
    if unknown := set(options.parts) - {part.name for part in PARTS}:
        names = ", ".join(part.name for part in PARTS)
        print(f"no such parts: {', '.join(sorted(unknown))}; there are {names}")
        return 2
    PLACE.mkdir(parents=True, exist_ok=True)
    lay_out_night(PHOTOGRAPHS)
    (PHOTOGRAPHS / BROKEN_NAME).unlink()
    failed = [part.name for part in chosen(options.parts, options.full) if not run(part)]
    write_docs(PLACE, Path("docs"))
    for name in failed:
        print(f"failed: {name}")
    return 1 if failed else 0


def chosen(names: list[str], is_full: bool) -> list[Part]:
    """The parts that are to run."""
    if names:
        return [part for part in PARTS if part.name in names]
    return [part for part in PARTS if is_full or not part.is_long]


def run(part: Part) -> bool:
    """Run one part in a process of its own; tells whether it succeeded."""
    print(f"\n== {part.name}: python -m {' '.join(part.arguments)}", flush=True)
    figures = PLACE / f"{part.figures or part.name}.json"
    command = [sys.executable, "-m", *part.arguments, "--json", str(figures)]
    return subprocess.run(command, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
