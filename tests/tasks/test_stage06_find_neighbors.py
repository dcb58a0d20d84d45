"""Pairs within eps: all of them, none twice, none across partitions, however the work is cut."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from annoy import AnnoyIndex
from hypothesis import given
from hypothesis import strategies as st

from config import DedupConfig
from tasks import stage06_find_neighbors as stage06
from tasks import storage
from tasks.distances import cosine_distances, within
from tasks.references import Collection, EdgeFile, Index, SearchRange
from tasks.schemas import EDGES, FEATURE_DIM, IMAGES
from tasks.stage05_build_index import write_index
from tasks.stage06_find_neighbors import (
    Pairs,
    approximate_pairs,
    edge_table,
    exact_pairs,
    find_neighbors,
    measure_recall,
    partition_ranges,
    read_edges,
    recall_of_pairs,
    sample_items,
)

# Cosine distances: 0-1 none, 0-2 and 1-2 are 0.2, 0-3 and 1-3 are 1, 2-3 is 0.4.
FOUR = np.array([[1, 0], [1, 0], [0.8, 0.6], [0, 1]], np.float32)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def as_dict(pairs: Pairs) -> dict[tuple[int, int], float]:
    """The pairs with their distances; says so when one is there twice."""
    keys = list(zip(pairs[0].tolist(), pairs[1].tolist(), strict=True))
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, pairs[2].tolist(), strict=True))


def brute_force(features: np.ndarray, eps: float) -> dict[tuple[int, int], float]:
    i, j = np.triu_indices(len(features), k=1)
    distances = cosine_distances(features[i], features[j])
    keep = within(distances, eps)
    return as_dict((i[keep], j[keep], distances[keep]))


@st.composite
def feature_sets(draw: st.DrawFn) -> np.ndarray:
    """Up to 30 unit vectors, among them near and exact copies of others."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    originals = unit(rng.standard_normal((draw(st.integers(1, 8)), 4)))
    copies = originals[rng.integers(0, len(originals), draw(st.integers(0, 22)))]
    blur = rng.choice([0.0, 1e-6, 0.05, 0.3], (len(copies), 1))
    nearly = unit(copies + blur * rng.standard_normal(copies.shape))
    mixed = np.concatenate([originals, np.where(blur == 0, copies, nearly)])
    return mixed[rng.permutation(len(mixed))]


@st.composite
def eps_for(draw: st.DrawFn, features: np.ndarray) -> float:
    """An eps in [0, 1], often exactly the distance of two of the items."""
    if len(features) > 1 and draw(st.booleans()):
        i, j = draw(st.permutations(range(len(features))))[:2]
        return min(1.0, float(cosine_distances(features[[i]], features[[j]])[0]))
    return draw(st.sampled_from([0.0, 1e-7, 0.05, 0.3, 1.0]))


@pytest.mark.parametrize(
    ("eps", "pairs"),
    [
        (0.0, {(0, 1): 0.0}),
        (0.3, {(0, 1): 0.0, (0, 2): 0.2, (1, 2): 0.2}),
        (0.5, {(0, 1): 0.0, (0, 2): 0.2, (1, 2): 0.2, (2, 3): 0.4}),
        (1.0, {(0, 1): 0.0, (0, 2): 0.2, (1, 2): 0.2, (2, 3): 0.4, (0, 3): 1.0, (1, 3): 1.0}),
    ],
)
def test_exact_pairs_of_four_items(eps: float, pairs: dict[tuple[int, int], float]) -> None:
    items, neighbors, distances = exact_pairs(FOUR, 0, 4, 4, eps=eps)

    assert (items.dtype, neighbors.dtype, distances.dtype) == (np.int32, np.int32, np.float32)
    assert as_dict((items, neighbors, distances)) == pytest.approx(pairs, abs=1e-7)


def test_exact_pairs_start_in_the_range_and_end_in_the_partition() -> None:
    copies = np.repeat(FOUR[:1], 6, axis=0)

    assert list(as_dict(exact_pairs(copies, 1, 3, 5, eps=0.0))) == [
        (1, 2),
        (1, 3),
        (1, 4),
        (2, 3),
        (2, 4),
    ]
    assert as_dict(exact_pairs(copies, 3, 3, 5, eps=0.0)) == {}


@given(data=st.data())
def test_exact_pairs_are_those_of_brute_force(data: st.DataObject) -> None:
    features = data.draw(feature_sets())
    eps = data.draw(eps_for(features))

    found = as_dict(exact_pairs(features, 0, len(features), len(features), eps=eps))

    assert found == brute_force(features, eps)


