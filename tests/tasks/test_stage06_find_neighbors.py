"""What pairs within eps connect: all of it, never across partitions, however the work is cut."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import DedupConfig
from tasks import stage06_find_neighbors as stage06
from tasks import storage
from tasks.cells import Cell
from tasks.distances import within
from tasks.references import Cells, Collection, CoreFile, LinkFile, SearchRange
from tasks.schemas import CELLS, CORES, FEATURE_DIM, IMAGES, LINKS
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
from tests.made_items import all_distances, eps_for, feature_sets

# Cosine distances: 0-1 none, 0-2 and 1-2 are 0.2, 0-3 and 1-3 are 1, 2-3 is 0.4.
FOUR = np.array([[1, 0], [1, 0], [0.8, 0.6], [0, 1]], np.float32)


def whole_cells(num_items: int, cuts: list[int]) -> list[Cell]:
    """All items at home in one cell, cut anywhere."""
    items = np.arange(num_items)
    return [
        Cell(rows=items[start:stop], later=items[stop:], earlier=items[:start], guests=items[:0])
        for start, stop in pairwise(sorted({0, num_items, *cuts}))
    ]


def as_pairs(links: tuple[np.ndarray, np.ndarray]) -> list[tuple[int, int]]:
    return list(zip(links[0].tolist(), links[1].tolist(), strict=True))


@pytest.mark.parametrize(
    ("eps", "min_samples", "cores"),
    [
        (0.0, 2, [0, 1]),
        (0.0, 3, []),
        (0.3, 3, [0, 1, 2]),
        (0.5, 4, [2]),
        (0.5, 1, [0, 1, 2, 3]),
        (1.0, 4, [0, 1, 2, 3]),
    ],
)
def test_cores_of_four_items(eps: float, min_samples: int, cores: list[int]) -> None:
    (cell,) = whole_cells(4, [])

    assert cores_of_cell(FOUR, cell, eps=eps, min_samples=min_samples).tolist() == cores


@given(data=st.data(), min_samples=st.integers(1, 6))
def test_cores_are_those_of_the_full_matrix(data: st.DataObject, min_samples: int) -> None:
    features = data.draw(feature_sets())
    eps = data.draw(eps_for(features))
    cuts = data.draw(st.lists(st.integers(0, len(features))))
    counts = within(all_distances(features), eps).sum(axis=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage06, "ROWS_AT_ONCE", data.draw(st.integers(1, 9)))
        patch.setattr(stage06, "COLUMNS_AT_ONCE", data.draw(st.integers(1, 9)))

        found = [
            cores_of_cell(features, cell, eps=eps, min_samples=min_samples)
            for cell in whole_cells(len(features), cuts)
        ]

    assert np.concatenate(found).tolist() == np.flatnonzero(counts >= min_samples).tolist()


def test_guests_are_neighbours_but_nothing_is_asked_about_them() -> None:
    cell = Cell(*(np.array(items, np.int32) for items in ([0], [], [], [1, 2])))

    assert cores_of_cell(FOUR, cell, eps=0.0, min_samples=2).tolist() == [0]
    assert as_pairs(links_of_cell(FOUR, cell, np.ones(4, bool), eps=0.0)) == [(1, 0)]
    assert as_pairs(links_of_cell(FOUR, cell, np.ones(4, bool), eps=0.3)) == [(1, 0), (2, 0)]


def test_items_that_are_no_core_link_to_every_core_item_near_them() -> None:
    is_core = np.array([True, True, False, True])
    (cell,) = whole_cells(4, [])

    links = links_of_cell(FOUR, cell, is_core, eps=0.5)

    assert as_pairs(links) == [(1, 0), (2, 0), (2, 1), (2, 3)]


def test_items_that_are_no_core_are_linked_to_core_items_of_earlier_parts() -> None:
    is_core = np.array([True, True, False, False])
    first, second = whole_cells(4, [2])

    assert as_pairs(links_of_cell(FOUR, first, is_core, eps=0.5)) == [(1, 0)]
    assert as_pairs(links_of_cell(FOUR, second, is_core, eps=0.5)) == [(2, 0), (2, 1)]


def test_a_group_of_copies_has_one_link_an_item() -> None:
    copies = np.repeat(FOUR[:1], 3_000, axis=0)
    (cell,) = whole_cells(3_000, [])

    items, linked = links_of_cell(copies, cell, np.ones(3_000, bool), eps=0.05)

    assert items.tolist() == list(range(1, 3_000))
    assert set(linked.tolist()) == {0}


def test_tables_are_sorted() -> None:
    links = link_table(
        [
            (np.array([2, 0], np.int32), np.array([3, 5], np.int32)),
            (np.array([0], np.int32), np.array([1], np.int32)),
        ]
    )
    cores = core_table([np.array([4, 7], np.int32), np.array([1], np.int32)])

    assert (links.schema, cores.schema) == (LINKS, CORES)
    assert links.to_pydict() == {"item_id": [0, 0, 2], "linked_id": [1, 5, 3]}
    assert cores.to_pydict() == {"item_id": [1, 4, 7]}
    assert (link_table([]).num_rows, core_table([]).num_rows) == (0, 0)


@pytest.fixture
def two_cameras(tmp_path: Path) -> Collection:
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
    return collection


def settings(collection: Collection, min_samples: int = 2, exact_up_to: int = 1) -> DedupConfig:
    return DedupConfig(
        source_url=collection.run_url,
        workspace_url=collection.run_url,
        neighbors={"exact_up_to": exact_up_to},
        clusters={"min_samples": min_samples},
    )


SEARCHES = [SearchRange(0, 1), SearchRange(1, 4), SearchRange(4, 5)]


def links_of_files(files: list[LinkFile]) -> list[tuple[int, int]]:
    tables = [storage.read_table(file.url, LINKS) for file in files]
    assert [table.num_rows for table in tables] == [file.num_links for file in files]
    return sorted(
        {(row["item_id"], row["linked_id"]) for table in tables for row in table.to_pylist()}
    )


@pytest.mark.parametrize("exact_up_to", [0, 1_000])
@pytest.mark.parametrize("depth", [0, 9])
def test_find_neighbors_never_joins_two_cameras(
    two_cameras: Collection, depth: int, exact_up_to: int
) -> None:
    config = settings(two_cameras, exact_up_to=exact_up_to)

    cells = plan_cells.fn(two_cameras, depth, config)
    files = [find_neighbors.fn(search, cells, two_cameras) for search in SEARCHES]

    assert cells == Cells(cells.url, cells.folder_url, depth, num_items=5)
    assert links_of_files(files) == [(1, 0), (4, 3)]


def test_plan_cells_has_one_cell_for_each_small_camera(two_cameras: Collection) -> None:
    cells = plan_cells.fn(two_cameras, 8, settings(two_cameras, exact_up_to=3))

    assert storage.read_table(cells.url, CELLS)["home"].to_pylist() == [[0, 1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("min_samples", "cores", "links"),
    [(2, [0, 1, 3, 4], [(1, 0), (4, 3)]), (3, [], [])],
)
def test_only_items_with_enough_neighbours_are_linked(
    two_cameras: Collection, min_samples: int, cores: list[int], links: list[tuple[int, int]]
) -> None:
    config = settings(two_cameras, min_samples)
    cells = plan_cells.fn(two_cameras, 0, config)

    core_files = [find_cores.fn(search, cells, two_cameras, config) for search in SEARCHES]
    cells = mark_cores.fn(core_files, cells)
    files = [find_neighbors.fn(search, cells, two_cameras) for search in SEARCHES]

    assert sum(file.num_cores for file in core_files) == len(cores)
    assert storage.read_table(str(cells.cores_url), CORES)["item_id"].to_pylist() == cores
    assert links_of_files(files) == links


def test_nothing_to_compare_has_no_cells(tmp_path: Path) -> None:
    images_url, features_url = str(tmp_path / "images.parquet"), str(tmp_path / "features.npy")
    storage.publish_table(images_url, IMAGES.empty_table())
    np.save(features_url, np.empty((0, FEATURE_DIM), np.float32))
    nothing = Collection("run", str(tmp_path), images_url, features_url, 0, 0, 0, 0)

    cells = plan_cells.fn(nothing, 0, settings(nothing))

    assert storage.read_table(cells.url, CELLS).num_rows == 0
    assert mark_cores.fn([], cells).cores_url == f"{cells.folder_url}/cores.parquet"
    assert isinstance(find_cores.fn(SearchRange(0, 0), cells, nothing, settings(nothing)), CoreFile)
