"""How neighbours and clusters grow with the night: python -m benchmarks.neighbors [--help].

Runs the stages from the matrix of features to the keepers on made-up features of growing number,
each size in a process of its own, and scikit-learn's DBSCAN beside them where it can follow.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import DBSCAN

from benchmarks.made_features import write_collection
from config import DedupConfig
from flows.dedup import SEARCH_DEPTHS, search_ranges, stopwatch
from tasks import blas, storage
from tasks.comparisons import Features, are_within
from tasks.references import Clusters, Collection
from tasks.schemas import CLUSTERS, KEEPERS
from tasks.stage05_plan_cells import plan_cells
from tasks.stage06_find_neighbors import find_cores, find_neighbors, mark_cores
from tasks.stage07_cluster_images import (
    cluster_images,
    measure_recall,
    number_by_first_appearance,
)
from tasks.stage08_choose_keepers import adjacency, choose_keepers, members_of_clusters
from tasks.stage11_build_index import build_index

SIZES = (62_500, 125_000, 250_000, 500_000, 1_000_000)
SCIKIT_SIZES = (5_000, 10_000, 20_000)
MOST_FOR_COUNTS = 125_000
"""Images of the largest night in which the keepers of other ways are counted: that takes long."""

MOST_FOR_BOUND = 25_000
"""Images of the largest cluster for which the lower bound of keepers is worked out."""

Figures = dict[str, Any]


def config_of(folder: Path, **settings: Any) -> DedupConfig:
    """The default settings, on two threads."""
    urls = {"source_url": str(folder), "workspace_url": str(folder)}
    return DedupConfig.model_validate(urls | {"execution": {"workers": 2}} | settings)


def find_clusters(
    collection: Collection, config: DedupConfig, depth: int, seconds: dict[str, float]
) -> tuple[Clusters, float]:
    """What the flow does between features and keepers, on a pool of threads without Prefect."""
    searches = search_ranges(collection.num_items, config.execution.items_per_search)
    with ThreadPoolExecutor(config.execution.workers) as pool:
        with stopwatch(seconds, "cells"):
            cells = plan_cells.fn(collection, depth, config)
        if config.clusters.min_samples > 2:
            with stopwatch(seconds, "cores"):
                count = partial(find_cores.fn, cells=cells, collection=collection, config=config)
                cells = mark_cores.fn(list(pool.map(count, searches)), cells)
        with stopwatch(seconds, "neighbors"):
            find = partial(find_neighbors.fn, cells=cells, collection=collection)
            links = list(pool.map(find, searches))
        with stopwatch(seconds, "clusters"):
            clusters = cluster_images.fn(links, cells, collection, config)
        with stopwatch(seconds, "recall"):
            recall = measure_recall.fn(clusters, cells, collection, config)
    return clusters, recall


def measure(
    num_items: int, settings: dict[str, Any], *, with_index: bool, with_keepers: bool = True
) -> Figures:
    """Run the stages on a made-up night and say what they took."""
    with tempfile.TemporaryDirectory(prefix="neighbors-") as name:
        folder = Path(name)
        collection = write_collection(folder, num_items)
        config = config_of(folder, **settings)
        is_small = num_items <= config.neighbors.exact_up_to
        total = 0.0
        cpu_started = time.process_time()
        for depth in (0,) if is_small else SEARCH_DEPTHS:
            seconds: dict[str, float] = {}
            clusters, recall = find_clusters(collection, config, depth, seconds)
            total += sum(seconds.values())
            if recall >= config.neighbors.min_recall:
                break
        cpu_seconds = time.process_time() - cpu_started
        peak = peak_bytes()
        keepers = None
        if with_keepers:
            with stopwatch(seconds, "keepers"):
                keepers = choose_keepers.fn(clusters, collection, config)
        peak_of_all = peak_bytes()
        if with_index:
            with stopwatch(seconds, "index"):
                build_index.fn(collection, config)
        labels = storage.read_table(clusters.url, CLUSTERS)["cluster_id"].to_numpy()
        features = np.load(collection.features_url, mmap_mode="r")
        sizes = np.bincount(labels[labels >= 0], minlength=1)
        first_come = at_least = None
        if with_keepers and num_items <= MOST_FOR_COUNTS:
            with blas.one_thread():
                first_come = count_first_come(features, labels, config.neighbors.eps)
                at_least = count_at_least(features, labels, config.neighbors.eps)
        return {
            "images": num_items,
            "depth": depth,
            "recall": recall,
            "seconds": seconds,
            "seconds_to_clusters": total,
            "cpu_seconds_to_clusters": cpu_seconds,
            "peak_bytes": peak,
            "peak_bytes_with_keepers": peak_of_all,
            "peak_bytes_with_index": peak_bytes() if with_index else None,
            "clusters": clusters.num_clusters,
            "largest": int(sizes.max()),
            "kept": None if keepers is None else num_items - keepers.num_removed,
            "kept_first_come": first_come,
            "kept_at_least": at_least,
            "longest_distance": None if keepers is None else longest_distance(keepers.url),
        }


def longest_distance(keepers_url: str) -> float:
    """Largest distance of an image to its keeper."""
    distances = storage.read_table(keepers_url, KEEPERS)["distance"].to_numpy()
    return float(distances.max(initial=0))


def count_first_come(features: Features, labels: NDArray[np.int32], eps: float) -> int:
    """Count the images kept when each is kept that is within eps of none kept before it."""
    num_kept = int((labels == -1).sum())
    for members in members_of_clusters(labels):
        rest = members
        while len(rest):
            num_kept += 1
            rest = rest[~are_within(features[rest[:1]], features[rest], eps)[0]]
    return num_kept


def count_at_least(features: Features, labels: NDArray[np.int32], eps: float) -> int | None:
    """Count images of which no two could have the same keeper: so many must be kept by anyone.

    Returns:
        The count, or None when a cluster is too large to work it out.
    """
    num_apart = int((labels == -1).sum())
    for members in members_of_clusters(labels):
        if len(members) > MOST_FOR_BOUND:
            return None
        near = adjacency(features, members, members, eps)
        is_taken = np.zeros(near.shape[1], np.uint8)
        for row in np.argsort(np.bitwise_count(near).sum(axis=1, dtype=np.int64), kind="stable"):
            if not (near[row] & is_taken).any():
                num_apart += 1
                is_taken |= near[row]
    return num_apart


def compare(num_items: int, settings: dict[str, Any]) -> Figures:
    """Run scikit-learn's DBSCAN, and ours with everything compared, on one made-up night."""
    with tempfile.TemporaryDirectory(prefix="neighbors-") as name:
        collection = write_collection(Path(name), num_items)
        config = config_of(Path(name), **settings)
        seconds: dict[str, float] = {}
        started = time.perf_counter()
        clusters, _ = find_clusters(collection, config, 0, seconds)
        ours, our_peak = time.perf_counter() - started, peak_bytes()
        labels = storage.read_table(clusters.url, CLUSTERS)["cluster_id"].to_numpy()
        features = np.load(collection.features_url)
        started = time.perf_counter()
        theirs = scikit_labels(features, config.neighbors.eps, config.clusters.min_samples)
        return {
            "images": num_items,
            "seconds": ours,
            "peak_bytes": our_peak,
            "seconds_scikit": time.perf_counter() - started,
            "peak_bytes_scikit": peak_bytes(),
            "labels_equal": bool((labels == theirs).all()),
        }


