"""Keepers: every image that goes has a kept neighbour, and few images are kept."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from config import DedupConfig
from tasks import storage
from tasks.references import Clusters, Collection, EdgeFile, Neighbors
from tasks.schemas import CLUSTERS, IMAGES, KEEPERS
from tasks.stage06_find_neighbors import edge_table
from tasks.stage07_cluster_images import dbscan_labels, neighbor_graph
from tasks.stage08_choose_keepers import (
    choose_keepers,
    cover_keepers,
    first_keepers,
    paired_distances,
    quality_ranks,
    url_ranks,
)

EPS = 0.05


def graph_of(num_items: int, distances: dict[tuple[int, int], float]) -> csr_matrix:
    i, j = np.array(list(distances), np.int32).reshape(-1, 2).T
    return neighbor_graph((i, j, np.array(list(distances.values()), np.float32)), num_items)


def equally_far(*pairs: tuple[int, int]) -> dict[tuple[int, int], float]:
    return dict.fromkeys(pairs, 0.04)


def keepers(
    distances: dict[tuple[int, int], float], ranks: list[int], labels: list[int] | None = None
) -> list[int]:
    """Keepers of one cluster, unless told otherwise."""
    graph = graph_of(len(ranks), distances)
    clusters = np.array(labels or [0] * len(ranks), np.int32)
    return cover_keepers(graph, clusters, np.array(ranks, np.int64)).tolist()


@st.composite
def clustered_graphs(draw: st.DrawFn) -> tuple[csr_matrix, np.ndarray, np.ndarray]:
    """A graph of up to 14 items with its DBSCAN labels, and the items' ranks."""
    num_items = draw(st.integers(1, 14))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    i, j = np.triu_indices(num_items, k=1)
    keep = rng.random(len(i)) < draw(st.sampled_from([0.05, 0.15, 0.3, 0.8]))
    distances = rng.choice([0.0, 0.01, 0.04], keep.sum())
    pairs = zip(i[keep].tolist(), j[keep].tolist(), strict=True)
    graph = graph_of(num_items, dict(zip(pairs, distances.tolist(), strict=True)))
    labels = dbscan_labels(graph, eps=EPS, min_samples=draw(st.integers(1, 4)))
    return graph, labels, rng.permutation(num_items).astype(np.int64)


def is_stored(graph: csr_matrix, item: int, neighbor: int) -> bool:
    return neighbor in graph.indices[graph.indptr[item] : graph.indptr[item + 1]]


@given(clustered=clustered_graphs())
def test_every_image_that_goes_has_a_kept_neighbour_in_its_cluster(
    clustered: tuple[csr_matrix, np.ndarray, np.ndarray],
) -> None:
    graph, labels, ranks = clustered

    keeper_of = cover_keepers(graph, labels, ranks)

    for item in np.flatnonzero(keeper_of >= 0):
        keeper = keeper_of[item]
        assert keeper_of[keeper] == -1
        assert labels[keeper] == labels[item] >= 0
        assert is_stored(graph, item, keeper)


@given(clustered=clustered_graphs())
def test_noise_stays_and_every_cluster_keeps_an_image(
    clustered: tuple[csr_matrix, np.ndarray, np.ndarray],
) -> None:
    graph, labels, ranks = clustered

    keeper_of = cover_keepers(graph, labels, ranks)

    assert (keeper_of[labels == -1] == -1).all()
    assert set(labels[keeper_of == -1]) == set(labels)


@given(clustered=clustered_graphs())
def test_no_kept_neighbour_is_nearer_and_no_equally_near_one_is_better(
    clustered: tuple[csr_matrix, np.ndarray, np.ndarray],
) -> None:
    graph, labels, ranks = clustered

    keeper_of = cover_keepers(graph, labels, ranks)

    for item in np.flatnonzero(keeper_of >= 0):
        row = slice(graph.indptr[item], graph.indptr[item + 1])
        candidates = [
            (distance, ranks[neighbor], neighbor)
            for neighbor, distance in zip(graph.indices[row], graph.data[row], strict=True)
            if keeper_of[neighbor] == -1 and labels[neighbor] == labels[item]
        ]
        assert min(candidates)[2] == keeper_of[item]


@given(clustered=clustered_graphs())
def test_same_input_gives_same_keepers(
    clustered: tuple[csr_matrix, np.ndarray, np.ndarray],
) -> None:
    graph, labels, ranks = clustered
    before = graph.copy()

    keeper_of = cover_keepers(graph, labels, ranks)

    assert cover_keepers(graph, labels, ranks).tolist() == keeper_of.tolist()
    assert (graph != before).nnz == 0


