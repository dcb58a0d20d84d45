"""How near embedding comes to what the machine can do: `python -m benchmarks.embedding FOLDER`.

On the same images, in rounds that alternate, so that a noisy machine disturbs all alike:

a. the bare forward pass of the engine on batches that lie ready: the limit,
b. this project, from files to feature files, over shards and workers as in a run,
c. the usual loop: Pillow, Keras's `model.predict` image by image, float32,
d. OpenVINO's bare forward pass in bfloat16, where it is installed and the processor has it.

Copies of the same content are left out: this project would embed them once and look too good.
"""

import argparse
import hashlib
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from config import DedupConfig, ExecutionSettings, FeatureSettings
from config.models import IMAGE_SUFFIXES
from tasks import storage
from tasks.images import decode_image
from tasks.machine import Dtype, Engine, computes_in, named_format, resolved, this_machine
from tasks.memo import forget_features
from tasks.quiet_tensorflow import tensorflow
from tasks.schemas import SHARD
from tasks.stage02_plan_shards import equal_lengths, publish_plan
from tasks.stage03_embed_shard import embed_shard
from tasks.vgg16 import usual_batch_size, vgg16_maps
from tasks.weights import LAYERS, find_weights

Pixels = NDArray[np.uint8]

WAYS = {
    "a": "bare forward pass",
    "b": "this project, end to end",
    "c": "the usual loop, float32",
    "d": "OpenVINO, bare, bfloat16",
}


USUAL_LOOP_IMAGES = 32
"""The usual loop is slow, and steady: a part of the images shows its rate."""


@dataclass(frozen=True)
class Way:
    """A way of embedding."""

    embed: Callable[[], None]
    """Embeds all its images anew."""
    num_images: int


def main() -> int:
    """Print a table of images a second and the ratios between them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embedding")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--engine", default="tensorflow")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--images", type=int, default=192, help="at most so many images")
    parser.add_argument("--shard", type=int, default=32, help="images in a shard")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without", default="", help="ways to leave out, such as cd")
    parser.add_argument("--json", type=Path, help="write the result there too")
    options = parser.parse_args()
    features = resolved(
        FeatureSettings(engine=options.engine, dtype=options.dtype, image_size=options.image_size),
        this_machine(),
    )
    paths = distinct_images(options.folder, options.images)
    with tempfile.TemporaryDirectory() as workspace:
        config = DedupConfig(
            source_url=str(options.folder),
            workspace_url=workspace,
            features=features,
            execution=ExecutionSettings(images_per_shard=options.shard),
        )
        ways = ways_of_embedding(paths, config)
        chosen = {name: way for name, way in ways.items() if name not in options.without}
        rates = measure(chosen, options.rounds)
    result = describe(rates, features, len(paths))
    print(as_text(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def distinct_images(folder: Path, most: int) -> list[Path]:
    """The first images below a folder, each content once."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    by_content: dict[str, Path] = {}
    for path in files:
        by_content.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), path)
        if len(by_content) == most:
            break
    return list(by_content.values())


def measure(ways: dict[str, Way], rounds: int) -> dict[str, list[float]]:
    """Images a second of every way, round by round; one more round before them warms up."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way.embed()
            seconds = time.perf_counter() - started
            if number:
                rates[name].append(way.num_images / seconds)
    return rates


def ways_of_embedding(paths: list[Path], config: DedupConfig) -> dict[str, Way]:
    """Every way that works here."""
    features = config.features
    size = features.image_size
    decoded = (decode_image(path.read_bytes(), image_size=size, max_pixels=10**9) for path in paths)
    pixels = np.stack([image.pixels for image in decoded])
    dtype = named_format(features)
    few = paths[:USUAL_LOOP_IMAGES]
    ways = {
        "a": Way(lambda: bare_passes(pixels, features.engine, dtype), len(paths)),
        "b": Way(shards_embedder(paths, config), len(paths)),
        "c": Way(usual_loop(few, size), len(few)),
    }
    has_openvino = importlib.util.find_spec("openvino") is not None
    if has_openvino and computes_in(this_machine(), "openvino", "bfloat16"):
        ways["d"] = Way(lambda: bare_passes(pixels, "openvino", "bfloat16"), len(paths))
    return ways


def bare_passes(pixels: Pixels, engine: Engine, dtype: Dtype) -> None:
    """Run the forward pass over decoded images, one full batch after the other."""
    batch_size = usual_batch_size(engine)
    for start in range(0, len(pixels), batch_size):
        batch = pixels[start : start + batch_size]
        vgg16_maps(batch, batch_size=batch_size, engine=engine, dtype=dtype)


def shards_embedder(paths: list[Path], config: DedupConfig) -> Callable[[], None]:
    """Plan shards of the images; the function embeds them all anew, as the flow's workers do."""
    rows = [
        {
            "image_id": str(path),
            "url": str(path),
            "size_bytes": path.stat().st_size,
            "etag": "",
            "camera": "",
            "captured_at": datetime.fromtimestamp(0, UTC),
        }
        for path in paths
    ]
    shards = publish_plan(
        storage.join(config.workspace_url, "plan.parquet"),
        pa.Table.from_pylist(rows, schema=SHARD),
        equal_lengths(len(rows), config.execution.images_per_shard),
    )

    def embed() -> None:
        forget_features()
        with ThreadPoolExecutor(config.execution.workers) as pool:
            files = list(pool.map(lambda shard: embed_shard.fn(shard, config), shards))
        if sum(file.num_embedded for file in files) != len(paths):
            raise ValueError("expected only readable images")

    return embed


def usual_loop(paths: list[Path], image_size: int) -> Callable[[], None]:
    """What most people write: Pillow and `model.predict`, image by image, in float32."""
    keras = tensorflow().keras
    tensors = find_weights(None)
    model = keras.applications.VGG16(
        include_top=False, weights=None, pooling="avg", input_shape=(image_size, image_size, 3)
    )
    for layer in LAYERS:
        model.get_layer(layer).set_weights([tensors[f"{layer}/kernel"], tensors[f"{layer}/bias"]])

    def embed() -> None:
        for path in paths:
            image = Image.open(path).convert("RGB").resize((image_size, image_size))
            batch = np.asarray(image, np.float32)[None]
            model.predict(keras.applications.vgg16.preprocess_input(batch), verbose=0)

    return embed


def describe(
    rates: dict[str, list[float]], features: FeatureSettings, num_images: int
) -> dict[str, Any]:
    """Medians of the rates, and of the ratios within each round."""
    return {
        "engine": features.engine,
        "dtype": features.dtype,
        "image_size": features.image_size,
        "num_images": num_images,
        "rounds": len(rates["b"]),
        "images_per_second": {name: statistics.median(found) for name, found in rates.items()},
        "ratios": {
            f"b/{name}": statistics.median(
                ours / other for ours, other in zip(rates["b"], found, strict=True)
            )
            for name, found in rates.items()
            if name != "b"
        },
    }


def as_text(result: dict[str, Any]) -> str:
    """The result as lines of text."""
    lines = [
        f"{result['engine']} {result['dtype']} {result['image_size']}: "
        f"{result['num_images']} images, median of {result['rounds']} rounds"
    ]
    for name, rate in result["images_per_second"].items():
        ratio = result["ratios"].get(f"b/{name}")
        beside = "" if ratio is None else f"   b/{name} {ratio:.2f}"
        lines.append(f"  {name}  {WAYS[name]:28} {rate:6.1f} images/s{beside}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
