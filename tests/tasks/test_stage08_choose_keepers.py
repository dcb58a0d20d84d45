"""Keepers: every image that goes has a kept neighbour, and few images are kept."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import DedupConfig
from tasks import comparisons, storage
from tasks import stage08_choose_keepers as stage08
from tasks.comparisons import connect
from tasks.distances import cosine_distances, within
from tasks.references import Clusters, Collection
from tasks.schemas import CLUSTERS, IMAGES, KEEPERS
from tasks.stage07_cluster_images import are_large, dbscan_labels
from tasks.stage08_choose_keepers import (
    adjacency,
    cells_of_members,
    choose_keepers,
    cover_keepers,
    first_keepers,
    greedy_cover,
    iterate_members,
    members_of_clusters,
    nearest_keepers,
    paired_distances,
    quality_ranks,
    url_ranks,
)
from tests.made_items import all_distances, eps_for, feature_sets, unit

Pairs = list[tuple[int, int]]


def bits_of(num_items: int, pairs: Pairs) -> np.ndarray:
    """Packed rows of a graph in which every item covers itself too."""
    near = np.eye(num_items, dtype=bool)
    for i, j in pairs:
        near[i, j] = near[j, i] = True
    return np.packbits(near, axis=1)


def chosen(pairs: Pairs, ranks: list[int]) -> list[int]:
    return greedy_cover(bits_of(len(ranks), pairs), np.array(ranks, np.int64)).tolist()


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, Pairs, list[int]]:
    """Up to 20 items, some pairs of them, and the items' ranks."""
    num_items = draw(st.integers(1, 20))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    i, j = np.triu_indices(num_items, k=1)
    keep = rng.random(len(i)) < draw(st.sampled_from([0.05, 0.15, 0.3, 0.8]))
    pairs = list(zip(i[keep].tolist(), j[keep].tolist(), strict=True))
    return num_items, pairs, rng.permutation(num_items).tolist()


@given(graph=graphs())
def test_next_keeper_is_always_the_best_of_those_that_cover_most(
    graph: tuple[int, Pairs, list[int]],
) -> None:
    num_items, pairs, ranks = graph
    covered_by = {item: {item} for item in range(num_items)}
    for i, j in pairs:
        covered_by[i].add(j)
        covered_by[j].add(i)
    uncovered, expected = set(range(num_items)), []
    while uncovered:
        gains = {item: len(covered_by[item] & uncovered) for item in range(num_items)}
        best = min(gains, key=lambda item: (-gains[item], ranks[item]))
        expected.append(best)
        uncovered -= covered_by[best]

    assert chosen(pairs, ranks) == expected


CHAIN = [(0, 1), (1, 2), (2, 3), (3, 4)]
SQUARE = [(0, 1), (1, 2), (2, 3), (0, 3)]
STAR = [(2, 0), (2, 1), (2, 3), (2, 4)]


@pytest.mark.parametrize(
    ("pairs", "ranks", "keepers"),
    [
        ([], [], []),
        ([], [0], [0]),
        ([], [1, 0], [1, 0]),
        ([(0, 1)], [0, 1], [0]),
        ([(0, 1)], [1, 0], [1]),
        # Its centre, although it is the worst image.
        (STAR, [0, 1, 4, 2, 3], [2]),
        # 1 covers three and is the best of those that do; 3 is better than 4 for what is left.
        (CHAIN, [2, 0, 4, 1, 3], [1, 3]),
        (CHAIN, [3, 2, 0, 1, 4], [2, 3, 1]),
        # 1 covers 0 and 2, then 0 is the best of 0, 2 and 3, each of which covers 3.
        (SQUARE, [1, 0, 2, 3], [1, 0]),
    ],
)
def test_greedy_cover_of_small_graphs(pairs: Pairs, ranks: list[int], keepers: list[int]) -> None:
    assert chosen(pairs, ranks) == keepers


def num_kept_first_come(pairs: Pairs, ranks: list[int]) -> int:
    """Keep the best image not covered yet, over and over."""
    covered: set[int] = set()
    num_kept = 0
    for item in np.argsort(ranks).tolist():
        if item not in covered:
            num_kept += 1
            covered |= {item, *(j for i, j in pairs if i == item)}
            covered |= {i for i, j in pairs if j == item}
    return num_kept


TWO_STARS = [(0, 1), (0, 2), (0, 3), (4, 5), (4, 6), (4, 7), (3, 5)]


@pytest.mark.parametrize(
    ("pairs", "ranks", "num_first_come", "num_cover"),
    [
        (STAR, [0, 1, 2, 3, 4], 4, 1),
        (CHAIN, [0, 1, 2, 3, 4], 3, 2),
        (CHAIN, [3, 2, 0, 1, 4], 3, 3),
        (TWO_STARS, [7, 6, 5, 4, 3, 2, 1, 0], 5, 2),
        (TWO_STARS, [4, 2, 3, 0, 5, 1, 6, 7], 4, 2),
    ],
)
def test_cover_keeps_no_more_images_than_first_come_first_kept(
    pairs: Pairs, ranks: list[int], num_first_come: int, num_cover: int
) -> None:
    assert num_kept_first_come(pairs, ranks) == num_first_come
    assert len(chosen(pairs, ranks)) == num_cover


