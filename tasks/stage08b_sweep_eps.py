"""Stage 8b: what would be kept at other values of eps, for the person who has to choose one."""

import json
import logging
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from config import DedupConfig
from tasks import blas, storage
from tasks.cells import open_features, read_partitions
from tasks.comparisons import Features, are_within_by
from tasks.references import Collection, Sweep
from tasks.stage import stage
from tasks.stage08_choose_keepers import greedy_cover

logger = logging.getLogger(__name__)

EPS_VALUES = tuple(round(0.005 * 60 ** (step / 31), 4) for step in range(32))
"""From 0.005 to 0.3, each some 14 % more than the one before."""

DISTANCE_EDGES = (0.0, *(round(0.0005 * 2000 ** (step / 30), 6) for step in range(31)), 2.0)
"""Edges of the histogram of nearest distances: from 0.0005 to 1 in equal ratios."""

MAX_WINDOW = 2_048
"""Images compared with each other; images that follow each other are the likeliest twins."""

MAX_COMPARED = 4_096
"""Images compared in all, so that this takes seconds in a night of any size."""

Matrix = NDArray[np.bool_]


@stage("sweep_eps")
def sweep_eps(collection: Collection, config: DedupConfig) -> Sweep:
    """Publish the share that would be kept at each eps, and how far the nearest images are."""
    url = storage.join(collection.run_url, "sweep.json")
    if storage.exists(url):
        return Sweep(url)  # the run names all that decides, so it is the same
    partitions = list(read_partitions(collection.images_url).values())
    windows = sample_windows(partitions)
    features = open_features(collection.features_url)
    eps_values = sorted({*EPS_VALUES, config.eps})
    with blas.one_thread():
        swept = sweep(
            (features[start:stop] for start, stop in windows),
            eps_values,
            min_samples=config.clusters.min_samples,
        )
    swept["num_images"] = collection.num_items
    swept["is_sample"] = windows != partitions
    storage.publish_bytes(url, json.dumps(swept).encode())
    logger.info("swept eps over %d of %d images", swept["num_compared"], collection.num_items)
    return Sweep(url)


def sample_windows(
    partitions: Sequence[tuple[int, int]],
    max_window: int = MAX_WINDOW,
    max_compared: int = MAX_COMPARED,
) -> list[tuple[int, int]]:
    """Choose ranges of items that are compared, all within one partition.

    Args:
        partitions: Ranges of items that may be neighbours of each other.
        max_window: Most items of one range.
        max_compared: Most items of all ranges, except that one range is always chosen.

    Returns:
        All partitions, where that is few enough items; else ranges spread evenly over all.
    """
    pieces = [piece for start, stop in partitions for piece in _cut(start, stop, max_window)]
    num_items = sum(stop - start for start, stop in pieces)
    if num_items <= max_compared:
        return pieces
    num_chosen = max(1, int(len(pieces) * max_compared / num_items))
    return [pieces[number * len(pieces) // num_chosen] for number in range(num_chosen)]


def _cut(start: int, stop: int, max_window: int) -> Iterator[tuple[int, int]]:
    num_pieces = -(-(stop - start) // max_window)
    ends = [start + (stop - start) * number // num_pieces for number in range(num_pieces + 1)]
    return pairwise(ends)


def sweep(
    windows: Iterator[Features], eps_values: Sequence[float], *, min_samples: int
) -> dict[str, Any]:
    """Count what a cover would keep at each eps, and how far the nearest other image is.

    Args:
        windows: `(n, D)` float32 of unit length; images of different ones are not compared.
        eps_values: Cosine distances, ascending.
        min_samples: Items within eps, itself included, that make a core item.

    Returns:
        `eps`, `kept_fraction` for each of them in [0, 1], `num_compared`, and `nearest_distances`
        as the `edges` and `counts` of a histogram of cosine distances, and their `mean`, None
        without any.
    """
    num_kept = np.zeros(len(eps_values), np.int64)
    counts = np.zeros(len(DISTANCE_EDGES) - 1, np.int64)
    total_distance = 0.0
    num_compared = 0
    for features in windows:
        products = features @ features.T
        num_compared += len(features)
        num_kept += [
            num_kept_of(are_within_by(products, features, features, eps), min_samples=min_samples)
            for eps in eps_values
        ]
        nearest = nearest_distances(products)
        counts += np.histogram(nearest, DISTANCE_EDGES)[0]
        total_distance += float(nearest.sum(dtype=np.float64))
    num_nearest = int(counts.sum())
    return {
        "eps": list(eps_values),
        "kept_fraction": (num_kept / max(num_compared, 1)).round(6).tolist(),
        "num_compared": num_compared,
        "nearest_distances": {
            "edges": list(DISTANCE_EDGES),
            "counts": counts.tolist(),
            "mean": round(total_distance / num_nearest, 6) if num_nearest else None,
        },
    }


def num_kept_of(near: Matrix, *, min_samples: int) -> int:
    """Count what stays of images of which it is known who is within eps of whom.

    Args:
        near: `(n, n)` symmetric, true on the diagonal.
        min_samples: Items within eps, itself included, that make a core item of DBSCAN.

    Returns:
        Noise and the keepers of a greedy cover.
    """
    if min_samples > 2:
        near = near & of_one_cluster(near, min_samples)
    keepers = greedy_cover(np.packbits(near, axis=1), np.arange(len(near)))
    num_damaged = int((~near.any(axis=1)).sum())  # not even near itself
    return len(keepers) + num_damaged


def of_one_cluster(near: Matrix, min_samples: int) -> Matrix:
    """Tell which pairs are in one cluster of DBSCAN; an image is with itself, even noise.

    Args:
        near: `(n, n)` symmetric, true on the diagonal.
        min_samples: Items within eps, itself included, that make a core item.
    """
    is_core = near.sum(axis=1) >= min_samples
    of_cores = csr_array(near & is_core & is_core[:, None])
    component = connected_components(of_cores, directed=False)[1]
    # As in scikit-learn, a border item belongs to the cluster whose lowest core item is lowest.
    lowest = np.where(near & is_core, component, len(near)).min(axis=1)
    label = np.where(is_core, component, np.where(lowest < len(near), lowest, -1))
    same: Matrix = (label[:, None] == label) & (label >= 0) | np.eye(len(near), dtype=bool)
    return same


def nearest_distances(products: NDArray[np.float32]) -> NDArray[np.float32]:
    """Distance to the nearest other row: `(n,)` float32 in [0, 2]; none for a row alone.

    Args:
        products: `(n, n)` float32 scalar products of rows of unit length; the diagonal is changed.
    """
    if len(products) < 2:
        return np.empty(0, np.float32)
    np.fill_diagonal(products, -1)
    nearest: NDArray[np.float32] = np.clip(1 - products.max(axis=1), 0, 2)
    return nearest
