import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.boundary_pairs import (
    PAIRS_PER_STRATUM,
    BoundaryPairs,
    draw_pairs,
    find_boundary_pairs,
)
from tasks.calibration import distance_edges
from tasks.distances import cosine_distances

EDGES = distance_edges(0.05)


def made_features(num_items: int, seed: int = 0) -> np.ndarray:
    """Groups of four around centers of their own, at all distances around 0.05."""
    rng = np.random.default_rng(seed)
    centers = np.repeat(rng.normal(size=(-(-num_items // 4), 64)), 4, axis=0)[:num_items]
    spread = rng.uniform(0.05, 0.5, (num_items, 1))
    features = centers + spread * rng.normal(size=(num_items, 64))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features.astype(np.float32)


def all_pairs(features: np.ndarray, items: np.ndarray) -> dict[tuple[int, int], float]:
    pairs = list(itertools.combinations(sorted(items.tolist()), 2))
    a, b = (np.array(side) for side in zip(*pairs, strict=True))
    distances = cosine_distances(features[a], features[b]).tolist()
    return dict(zip(pairs, distances, strict=True))


def test_all_pairs_are_counted_and_only_pairs_of_one_partition() -> None:
    features = made_features(200)
    partitions = [np.arange(0, 120), np.array([*range(130, 200, 2)])]
    found = find_boundary_pairs(features, partitions, EDGES, seed=0)
    for number, items in enumerate(partitions):
        expected = all_pairs(features, items)
        counts, _ = np.histogram([*expected.values()], EDGES)
        # A pair on an edge may fall on either side of it.
        assert np.abs(np.cumsum(found.counts[number]) - np.cumsum(counts)).max() <= 1
        mine = found.partitions == number
        pairs = zip(found.item_a[mine].tolist(), found.item_b[mine].tolist(), strict=True)
        distances = dict(zip(pairs, found.distances[mine].tolist(), strict=True))
        assert distances.items() <= expected.items()
        near = {pair: d for pair, d in expected.items() if EDGES[1] < d <= EDGES[-1]}
        assert len(distances) >= min(len(near), PAIRS_PER_STRATUM)
        assert all(EDGES[1] - 1e-6 < d <= EDGES[-1] + 1e-6 for d in distances.values())


def test_copies_are_counted_and_not_asked_about() -> None:
    features = np.repeat(made_features(8)[::4], 3, axis=0)
    found = find_boundary_pairs(features, [np.arange(6)], EDGES, seed=0)
    assert found.counts[0].tolist() == [6.0] + [0.0] * 60
    assert len(found.item_a) == 0


def test_a_large_night_is_estimated_from_some_of_its_images() -> None:
    features = made_features(3_000)
    items = [np.arange(3_000)]
    exact = find_boundary_pairs(features, items, EDGES, seed=0).counts.sum()
    estimated = find_boundary_pairs(features, items, EDGES, seed=0, max_comparisons=2_000_000)
    assert estimated.counts.sum() == pytest.approx(exact, rel=0.15)
    assert estimated.counts.sum() != exact
    assert len(estimated.item_a) > 100


def test_same_seed_same_pairs() -> None:
    features = made_features(400)
    first, again, other = (
        find_boundary_pairs(features, [np.arange(400)], EDGES, seed=seed, max_comparisons=50_000)
        for seed in (1, 1, 2)
    )
    assert first.item_a.tolist() == again.item_a.tolist()
    assert first.counts.tolist() == again.counts.tolist()
    assert first.item_a.tolist() != other.item_a.tolist()


@pytest.mark.parametrize("sizes", [(), (0,), (1,), (1, 0, 1)])
def test_too_few_images_have_no_pair(sizes: tuple[int, ...]) -> None:
    ends = np.cumsum((0, *sizes))
    partitions = [np.arange(a, b) for a, b in itertools.pairwise(ends)]
    found = find_boundary_pairs(made_features(2), partitions, EDGES, seed=0)
    assert found.counts.shape == (len(sizes), 61)
    assert found.counts.sum() == 0
    assert list(draw_pairs(found, np.array(sizes))) == []


def pairs_of(places: list[tuple[int, int]]) -> BoundaryPairs:
    """Pairs of images of their own, by stratum and partition."""
    number = np.arange(len(places))
    return BoundaryPairs(
        counts=np.zeros((3, 61)),
        item_a=2 * number,
        item_b=2 * number + 1,
        distances=np.zeros(len(places), np.float32),
        strata=np.array([stratum for stratum, _ in places], np.int64),
        partitions=np.array([partition for _, partition in places], np.int64),
    )


@given(st.lists(st.tuples(st.integers(0, 14), st.integers(0, 2)), max_size=60))
def test_every_pair_is_drawn_once(places: list[tuple[int, int]]) -> None:
    drawn = list(draw_pairs(pairs_of(places), np.array([1, 10, 100])))
    assert sorted(drawn) == list(range(len(places)))


def test_any_number_of_pairs_is_spread_over_distances_and_partitions() -> None:
    places = [(stratum, partition) for stratum in range(15) for partition in (0, 1)] * 16
    drawn = [
        places[at] for at in itertools.islice(draw_pairs(pairs_of(places), np.array([30, 10])), 40)
    ]
    for end in (15, 30, 40):
        strata = np.bincount([stratum for stratum, _ in drawn[:end]], minlength=15)
        assert strata.max() - strata.min() <= 2
        assert sum(partition for _, partition in drawn[:end]) == pytest.approx(end / 4, abs=1)
