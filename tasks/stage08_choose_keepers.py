"""Stage 8: which image of each cluster stays, and for which of the others."""

import heapq
import logging
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from config import DedupConfig
from tasks import blas, storage
from tasks.cells import open_features
from tasks.comparisons import (
    COLUMNS_AT_ONCE,
    ROWS_AT_ONCE,
    SLACK,
    Eps,
    Features,
    Items,
    are_within,
    pair_distances,
)
from tasks.distances import within
from tasks.partitions import eps_of
from tasks.references import Clusters, Collection, Keepers
from tasks.schemas import CLUSTERS, IMAGES, KEEPERS
from tasks.stage import stage
from tasks.stage05_plan_cells import rank_pivots

logger = logging.getLogger(__name__)

Labels = NDArray[np.int32]
Ranks = NDArray[np.int64]

_WINDOW = 16_384
"""Items of a cluster that are covered together: their adjacency is 32 MiB of bits."""

_ITEMS_PER_CELL = 4_096
"""Items at home in one cell of a cluster that is larger than a window."""

_CELLS_OF_AN_ITEM = 8
"""An item of such a cluster may go for the keepers that are in one of its nearest cells."""


@stage("choose_keepers")
def choose_keepers(clusters: Clusters, collection: Collection, config: DedupConfig) -> Keepers:
    """Publish the keeper of every item that is to go, with the exact distance to it."""
    labels = storage.read_table(clusters.url, CLUSTERS)["cluster_id"].to_numpy()
    images = storage.read_table(collection.images_url, IMAGES)
    items = images.filter(pc.is_valid(images["item_id"])).sort_by("item_id")
    features = open_features(collection.features_url)
    if config.clusters.keepers == "cover":
        ranks = quality_ranks(items)
        with blas.one_thread():
            eps = eps_of(items["camera"], config)
            keeper_of = cover_keepers(features, labels, ranks, eps=eps)
    else:
        keeper_of = first_keepers(labels, url_ranks(items))
    table = keeper_table(items, keeper_of, features)
    url = storage.join(collection.run_url, "keepers.parquet")
    storage.publish_table(url, table)
    logger.info("%d of %d images can go", table.num_rows, collection.num_items)
    return Keepers(url=url, num_removed=table.num_rows)


def keeper_table(items: pa.Table, keeper_of: Items, features: Features) -> pa.Table:
    """Write down which items go, for which keeper and how far it is.

    Args:
        items: Column `image_id` of `schemas.IMAGES`, in the order of the items.
        keeper_of: `(N,)` the item that is kept for each, -1 for one that is kept itself.
        features: `(N, D)` float32 of unit length.

    Returns:
        A table of `schemas.KEEPERS`.
    """
    removed = np.flatnonzero(keeper_of >= 0)
    image_ids = items["image_id"].combine_chunks()
    return pa.Table.from_arrays(
        [
            image_ids.take(pa.array(removed)),
            image_ids.take(pa.array(keeper_of[removed])),
            pa.array(paired_distances(features, removed, keeper_of[removed])),
        ],
        schema=KEEPERS,
    )


def quality_ranks(items: pa.Table) -> Ranks:
    """Order images from the best to the worst: sharper, then larger, then earlier, then by URL.

    Sharpness counts in steps of a quarter: less is the doing of encoders and decoders, and would
    make a heavily compressed copy win over the frame it was made from.

    Args:
        items: Columns `sharpness`, `width`, `height`, `captured_at` and `url` of `schemas.IMAGES`.

    Returns:
        `(N,)` int64, 0 for the best.
    """
    pixels = items["width"].to_numpy().astype(np.int64) * items["height"].to_numpy()
    steps = np.round(np.log(np.maximum(items["sharpness"].to_numpy(), 1e-9)) / np.log(1.25))
    order = np.lexsort(
        (
            url_ranks(items),
            items["captured_at"].to_numpy().astype(np.int64),
            -pixels,
            -steps,
        )
    )
    return _ranks(order)


def url_ranks(items: pa.Table) -> Ranks:
    """Order images by URL: `(N,)` int64, 0 for the first."""
    return _ranks(pc.sort_indices(items["url"]).to_numpy())


def _ranks(order: NDArray[np.int64]) -> Ranks:
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    return ranks