@given(clustered=clustered_graphs(), data=st.data())
def test_numbering_of_the_items_does_not_matter(
    clustered: tuple[csr_matrix, np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    graph, labels, ranks = clustered
    new_of = np.array(data.draw(st.permutations(range(len(labels)))))
    pairs = graph.tocoo()
    is_upper = pairs.row < pairs.col
    renumbered = neighbor_graph(
        (new_of[pairs.row[is_upper]], new_of[pairs.col[is_upper]], pairs.data[is_upper]),
        len(labels),
    )
    new_labels, new_ranks = np.empty_like(labels), np.empty_like(ranks)
    new_labels[new_of], new_ranks[new_of] = labels, ranks

    keeper_of = cover_keepers(graph, labels, ranks)
    new_keeper_of = cover_keepers(renumbered, new_labels, new_ranks)

    expected = [-1 if keeper == -1 else int(new_of[keeper]) for keeper in keeper_of]
    assert new_keeper_of[new_of].tolist() == expected


@given(clustered=clustered_graphs())
def test_next_keeper_is_always_the_best_of_those_that_cover_most(
    clustered: tuple[csr_matrix, np.ndarray, np.ndarray],
) -> None:
    graph, labels, ranks = clustered
    items = np.flatnonzero(labels >= 0).tolist()
    covered_by = {
        item: {n for n in items if labels[n] == labels[item] and is_stored(graph, item, n)} | {item}
        for item in items
    }
    uncovered, kept = set(items), set(np.flatnonzero(labels == -1).tolist())
    while uncovered:
        gains = {item: len(covered_by[item] & uncovered) for item in items}
        best = min(items, key=lambda item: (-gains[item], ranks[item]))
        kept.add(best)
        uncovered -= covered_by[best]

    keeper_of = cover_keepers(graph, labels, ranks)

    assert set(np.flatnonzero(keeper_of == -1).tolist()) == kept


@pytest.mark.parametrize(("ranks", "keeper_of"), [([0, 1], [-1, 0]), ([1, 0], [1, -1])])
def test_pair_keeps_the_better_one(ranks: list[int], keeper_of: list[int]) -> None:
    assert keepers(equally_far((0, 1)), ranks) == keeper_of


def test_star_keeps_its_centre_although_it_is_the_worst_image() -> None:
    star = equally_far((2, 0), (2, 1), (2, 3), (2, 4))

    assert keepers(star, ranks=[0, 1, 4, 2, 3]) == [2, 2, -1, 2, 2]


CHAIN = equally_far((0, 1), (1, 2), (2, 3), (3, 4))


def test_chain_of_five_keeps_two() -> None:
    # 1 covers three and is the best of those that do; 3 covers what is left and is better than 4.
    assert keepers(CHAIN, ranks=[2, 0, 4, 1, 3]) == [1, -1, 1, -1, 3]


def test_image_between_two_keepers_goes_for_the_nearer_one() -> None:
    uneven = {(0, 1): 0.01, (1, 2): 0.04, (2, 3): 0.02, (3, 4): 0.01}

    assert keepers(uneven, ranks=[2, 0, 4, 1, 3]) == [1, -1, 3, -1, 3]


def test_all_copies_of_one_image_keep_the_best() -> None:
    copies = dict.fromkeys([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)], 0.0)

    assert keepers(copies, ranks=[3, 1, 0, 2]) == [2, 2, -1, 2]


def test_square_keeps_its_best_corner_and_the_best_one_that_covers_the_opposite_corner() -> None:
    square = equally_far((0, 1), (1, 2), (2, 3), (0, 3))

    # 1 covers 0 and 2, then 0 is the best of 0, 2 and 3, each of which covers 3.
    assert keepers(square, ranks=[1, 0, 2, 3]) == [-1, -1, 1, 0]


def test_pair_across_two_clusters_covers_nothing() -> None:
    assert keepers(CHAIN, ranks=[1, 0, 4, 3, 2], labels=[0, 0, 1, 1, 1]) == [1, -1, 3, -1, 3]


def test_noise_is_kept_even_next_to_other_images() -> None:
    pairs = equally_far((0, 1), (1, 2), (2, 3))

    assert keepers(pairs, ranks=[0, 1, 2, 3], labels=[-1, -1, 0, 0]) == [-1, -1, -1, 2]


def test_no_images_have_no_keepers() -> None:
    assert keepers({}, ranks=[]) == []


def num_kept_first_come(distances: dict[tuple[int, int], float], ranks: list[int]) -> int:
    """Keep the best image not covered yet, over and over."""
    covered: set[int] = set()
    num_kept = 0
    for item in np.argsort(ranks).tolist():
        if item not in covered:
            num_kept += 1
            covered |= {item, *(j for i, j in distances if i == item)}
            covered |= {i for i, j in distances if j == item}
    return num_kept


TWO_STARS = equally_far((0, 1), (0, 2), (0, 3), (4, 5), (4, 6), (4, 7), (3, 5))


@pytest.mark.parametrize(
    ("distances", "ranks", "num_first_come", "num_cover"),
    [
        (equally_far((2, 0), (2, 1), (2, 3), (2, 4)), [0, 1, 2, 3, 4], 4, 1),
        (CHAIN, [0, 1, 2, 3, 4], 3, 2),
        (CHAIN, [3, 2, 0, 1, 4], 3, 3),
        (TWO_STARS, [7, 6, 5, 4, 3, 2, 1, 0], 5, 2),
        (TWO_STARS, [4, 2, 3, 0, 5, 1, 6, 7], 4, 2),
    ],
)
def test_cover_keeps_no_more_images_than_first_come_first_kept(
    distances: dict[tuple[int, int], float], ranks: list[int], num_first_come: int, num_cover: int
) -> None:
    assert num_kept_first_come(distances, ranks) == num_first_come
    assert keepers(distances, ranks).count(-1) == num_cover


def test_first_keepers_are_one_per_cluster_and_all_noise() -> None:
    labels = np.array([0, 1, 0, -1, 1, -1], np.int32)
    ranks = np.array([2, 0, 1, 3, 4, 5], np.int64)

    assert first_keepers(labels, ranks).tolist() == [2, -1, -1, -1, 1, -1]
    assert first_keepers(labels[:0], ranks[:0]).tolist() == []


def images_table(*rows: dict[str, object]) -> pa.Table:
    """Rows of `schemas.IMAGES`; what a row leaves out is the same for all."""
    usual = {"image_id": "", "size_bytes": 1, "etag": "", "camera": "", "width": 10, "height": 10}
    usual |= {"sharpness": 1.0, "captured_at": datetime(2026, 1, 1, 12, tzinfo=UTC)}
    return pa.Table.from_pylist([usual | row for row in rows], IMAGES)


def test_sharper_comes_before_larger_before_earlier_before_url() -> None:
    evening = datetime(2026, 1, 1, 20, tzinfo=UTC)
    items = images_table(
        {"url": "f"},
        {"url": "e", "captured_at": evening},
        {"url": "d", "width": 20, "captured_at": evening},
        {"url": "g", "width": 60_000, "height": 60_000, "captured_at": evening},
        {"url": "z", "sharpness": 1.5, "width": 5, "captured_at": evening},
        {"url": "a"},
    )

    assert quality_ranks(items).tolist() == [4, 5, 2, 1, 0, 3]


def test_a_little_sharper_is_not_better_than_larger() -> None:
    items = images_table(
        {"url": "a", "sharpness": 1.02, "width": 5},
        {"url": "b", "sharpness": 1.0},
        {"url": "c", "sharpness": 1.2, "width": 5},
        {"url": "d", "sharpness": 0.0, "width": 20},
    )

    assert quality_ranks(items).tolist() == [2, 1, 0, 3]


def test_url_ranks_follow_the_urls() -> None:
    ranks = url_ranks(images_table({"url": "b"}, {"url": "a"}, {"url": "B"}, {"url": "é"}))

    assert ranks.dtype == np.int64
    assert ranks.tolist() == [2, 1, 0, 3]


def test_paired_distances_are_those_of_the_features() -> None:
    features = np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32)

    found = paired_distances(features, np.array([1, 2]), np.array([0, 1]))

    assert found.tolist() == pytest.approx([0.2, 0.4])


