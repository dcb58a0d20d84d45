"""DBSCAN without a list of pairs: the same as scikit-learn's own over the full matrix."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import DBSCAN

from benchmarks.made_features import write_collection
from config import DedupConfig
from tasks import storage
from tasks.cells import Cell
from tasks.comparisons import unite
from tasks.references import Cells, Collection, LinkFile, SearchRange
from tasks.schemas import CLUSTERS, CORES, IMAGES
from tasks.stage05_plan_cells import plan_cells
from tasks.stage06_find_neighbors import (
    core_table,
    cores_of_cell,
    find_cores,
    find_neighbors,
    link_table,
    links_of_cell,
    mark_cores,
)
from tasks.stage07_cluster_images import (
    are_large,
    cluster_images,
    dbscan_labels,
    measure_recall,
    number_by_first_appearance,
    recall_of_pairs,
    sample_items,
    split_links,
)
from tests.made_items import all_distances, eps_for, feature_sets


def labels_of(
    features: np.ndarray, eps: float, min_samples: int, cuts: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and core items, by everything compared in parts that are cut anywhere."""
    num_items = len(features)
    items = np.arange(num_items)
    cells = [
        Cell(items[start:stop], later=items[stop:], earlier=items[:start], guests=items[:0])
        for start, stop in pairwise(sorted({0, num_items, *cuts}))
    ]
    is_core = np.ones(num_items, bool)
    if min_samples > 2:
        cores = [cores_of_cell(features, cell, eps=eps, min_samples=min_samples) for cell in cells]
        is_core = np.isin(items, np.concatenate(cores))
    component = np.arange(num_items, dtype=np.int32)
    borders = []
    for cell in cells:
        between_cores, to_borders = split_links(
            links_of_cell(features, cell, is_core, eps=eps), is_core
        )
        component = unite(component, *between_cores)
        borders.append(to_borders)
    if min_samples <= 2:
        is_core = are_large(component, min_samples)
    return dbscan_labels(component, is_core, borders), is_core


def scikit_learn(distances: np.ndarray, eps: float, min_samples: int) -> tuple[list[int], set[int]]:
    """Labels, numbered as they appear, and core items."""
    radius = eps or float(np.finfo(np.float64).tiny)  # scikit-learn refuses a radius of 0
    dbscan = DBSCAN(eps=radius, min_samples=min_samples, metric="precomputed")
    labels = dbscan.fit_predict(distances.astype(np.float64)).tolist()
    numbers = {-1: -1}
    for label in labels:
        numbers.setdefault(label, len(numbers) - 1)
    return [numbers[label] for label in labels], set(dbscan.core_sample_indices_.tolist())


@given(data=st.data(), min_samples=st.integers(1, 5))
def test_labels_are_those_of_scikit_learn(data: st.DataObject, min_samples: int) -> None:
    features = data.draw(feature_sets())
    eps = data.draw(eps_for(features))
    cuts = data.draw(st.lists(st.integers(0, len(features)), max_size=4))

    labels, is_core = labels_of(features, eps, min_samples, cuts)

    expected, cores = scikit_learn(all_distances(features), eps, min_samples)
    assert labels.dtype == np.int32
    assert labels.tolist() == expected
    assert set(np.flatnonzero(is_core).tolist()) == cores


@given(data=st.data(), min_samples=st.integers(1, 5))
def test_recall_of_everything_compared_is_one(data: st.DataObject, min_samples: int) -> None:
    features = data.draw(feature_sets())
    eps = data.draw(eps_for(features))
    labels, is_core = labels_of(features, eps, min_samples, [])
    sample = np.arange(0, len(features), data.draw(st.integers(1, 3)))

    recall = recall_of_pairs(
        features,
        [(0, len(features))],
        labels,
        is_core,
        sample,
        eps=eps,
        min_samples=min_samples,
    )

    assert recall == 1.0


def angles(*degrees: float) -> np.ndarray:
    radians = np.radians(degrees)
    return np.column_stack([np.cos(radians), np.sin(radians)]).astype(np.float32)


# Neighbours are at most 10 degrees apart.
EPS = 1 - np.cos(np.radians(10.5))
CHAIN = angles(0, 10, 20, 30, 40)


@pytest.mark.parametrize(
    ("min_samples", "labels"),
    [
        (1, [0, 0, 0, 0, 0]),
        (2, [0, 0, 0, 0, 0]),
        (3, [0, 0, 0, 0, 0]),  # both ends are border items
        (4, [-1, -1, -1, -1, -1]),
    ],
)
def test_chain_is_one_cluster_while_it_has_core_items(min_samples: int, labels: list[int]) -> None:
    assert labels_of(CHAIN, EPS, min_samples, [2])[0].tolist() == labels


