"""What Prefect costs: the flow against a plain loop over the same functions.

    python -m benchmarks.overhead [--images 1000] [--image-size 32] [--json FILE]

Both run the stages over the same images in the same process and on the same number of threads, each
time in a fresh workspace, in rounds that alternate. The flow's server is started before the clock.
At the smallest image size embedding is cheapest and the share of everything else largest; the last
line says what the difference would be beside embedding at full size.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import benchmarks.quiet_prefect  # noqa: F401 (before Prefect is imported)
from benchmarks.demo_night import lay_out_night
from benchmarks.embedding import bare_passes
from benchmarks.second_night import varied
from config import DedupConfig, ExecutionSettings, FeatureSettings, load_config
from flows.dedup import dedup, search_ranges
from flows.temporary_server import ensure_server
from tasks.machine import named_format, resolved, this_machine
from tasks.memo import forget_features
from tasks.references import Neighbors
from tasks.stage01_list_images import list_images
from tasks.stage02_plan_shards import plan_shards
from tasks.stage03_embed_shard import embed_shard
from tasks.stage04_collect_features import collect_features
from tasks.stage05_plan_cells import plan_cells
from tasks.stage06_find_neighbors import find_neighbors
from tasks.stage07_cluster_images import cluster_images, measure_recall
from tasks.stage08_choose_keepers import choose_keepers
from tasks.stage09_write_manifest import write_manifest
from tasks.stage11_build_index import build_index


def main() -> None:
    """Print seconds of both and what lies between them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead")
    parser.add_argument("--images", type=int, default=1_000)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument(
        "--images-per-shard", type=int, default=ExecutionSettings().images_per_shard
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the result there too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dedup-bench-") as folder:
        source = Path(folder, "source")
        lay_out(source, Path(folder, "photographs"), options.images)
        ensure_server(lambda: None)
        result = measure(source, Path(folder), options)
    print(as_text(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def lay_out(source: Path, photographs: Path, num_images: int) -> None:
    """Write images that all differ a little from each other."""
    lay_out_night(photographs)
    source.mkdir()
    for number, picture in enumerate(islice(varied(photographs), num_images)):
        (source / f"{number:06}.jpg").write_bytes(picture)


def plain_loop(config: DedupConfig) -> None:
    """Every stage of the flow, as a function."""
    config = config.model_copy(update={"features": resolved(config.features, this_machine())})
    inventory = list_images.fn(config)
    shards = plan_shards.fn(inventory, config)
    with ThreadPoolExecutor(config.execution.workers) as pool:
        list(pool.map(partial(embed_shard.fn, config=config), shards))
        collection = collect_features.fn(inventory, config)
        cells = plan_cells.fn(collection, 0, config)
        search = partial(find_neighbors.fn, cells=cells, collection=collection)
        searches = search_ranges(collection.num_items, config.execution.items_per_search)
        links = list(pool.map(search, searches))
    clusters = cluster_images.fn(links, cells, collection, config)
    recall = measure_recall.fn(clusters, cells, collection, config)
    keepers = choose_keepers.fn(clusters, collection, config)
    neighbors = Neighbors(recall=recall, depth=0)
    write_manifest.fn(inventory, collection, neighbors, clusters, keepers, config)
    build_index.fn(collection, config)


def measure(source: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each round of the loop and of the flow; one more round before them warms up."""
    ways: dict[str, Callable[[DedupConfig], object]] = {"loop": plain_loop, "flow": dedup}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds + 1):
        for name, run in ways.items():
            config = load_config(
                None,
                {
                    "source_url": str(source),
                    "workspace_url": str(folder / f"{name}-{number}"),
                    "features": {"image_size": options.image_size},
                    "execution": {"images_per_shard": options.images_per_shard},
                },
            )
            forget_features()
            started = time.perf_counter()
            run(config)
            if number:
                seconds[name].append(round(time.perf_counter() - started, 2))
    loop, flow = (statistics.median(found) for found in seconds.values())
    num_shards = -(-options.images // options.images_per_shard)
    return {
        "num_images": options.images,
        "image_size": options.image_size,
        "num_shards": num_shards,
        "seconds": seconds,
        "overhead_seconds": round(flow - loop, 2),
        "overhead_ratio": round(flow / loop, 3),
        "full_size_ratio": round(1 + (flow - loop) / (options.images * seconds_per_image()), 4),
    }


def seconds_per_image() -> float:
    """Measure the bare forward pass at the usual size, the least that an image can cost."""
    settings = resolved(FeatureSettings(), this_machine())
    pixels = np.zeros((32, settings.image_size, settings.image_size, 3), np.uint8)
    dtype = named_format(settings)
    bare_passes(pixels, settings.engine, dtype)
    started = time.perf_counter()
    bare_passes(pixels, settings.engine, dtype)
    return (time.perf_counter() - started) / len(pixels)


def as_text(result: dict[str, Any]) -> str:
    """The result as lines of text."""
    medians = {name: statistics.median(found) for name, found in result["seconds"].items()}
    return "\n".join(
        [
            f"{result['num_images']} images of {result['image_size']} pixels, "
            f"{result['num_shards']} shards, median of {len(result['seconds']['loop'])} rounds",
            f"  plain loop {medians['loop']:8.2f} s",
            f"  flow       {medians['flow']:8.2f} s   {result['overhead_ratio']:.3f} times",
            f"  difference {result['overhead_seconds']:8.2f} s   beside embedding at full size: "
            f"{result['full_size_ratio']:.4f} times",
        ]
    )


if __name__ == "__main__":
    main()
