"""Several nights against one run: what the difference can be, whatever the images are."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components

from benchmarks.night_by_night import num_cliques, num_strangers
from tasks.distances import within
from tasks.stage04b_match_library import nearest_within
from tasks.stage08_choose_keepers import cover_keepers
from tests.made_items import all_distances, feature_sets


def kept_by_nights(
    features: np.ndarray, is_near: np.ndarray, nights: list[np.ndarray], eps: float
) -> list[np.ndarray]:
    """What each night keeps, after what the nights before it have kept."""
    kept: list[np.ndarray] = []
    for items in nights:
        before = np.concatenate([np.empty(0, np.int64), *kept])
        distances, _ = nearest_within(features[items], features[before], eps=eps)
        fresh = items[np.isinf(distances)]
        labels = labels_of(is_near[np.ix_(fresh, fresh)])
        keeper_of = cover_keepers(features[fresh], labels, np.arange(len(fresh)), eps=eps)
        kept.append(fresh[keeper_of < 0])
    return kept


def labels_of(is_near: np.ndarray) -> np.ndarray:
    """The clusters of DBSCAN with min_samples 2: components of at least two items."""
    _, component = connected_components(is_near, directed=False)
    is_noise = np.bincount(component, minlength=1)[component] == 1
    labels = np.full(len(component), -1, np.int32)
    labels[~is_noise] = np.unique(component[~is_noise], return_inverse=True)[1]
    return labels


@given(features=feature_sets(), data=st.data())
def test_nights_keep_no_image_twice_and_as_many_as_the_bounds_allow(
    features: np.ndarray, data: st.DataObject
) -> None:
    eps = data.draw(st.sampled_from([0.01, 0.05, 0.3]))
    of_night = np.array(data.draw(st.lists(st.integers(0, 4), min_size=30, max_size=30)))
    nights = [np.flatnonzero(of_night[: len(features)] == night) for night in range(5)]
    is_near = within(all_distances(features), eps)

    kept = kept_by_nights(features, is_near, nights, eps)

    everything = np.concatenate(kept)
    night_of = np.repeat(np.arange(5), [len(some) for some in kept])
    assert is_near[:, everything].any(axis=1).all()  # every image has a twin that stays
    near = is_near[np.ix_(everything, everything)]
    assert not near[night_of[:, None] != night_of].any()  # and no later night keeps one again
    num_beside = (near & np.tri(len(near), k=-1, dtype=bool)).any(axis=1).sum()
    assert num_strangers(is_near) <= len(everything)
    assert len(everything) - num_beside <= num_cliques(is_near)


def test_bounds_of_a_row_of_items() -> None:
    degrees = np.arange(0, 100, 10.0)
    is_near = np.abs(degrees[:, None] - degrees) <= 10

    assert num_strangers(is_near) == 4  # at 0, 30, 60 and 90
    assert num_cliques(is_near) == 5  # of two each
