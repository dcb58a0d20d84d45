"""The benchmark of neighbours runs, on features that look like those it should imitate."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import neighbors
from benchmarks.made_features import group_sizes, write_features
from benchmarks.neighbors import (
    compare,
    count_at_least,
    count_first_come,
    growth,
    line,
    measure,
)


def test_made_features_are_unit_vectors_without_negative_parts(tmp_path: Path) -> None:
    write_features(tmp_path / "one.npy", 3_000)
    write_features(tmp_path / "two.npy", 3_000)
    features = np.load(tmp_path / "one.npy")

    assert (features.shape, features.dtype, features.min() >= 0) == ((3_000, 512), np.float32, True)
    assert np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
    assert (tmp_path / "one.npy").read_bytes() == (tmp_path / "two.npy").read_bytes()


def test_group_sizes_add_up() -> None:
    sizes = group_sizes(100_000, np.random.default_rng(0))

    assert (sizes.sum(), sizes.min(), sizes.max()) == (100_000, 1, 20_000)
    assert (sizes == 1).mean() > 0.5


def test_a_night_is_measured() -> None:
    approximate = measure(2_000, {"neighbors": {"exact_up_to": 0}}, with_index=True)
    exact = measure(2_000, {"clusters": {"min_samples": 3}}, with_index=False)

    assert list(approximate["seconds"]) == [
        *("cells", "neighbors", "clusters", "recall", "keepers", "index")
    ]
    assert (approximate["recall"] >= 0.999, exact["recall"], exact["depth"]) == (True, 1.0, 0)
    assert approximate["largest"] >= 600
    assert approximate["longest_distance"] <= 0.05
    assert (
        approximate["kept_at_least"] <= approximate["kept"] <= approximate["kept_first_come"] < 2000
    )
    assert len(line(exact).split()) == len(neighbors.HEADER.split()) - 3  # total s, CPU s, at least


@pytest.mark.parametrize("min_samples", [2, 5])
@pytest.mark.parametrize(
    "num_items", [1_500, pytest.param(20_000, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_labels_are_those_of_scikit_learn(num_items: int, min_samples: int) -> None:
    found = compare(num_items, {"clusters": {"min_samples": min_samples}})

    assert found["labels_equal"]


def test_counts_of_keepers_of_a_chain() -> None:
    radians = np.radians([0, 10, 20, 30, 40, 90])
    features = np.column_stack([np.cos(radians), np.sin(radians)]).astype(np.float32)
    labels = np.array([0, 0, 0, 0, 0, -1], np.int32)
    eps = float(1 - np.cos(np.radians(10.5)))

    assert count_first_come(features, labels, eps) == 4
    assert count_at_least(features, labels, eps) == 3


def test_growth_is_the_exponent() -> None:
    runs = [{"images": n, "seconds_to_clusters": 1e-9 * n**1.5} for n in (1_000, 10_000)]

    assert growth(runs) is not None
    assert abs(growth(runs) - 1.5) < 1e-9
    assert growth(runs[:1]) is None
