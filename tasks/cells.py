"""What the stages of the search read: the features, the cells, the core items."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tasks import storage
from tasks.comparisons import Features, Items
from tasks.schemas import CELLS, CORES, IMAGES


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


def named_ranges(cameras: pa.ChunkedArray) -> dict[str, tuple[int, int]]:
    """Find the start and end of each partition, in order.

    Args:
        cameras: Partition of every item, equal ones side by side.
    """
    names = cameras.combine_chunks()
    return {names[start].as_py(): (start, stop) for start, stop in partition_ranges(names)}


def open_features(features_url: str) -> Features:
    """Map the features of a run into memory: `(N, D)` float32 of unit length."""
    features: Features = np.load(storage.local_path(features_url), mmap_mode="r")
    return features


@lru_cache(maxsize=4)
def read_partitions(images_url: str) -> dict[str, tuple[int, int]]:
    """Ranges of items that may be neighbours of each other, by the name of their partition."""
    images = storage.read_table(images_url, IMAGES, ["item_id", "camera"])
    items = images.filter(images["item_id"].is_valid()).sort_by("item_id")
    return named_ranges(items["camera"])


def iterate_cells(cells_url: str, start: int, stop: int) -> Iterator[tuple[Cell, float]]:
    """Go through the items at home in the cells, one cell after the other.

    Args:
        cells_url: Table of `schemas.CELLS`.
        start: First of them, counted over all cells.
        stop: End of them.

    Yields:
        A cell, or a part of one, and the largest cosine distance of neighbours in it.
    """
    with _reading:
        (home_ends, home), (guest_ends, guests), eps = _read_cells(cells_url)
    for number in range(np.searchsorted(home_ends, start, side="right") - 1, len(home_ends) - 1):
        first, last = home_ends[number], home_ends[number + 1]
        if first >= stop:
            break
        begin, end = max(first, start), min(last, stop)
        cell = Cell(
            rows=home[begin:end],
            later=home[end:last],
            earlier=home[first:begin],
            guests=guests[guest_ends[number] : guest_ends[number + 1]],
        )
        yield cell, float(eps[number])


_reading = threading.Lock()  # else every thread of a pool would read them at its start


@lru_cache(maxsize=1)
def _read_cells(
    cells_url: str,
) -> tuple[tuple[Items, Items], tuple[Items, Items], NDArray[np.float64]]:
    table = storage.read_table(cells_url, CELLS)
    home, guests = (_ends_and_values(table[name].combine_chunks()) for name in ("home", "guests"))
    return home, guests, table["eps"].to_numpy()


def _ends_and_values(lists: pa.ListArray) -> tuple[Items, Items]:
    return lists.offsets.to_numpy().astype(np.int64), lists.values.to_numpy()


@lru_cache(maxsize=1)
def read_is_core(cores_url: str, num_items: int) -> NDArray[np.bool_]:
    """Which items are listed in a table of `schemas.CORES`: `(num_items,)` bool."""
    is_core = np.zeros(num_items, np.bool_)
    is_core[storage.read_table(cores_url, CORES)["item_id"].to_numpy()] = True
    return is_core