def scikit_labels(features: Features, eps: float, min_samples: int) -> NDArray[np.int32]:
    """Labels of scikit-learn's DBSCAN, numbered by first appearance."""
    dbscan = DBSCAN(eps=eps, min_samples=min_samples, metric="cosine", algorithm="brute")
    return number_by_first_appearance(dbscan.fit_predict(features))


def peak_bytes() -> int:
    """The most memory this process ever had, mapped pages of files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_own_process(function: Callable[..., Figures], *args: Any, **kwargs: Any) -> Figures:
    """Call a function in a fresh process, so that its peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args, kwargs)


def growth(runs: list[Figures]) -> float | None:
    """The exponent b of seconds ~ images ** b, fitted to the logarithms."""
    if len(runs) < 2:
        return None
    images = np.log([run["images"] for run in runs])
    return float(np.polyfit(images, np.log([run["seconds_to_clusters"] for run in runs]), 1)[0])


STAGES = ("cells", "cores", "neighbors", "clusters", "recall", "keepers", "index")
HEADER = (
    f"{'images':>9} {'depth':>5} {'recall':>8} "
    + " ".join(f"{stage:>9}" for stage in STAGES)
    + f" {'total s':>8} {'CPU s':>8} {'GiB':>5} {'clusters':>9} {'largest':>8} {'kept':>8} "
    + f"{'first':>8} {'at least':>8}"
)


