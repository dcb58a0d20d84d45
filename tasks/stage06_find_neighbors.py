"""Stage 6: all pairs of images within eps, and a measurement of how many of them were found."""

import logging
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from annoy import AnnoyIndex
from numpy.typing import NDArray

from config import DedupConfig
from tasks import storage
from tasks.distances import cosine_distances, within
from tasks.references import Collection, EdgeFile, Index, SearchRange
from tasks.schemas import EDGES, IMAGES
from tasks.stage import stage
from tasks.stage05_build_index import load_index

logger = logging.getLogger(__name__)

Pairs = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]
"""Item, neighbour (always the larger item) and cosine distance, each `(E,)`."""

Features = NDArray[np.float32]

_ROWS_AT_ONCE = 1_024
_COLUMNS_AT_ONCE = 16_384
# float32 products of unit vectors are off by a few 1e-7; the exact distance decides afterwards.
_SLACK = 1e-5
_FIRST_NUM_NEIGHBORS = 32


@stage("find_neighbors", run_name="find_neighbors-{search.depth}-{search.start}")
def find_neighbors(
    search: SearchRange, collection: Collection, index: Index, config: DedupConfig
) -> EdgeFile:
    """Publish the pairs within eps that start in a range of items."""
    name = f"{search.start:09}-{search.stop:09}.parquet"
    url = storage.join(collection.run_url, "edges", f"depth-{search.depth}", name)
    features = np.load(storage.local_path(collection.features_url), mmap_mode="r")
    settings = config.neighbors
    found = []
    for start, stop in _partitions(collection.images_url):
        first, last = max(start, search.start), min(stop, search.stop)
        if first >= last:
            continue
        if search.depth == 0 or stop - start <= settings.exact_up_to:
            found.append(exact_pairs(features, first, last, stop, eps=settings.eps))
        else:
            annoy = _open_index(str(storage.local_path(index.url)))
            search_k = search.depth * max(
                settings.search_k, settings.n_trees * _FIRST_NUM_NEIGHBORS
            )
            found.append(
                approximate_pairs(
                    annoy, features, first, last, (start, stop), eps=settings.eps, search_k=search_k
                )
            )
    edges = edge_table(found)
    storage.publish_table(url, edges)
    return EdgeFile(url=url, num_edges=edges.num_rows)


@stage("measure_recall")
def measure_recall(
    edge_files: list[EdgeFile], collection: Collection, config: DedupConfig
) -> float:
    """Measure which share of the pairs within eps of a random sample was found."""
    settings = config.neighbors
    features = np.load(storage.local_path(collection.features_url), mmap_mode="r")
    sample = sample_items(len(features), settings.num_recall_samples, settings.seed)
    edges = read_edges(edge_files)
    return recall_of_pairs(
        features, _partitions(collection.images_url), edges, sample, eps=settings.eps
    )


def exact_pairs(features: Features, first: int, last: int, stop: int, *, eps: float) -> Pairs:
    """Compare a range of items with all later items of their partition.

    Args:
        features: `(N, D)` float32 of unit length.
        first: First item of the range.
        last: End of the range.
        stop: End of the partition.
        eps: Largest cosine distance of a pair.

    Returns:
        All pairs (i, j) with first <= i < last and i < j < stop within eps.
    """
    found = []
    for row in range(first, last, _ROWS_AT_ONCE):
        rows = np.arange(row, min(row + _ROWS_AT_ONCE, last))
        for column in range(row, stop, _COLUMNS_AT_ONCE):
            columns = np.arange(column, min(column + _COLUMNS_AT_ONCE, stop))
            found.append(_checked(features, *_candidates(features, rows, columns, eps), eps))
    return _concatenate(found)


