"""Cells: every item is at home once, near its neighbours, and nobody's workers matter."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import stage05_plan_cells as module
from tasks.schemas import CELLS
from tasks.stage05_plan_cells import cells_of_range, choose_pivots, nearest_pivots, one_cell
from tests.made_items import feature_sets, unit


def home_and_guests(cells: pa.Table) -> list[tuple[list[int], list[int]]]:
    return list(zip(cells["home"].to_pylist(), cells["guests"].to_pylist(), strict=True))


def flat(lists: pa.ChunkedArray) -> list[int]:
    return [item for items in lists.to_pylist() for item in items]


def test_one_cell_is_home_to_all() -> None:
    cells = one_cell(3, 6, eps=0.2)

    assert cells.schema == CELLS
    assert home_and_guests(cells) == [([3, 4, 5], [])]
    assert cells["eps"].to_pylist() == [0.2]


@given(
    features=feature_sets(),
    start=st.integers(0, 5),
    depth=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_every_item_is_at_home_once_and_a_guest_in_further_cells(
    features: np.ndarray, start: int, depth: int, seed: int
) -> None:
    start = min(start, len(features) - 1)
    stop = len(features)
    num_pivots = len(choose_pivots(features, start, stop, seed=seed))

    cells = cells_of_range(features, start, stop, eps=0.2, depth=depth, seed=seed, workers=2)

    assert sorted(flat(cells["home"])) == list(range(start, stop))
    for home, guests in home_and_guests(cells):
        assert home == sorted(home)
        assert guests == sorted(guests)
        assert not set(home) & set(guests)
    if len(cells) == num_pivots:  # else guests of cells without anybody at home are dropped
        inside = np.bincount(flat(cells["guests"]), minlength=stop)[start:] + 1
        assert set(inside.tolist()) == {min(depth, num_pivots)}


def test_home_is_with_the_nearest_pivot() -> None:
    angles = np.radians([0, 10, 40, 80, 85])
    features = np.column_stack([np.cos(angles), np.sin(angles)]).astype(np.float32)

    found = nearest_pivots(features, 0, 5, features[[0, 2, 3]], 2, workers=1)

    assert found.tolist() == [[0, 1], [0, 1], [1, 0], [2, 1], [2, 1]]


def test_pivots_are_the_root_of_the_items_and_differ() -> None:
    features = unit(np.random.default_rng(0).standard_normal((100, 4)))
    copies = np.repeat(features[:2], 50, axis=0)

    pivots = choose_pivots(features, 20, 84, seed=1)

    assert (len(pivots), len(set(pivots.tolist()))) == (8, 8)
    assert pivots.tolist() == sorted(pivots.tolist())
    assert (pivots.min() >= 20, pivots.max() < 84) == (True, True)
    assert pivots.tolist() == choose_pivots(features, 20, 84, seed=1).tolist()
    assert pivots.tolist() != choose_pivots(features, 20, 84, seed=2).tolist()
    assert len(choose_pivots(copies, 0, 100, seed=1)) == 2


def test_workers_do_not_change_the_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 7)
    features = unit(np.random.default_rng(0).standard_normal((400, 16)))

    alone, together = (
        cells_of_range(features, 0, 400, eps=0.2, depth=3, seed=0, workers=workers)
        for workers in (1, 4)
    )

    assert alone.equals(together)
