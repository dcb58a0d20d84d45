"""DBSCAN over stored pairs: the same as scikit-learn's own over the full matrix of distances."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from sklearn.cluster import DBSCAN

from config import DedupConfig
from tasks import storage
from tasks.distances import cosine_distances, within
from tasks.references import Collection, EdgeFile, Neighbors
from tasks.schemas import CLUSTERS, IMAGES
from tasks.stage06_find_neighbors import edge_table
from tasks.stage07_cluster_images import (
    cluster_images,
    dbscan_labels,
    neighbor_graph,
    number_by_first_appearance,
)

EPS = 0.05
# Every distance within eps, from none to eps itself, and one beyond; all exact in float32.
DISTANCES = (0.0, 0.0078125, 0.03125, 0.0625, 1.0)


def graph_of(num_items: int, *pairs: tuple[int, int], distance: float = 0.03) -> csr_matrix:
    i, j = np.array(pairs, np.int32).reshape(-1, 2).T
    return neighbor_graph((i, j, np.full(len(pairs), distance, np.float32)), num_items)


def graph_within(matrix: np.ndarray, eps: float) -> csr_matrix:
    i, j = np.triu_indices(len(matrix), k=1)
    distances = matrix[i, j].astype(np.float32)
    keep = within(distances, eps)
    return neighbor_graph(
        (i[keep].astype(np.int32), j[keep].astype(np.int32), distances[keep]), len(matrix)
    )


def labels_of_dense_matrix(matrix: np.ndarray, eps: float, min_samples: int) -> list[int]:
    """Run scikit-learn on all distances as float64, then number the clusters as they appear."""
    radius = eps or float(np.finfo(np.float64).tiny)  # scikit-learn refuses a radius of 0
    labels = DBSCAN(eps=radius, min_samples=min_samples, metric="precomputed").fit_predict(
        matrix.astype(np.float64)
    )
    numbers = {-1: -1}
    for label in labels.tolist():
        numbers.setdefault(label, len(numbers) - 1)
    return [numbers[label] for label in labels.tolist()]


@st.composite
def distance_matrices(draw: st.DrawFn) -> np.ndarray:
    """Symmetric, with many equal values and chains; not all of them keep the triangle's law."""
    num_items = draw(st.integers(1, 14))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share = draw(st.sampled_from([0.1, 0.3, 0.8]))
    weights = [share / 4] * 4 + [1 - share]
    upper = np.triu(rng.choice(DISTANCES, (num_items, num_items), p=weights), k=1)
    return upper + upper.T


@given(
    matrix=distance_matrices(),
    eps=st.sampled_from([0.0, 1e-6, 0.0078125, 0.03125, EPS, 0.0625, 1.0]),
    min_samples=st.integers(1, 5),
)
def test_labels_of_any_graph_are_those_of_the_full_matrix(
    matrix: np.ndarray, eps: float, min_samples: int
) -> None:
    labels = dbscan_labels(graph_within(matrix, eps), eps=eps, min_samples=min_samples)

    assert labels.dtype == np.int32
    assert labels.tolist() == labels_of_dense_matrix(matrix, eps, min_samples)


@given(
    seed=st.integers(0, 2**32 - 1),
    num_items=st.integers(1, 40),
    num_originals=st.integers(1, 12),
    eps=st.sampled_from([0.0, 1e-7, EPS, 0.3, 1.0]),
    min_samples=st.integers(1, 5),
)
def test_labels_of_features_with_many_copies_are_those_of_the_full_matrix(
    seed: int, num_items: int, num_originals: int, eps: float, min_samples: int
) -> None:
    rng = np.random.default_rng(seed)
    originals = rng.standard_normal((num_originals, 3)).astype(np.float32)
    features = originals[rng.integers(0, num_originals, num_items)]
    i, j = np.indices((num_items, num_items)).reshape(2, -1)
    matrix = cosine_distances(features[i], features[j]).reshape(num_items, num_items)

    labels = dbscan_labels(graph_within(matrix, eps), eps=eps, min_samples=min_samples)

    assert labels.tolist() == labels_of_dense_matrix(matrix, eps, min_samples)


@pytest.mark.parametrize("eps", [0.0, EPS])
@pytest.mark.parametrize("num_items", [1, 2, 5])
@pytest.mark.parametrize("min_samples", [1, 2, 3, 4, 5])
def test_exact_copies_are_one_cluster_when_there_are_enough(
    num_items: int, min_samples: int, eps: float
) -> None:
    graph = graph_within(np.zeros((num_items, num_items)), eps)
    expected = 0 if num_items >= min_samples else -1

    labels = dbscan_labels(graph, eps=eps, min_samples=min_samples)

    assert labels.tolist() == [expected] * num_items


CHAIN = graph_of(5, (0, 1), (1, 2), (2, 3), (3, 4))


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
    assert dbscan_labels(CHAIN, eps=EPS, min_samples=min_samples).tolist() == labels