def cover_keepers(
    features: Features, labels: Labels, ranks: Ranks, *, eps: Eps, window: int = _WINDOW
) -> Items:
    """Choose few keepers such that every other image of a cluster is within eps of one.

    Greedy cover (Chvátal, 1979): the image that covers most images not covered yet is kept next;
    the better one of equals. Afterwards every image that is not kept gets its nearest keeper. A
    cluster of more than `window` images is divided into cells of images near each other. They are
    covered one after the other, after the keepers of earlier cells have covered what they can, and
    an image goes for the nearest of the keepers that are in its cell or guests of it.

    Args:
        features: `(N, D)` float32 of unit length; may be a memory map.
        labels: `(N,)` int32 clusters, -1 for noise.
        ranks: `(N,)` int64, 0 for the best image.
        eps: Largest cosine distance to a keeper, for all items or for each; equal within a cluster.
        window: Images covered together.

    Returns:
        `(N,)` int64: the item that is kept for this one, -1 for one that is kept itself. A keeper
        is in the same cluster and within eps.
    """
    keeper_of = np.full(len(labels), -1, np.int64)
    eps_of_each = np.broadcast_to(eps, len(labels))
    for members in members_of_clusters(labels):
        largest = float(eps_of_each[members[0]])
        cells_of = cells_of_members(features, members, window)
        is_kept = np.zeros(len(members), np.bool_)
        for home, is_near in iterate_members(cells_of):
            for start in range(0, len(home), window):
                some = home[start : start + window]
                keepers = members[is_kept & is_near]
                chosen = cover(features, members[some], keepers, ranks, eps=largest)
                is_kept[some[chosen]] = True
        for home, is_near in iterate_members(cells_of):
            keepers = members[is_kept & is_near]
            others = members[home[~is_kept[home]]]
            # A damaged feature is not even near itself, and what has no twin stays.
            for start in range(0, len(others) if len(keepers) else 0, ROWS_AT_ONCE):
                rest = others[start : start + ROWS_AT_ONCE]
                keeper_of[rest] = nearest_keepers(
                    features, rest, keepers, ranks[keepers], eps=largest
                )
    return keeper_of


def cells_of_members(features: Features, members: Items, window: int) -> NDArray[np.uint16]:
    """Say in which cells the items of a cluster are.

    Args:
        features: `(N, D)` float32 of unit length.
        members: `(M,)` items of one cluster.
        window: A cluster of at most so many items is one cell.

    Returns:
        `(M, depth)` uint16, at most 8 cells for each item, that of its nearest pivot first.
    """
    if len(members) <= window:
        return np.zeros((len(members), 1), np.uint16)
    pivots = features[members[:: min(_ITEMS_PER_CELL, window)]]
    depth = min(_CELLS_OF_AN_ITEM, len(pivots))
    blocks = (
        members[start : start + ROWS_AT_ONCE] for start in range(0, len(members), ROWS_AT_ONCE)
    )
    return np.concatenate(
        [rank_pivots(features[block], pivots=pivots, depth=depth) for block in blocks]
    )


def iterate_members(
    cells_of: NDArray[np.uint16],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """Go through the cells of a cluster.

    Args:
        cells_of: `(M, depth)` as `cells_of_members` returns it.

    Yields:
        The positions at home in a cell, and `(M,)` which are in it, at home or as guests.
    """
    for cell in range(int(cells_of.max()) + 1):
        is_in = cells_of == cell
        yield np.flatnonzero(is_in[:, 0]), is_in.any(axis=1)


def cover(features: Features, items: Items, keepers: Items, ranks: Ranks, *, eps: float) -> Items:
    """Choose which of some items are kept besides those that are already.

    Args:
        features: `(N, D)` float32 of unit length.
        items: `(n,)` items to cover.
        keepers: Items that are kept.
        ranks: `(N,)` int64, 0 for the best image.
        eps: Largest cosine distance to a keeper.

    Returns:
        Positions in `items`, in the order in which they were chosen.
    """
    is_covered = _any_within(features, items, keepers, eps)
    near = adjacency(features, items, items[~is_covered], eps)
    return greedy_cover(near, ranks[items])


def members_of_clusters(labels: Labels) -> Iterator[Items]:
    """The items of each cluster, sorted, without noise."""
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(labels.max(initial=-1) + 2))
    for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        yield order[start:stop]


def _any_within(features: Features, items: Items, others: Items, eps: float) -> NDArray[np.bool_]:
    """Tell which items are within eps of any of the others."""
    found = np.zeros(len(items), np.bool_)
    for start in range(0, len(others), ROWS_AT_ONCE):
        rest = np.flatnonzero(~found)
        some = others[start : start + ROWS_AT_ONCE]
        found[rest] = are_within(features[some], features[items[rest]], eps).any(axis=0)
    return found


