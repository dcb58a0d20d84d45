"""Stage 5: which items are compared with which.

A small partition is one cell: everything is compared with everything. A larger one is an inverted
file (J. Sivic and A. Zisserman, 2003): some of its items are pivots, every item is at home in the
cell of its nearest pivot and a guest in those of the next nearest, and the items at home in a cell
are compared with all items in it.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from config import DedupConfig
from tasks import blas, storage
from tasks.cells import open_features, read_partitions
from tasks.comparisons import Features, Items
from tasks.references import Cells, Collection
from tasks.schemas import CELLS
from tasks.stage import stage

_ROWS_AT_ONCE = 1_024


@stage("plan_cells", run_name="plan_cells-{depth}")
def plan_cells(collection: Collection, depth: int, config: DedupConfig) -> Cells:
    """Publish which items are compared with which."""
    settings = config.neighbors
    features = open_features(collection.features_url)
    cells = []
    with blas.one_thread():
        for name, (start, stop) in read_partitions(collection.images_url).items():
            eps = config.of_partition(name).eps
            if depth == 0 or stop - start <= settings.exact_up_to:
                cells.append(one_cell(start, stop, eps=eps))
            else:
                cells.append(
                    cells_of_range(
                        features,
                        start,
                        stop,
                        eps=eps,
                        depth=depth,
                        seed=settings.seed,
                        workers=config.execution.workers,
                    )
                )
    folder_url = storage.join(collection.run_url, f"search-{depth}")
    url = storage.join(folder_url, "cells.parquet")
    storage.publish_table(url, pa.concat_tables([CELLS.empty_table(), *cells]))
    return Cells(url=url, folder_url=folder_url, depth=depth, num_items=collection.num_items)


def one_cell(start: int, stop: int, *, eps: float) -> pa.Table:
    """The cell in which a range of items is compared completely: a table of `schemas.CELLS`."""
    home = pa.array(np.arange(start, stop, dtype=np.int32))
    return pa.Table.from_arrays(
        [
            pa.ListArray.from_arrays(pa.array([0, stop - start], pa.int32()), home),
            pa.array([[]], CELLS.field("guests").type),
            pa.array([eps]),
        ],
        schema=CELLS,
    )


def cells_of_range(
    features: Features, start: int, stop: int, *, eps: float, depth: int, seed: int, workers: int
) -> pa.Table:
    """Divide a range of items into about as many cells as each of them then has items at home.

    Args:
        features: `(N, D)` float32 of unit length.
        start: First item.
        stop: End of the range.
        eps: Largest cosine distance of neighbours; only written down.
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
    table = pa.Table.from_arrays([home, guests, pa.array([eps] * num_cells)], schema=CELLS)
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
    rank = partial(rank_pivots, pivots=pivots, depth=min(depth, len(pivots)))
    # Blocks of a fixed size, so that the last bits of a product never depend on the workers.
    blocks = [
        features[row : min(row + _ROWS_AT_ONCE, stop)] for row in range(start, stop, _ROWS_AT_ONCE)
    ]
    with ThreadPoolExecutor(workers) as pool:
        return np.concatenate(list(pool.map(rank, blocks)))


def rank_pivots(rows: Features, *, pivots: Features, depth: int) -> NDArray[np.uint16]:
    """Find the nearest pivots of each row.

    Args:
        rows: `(R, D)` float32 of unit length.
        pivots: `(P, D)` likewise, P at most 65,536.
        depth: Pivots to find, at most P.

    Returns:
        `(R, depth)` uint16, the nearest one first.
    """
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