def test_border_item_of_two_clusters_goes_to_the_one_with_the_lowest_core_item() -> None:
    # The core items are those at 10 and 30 degrees, with three neighbours each; 20 is near both.
    left, middle, right = [10, 0, 1], [20], [30, 40, 39]

    first = labels_of(angles(*left, *middle, *right), EPS, 4, [])[0]
    last = labels_of(angles(*right, *middle, *left), EPS, 4, [3])[0]
    in_front = labels_of(angles(*middle, *right, *left), EPS, 4, [1])[0]

    assert first.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert last.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert in_front.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_a_near_core_item_counts_for_less_than_the_lowest_of_its_cluster() -> None:
    # 5 is near the core items 4 of the cluster of 0, and 3 of the cluster of 1: 0 is lower.
    component = np.array([0, 1, 2, 1, 0, 5], np.int32)
    is_core = np.array([True, True, False, True, True, False])
    borders = [
        (np.array([5]), np.array([3])),
        (np.array([5]), np.array([4])),
    ]

    assert dbscan_labels(component, is_core, borders).tolist() == [0, 1, -1, 1, 0, 0]


def test_cluster_is_numbered_by_its_first_item_even_if_that_is_a_border_item() -> None:
    component = np.array([0, 1, 1, 3], np.int32)
    is_core = np.array([False, True, True, True])
    borders = [(np.array([0]), np.array([3]))]

    assert dbscan_labels(component, is_core, borders).tolist() == [0, 1, 1, 0]


def test_no_items_have_no_labels() -> None:
    nothing = np.empty(0, np.int32)
    is_core = are_large(nothing, 2)

    labels = dbscan_labels(nothing, is_core, [])

    assert (is_core.shape, labels.shape, labels.dtype) == ((0,), (0,), np.int32)


@pytest.mark.parametrize(
    ("labels", "numbered"),
    [
        ([], []),
        ([-1, -1], [-1, -1]),
        ([0, 1, 2], [0, 1, 2]),
        ([5, -1, 2, 5, 2], [0, -1, 1, 0, 1]),
        ([-1, 1, 0, 1], [-1, 0, 1, 0]),
    ],
)
def test_clusters_are_numbered_by_first_appearance(labels: list[int], numbered: list[int]) -> None:
    found = number_by_first_appearance(np.array(labels, np.int32))

    assert found.dtype == np.int32
    assert found.tolist() == numbered


# Two pairs of copies, 0-1 and 2-3, and one image like no other.
COPIES = angles(0, 0, 60, 60, 120)


@pytest.mark.parametrize(
    ("labels", "sample", "recall"),
    [
        ([0, 0, 1, 1, -1], [0, 1, 2, 3, 4], 1.0),
        ([0, 0, -1, -1, -1], [0, 1, 2, 3, 4], 0.5),
        ([-1, -1, -1, -1, -1], [0, 1, 2, 3, 4], 0.0),
        ([0, 1, 0, 1, -1], [0, 1, 2, 3, 4], 0.0),
        ([0, 0, -1, -1, -1], [0], 1.0),
        ([0, 0, -1, -1, -1], [3], 0.0),
        ([0, 0, -1, -1, -1], [4], 1.0),
    ],
)
def test_recall_is_the_share_of_honoured_pairs(
    labels: list[int], sample: list[int], recall: float
) -> None:
    found = np.array(labels, np.int32)

    assert (
        recall_of_pairs(
            COPIES, [(0, 5)], found, found >= 0, np.array(sample), eps=0.1, min_samples=2
        )
        == recall
    )


def test_recall_does_not_ask_for_pairs_across_partitions() -> None:
    labels = np.array([-1, -1, 0, 0, -1], np.int32)

    recall = recall_of_pairs(
        COPIES, [(0, 1), (1, 5)], labels, labels >= 0, np.arange(5), eps=0.1, min_samples=2
    )

    assert recall == 1.0


def test_recall_weighs_a_small_group_like_a_large_one() -> None:
    features = angles(*[0] * 99, 50, 50)
    labels = np.array([0] * 99 + [-1, -1], np.int32)

    recall = recall_of_pairs(
        features, [(0, 101)], labels, labels >= 0, np.array([0, 99]), eps=0.1, min_samples=2
    )

    assert recall == 0.5


@pytest.mark.parametrize(
    ("labels", "cores", "recall"),
    [
        ([0, 0, 0, 0, 0], [1, 2, 3], 1.0),
        ([0, 0, 0, 0, -1], [1, 2, 3], (1 + 1 + 0.5) / 3),  # 4 is a neighbour of the core item 3
        ([0, 0, 0, -1, -1], [1, 2], (1 + 0.5 + 0) / 3),  # 3 was not found to be a core item
        ([1, 0, 0, 0, 0], [1, 2, 3], 1.0),  # a border item may be in another cluster
        ([0, 0, 0, 1, 1], [1, 2, 3], (1 + 0.5 + 0.5) / 3),
    ],
)
def test_recall_asks_for_the_pairs_of_core_items(
    labels: list[int], cores: list[int], recall: float
) -> None:
    found, is_core = np.array(labels, np.int32), np.isin(np.arange(5), cores)

    assert recall_of_pairs(
        CHAIN, [(0, 5)], found, is_core, np.arange(5), eps=float(EPS), min_samples=3
    ) == pytest.approx(recall)