def approximate_pairs(
    index: AnnoyIndex,
    features: Features,
    first: int,
    last: int,
    partition: tuple[int, int],
    *,
    eps: float,
    search_k: int,
) -> Pairs:
    """Ask the index for the neighbours of a range of items and compute their distances exactly.

    Asks for more neighbours of an item until the farthest one answered lies beyond eps.

    Args:
        index: Annoy index of the features.
        features: `(N, D)` float32 of unit length.
        first: First item of the range.
        last: End of the range.
        partition: Range of items that may be neighbours.
        eps: Largest cosine distance of a pair.
        search_k: Nodes to inspect for the first 32 neighbours; grows with the neighbours asked for.

    Returns:
        The pairs found, within eps; each at most once.
    """
    # Annoy's angular distance is sqrt(2 (1 - cos)).
    radius = float(np.sqrt(2.0 * (eps + _SLACK)))
    found = []
    for item in range(first, last):
        num_neighbors = min(_FIRST_NUM_NEIGHBORS, len(features))
        while True:
            factor = -(-num_neighbors // _FIRST_NUM_NEIGHBORS)
            answer, distances = index.get_nns_by_item(
                item, num_neighbors, search_k * factor, include_distances=True
            )
            is_done = len(answer) < num_neighbors or distances[-1] > radius
            if is_done or num_neighbors == len(features):
                break
            num_neighbors = min(2 * num_neighbors, len(features))
        candidates = np.asarray(answer, np.int64)
        is_inside = (
            (candidates >= partition[0]) & (candidates < partition[1]) & (candidates != item)
        )
        candidates = candidates[is_inside]
        items = np.full(len(candidates), item)
        smaller, larger = np.minimum(items, candidates), np.maximum(items, candidates)
        found.append(_checked(features, smaller, larger, eps))
    return _unique(_concatenate(found))


def _candidates(
    features: Features, rows: NDArray[np.int64], columns: NDArray[np.int64], eps: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of a block that may be within eps: none that is, is missing."""
    # `columns` is a run of items, so that a slice of the memory map does.
    products = features[rows] @ features[columns[0] : columns[-1] + 1].T
    i, j = np.nonzero(products >= np.float32(1.0 - eps - _SLACK))
    return rows[i], columns[j]


def _checked(features: Features, i: NDArray[np.int64], j: NDArray[np.int64], eps: float) -> Pairs:
    i, j = i[i < j], j[i < j]
    distances = cosine_distances(features[i], features[j])
    keep = within(distances, eps)
    return i[keep].astype(np.int32), j[keep].astype(np.int32), distances[keep]


def _concatenate(found: list[Pairs]) -> Pairs:
    if not found:
        return np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32)
    items, neighbors, distances = zip(*found, strict=True)
    return np.concatenate(items), np.concatenate(neighbors), np.concatenate(distances)


def _unique(pairs: Pairs) -> Pairs:
    items, neighbors, distances = pairs
    order = np.lexsort((neighbors, items))
    items, neighbors, distances = items[order], neighbors[order], distances[order]
    is_new = np.ones(len(items), bool)
    is_new[1:] = (items[1:] != items[:-1]) | (neighbors[1:] != neighbors[:-1])
    return items[is_new], neighbors[is_new], distances[is_new]


def edge_table(found: list[Pairs]) -> pa.Table:
    """Put pairs into a table of `schemas.EDGES`, sorted by item and neighbour."""
    return pa.Table.from_arrays(
        [pa.array(column) for column in _unique(_concatenate(found))], schema=EDGES
    )


def read_edges(edge_files: list[EdgeFile]) -> Pairs:
    """Read edge files into pairs, sorted by item and neighbour, each pair once."""
    tables = [storage.read_table(file.url, EDGES) for file in edge_files]
    return _unique(
        _concatenate(
            [
                (
                    table["item_id"].to_numpy(),
                    table["neighbor_id"].to_numpy(),
                    table["distance"].to_numpy(),
                )
                for table in tables
            ]
        )
    )


def sample_items(num_items: int, num_samples: int, seed: int) -> NDArray[np.int64]:
    """Draw items without replacement, sorted; all of them when there are no more."""
    if num_items <= num_samples:
        return np.arange(num_items)
    return np.sort(np.random.default_rng(seed).choice(num_items, num_samples, replace=False))


def recall_of_pairs(
    features: Features,
    partitions: list[tuple[int, int]],
    edges: Pairs,
    sample: NDArray[np.int64],
    *,
    eps: float,
) -> float:
    """Compare sampled items with every other by brute force and count the pairs that were found.

    Args:
        features: `(N, D)` float32 of unit length.
        partitions: Ranges of items that may be neighbours of each other.
        edges: The pairs found.
        sample: Sorted items to check.
        eps: Largest cosine distance of a pair.

    Returns:
        Share of the sample's pairs within eps that are among the edges; 1 when there are none.
    """
    num_items = len(features)
    found_keys = edges[0].astype(np.int64) * num_items + edges[1]
    true_keys = []
    for start, stop in partitions:
        items = sample[(sample >= start) & (sample < stop)]
        for row in range(0, len(items), _ROWS_AT_ONCE):
            rows = items[row : row + _ROWS_AT_ONCE]
            for column in range(start, stop, _COLUMNS_AT_ONCE):
                columns = np.arange(column, min(column + _COLUMNS_AT_ONCE, stop))
                i, j = _candidates(features, rows, columns, eps)
                pairs = _checked(features, np.minimum(i, j), np.maximum(i, j), eps)
                true_keys.append(pairs[0].astype(np.int64) * num_items + pairs[1])
    wanted = np.unique(np.concatenate([np.empty(0, np.int64), *true_keys]))
    if not len(wanted):
        return 1.0
    return float(np.isin(wanted, found_keys).mean())


@lru_cache(maxsize=4)
def _partitions(images_url: str) -> list[tuple[int, int]]:
    images = storage.read_table(images_url, IMAGES, ["item_id", "camera"])
    items = images.filter(images["item_id"].is_valid()).sort_by("item_id")
    return partition_ranges(items["camera"].to_pylist())


def partition_ranges(cameras: list[str]) -> list[tuple[int, int]]:
    """Find the runs of equal values.

    Args:
        cameras: Partition of every item, equal ones side by side.

    Returns:
        Start and end of each run, in order.
    """
    starts = [i for i, camera in enumerate(cameras) if i == 0 or camera != cameras[i - 1]]
    return list(pairwise([*starts, len(cameras)]))


@lru_cache(maxsize=2)
def _open_index(path: str) -> AnnoyIndex:
    return load_index(Path(path))