@pytest.mark.parametrize(
    ("mode", "goes", "stays", "distances"),
    [
        # b is within 0.2 of both others, which are 0.72 apart.
        ("cover", ["a", "c"], ["b", "b"], [0.2, 0.2]),
        ("first", ["b", "c"], ["a", "a"], [0.2, 0.72]),
    ],
)
def test_choose_keepers_publishes_exact_distances(
    tmp_path: Path, mode: str, goes: list[str], stays: list[str], distances: list[float]
) -> None:
    features = np.array([[1, 0], [0.8, 0.6], [0.28, 0.96], [-1, 0]], np.float32)
    np.save(tmp_path / "features.npy", features)
    images_url, edges_url, labels_url = (
        str(tmp_path / name) for name in ("images", "edges", "labels")
    )
    names = ["a", "b", "c", "noise"]
    rows = [{"image_id": n, "url": f"/{n}", "item_id": item} for item, n in enumerate(names)]
    storage.publish_table(images_url, images_table(*reversed(rows), {"image_id": "?", "url": "/?"}))
    edges = np.array([0, 1], np.int32), np.array([1, 2], np.int32), np.zeros(2, np.float32)
    storage.publish_table(edges_url, edge_table([edges]))
    labels = {"image_id": names, "cluster_id": [0, 0, 0, -1], "num_neighbors": [1, 2, 1, 0]}
    storage.publish_table(labels_url, pa.table(labels, CLUSTERS))

    kept = choose_keepers.fn(
        Clusters(labels_url, num_clusters=1),
        Neighbors((EdgeFile(edges_url, 2),), recall=1.0, depth=0),
        Collection("", str(tmp_path), images_url, str(tmp_path / "features.npy"), 5, 4, 4, 0),
        DedupConfig(
            source_url=str(tmp_path), workspace_url=str(tmp_path), clusters={"keepers": mode}
        ),
    )

    table = storage.read_table(kept.url, KEEPERS)
    assert kept.num_removed == 2
    assert table["image_id"].to_pylist() == goes
    assert table["keeper_id"].to_pylist() == stays
    assert table["distance"].to_pylist() == pytest.approx(distances)
