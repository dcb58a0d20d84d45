"""Memory of a whole run over many images: python -m benchmarks.large_night [--images 100000].

The source is synthetic: tiny JPEGs, pieces cut from a few photographs, twenty of each piece and
each with another noise. VGG16 sees them at 32 pixels, and most of them not at all: all but
`--embedded` of them get features made of noise, written as feature files of 64 images such as many
nights leave, because embedding all of them says nothing more about memory. Everything else is the
real `dedup run`, in a process of its own.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from benchmarks.demo_night import lay_out_night
from benchmarks.synthetic_night import FILES_PER_FOLDER, fill_store, read_pictures
from config import FeatureSettings
from tasks import storage

IMAGE_SIZE = 32
DTYPE = "float32"
IMAGES_PER_PIECE = 20
ROWS_PER_FILE = 64
MEBIBYTE = 2**20

MODEL_ALONE = """
import numpy as np
from tasks.vgg16 import vgg16_maps
vgg16_maps(np.zeros((8, 32, 32, 3), np.uint8), batch_size=8, dtype="float32", weights_path=None)
"""


def main() -> None:
    """Lay out a night, run it, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--embedded", type=int, default=2_000, help="images that VGG16 sees")
    parser.add_argument("--partitions", action="store_true", help="compare within cameras only")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dedup-bench-") as folder:
        source, workspace = Path(folder, "source"), Path(folder, "workspace")
        lay_out_pieces(source, Path(folder, "photographs"), options.images)
        files = storage.list_files(storage.absolute_url(str(source)))
        settings = FeatureSettings(image_size=IMAGE_SIZE, dtype=DTYPE)
        fill_store(str(workspace), settings, files[: -options.embedded or None], ROWS_PER_FILE)
        model = peak_of([sys.executable, "-c", MODEL_ALONE])
        dedup = str(Path(sys.executable).parent / "dedup")
        arguments = [str(source), "--workspace", str(workspace)]
        arguments += ["--image-size", str(IMAGE_SIZE), "--dtype", DTYPE]
        if options.partitions:
            arguments += ["--partition-by", "^([^/]+)/"]
        run = peak_of([dedup, "run", *arguments, "--json"])
    summary = json.loads(run["output"])
    figures = {
        "images": summary["num_images"],
        "embedded": summary["num_embedded"],
        "kept": summary["num_keep"],
        "is_search_exact": summary["is_search_exact"],
        "seconds": run["seconds"],
        "stages": summary["seconds"],
        "peak_mib": run["peak_mib"],
        "peak_without_server_mib": run["peak_alone_mib"],
        "model_mib": model["peak_mib"],
        "peak_without_model_mib": run["peak_mib"] - model["peak_mib"],
    }
    for name, value in figures.items():
        print(f"{name:<24}{value}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def lay_out_pieces(folder: Path, photographs: Path, num_images: int) -> None:
    """Write small JPEGs, a thousand to a camera, of which no two are equal."""
    lay_out_night(photographs)
    pictures = [np.asarray(picture.resize((320, 240))) for picture in read_pictures(photographs)]
    rng = np.random.default_rng(0)
    for number in range(num_images):
        if number % IMAGES_PER_PIECE == 0:
            picture = pictures[number // IMAGES_PER_PIECE % len(pictures)]
            top, left = rng.integers(0, 240 - 48), rng.integers(0, 320 - 48)
            piece = picture[top : top + 48, left : left + 48]
        noise = rng.integers(-3, 4, piece.shape)
        content = io.BytesIO()
        Image.fromarray(np.clip(piece + noise, 0, 255).astype(np.uint8)).save(content, "JPEG")
        below = folder / f"camera-{number // FILES_PER_FOLDER:04}"
        below.mkdir(parents=True, exist_ok=True)
        (below / f"{number:07}.jpg").write_bytes(content.getvalue())


def peak_of(command: list[str]) -> dict[str, Any]:
    """Run a command; its seconds, its output, and the peak memory of it and all it starts.

    The resident memory of the processes is added up ten times a second, so what they share is
    counted more than once and a shorter peak may be missed.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    peak = peak_alone = 0
    output: list[bytes] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: output.append(process.stdout.read()))  # type: ignore[union-attr]
    reader.start()
    while process.poll() is None:
        alone, with_children = resident_bytes(process.pid)
        peak, peak_alone = max(peak, with_children), max(peak_alone, alone)
        time.sleep(0.1)
    reader.join()
    if process.returncode:
        sys.exit(f"{command[0]} failed with status {process.returncode}")
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "peak_mib": peak // MEBIBYTE,
        "peak_alone_mib": peak_alone // MEBIBYTE,
        "output": output[0],
    }


def resident_bytes(pid: int) -> tuple[int, int]:
    """Resident memory of a process alone, and with all its descendants."""
    try:
        parent = psutil.Process(pid)
        processes = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0, 0
    sizes = []
    for process in processes:
        try:
            sizes.append(process.memory_info().rss)
        except psutil.NoSuchProcess:
            sizes.append(0)
    return sizes[0], sum(sizes)


if __name__ == "__main__":
    main()