@given(data=st.data())
def test_ranges_cut_anywhere_give_the_same_pairs(data: st.DataObject) -> None:
    features = data.draw(feature_sets())
    num_items = len(features)
    cuts = sorted({0, num_items, *data.draw(st.lists(st.integers(0, num_items)))})

    parts = [
        exact_pairs(features, first, last, num_items, eps=0.3) for first, last in pairwise(cuts)
    ]

    together = tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))
    assert as_dict(together) == brute_force(features, 0.3)


@given(features=feature_sets(), rows=st.integers(1, 9), columns=st.integers(1, 9))
def test_blocks_of_any_size_give_the_same_pairs(
    features: np.ndarray, rows: int, columns: int
) -> None:
    num_items = len(features)
    expected = brute_force(features, 0.3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage06, "_ROWS_AT_ONCE", rows)
        patch.setattr(stage06, "_COLUMNS_AT_ONCE", columns)

        found = exact_pairs(features, 0, num_items, num_items, eps=0.3)
        recall = recall_of_pairs(features, [(0, num_items)], found, np.arange(num_items), eps=0.3)

    assert as_dict(found) == expected
    assert recall == 1.0


def index_of(features: np.ndarray, n_trees: int = 10) -> AnnoyIndex:
    index = AnnoyIndex(features.shape[1], "angular")
    index.set_seed(0)
    for item, feature in enumerate(features):
        index.add_item(item, feature)
    index.build(n_trees, n_jobs=1)
    return index


def groups_of_five(num_groups: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    centres = np.repeat(unit(rng.standard_normal((num_groups, 16))), 5, axis=0)
    return unit(centres + 0.01 * rng.standard_normal(centres.shape))


def test_approximate_pairs_of_an_easy_set_are_all_pairs() -> None:
    features = groups_of_five(80)
    expected = brute_force(features, 0.05)
    assert len(expected) == 80 * 10

    found = approximate_pairs(
        index_of(features), features, 0, 400, (0, 400), eps=0.05, search_k=2_000
    )

    assert as_dict(found) == expected


def test_approximate_pairs_of_a_shallow_search_are_some_of_the_exact_ones() -> None:
    features = unit(np.random.default_rng(0).standard_normal((2_000, 16)))
    expected = brute_force(features, 0.3)

    found = as_dict(
        approximate_pairs(
            index_of(features, n_trees=1), features, 0, 2_000, (0, 2_000), eps=0.3, search_k=1
        )
    )

    assert 0 < len(found) < len(expected)
    assert found.items() <= expected.items()


def test_approximate_pairs_goes_on_until_all_copies_are_found() -> None:
    others = unit(np.random.default_rng(0).standard_normal((300, 16)))
    features = np.concatenate([np.repeat(others[:1], 100, axis=0), others[1:]])
    num_items = len(features)

    found = approximate_pairs(
        index_of(features), features, 0, num_items, (0, num_items), eps=0.0, search_k=100_000
    )

    assert len(as_dict(found)) == 100 * 99 // 2


def test_approximate_pairs_of_one_item_leads_both_ways_and_stays_in_the_partition() -> None:
    copies = np.repeat(FOUR[:1], 8, axis=0)

    found = approximate_pairs(index_of(copies), copies, 4, 5, (2, 7), eps=0.0, search_k=1_000)

    assert as_dict(found) == {(2, 4): 0.0, (3, 4): 0.0, (4, 5): 0.0, (4, 6): 0.0}


def test_edge_table_is_sorted_and_has_every_pair_once() -> None:
    one = (np.array([2, 0], np.int32), np.array([3, 5], np.int32), np.array([0.4, 0.1], np.float32))
    two = (np.array([0, 2], np.int32), np.array([1, 3], np.int32), np.array([0, 0.4], np.float32))

    table = edge_table([one, two])

    assert table.schema == EDGES
    assert table["item_id"].to_pylist() == [0, 0, 2]
    assert table["neighbor_id"].to_pylist() == [1, 5, 3]
    assert table["distance"].to_pylist() == pytest.approx([0, 0.1, 0.4])


def test_edge_table_of_nothing_is_empty() -> None:
    assert edge_table([]).num_rows == 0
    assert edge_table([]).schema == EDGES


def test_read_edges_joins_files_in_order(tmp_path: Path) -> None:
    files = []
    for name, i, j in [("late", 2, 3), ("early", 0, 4), ("early again", 0, 4)]:
        edges = (np.array([i], np.int32), np.array([j], np.int32), np.array([0.1], np.float32))
        url = str(tmp_path / name)
        storage.publish_table(url, edge_table([edges]))
        files.append(EdgeFile(url=url, num_edges=1))

    items, neighbors, distances = read_edges(files)

    assert items.tolist() == [0, 2]
    assert neighbors.tolist() == [4, 3]
    assert distances.tolist() == [np.float32(0.1)] * 2


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


def pairs_of(*pairs: tuple[int, int]) -> Pairs:
    i, j = np.array(pairs, np.int32).reshape(-1, 2).T
    return i, j, np.zeros(len(pairs), np.float32)


# Two pairs of copies: 0-1 and 2-3.
TWO_PAIRS = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32)