def clusters_of(features: np.ndarray, eps: float) -> np.ndarray:
    items = np.arange(len(features))
    component = connect(features, items, len(items), eps)
    return dbscan_labels(component, are_large(component, 2), [])


@given(data=st.data(), window=st.sampled_from([1, 2, 5, 1_000]))
def test_every_image_that_goes_has_a_kept_neighbour_in_its_cluster(
    data: st.DataObject, window: int
) -> None:
    features = data.draw(feature_sets())
    eps = data.draw(eps_for(features))
    labels = clusters_of(features, eps)
    ranks = np.array(data.draw(st.permutations(range(len(features)))))

    keeper_of = cover_keepers(features, labels, ranks, eps=eps, window=window)

    near = within(all_distances(features), eps)
    for item in np.flatnonzero(keeper_of >= 0):
        keeper = keeper_of[item]
        assert keeper_of[keeper] == -1
        assert labels[keeper] == labels[item] >= 0
        assert near[item, keeper]
    assert (keeper_of[labels == -1] == -1).all()
    assert set(labels[keeper_of == -1]) == set(labels)


@given(data=st.data())
def test_no_kept_neighbour_is_nearer_and_no_equally_near_one_is_better(
    data: st.DataObject,
) -> None:
    features = data.draw(feature_sets())
    eps = data.draw(eps_for(features))
    labels = clusters_of(features, eps)
    ranks = np.array(data.draw(st.permutations(range(len(features)))))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ROWS_AT_ONCE", "COLUMNS_AT_ONCE"):
            patch.setattr(stage08, name, data.draw(st.integers(1, 5)))

        keeper_of = cover_keepers(features, labels, ranks, eps=eps)

    distances = all_distances(features)
    for item in np.flatnonzero(keeper_of >= 0):
        others = np.flatnonzero((keeper_of == -1) & (labels == labels[item]))
        best = min((distances[item, other], ranks[other], other) for other in others)
        assert keeper_of[item] == best[2]


@given(data=st.data())
def test_numbering_of_the_items_does_not_matter(data: st.DataObject) -> None:
    features = data.draw(feature_sets())
    eps = data.draw(eps_for(features))
    labels = clusters_of(features, eps)
    ranks = np.array(data.draw(st.permutations(range(len(features)))))
    old_of = np.array(data.draw(st.permutations(range(len(features)))))

    keeper_of = cover_keepers(features, labels, ranks, eps=eps)
    new_keeper_of = cover_keepers(features[old_of], labels[old_of], ranks[old_of], eps=eps)

    assert [old_of[keeper] if keeper >= 0 else -1 for keeper in new_keeper_of] == keeper_of[
        old_of
    ].tolist()


def angles(*degrees: float) -> np.ndarray:
    radians = np.radians(degrees)
    return np.column_stack([np.cos(radians), np.sin(radians)]).astype(np.float32)


TEN_DEGREES = 1 - np.cos(np.radians(10.5))


def test_later_windows_use_the_keepers_of_earlier_ones() -> None:
    features = angles(0, 10, 20, 30, 40, 5)
    labels, ranks = np.zeros(6, np.int32), np.arange(6)

    def kept(window: int) -> list[int]:
        keeper_of = cover_keepers(features, labels, ranks, eps=TEN_DEGREES, window=window)
        return np.flatnonzero(keeper_of == -1).tolist()

    # At 10, 5 and 0 degrees: 10 covers four. Then 30 covers the two that are left.
    assert kept(6) == [1, 3]
    # 0 covers 0 and 10; of 20 and 30 the better one, and it covers 10 too; then 40.
    assert kept(2) == [0, 2, 4]


def test_image_between_two_keepers_goes_for_the_nearer_one() -> None:
    features = angles(0, 4, 10)

    found = nearest_keepers(
        features, np.array([1]), np.array([2, 0]), np.array([0, 1]), eps=TEN_DEGREES
    )

    assert found.tolist() == [0]


def test_copies_go_for_the_best_keeper() -> None:
    features = angles(0, 0, 0, 0)
    items, keepers = np.array([0]), np.array([1, 2, 3])

    found = nearest_keepers(features, items, keepers, np.array([2, 0, 1]), eps=0.0)

    assert found.tolist() == [2]


def test_the_last_bits_of_a_product_choose_no_keeper() -> None:
    # The same numbers in another order are equally far from a constant vector, while the sum of
    # a float32 product depends on the order.
    rng = np.random.default_rng(0)
    values = 1 + 0.1 * rng.standard_normal(512)
    features = unit(np.stack([np.ones(512), *(rng.permutation(values) for _ in range(100))]))
    features[1:] = np.sort(features[1])[np.argsort(features[1:], axis=1).argsort(axis=1)]
    items, keepers, ranks = np.array([0]), np.arange(1, 101), np.arange(100)[::-1]
    assert len(set((features[:1] @ features[1:].T).ravel().tolist())) > 1

    found = nearest_keepers(features, items, keepers, ranks, eps=0.1)

    distances = cosine_distances(np.repeat(features[:1], 100, axis=0), features[1:])
    assert found.tolist() == [1 + np.lexsort((ranks, distances))[0]]