def test_sample_of_items_is_sorted_unique_and_the_same_for_the_same_seed() -> None:
    sample = sample_items(1_000, 50, seed=7)

    assert sample.tolist() == sorted(set(sample.tolist()))
    assert len(sample) == 50
    assert sample.min() >= 0
    assert sample.max() < 1_000
    assert sample.tolist() == sample_items(1_000, 50, seed=7).tolist()
    assert sample.tolist() != sample_items(1_000, 50, seed=8).tolist()


@pytest.mark.parametrize("num_samples", [3, 4])
def test_sample_of_few_items_is_all_of_them(num_samples: int) -> None:
    assert sample_items(3, num_samples, seed=0).tolist() == [0, 1, 2]


def clustered_in_cells(folder: Path, min_samples: int, num_searches: int, workers: int) -> bytes:
    """The cluster file of 900 made-up images in cells, searched in so many parts."""
    collection = write_collection(folder, 900)
    config = DedupConfig(
        source_url=str(folder),
        workspace_url=str(folder),
        neighbors={"exact_up_to": 0},
        clusters={"min_samples": min_samples},
        execution={"workers": workers},
    )
    bounds = np.linspace(0, 900, num_searches + 1).astype(int).tolist()
    searches = [SearchRange(start, stop) for start, stop in pairwise(bounds)]
    cells = plan_cells.fn(collection, 4, config)
    if min_samples > 2:
        cores = [find_cores.fn(search, cells, collection, config) for search in searches]
        cells = mark_cores.fn(cores, cells)
    links = [find_neighbors.fn(search, cells, collection) for search in searches]
    clusters = cluster_images.fn(links[::-1], cells, collection, config)
    assert measure_recall.fn(clusters, cells, collection, config) > 0.9
    return storage.read_bytes(clusters.url)


@pytest.mark.parametrize("min_samples", [2, 3])
def test_clusters_have_the_same_bytes_however_the_search_is_cut(
    tmp_path: Path, min_samples: int
) -> None:
    found = set()
    for num_searches, workers in [(1, 1), (7, 4), (60, 2)]:
        folder = tmp_path / str(num_searches)
        folder.mkdir()
        found.add(clustered_in_cells(folder, min_samples, num_searches, workers))

    assert len(found) == 1


@pytest.mark.parametrize("cores", [None, [0, 1]])
def test_cluster_images_publishes_a_row_for_every_item(
    tmp_path: Path, cores: list[int] | None
) -> None:
    rows = [
        {"image_id": name, "item_id": item, "camera": "", "captured_at": 0}
        | {"url": f"/{name}", "size_bytes": 1, "etag": ""}
        for item, name in [(3, "d"), (2, "c"), (None, "broken"), (0, "a"), (1, "b")]
    ]
    images_url, features_url = str(tmp_path / "images.parquet"), str(tmp_path / "features.npy")
    storage.publish_table(images_url, pa.Table.from_pylist(rows, IMAGES))
    np.save(features_url, angles(0, 10, 20, 90))
    links_url, cores_url = str(tmp_path / "links.parquet"), None
    pairs = (np.array([1, 2], np.int32), np.array([0, 1], np.int32))
    storage.publish_table(links_url, link_table([pairs]))
    if cores:
        cores_url = str(tmp_path / "cores.parquet")
        storage.publish_table(cores_url, core_table([np.array(cores, np.int32)]))
        assert storage.read_table(cores_url, CORES).num_rows == 2
    collection = Collection("run", str(tmp_path), images_url, features_url, 5, 4, 4, 0)
    cells = Cells("", str(tmp_path), depth=0, num_items=4, cores_url=cores_url)
    config = DedupConfig(
        source_url=str(tmp_path),
        workspace_url=str(tmp_path),
        neighbors={"eps": EPS},
        clusters={"min_samples": 2},
    )

    clusters = cluster_images.fn([LinkFile(links_url, 2)], cells, collection, config)

    assert clusters.num_clusters == 1
    assert storage.read_table(clusters.url, CLUSTERS).to_pydict() == {
        "image_id": ["a", "b", "c", "d"],
        "cluster_id": [0, 0, 0, -1],
        "is_core": [True, True, cores is None, False],
    }
    # Without the core item c, the pair of b and c is honoured from one side only.
    assert measure_recall.fn(clusters, cells, collection, config) == pytest.approx(
        1.0 if cores is None else 2 / 3
    )