def line(run: Figures) -> str:
    """One row of the table; total and CPU seconds and GiB are those from features to clusters."""
    stages = " ".join(
        f"{run['seconds'][stage]:>9.1f}" if stage in run["seconds"] else f"{'-':>9}"
        for stage in STAGES
    )
    return (
        f"{run['images']:>9,} {run['depth']:>5} {run['recall']:>8.5f} {stages} "
        f"{run['seconds_to_clusters']:>8.1f} {run['cpu_seconds_to_clusters']:>8.1f} "
        f"{run['peak_bytes'] / 2**30:>5.2f} "
        f"{run['clusters']:>9,} {run['largest']:>8,} {run['kept'] or '-':>8} "
        f"{run['kept_first_come'] or '-':>8} {run['kept_at_least'] or '-':>8}"
    )


def read_figures(path: Path | None) -> Figures:
    """The figures of earlier calls: sizes can be measured one by one."""
    if path is None or not path.exists():
        return {"runs": [], "scikit": []}
    figures: Figures = json.loads(path.read_text())
    return figures


def add(figures: Figures, kind: str, run: Figures, path: Path | None) -> None:
    """Put a run among the figures, in place of an earlier one of its size, and write them."""
    others = [other for other in figures[kind] if other["images"] != run["images"]]
    figures[kind] = sorted([*others, run], key=lambda each: each["images"])
    figures["growth_exponent"] = growth(figures["runs"])
    if path is not None:
        path.write_text(json.dumps(figures, indent=2) + "\n")


def main() -> None:
    """Measure, print a table, and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="images of each night")
    parser.add_argument("--scikit", type=int, nargs="*", default=SCIKIT_SIZES)
    parser.add_argument("--min-samples", type=int, default=2)
    parser.add_argument("--index", action="store_true", help="build the Annoy index too")
    parser.add_argument("--without-keepers", action="store_true", help="stop at the clusters")
    parser.add_argument("--json", type=Path, help="file to add the figures to")
    args = parser.parse_args()
    settings = {"clusters": {"min_samples": args.min_samples}}
    figures = read_figures(args.json)
    print(HEADER, flush=True)
    for num_items in args.sizes:
        run = in_own_process(
            measure,
            num_items,
            settings,
            with_index=args.index,
            with_keepers=not args.without_keepers,
        )
        add(figures, "runs", run, args.json)
        print(line(run), flush=True)
    exponent = growth(figures["runs"])
    if exponent is not None:
        print(f"seconds from features to clusters grow like images ** {exponent:.2f}")
    for num_items in args.scikit:
        found = in_own_process(compare, num_items, settings)
        add(figures, "scikit", found, args.json)
        print(
            f"{num_items:,} images, all pairs: {found['seconds']:.1f} s, "
            f"{found['peak_bytes'] / 2**30:.2f} GiB; scikit-learn {found['seconds_scikit']:.1f} s, "
            f"{found['peak_bytes_scikit'] / 2**30:.2f} GiB; labels "
            + ("equal" if found["labels_equal"] else "DIFFER"),
            flush=True,
        )


if __name__ == "__main__":
    main()
