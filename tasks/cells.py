"""Which items are compared with which.

A small partition is one cell: everything is compared with everything. A larger one is an inverted
file (J. Sivic and A. Zisserman, 2003): some of its items are pivots, every item is at home in the
cell of its nearest pivot and a guest in those of the next nearest, and the items at home in a cell
are compared with all items in it.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tasks import storage
from tasks.comparisons import Features, Items
from tasks.schemas import CELLS, CORES, IMAGES

_ROWS_AT_ONCE = 1_024


@dataclass(frozen=True)
class Cell:
    """A part of the items at home in one cell, and all they may be neighbours of."""

    rows: Items
    """Some of the items at home."""
    later: Items
    """The items at home that come after them."""
    earlier: Items
    """The items at home that come before them."""
    guests: Items


def partition_ranges(cameras: pa.Array) -> list[tuple[int, int]]:
    """Find the runs of equal values.

    Args:
        cameras: Partition of every item, equal ones side by side.

    Returns:
        Start and end of each run, in order.
    """
    if not len(cameras):
        return []
    return list(pairwise([0, *pc.run_end_encode(cameras).run_ends.to_pylist()]))


def open_features(features_url: str) -> Features:
    """Map the features of a run into memory: `(N, D)` float32 of unit length."""
    features: Features = np.load(storage.local_path(features_url), mmap_mode="r")
    return features


@lru_cache(maxsize=4)
def read_partitions(images_url: str) -> list[tuple[int, int]]:
    """Ranges of items that may be neighbours of each other."""
    images = storage.read_table(images_url, IMAGES, ["item_id", "camera"])
    items = images.filter(images["item_id"].is_valid()).sort_by("item_id")
    return partition_ranges(items["camera"].combine_chunks())


def one_cell(start: int, stop: int) -> pa.Table:
    """The cell in which a range of items is compared completely: a table of `schemas.CELLS`."""
    home = pa.array(np.arange(start, stop, dtype=np.int32))
    return pa.Table.from_arrays(
        [
            pa.ListArray.from_arrays(pa.array([0, stop - start], pa.int32()), home),
            pa.array([[]], CELLS.field("guests").type),
        ],
        schema=CELLS,
    )


def cells_of_range(
    features: Features, start: int, stop: int, *, depth: int, seed: int, workers: int
) -> pa.Table:
    """Divide a range of items into about as many cells as each of them then has items at home.

    Args:
        features: `(N, D)` float32 of unit length.
        start: First item.
        stop: End of the range.
        depth: Cells an item is in.
        seed: Seed of the choice of pivots.
        workers: Threads; never change the result as long as BLAS uses one thread in each.

    Returns:
        A table of `schemas.CELLS`; every item is at home in exactly one cell.
    """
    pivots = choose_pivots(features, start, stop, seed=seed)
    cells_of = nearest_pivots(features, start, stop, features[pivots], depth, workers)
    num_cells = len(pivots)
    home = _lists(cells_of[:, :1], start, num_cells)
    guests = _lists(cells_of[:, 1:], start, num_cells)
    table = pa.Table.from_arrays([home, guests], schema=CELLS)
    return table.filter(pc.greater(pc.list_value_length(table["home"]), 0))


def choose_pivots(features: Features, start: int, stop: int, *, seed: int) -> Items:
    """Draw the square root of a range's items, sorted; of equal ones only the first."""
    num_items = stop - start
    rng = np.random.default_rng([seed, start])
    drawn = start + np.sort(rng.choice(num_items, max(1, round(num_items**0.5)), replace=False))
    # Among equal pivots the choice would be arbitrary, and two neighbours would choose differently.
    _, first = np.unique(features[drawn], axis=0, return_index=True)
    pivots: Items = drawn[np.sort(first)]
    return pivots


def nearest_pivots(
    features: Features, start: int, stop: int, pivots: Features, depth: int, workers: int
) -> NDArray[np.uint16]:
    """Find the nearest pivots of each item of a range.

    Args:
        features: `(N, D)` float32 of unit length.
        start: First item.
        stop: End of the range.
        pivots: `(P, D)` float32 of unit length, P at most 65,536.
        depth: Pivots to find; all of them where there are no more.
        workers: Threads.

    Returns:
        `(stop - start, min(depth, P))` uint16, the nearest one first.
    """
    rank = partial(_rank_pivots, pivots=pivots, depth=min(depth, len(pivots)))
    # Blocks of a fixed size, so that the last bits of a product never depend on the workers.
    blocks = [
        features[row : min(row + _ROWS_AT_ONCE, stop)] for row in range(start, stop, _ROWS_AT_ONCE)
    ]
    with ThreadPoolExecutor(workers) as pool:
        return np.concatenate(list(pool.map(rank, blocks)))


def _rank_pivots(rows: Features, *, pivots: Features, depth: int) -> NDArray[np.uint16]:
    farness = -(rows @ pivots.T)
    nearest = np.argpartition(farness, depth - 1, axis=1)[:, :depth]
    order = np.argsort(np.take_along_axis(farness, nearest, axis=1), axis=1, kind="stable")
    return np.take_along_axis(nearest, order, axis=1).astype(np.uint16)


def _lists(cells_of: NDArray[np.uint16], start: int, num_cells: int) -> pa.ListArray:
    """List the items of each cell, in order."""
    depth = cells_of.shape[1]
    flat = cells_of.ravel()
    items = start + np.argsort(flat, kind="stable") // max(depth, 1)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(flat, minlength=num_cells))])
    return pa.ListArray.from_arrays(
        pa.array(offsets.astype(np.int32)), pa.array(items.astype(np.int32))
    )


def iterate_cells(cells_url: str, start: int, stop: int) -> Iterator[Cell]:
    """Go through the items at home in the cells, one cell after the other.

    Args:
        cells_url: Table of `schemas.CELLS`.
        start: First of them, counted over all cells.
        stop: End of them.
    """
    with _reading:
        (home_ends, home), (guest_ends, guests) = _read_lists(cells_url)
    for number in range(np.searchsorted(home_ends, start, side="right") - 1, len(home_ends) - 1):
        first, last = home_ends[number], home_ends[number + 1]
        if first >= stop:
            break
        begin, end = max(first, start), min(last, stop)
        yield Cell(
            rows=home[begin:end],
            later=home[end:last],
            earlier=home[first:begin],
            guests=guests[guest_ends[number] : guest_ends[number + 1]],
        )


_reading = threading.Lock()  # else every thread of a pool would read them at its start


@lru_cache(maxsize=1)
def _read_lists(cells_url: str) -> list[tuple[Items, Items]]:
    table = storage.read_table(cells_url, CELLS)
    columns = (table[name].combine_chunks() for name in CELLS.names)
    return [
        (column.offsets.to_numpy().astype(np.int64), column.values.to_numpy()) for column in columns
    ]


@lru_cache(maxsize=1)
def read_is_core(cores_url: str, num_items: int) -> NDArray[np.bool_]:
    """Which items are listed in a table of `schemas.CORES`: `(num_items,)` bool."""
    is_core = np.zeros(num_items, np.bool_)
    is_core[storage.read_table(cores_url, CORES)["item_id"].to_numpy()] = True
    return is_core
