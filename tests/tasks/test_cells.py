"""Reading the cells, cut anywhere."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import storage
from tasks.cells import (
    Cell,
    iterate_cells,
    partition_ranges,
    read_is_core,
)
from tasks.schemas import CELLS, CORES


@pytest.mark.parametrize(
    ("cameras", "ranges"),
    [
        ([], []),
        (["a"], [(0, 1)]),
        (["", "", ""], [(0, 3)]),
        (["a", "a", "b", "c", "c"], [(0, 2), (2, 3), (3, 5)]),
    ],
)
def test_partition_ranges_are_the_runs_of_equal_cameras(
    cameras: list[str], ranges: list[tuple[int, int]]
) -> None:
    assert partition_ranges(pa.array(cameras, pa.string())) == ranges


TWO_CELLS = pa.table(
    {"home": [[4, 5, 6], [0, 2]], "guests": [[0], [5, 6]], "eps": [0.1, 0.2]}, CELLS
)


def parts(url: str, start: int, stop: int) -> list[tuple[list[int], ...]]:
    return [
        tuple(part.tolist() for part in (cell.rows, cell.later, cell.earlier, cell.guests))
        for cell, _ in iterate_cells(url, start, stop)
    ]


def test_iterate_cells_counts_over_all_cells(tmp_path: Path) -> None:
    url = str(tmp_path / "cells.parquet")
    storage.publish_table(url, TWO_CELLS)

    assert parts(url, 0, 5) == [([4, 5, 6], [], [], [0]), ([0, 2], [], [], [5, 6])]
    assert parts(url, 1, 2) == [([5], [6], [4], [0])]
    assert parts(url, 2, 4) == [([6], [], [4, 5], [0]), ([0], [2], [], [5, 6])]
    assert parts(url, 3, 5) == [([0, 2], [], [], [5, 6])]
    assert [eps for _, eps in iterate_cells(url, 2, 4)] == [0.1, 0.2]


@given(cuts=st.lists(st.integers(0, 5)))
def test_cells_cut_anywhere_hold_every_item_once(
    cuts: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    url = str(tmp_path_factory.mktemp("cells") / "cells.parquet")
    storage.publish_table(url, TWO_CELLS)

    found: list[Cell] = []
    for start, stop in pairwise(sorted({0, 5, *cuts})):
        found.extend(cell for cell, _ in iterate_cells(url, start, stop))

    assert np.concatenate([cell.rows for cell in found]).tolist() == [4, 5, 6, 0, 2]
    for cell in found:
        home = np.concatenate([cell.earlier, cell.rows, cell.later]).tolist()
        assert (home, cell.guests.tolist()) in (([4, 5, 6], [0]), ([0, 2], [5, 6]))


def test_core_items_become_a_mask(tmp_path: Path) -> None:
    url = str(tmp_path / "cores.parquet")
    storage.publish_table(url, pa.table({"item_id": [0, 3]}, CORES))

    assert read_is_core(url, 5).tolist() == [True, False, False, True, False]
