"""Comparing in blocks: what the exact distance says, however the blocks are cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components

from tasks import comparisons
from tasks.comparisons import SLACK, are_within, connect, pair_distances, unite
from tasks.distances import cosine_distances, within
from tests.made_items import all_distances, eps_for, feature_sets, unit


def lowest_connected(near: np.ndarray) -> list[int]:
    """For each item the lowest one that a chain of pairs leads to."""
    _, label = connected_components(near, directed=False)
    return [int(np.flatnonzero(label == own)[0]) for own in label]


@given(data=st.data())
def test_are_within_is_what_the_exact_distance_says(data: st.DataObject) -> None:
    features = data.draw(feature_sets())
    eps = data.draw(eps_for(features))

    near = are_within(features, features, eps)

    assert near.tolist() == within(all_distances(features), eps).tolist()


def test_products_are_off_by_less_than_the_slack() -> None:
    rng = np.random.default_rng(0)
    features = unit(rng.random((300, 512)) ** 2)
    i, j = np.indices((300, 300)).reshape(2, -1)
    exact = 1 - cosine_distances(features[i], features[j]).astype(np.float64)

    products = (features @ features.T).ravel().astype(np.float64)

    assert np.abs(products - exact).max() < SLACK / 4


@given(features=feature_sets(), at_once=st.integers(1, 5))
def test_pair_distances_are_the_same_in_parts(features: np.ndarray, at_once: int) -> None:
    i, j = np.indices((len(features), len(features))).reshape(2, -1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparisons, "_EXACT_AT_ONCE", at_once)

        found = pair_distances(features, features, i, j)

    assert found.tobytes() == cosine_distances(features[i], features[j]).tobytes()


@given(data=st.data())
def test_connect_finds_the_components_of_the_exact_graph(data: st.DataObject) -> None:
    features = data.draw(feature_sets())
    eps = data.draw(eps_for(features))
    num_rows = data.draw(st.integers(1, len(features)))
    items = np.array(data.draw(st.permutations(range(len(features)))))
    near = within(all_distances(features[items]), eps)
    near[num_rows:] = False
    sizes = {
        "ROWS_AT_ONCE": st.integers(1, 8),
        "COLUMNS_AT_ONCE": st.integers(1, 8),
        "_PAIRS_AT_ONCE": st.integers(0, 8),
        "_NUM_LEADERS": st.integers(1, 4),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, size in sizes.items():
            patch.setattr(comparisons, name, data.draw(size, name))

        component = connect(features, items, num_rows, eps)

    assert component.dtype == np.int32
    assert component.tolist() == lowest_connected(near)


def test_connect_compares_the_first_items_only() -> None:
    # 0, 1 and 2 in a row, each near the next.
    features = unit(np.array([[1, 0], [0.9, 0.436], [0.62, 0.785]]))

    assert connect(features, np.array([0, 1, 2]), 1, 0.15).tolist() == [0, 0, 2]
    assert connect(features, np.array([0, 1, 2]), 3, 0.15).tolist() == [0, 0, 0]
    assert connect(features, np.array([2, 0, 1]), 1, 0.15).tolist() == [0, 1, 0]
    assert connect(features, np.array([], np.int64), 0, 0.15).tolist() == []


@pytest.mark.parametrize(
    ("component", "a", "b", "united"),
    [
        ([0, 1, 2, 3], [], [], [0, 1, 2, 3]),
        ([0, 1, 2, 3], [3], [2], [0, 1, 2, 2]),
        ([0, 1, 2, 3], [3, 0], [2, 3], [0, 1, 0, 0]),
        ([0, 0, 2, 2, 4], [1], [3], [0, 0, 0, 0, 4]),
        ([0, 1, 1, 3], [2, 2], [2, 1], [0, 1, 1, 3]),
    ],
)
def test_unite_leads_to_the_lowest(
    component: list[int], a: list[int], b: list[int], united: list[int]
) -> None:
    found = unite(np.array(component, np.int32), np.array(a, np.int64), np.array(b, np.int64))

    assert found.dtype == np.int32
    assert found.tolist() == united


def test_unite_takes_a_pair_as_often_as_it_comes() -> None:
    for times in (255, 256, 512):  # where small integers would overflow
        a, b = np.full(times, 2), np.full(times, 1)

        assert unite(np.arange(3, dtype=np.int32), a, b).tolist() == [0, 1, 1]
