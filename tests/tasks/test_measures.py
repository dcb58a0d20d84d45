"""The measures: scikit-learn's where it has them, counted by hand where it has not."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score, average_precision_score
from sklearn.metrics.cluster import pair_confusion_matrix

from tasks.measures import average_precisions, count_pairs, draw_groups, interval, ratio
from tests.made_items import feature_sets

ONCE = np.ones((1, 3))


@st.composite
def labelled(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Clusters with noise among them, and groups that are numbered from 0."""
    num_images = draw(st.integers(1, 25))
    labels = draw(st.lists(st.integers(-1, 4), min_size=num_images, max_size=num_images))
    groups = draw(st.lists(st.integers(0, 5), min_size=num_images, max_size=num_images))
    return np.array(labels), np.unique(groups, return_inverse=True)[1]


def noise_apart(labels: np.ndarray) -> np.ndarray:
    """Labels as scikit-learn takes them, for which -1 would be a cluster."""
    return np.where(labels < 0, 100 + np.arange(len(labels)), labels)


def test_pairs_are_counted_and_noise_pairs_with_nobody() -> None:
    labels, groups = np.array([0, 0, 0, -1, -1]), np.array([0, 0, 1, 1, 2])
    pairs = count_pairs(labels, groups, ONCE)
    counts = (pairs.both, pairs.clustered, pairs.grouped, pairs.all)
    assert np.array(counts).ravel().tolist() == [1, 3, 2, 10]
    assert pairs.precision().tolist() == [1 / 3]
    assert pairs.recall().tolist() == [1 / 2]
    assert pairs.f1().tolist() == [2 / 5]


@given(labelled())
def test_pairs_and_rand_index_are_those_of_scikit_learn(
    case: tuple[np.ndarray, np.ndarray],
) -> None:
    labels, groups = case
    pairs = count_pairs(labels, groups, np.ones((1, groups.max() + 1)))
    confusion = pair_confusion_matrix(groups, noise_apart(labels))
    assert 2 * pairs.both == confusion[1, 1]
    assert 2 * pairs.clustered == confusion[:, 1].sum()
    assert 2 * pairs.grouped == confusion[1].sum()
    assert 2 * pairs.all == confusion.sum()
    if len(labels) > 1:
        expected = adjusted_rand_score(groups, noise_apart(labels))
        assert pairs.adjusted_rand() == pytest.approx(expected)


@given(labelled(), st.integers(0, 99))
def test_a_group_drawn_twice_counts_twice_but_not_against_itself(
    case: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    labels, groups = case
    weights = draw_groups(groups.max() + 1, seed=seed, num_resamples=3)
    pairs = count_pairs(labels, groups, weights)
    for row, drawn in enumerate(weights):
        copies = [
            (label, group, copy)
            for label, group in zip(labels, groups, strict=True)
            for copy in range(int(drawn[group]))
        ]
        compared = [
            (a[0] == b[0] >= 0, a[1] == b[1])
            for a, b in combinations(copies, 2)
            if a[1] != b[1] or a[2] == b[2]
        ]
        assert pairs.all[row] == len(compared)
        assert pairs.clustered[row] == sum(clustered for clustered, _ in compared)
        assert pairs.grouped[row] == sum(grouped for _, grouped in compared)
        assert pairs.both[row] == sum(clustered and grouped for clustered, grouped in compared)


@given(feature_sets(), st.data())
def test_average_precisions_are_those_of_scikit_learn(
    features: np.ndarray, data: st.DataObject
) -> None:
    number = st.integers(0, 4)
    groups = np.array(data.draw(st.lists(number, min_size=len(features), max_size=len(features))))
    similarities = features @ features.T
    found = average_precisions(features, groups)
    for query, average in enumerate(found):
        others = np.arange(len(features)) != query
        is_same = (groups == groups[query])[others]
        if is_same.any():
            scores = similarities[query][others]
            assert average == pytest.approx(average_precision_score(is_same, scores))
        else:
            assert np.isnan(average)


def test_first_row_of_the_draws_has_every_group_once_and_all_rows_as_many() -> None:
    drawn = draw_groups(4, seed=1, num_resamples=50)
    assert drawn.shape == (51, 4)
    assert drawn[0].tolist() == [1, 1, 1, 1]
    assert set(drawn.sum(axis=1)) == {4}
    assert (drawn == draw_groups(4, seed=1, num_resamples=50)).all()
    assert (drawn != draw_groups(4, seed=2, num_resamples=50)).any()


def test_interval_leaves_out_one_in_forty_at_each_end_and_what_has_no_value() -> None:
    values = np.concatenate([np.arange(41.0), [np.nan]])
    assert interval(values) == pytest.approx((1.0, 39.0))
    assert interval(np.array([np.nan, np.nan])) is None


def test_nothing_divided_by_nothing_is_unknown() -> None:
    quotients = ratio(np.array([1.0, 0.0]), np.array([2.0, 0.0]))
    assert quotients[0] == 0.5
    assert np.isnan(quotients[1])
