"""Stage 6: which images are connected by pairs within eps, without ever listing the pairs."""

import logging
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from config import DedupConfig
from tasks import blas, storage
from tasks.cells import (
    Cell,
    iterate_cells,
    open_features,
    read_is_core,
)
from tasks.comparisons import (
    COLUMNS_AT_ONCE,
    ROWS_AT_ONCE,
    Features,
    Items,
    are_within,
    connect,
)
from tasks.references import Cells, Collection, CoreFile, LinkFile, SearchRange
from tasks.schemas import CORES, LINKS
from tasks.stage import stage

logger = logging.getLogger(__name__)

Links = tuple[NDArray[np.int32], NDArray[np.int32]]
"""Items and what each is linked to, each `(L,)`."""


@stage("find_cores", run_name="find_cores-{search.start}")
def find_cores(
    search: SearchRange, cells: Cells, collection: Collection, config: DedupConfig
) -> CoreFile:
    """Publish the core items of a search range."""
    features = open_features(collection.features_url)
    min_samples = config.clusters.min_samples
    with blas.one_thread():
        found = [
            cores_of_cell(features, cell, eps=eps, min_samples=min_samples)
            for cell, eps in iterate_cells(cells.url, search.start, search.stop)
        ]
    cores = core_table(found)
    url = storage.join(cells.folder_url, f"cores-{_name(search)}.parquet")
    storage.publish_table(url, cores)
    return CoreFile(url=url, num_cores=cores.num_rows)


@stage("mark_cores")
def mark_cores(core_files: list[CoreFile], cells: Cells) -> Cells:
    """Publish the core items of all search ranges as one table."""
    tables = (storage.read_table(file.url, CORES) for file in core_files)
    url = storage.join(cells.folder_url, "cores.parquet")
    storage.publish_table(url, core_table([table["item_id"].to_numpy() for table in tables]))
    return replace(cells, cores_url=url)


@stage("find_neighbors", run_name="find_neighbors-{cells.depth}-{search.start}")
def find_neighbors(search: SearchRange, cells: Cells, collection: Collection) -> LinkFile:
    """Publish what the pairs within eps of a search range connect."""
    features = open_features(collection.features_url)
    is_core = core_mask(cells)
    with blas.one_thread():
        found = [
            links_of_cell(features, cell, is_core, eps=eps)
            for cell, eps in iterate_cells(cells.url, search.start, search.stop)
        ]
    links = link_table(found)
    url = storage.join(cells.folder_url, f"links-{_name(search)}.parquet")
    storage.publish_table(url, links)
    return LinkFile(url=url, num_links=links.num_rows)


def _name(search: SearchRange) -> str:
    return f"{search.start:09}-{search.stop:09}"


def core_mask(cells: Cells) -> NDArray[np.bool_]:
    """Which items may be core items: all, until their neighbours have been counted."""
    if cells.cores_url is None:
        return np.ones(cells.num_items, np.bool_)
    return read_is_core(cells.cores_url, cells.num_items)


def cores_of_cell(features: Features, cell: Cell, *, eps: float, min_samples: int) -> Items:
    """Find the items with enough neighbours; whoever has them is not compared any further.

    Args:
        features: `(N, D)` float32 of unit length.
        cell: What to compare with what.
        eps: Largest cosine distance of a neighbour.
        min_samples: Items within eps, itself included, that make a core item.

    Returns:
        The core items among the cell's rows.
    """
    columns = np.concatenate([cell.rows, cell.later, cell.earlier, cell.guests])
    cores = []
    for row in range(0, len(cell.rows), ROWS_AT_ONCE):
        rows = cell.rows[row : row + ROWS_AT_ONCE]
        counts = np.zeros(len(rows), np.int64)
        for column in range(0, len(columns), COLUMNS_AT_ONCE):
            few = np.flatnonzero(counts < min_samples)
            some = columns[column : column + COLUMNS_AT_ONCE]
            counts[few] += are_within(features[rows[few]], features[some], eps).sum(axis=1)
        cores.append(rows[counts >= min_samples])
    return np.concatenate(cores)


def links_of_cell(
    features: Features, cell: Cell, is_core: NDArray[np.bool_], *, eps: float
) -> Links:
    """Find what the core items of a cell connect.

    Args:
        features: `(N, D)` float32 of unit length.
        cell: What to compare with what.
        is_core: `(N,)` which items are core items.
        eps: Largest cosine distance of a neighbour.

    Returns:
        For a core item another one that it is connected with through pairs within eps; for any
        other of the cell's rows each core item within eps, of which there are few.
    """
    items = np.concatenate([cell.rows, cell.later, cell.guests])
    items, num_rows = items[is_core[items]], int(is_core[cell.rows].sum())
    component = connect(features, items, num_rows, eps)
    linked = np.flatnonzero(component != np.arange(len(items)))
    found = [(items[linked], items[component[linked]])]
    borders = cell.rows[~is_core[cell.rows]]
    columns = np.concatenate([items, cell.earlier[is_core[cell.earlier]]])
    for row in range(0, len(borders), ROWS_AT_ONCE):
        rows = borders[row : row + ROWS_AT_ONCE]
        for column in range(0, len(columns), COLUMNS_AT_ONCE):
            some = columns[column : column + COLUMNS_AT_ONCE]
            i, j = np.nonzero(are_within(features[rows], features[some], eps))
            found.append((rows[i], some[j]))
    item_ids, linked_ids = zip(*found, strict=True)
    return np.concatenate(item_ids), np.concatenate(linked_ids)


def core_table(found: list[Items]) -> pa.Table:
    """Put core items into a table of `schemas.CORES`, sorted."""
    items = np.sort(np.concatenate([np.empty(0, np.int32), *found]))
    return pa.Table.from_arrays([pa.array(items, pa.int32())], schema=CORES)


def link_table(found: list[Links]) -> pa.Table:
    """Put links into a table of `schemas.LINKS`, sorted."""
    items = np.concatenate([np.empty(0, np.int32), *(links[0] for links in found)])
    linked = np.concatenate([np.empty(0, np.int32), *(links[1] for links in found)])
    order = np.lexsort((linked, items))
    return pa.Table.from_arrays(
        [pa.array(items[order], pa.int32()), pa.array(linked[order], pa.int32())], schema=LINKS
    )