def test_pair_across_two_clusters_covers_nothing() -> None:
    labels = np.array([0, 0, 1, 1, 1, -1], np.int32)

    keeper_of = cover_keepers(
        angles(0, 10, 20, 30, 40, 45), labels, np.array([1, 0, 4, 3, 2, 5]), eps=TEN_DEGREES
    )

    assert keeper_of.tolist() == [1, -1, 3, -1, 3, -1]


def test_damaged_feature_that_is_not_near_itself_is_kept() -> None:
    features = np.array([[1, 0], [0, 0], [np.nan, 0]], np.float32)
    keeper_of = cover_keepers(features, np.arange(3, dtype=np.int32), np.arange(3), eps=0.05)
    assert keeper_of.tolist() == [-1, -1, -1]


def test_no_images_have_no_keepers() -> None:
    nothing = np.empty(0, np.int32)

    assert cover_keepers(np.empty((0, 2), np.float32), nothing, nothing, eps=0.1).tolist() == []


def test_members_of_clusters_leave_noise_out() -> None:
    labels = np.array([1, -1, 0, 1, 0, 2], np.int32)

    assert [members.tolist() for members in members_of_clusters(labels)] == [[2, 4], [0, 3], [5]]


@given(data=st.data())
def test_adjacency_packs_what_is_within(data: st.DataObject) -> None:
    features = data.draw(feature_sets())
    eps = data.draw(eps_for(features))
    rows = np.array(data.draw(st.permutations(range(len(features)))))
    columns = rows[: data.draw(st.integers(0, len(rows)))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage08, "ROWS_AT_ONCE", 3)
        patch.setattr(comparisons, "_EXACT_AT_ONCE", 3)

        bits = adjacency(features, rows, columns, eps)

    near = within(all_distances(features), eps)[np.ix_(rows, columns)]
    assert np.unpackbits(bits, axis=1, count=len(columns)).tolist() == near.astype(int).tolist()


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
    images_url, labels_url = str(tmp_path / "images"), str(tmp_path / "labels")
    names = ["a", "b", "c", "noise"]
    rows = [{"image_id": n, "url": f"/{n}", "item_id": item} for item, n in enumerate(names)]
    storage.publish_table(images_url, images_table(*reversed(rows), {"image_id": "?", "url": "/?"}))
    labels = {"image_id": names, "cluster_id": [0, 0, 0, -1], "is_core": [True, True, True, False]}
    storage.publish_table(labels_url, pa.table(labels, CLUSTERS))

    kept = choose_keepers.fn(
        Clusters(labels_url, num_clusters=1),
        Collection("", str(tmp_path), images_url, str(tmp_path / "features.npy"), 5, 4, 4, 0),
        DedupConfig(
            source_url=str(tmp_path),
            workspace_url=str(tmp_path),
            neighbors={"eps": 0.3},
            clusters={"keepers": mode},
        ),
    )

    table = storage.read_table(kept.url, KEEPERS)
    assert kept.num_removed == 2
    assert table["image_id"].to_pylist() == goes
    assert table["keeper_id"].to_pylist() == stays
    assert table["distance"].to_pylist() == pytest.approx(distances)


def test_small_cluster_is_one_cell() -> None:
    cells_of = cells_of_members(angles(*range(4)), np.array([0, 2, 3]), window=3)

    assert cells_of.tolist() == [[0], [0], [0]]


def test_large_cluster_is_divided_into_cells_of_what_is_near() -> None:
    features = angles(0, 1, 40, 41, 80, 81)

    # Pivots are every second of the members: at 0, 40 and 80 degrees.
    cells_of = cells_of_members(features, np.arange(6), window=2)

    assert cells_of.tolist() == [[0, 1, 2], [0, 1, 2], [1, 0, 2], [1, 2, 0], [2, 1, 0], [2, 1, 0]]
    homes = [home.tolist() for home, _ in iterate_members(cells_of[:, :2])]
    guests = [np.flatnonzero(is_in).tolist() for _, is_in in iterate_members(cells_of[:, :2])]
    assert homes == [[0, 1], [2, 3], [4, 5]]
    assert guests == [[0, 1, 2], [0, 1, 2, 3, 4, 5], [3, 4, 5]]


def test_image_goes_for_a_keeper_of_another_cell() -> None:
    # The first cell has 9, 27 and 17 degrees, the second has 0; each is a guest of the other.
    features = angles(9, 27, 0, 17)
    labels, ranks = np.zeros(4, np.int32), np.arange(4)

    keeper_of = cover_keepers(features, labels, ranks, eps=TEN_DEGREES, window=2)

    assert keeper_of.tolist() == [-1, -1, 0, 0]
