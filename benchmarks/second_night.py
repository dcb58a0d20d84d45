"""What a night costs in which a tenth of the images is new: python -m benchmarks.second_night.

Runs `dedup run` over a folder of images, adds more images to it, runs it again, and once more with
nothing new, which shows the cost that does not depend on the images. The images are copies of those
of a given folder, or the demo's photographs, each at another brightness so that no two are equal.
All nights use one Prefect server, as a schedule does.
"""

import argparse
import io
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import ImageEnhance

from benchmarks.demo_night import lay_out_night
from benchmarks.synthetic_night import read_pictures
from flows.temporary_server import ensure_server

NIGHTS = ("first night", "second night", "nothing new")


def main() -> None:
    """Run the three nights and print what they cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="folder of real images")
    parser.add_argument("--images", type=int, default=500, help="images of the first night")
    parser.add_argument("--new", type=float, default=0.1, help="share of new ones in the second")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    import benchmarks.quiet_prefect  # noqa: F401 (it sets the environment of the whole process)

    ensure_server(lambda: None)
    with tempfile.TemporaryDirectory(prefix="dedup-bench-") as folder:
        photographs = options.folder or Path(folder, "photographs")
        if options.folder is None:
            lay_out_night(photographs)
        pictures = varied(photographs)
        source = Path(folder, "source")
        source.mkdir()
        num_new = round(options.images * options.new)
        nights = []
        for night, num_more in zip(NIGHTS, (options.images, num_new, 0), strict=True):
            for number, picture in zip(range(num_more), pictures, strict=False):
                (source / f"{night} {number:06}.jpg").write_bytes(picture)
            nights.append({"night": night, **run(source, Path(folder, "workspace"), options)})
    figures = {"images": options.images, "new": num_new, "nights": nights} | ratios(nights, num_new)
    report(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def varied(folder: Path) -> Iterator[bytes]:
    """The images of a folder, over and over, each time a little brighter."""
    for turn in itertools.count():
        for picture in read_pictures(folder):
            content = io.BytesIO()
            ImageEnhance.Brightness(picture).enhance(1 + turn / 500).save(content, "JPEG")
            yield content.getvalue()


def run(source: Path, workspace: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run one night; its wall time, and that of its stages."""
    dedup = Path(sys.executable).parent / "dedup"
    arguments = ["--image-size", str(options.image_size), "--dtype", options.dtype, "--json"]
    command = [dedup, "run", source, "--workspace", workspace, *arguments]
    started = time.perf_counter()
    finished = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    summary = json.loads(finished.stdout)
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "embedded": summary["num_embedded"],
        "stages": summary["seconds"],
    }


def ratios(nights: list[dict[str, Any]], num_new: int) -> dict[str, float]:
    """Hold the second night against the first.

    With fixed costs F and c for each image, the second night costs F + c·new and the first
    F + c·images; so from some number of images on, the second stays below 1.2 times its share.
    """
    first, second, nothing = (night["seconds"] for night in nights)
    share = num_new / nights[0]["embedded"]
    cost_of_image = max(first - nothing, 0.001) / nights[0]["embedded"]
    allowed = 1.2 * share
    return {
        "share_of_new": round(share, 4),
        "second_to_first": round(second / first, 4),
        "times_its_share": round(second / first / share, 2),
        "embedding_times_its_share": round(
            nights[1]["stages"]["embed"] / nights[0]["stages"]["embed"] / share, 2
        ),
        "fixed_seconds": nothing,
        "images_for_1.2": round((1 - allowed) * nothing / ((allowed - share) * cost_of_image)),
    }


def report(figures: dict[str, Any]) -> None:
    """Print the figures for people."""
    stages = list(figures["nights"][0]["stages"])
    print("".join(f"{name:>11}" for name in ("", "images", "seconds", "around", *stages)))
    for night in figures["nights"]:
        around = night["seconds"] - sum(night["stages"].values())
        values = [night["stages"][stage] for stage in stages]
        print(
            f"{night['night']:<12}{night['embedded']:>10}{night['seconds']:>11.1f}{around:>11.1f}"
            + "".join(f"{value:>11.1f}" for value in values)
        )
    for name in list(figures)[3:]:
        print(f"{name:<28}{figures[name]}")


if __name__ == "__main__":
    main()
