"""The sweep: what would be kept at another eps, as the flow itself would decide."""

import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import DBSCAN

from config import DedupConfig
from tasks import storage
from tasks.comparisons import are_within
from tasks.references import Collection
from tasks.schemas import IMAGES
from tasks.stage08_choose_keepers import cover_keepers
from tasks.stage08b_sweep_eps import (
    DISTANCE_EDGES,
    EPS_VALUES,
    nearest_distances,
    num_kept_of,
    of_one_cluster,
    sample_windows,
    sweep,
    sweep_eps,
)
from tests.made_items import all_distances, eps_for, feature_sets, unit


def fan(*degrees: float) -> np.ndarray:
    """Features of two components, each at an angle."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_eps_values_span_what_people_choose_from() -> None:
    assert (EPS_VALUES[0], EPS_VALUES[-1], len(EPS_VALUES)) == (0.005, 0.3, 32)
    assert list(EPS_VALUES) == sorted(set(EPS_VALUES))


class TestWindows:
    def test_few_images_are_compared_partition_by_partition(self) -> None:
        assert sample_windows([(0, 4), (4, 10)], max_window=6, max_compared=10) == [(0, 4), (4, 10)]

    def test_large_partition_is_cut_evenly(self) -> None:
        assert sample_windows([(0, 7)], max_window=3, max_compared=10) == [(0, 2), (2, 4), (4, 7)]

    def test_of_many_images_some_ranges_are_chosen_all_over(self) -> None:
        chosen = sample_windows([(0, 40), (40, 100)], max_window=10, max_compared=35)

        assert chosen == [(0, 10), (30, 40), (60, 70)]

    def test_one_range_is_always_chosen(self) -> None:
        assert sample_windows([(0, 100)], max_window=10, max_compared=5) == [(0, 10)]

    def test_of_nothing_are_none(self) -> None:
        assert sample_windows([]) == []

    @given(
        sizes=st.lists(st.integers(1, 50), max_size=20),
        max_window=st.integers(1, 30),
        max_compared=st.integers(1, 200),
    )
    def test_never_leave_their_partition_nor_exceed_the_limits(
        self, sizes: list[int], max_window: int, max_compared: int
    ) -> None:
        ends = np.cumsum([0, *sizes]).tolist()
        partitions = list(itertools.pairwise(ends))

        chosen = sample_windows(partitions, max_window, max_compared)

        assert chosen == sorted(set(chosen))
        for start, stop in chosen:
            assert 0 < stop - start <= max_window
            assert any(first <= start and stop <= last for first, last in partitions)
        if len(chosen) > 1:
            assert sum(stop - start for start, stop in chosen) <= max_compared + max_window


def test_sweep_of_a_fan() -> None:
    # 1 - cos: 0.000152 between neighbours of 1 degree, 0.015 at 10 degrees, 0.06 at 20.
    windows = [fan(0, 1, 11), fan(0, 90)]

    swept = sweep(iter(windows), [0.0001, 0.01, 0.02, 0.3], min_samples=2)

    assert swept["kept_fraction"] == [1.0, 0.8, 0.6, 0.6]
    assert swept["num_compared"] == 5
    counted = dict(
        zip(swept["nearest_distances"]["edges"], swept["nearest_distances"]["counts"], strict=False)
    )
    assert {edge: count for edge, count in counted.items() if count} == {
        0.0: 2,  # the pair one degree apart
        max(edge for edge in DISTANCE_EDGES if edge < 0.0151): 1,
        1.0: 2,  # at right angles
    }
    assert swept["nearest_distances"]["mean"] == pytest.approx(0.4031, abs=2e-6)


def test_image_alone_has_no_mean_distance() -> None:
    swept = sweep(iter([fan(0)]), [0.01], min_samples=2)
    assert swept["nearest_distances"]["mean"] is None


@given(data=st.data())
def test_keeps_as_many_as_the_flow(data: st.DataObject) -> None:
    features = data.draw(feature_sets())
    eps = data.draw(eps_for(features))
    near = are_within(features, features, eps)
    labels = DBSCAN(eps=0.5, min_samples=2, metric="precomputed").fit_predict(1.0 - near)

    keeper_of = cover_keepers(features, labels.astype(np.int32), np.arange(len(features)), eps=eps)

    assert num_kept_of(near, min_samples=2) == (keeper_of == -1).sum()


@given(data=st.data(), min_samples=st.integers(1, 6))
def test_clusters_are_those_of_scikit_learn(data: st.DataObject, min_samples: int) -> None:
    features = data.draw(feature_sets())
    near = are_within(features, features, data.draw(eps_for(features)))

    labels = DBSCAN(eps=0.5, min_samples=min_samples, metric="precomputed").fit_predict(1.0 - near)

    expected = (labels[:, None] == labels) & (labels >= 0) | np.eye(len(features), dtype=bool)
    np.testing.assert_array_equal(of_one_cluster(near, min_samples), expected)


def test_noise_is_kept_though_it_is_near_a_border() -> None:
    # 0-1-2 and 2-3 are near: with four samples nobody is a core item, with three only 1 and 2 are.
    near = np.eye(4, dtype=bool)
    for i, j in [(0, 1), (1, 2), (2, 3)]:
        near[i, j] = near[j, i] = True

    assert [num_kept_of(near, min_samples=n) for n in (1, 2, 3, 4)] == [2, 2, 2, 4]


def test_damaged_feature_that_is_not_near_itself_is_kept() -> None:
    assert num_kept_of(np.zeros((2, 2), bool), min_samples=2) == 2


def test_nearest_distances_leave_the_row_itself_out() -> None:
    features = fan(0, 60, 90)

    found = nearest_distances(features @ features.T)

    np.testing.assert_allclose(found, [0.5, 0.133975, 0.133975], atol=1e-6)
    assert nearest_distances(np.ones((1, 1), np.float32)).tolist() == []


def test_nearest_distances_are_those_of_all_pairs() -> None:
    features = unit(np.random.default_rng(0).standard_normal((40, 8)))
    distances = all_distances(features)
    np.fill_diagonal(distances, 2)

    np.testing.assert_allclose(
        nearest_distances(features @ features.T), distances.min(axis=1), atol=1e-6
    )


@pytest.mark.parametrize(
    ("max_compared", "num_compared", "is_sample"), [(10, 5, False), (4, 3, True)]
)
def test_stage_says_what_it_compared(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    max_compared: int,
    num_compared: int,
    is_sample: bool,
) -> None:
    monkeypatch.setattr(sample_windows, "__defaults__", (2_048, max_compared))
    collection, config = night_of(tmp_path, fan(0, 1, 90, 0, 1), ["a", "a", "a", "b", "b"])

    swept = json.loads(storage.read_bytes(sweep_eps.fn(collection, config).url))

    assert (swept["num_images"], swept["num_compared"]) == (5, num_compared)
    assert swept["is_sample"] is is_sample
    assert swept["eps"] == sorted([*EPS_VALUES, 0.07])
    assert swept["kept_fraction"][0] == (0.6 if num_compared == 5 else 0.666667)


def test_stage_leaves_what_is_there(tmp_path: Path) -> None:
    collection, config = night_of(tmp_path, fan(0, 1), ["a", "a"])
    storage.publish_bytes(f"{collection.run_url}/sweep.json", b"{}")

    assert storage.read_bytes(sweep_eps.fn(collection, config).url) == b"{}"


def test_stage_without_images_sweeps_nothing(tmp_path: Path) -> None:
    collection, config = night_of(tmp_path, np.empty((0, 2), np.float32), [])

    swept = json.loads(storage.read_bytes(sweep_eps.fn(collection, config).url))

    assert (swept["num_compared"], set(swept["kept_fraction"])) == (0, {0.0})


def night_of(
    folder: Path, features: np.ndarray, cameras: list[str]
) -> tuple[Collection, DedupConfig]:
    """A run of images with these features, and a config with an eps of its own."""
    np.save(folder / "features.npy", features)
    rows = [
        {
            "image_id": f"{item}",
            "url": f"/{item}",
            "size_bytes": 1,
            "etag": "e",
            "camera": camera,
            "captured_at": 0,
            "item_id": item,
        }
        for item, camera in enumerate(cameras)
    ]
    storage.publish_table(f"{folder}/images.parquet", pa.Table.from_pylist(rows, IMAGES))
    collection = Collection(
        run_id="run",
        run_url=str(folder),
        images_url=f"{folder}/images.parquet",
        features_url=f"{folder}/features.npy",
        num_images=len(cameras),
        num_items=len(cameras),
        largest_partition=3,
        num_missing=0,
    )
    config = DedupConfig.model_validate(
        {"source_url": "unused", "workspace_url": "unused", "neighbors": {"eps": 0.07}}
    )
    return collection, config