@pytest.mark.parametrize(
    ("edges", "sample", "recall"),
    [
        (pairs_of((0, 1), (2, 3)), [0, 1, 2, 3], 1.0),
        (pairs_of((0, 1)), [0, 1, 2, 3], 0.5),
        (pairs_of(), [0, 1, 2, 3], 0.0),
        (pairs_of((0, 1)), [0], 1.0),
        (pairs_of((0, 1)), [1], 1.0),
        (pairs_of((0, 1)), [3], 0.0),
        (pairs_of((0, 1)), [1, 3], 0.5),
        (pairs_of((0, 2), (1, 3)), [0, 1, 2, 3], 0.0),
    ],
)
def test_recall_is_the_share_of_the_samples_pairs(
    edges: Pairs, sample: list[int], recall: float
) -> None:
    assert recall_of_pairs(TWO_PAIRS, [(0, 4)], edges, np.array(sample), eps=0.1) == recall


def test_recall_is_one_when_there_is_nothing_to_find() -> None:
    far_apart = np.eye(3, dtype=np.float32)

    assert recall_of_pairs(far_apart, [(0, 3)], pairs_of(), np.arange(3), eps=0.1) == 1.0


def test_recall_does_not_ask_for_pairs_across_partitions() -> None:
    partitions = [(0, 3), (3, 4)]

    assert recall_of_pairs(TWO_PAIRS, partitions, pairs_of((0, 1)), np.arange(4), eps=0.1) == 1.0


@pytest.mark.parametrize(
    ("cameras", "ranges"),
    [
        ([], []),
        (["a"], [(0, 1)]),
        (["", "", ""], [(0, 3)]),
        (["a", "a", "b", "c", "c"], [(0, 2), (2, 3), (3, 5)]),
    ],
)
def test_partition_ranges_are_the_runs_of_equal_cameras(
    cameras: list[str], ranges: list[tuple[int, int]]
) -> None:
    assert partition_ranges(cameras) == ranges


@pytest.fixture
def two_cameras(tmp_path: Path) -> tuple[Collection, Index]:
    """Three images of camera a and two of camera b, all five the same but the third."""
    features = np.zeros((5, FEATURE_DIM), np.float32)
    features[[0, 1, 3, 4], 0] = 1
    features[2, 1] = 1
    rows = [
        {"image_id": f"image-{item}", "item_id": item, "camera": camera, "captured_at": 0}
        | {"url": f"/{item}", "size_bytes": 1, "etag": ""}
        for item, camera in enumerate(["a", "a", "a", "b", "b"])
    ]
    unreadable = {**rows[0], "image_id": "broken", "item_id": None, "error": "broken"}
    collection = Collection(
        run_id="run",
        run_url=str(tmp_path),
        images_url=str(tmp_path / "images.parquet"),
        features_url=str(tmp_path / "features.npy"),
        num_images=6,
        num_items=5,
        largest_partition=3,
        num_missing=0,
    )
    storage.publish_table(collection.images_url, pa.Table.from_pylist([*rows, unreadable], IMAGES))
    np.save(collection.features_url, features)
    write_index(features, tmp_path / "index.ann", n_trees=5, seed=0)
    return collection, Index(str(tmp_path / "index.ann"), str(tmp_path / "items.parquet"), 5)


@pytest.mark.parametrize("exact_up_to", [0, 1_000])
@pytest.mark.parametrize("depth", [0, 1])
def test_find_neighbors_never_joins_two_cameras(
    two_cameras: tuple[Collection, Index], depth: int, exact_up_to: int
) -> None:
    collection, index = two_cameras
    config = DedupConfig(
        source_url=collection.run_url,
        workspace_url=collection.run_url,
        neighbors={"exact_up_to": exact_up_to},
    )

    files = [
        find_neighbors.fn(SearchRange(start, stop, depth), collection, index, config)
        for start, stop in [(0, 1), (1, 4), (4, 5)]
    ]

    assert as_dict(read_edges(files)) == {(0, 1): 0.0, (3, 4): 0.0}
    assert measure_recall.fn(files, collection, config) == 1.0
    assert measure_recall.fn(files[:1], collection, config) == 0.5