def test_border_item_of_two_clusters_goes_to_the_first_of_them() -> None:
    # 0 and 6 are core items with three neighbours each; 3 is a neighbour of both, but no core item.
    graph = graph_of(7, (0, 1), (0, 2), (0, 3), (6, 3), (6, 4), (6, 5))

    labels = dbscan_labels(graph, eps=EPS, min_samples=4)

    assert labels.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_border_item_that_comes_first_does_not_join_its_two_clusters() -> None:
    # 0 is a neighbour of the core items 1 and 4.
    graph = graph_of(7, (1, 0), (1, 2), (1, 3), (4, 0), (4, 5), (4, 6))

    labels = dbscan_labels(graph, eps=EPS, min_samples=4)

    assert labels.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_cluster_is_numbered_by_its_first_item_even_if_that_is_a_border_item() -> None:
    # scikit-learn meets the core item 1 before 4, but 0 belongs to 4.
    graph = graph_of(6, (1, 2), (1, 3), (4, 0), (4, 5))

    labels = dbscan_labels(graph, eps=EPS, min_samples=3)

    assert labels.tolist() == [0, 1, 1, 1, 0, 0]


def test_two_neighbouring_border_items_are_noise_without_a_core_item() -> None:
    assert dbscan_labels(graph_of(3, (0, 1)), eps=EPS, min_samples=3).tolist() == [-1, -1, -1]


def test_stored_distances_beyond_eps_join_nothing() -> None:
    graph = graph_of(2, (0, 1), distance=0.06)

    assert dbscan_labels(graph, eps=0.05, min_samples=2).tolist() == [-1, -1]
    assert dbscan_labels(graph, eps=0.07, min_samples=2).tolist() == [0, 0]


def test_eps_of_zero_joins_exact_copies_only() -> None:
    nearly = graph_of(2, (0, 1), distance=1e-30)
    copies = graph_of(2, (0, 1), distance=0.0)

    assert dbscan_labels(nearly, eps=0.0, min_samples=2).tolist() == [-1, -1]
    assert dbscan_labels(copies, eps=0.0, min_samples=2).tolist() == [0, 0]


def test_largest_distance_that_is_within_eps_joins() -> None:
    largest = np.nextafter(np.float32(0.05), np.float32(0))
    assert within(np.array([largest]), 0.05).all()

    graph = graph_of(2, (0, 1), distance=largest)

    assert dbscan_labels(graph, eps=0.05, min_samples=2).tolist() == [0, 0]


def test_items_without_neighbours_are_noise() -> None:
    graph = graph_of(4, (1, 3))

    assert dbscan_labels(graph, eps=EPS, min_samples=2).tolist() == [-1, 0, -1, 0]


@pytest.mark.parametrize(("min_samples", "labels"), [(1, [0, 1, 2]), (2, [-1, -1, -1])])
def test_graph_without_pairs(min_samples: int, labels: list[int]) -> None:
    assert dbscan_labels(graph_of(3), eps=EPS, min_samples=min_samples).tolist() == labels


def test_graph_without_items() -> None:
    labels = dbscan_labels(graph_of(0), eps=EPS, min_samples=2)

    assert labels.shape == (0,)
    assert labels.dtype == np.int32


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
    found = number_by_first_appearance(np.array(labels, np.int64))

    assert found.dtype == np.int32
    assert found.tolist() == numbered


def test_neighbor_graph_is_symmetric_and_stores_zeros_but_no_diagonal() -> None:
    pairs = (
        np.array([1, 0, 0], np.int32),
        np.array([3, 3, 1], np.int32),
        np.array([0.0, 0.25, 0.0], np.float32),
    )

    graph = neighbor_graph(pairs, 5)

    assert graph.shape == (5, 5)
    assert graph.dtype == np.float32
    assert graph.indptr.tolist() == [0, 2, 4, 4, 6, 6]
    assert graph.indices.tolist() == [1, 3, 0, 3, 0, 1]
    assert graph.data.tolist() == [0.0, 0.25, 0.0, 0.0, 0.25, 0.0]


def test_cluster_images_publishes_a_row_for_every_item(tmp_path: Path) -> None:
    rows = [
        {"image_id": name, "item_id": item, "camera": "", "captured_at": 0}
        | {"url": f"/{name}", "size_bytes": 1, "etag": ""}
        for item, name in [(2, "c"), (None, "broken"), (0, "a"), (1, "b")]
    ]
    images_url, edges_url = str(tmp_path / "images.parquet"), str(tmp_path / "edges.parquet")
    storage.publish_table(images_url, pa.Table.from_pylist(rows, IMAGES))
    pair = (np.array([0], np.int32), np.array([2], np.int32), np.array([0.04], np.float32))
    storage.publish_table(edges_url, edge_table([pair]))
    collection = Collection("run", str(tmp_path), images_url, "", 4, 3, 3, 0)
    neighbors = Neighbors((EdgeFile(edges_url, 1),), recall=1.0, depth=0)

    clusters = cluster_images.fn(
        neighbors,
        collection,
        DedupConfig(source_url=str(tmp_path), workspace_url=str(tmp_path)),
    )

    assert clusters.num_clusters == 1
    assert storage.read_table(clusters.url, CLUSTERS).to_pydict() == {
        "image_id": ["a", "b", "c"],
        "cluster_id": [0, -1, 0],
        "num_neighbors": [1, 0, 1],
    }