def adjacency(features: Features, rows: Items, columns: Items, eps: float) -> NDArray[np.uint8]:
    """Pack which items are within eps of which others into bits.

    Args:
        features: `(N, D)` float32 of unit length.
        rows: `(R,)` items.
        columns: `(C,)` items.
        eps: Largest cosine distance.

    Returns:
        `(R, ceil(C / 8))` uint8, as `np.packbits` packs rows.
    """
    b = features[columns]
    bits = np.empty((len(rows), -(-len(columns) // 8)), np.uint8)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = slice(start, start + ROWS_AT_ONCE)
        bits[some] = np.packbits(are_within(features[rows[some]], b, eps), axis=1)
    return bits


def greedy_cover(near: NDArray[np.uint8], ranks: Ranks) -> Items:
    """Choose rows until each column that any row covers is covered.

    Args:
        near: `(R, B)` uint8, for each row the bits of the columns it covers.
        ranks: `(R,)` int64, lower is better among rows that cover equally many.

    Returns:
        The chosen rows, in the order in which they were chosen.
    """
    chosen = []
    uncovered = np.bitwise_or.reduce(near, axis=0)
    # Nobody's gain grows, so an entry whose gain is still right is the best there is.
    gains = np.bitwise_count(near).sum(axis=1, dtype=np.int64)
    heap = list(zip((-gains).tolist(), ranks.tolist(), range(len(near)), strict=True))
    heapq.heapify(heap)
    while uncovered.any():
        gain, rank, row = heapq.heappop(heap)
        gain_now = int(np.bitwise_count(near[row] & uncovered).sum(dtype=np.int64))
        if gain_now == -gain:
            chosen.append(row)
            uncovered &= ~near[row]
        elif gain_now:
            heapq.heappush(heap, (-gain_now, rank, row))
    return np.array(chosen, np.int64)


def nearest_keepers(
    features: Features, items: Items, keepers: Items, ranks: Ranks, *, eps: float
) -> Items:
    """Find the nearest keeper of each item by exact distance, the better one of equally near ones.

    Args:
        features: `(N, D)` float32 of unit length.
        items: `(n,)` items, each within eps of at least one keeper.
        keepers: `(K,)` items that are kept.
        ranks: `(K,)` int64, lower is better.
        eps: Largest cosine distance to a keeper.

    Returns:
        `(n,)` int64, one of the keepers for each item.
    """
    a = features[items]
    best = np.full((len(items), 1), -1.0, np.float32)
    found = []
    for start in range(0, len(keepers), COLUMNS_AT_ONCE):
        b = features[keepers[start : start + COLUMNS_AT_ONCE]]
        products = a @ b.T
        best = np.maximum(best, products.max(axis=1, keepdims=True))
        i, j = np.nonzero(products >= best - np.float32(2 * SLACK))
        distances = pair_distances(a, b, i, j)
        near = within(distances, eps)
        found.append((i[near], start + j[near], distances[near]))
    i, j, distances = (np.concatenate(columns) for columns in zip(*found, strict=True))
    keeper_of = np.full(len(items), -1, np.int64)
    # The last assignment to an item stands, so the nearest and then the best keeper comes last.
    order = np.lexsort((ranks[j], distances))[::-1]
    keeper_of[i[order]] = keepers[j[order]]
    return keeper_of


def first_keepers(labels: Labels, ranks: Ranks) -> NDArray[np.int64]:
    """Keep the first image of every cluster for all others of it, however far they are.

    Args:
        labels: `(N,)` int32 clusters, -1 for noise.
        ranks: `(N,)` int64, 0 for the first image.

    Returns:
        `(N,)` int64: the item that is kept for this one, -1 for one that is kept itself.
    """
    keeper_of = np.full(len(labels), -1, np.int64)
    order = np.argsort(ranks)
    _, first, position = np.unique(labels[order], return_index=True, return_inverse=True)
    keeper_of[order] = order[first][position]
    is_kept = (labels == -1) | (keeper_of == np.arange(len(labels)))
    keeper_of[is_kept] = -1
    return keeper_of


def paired_distances(features: Features, items: Items, keepers: Items) -> NDArray[np.float32]:
    """Distance of each item to its keeper, recomputed from the features: `(n,)` float32."""
    return pair_distances(features, features, items, keepers)
