"""Stage 8: which image of each cluster stays, and for which of the others."""

import heapq
import logging

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from config import DedupConfig
from tasks import storage
from tasks.distances import cosine_distances
from tasks.references import Clusters, Collection, Keepers, Neighbors
from tasks.schemas import CLUSTERS, IMAGES, KEEPERS
from tasks.stage import stage
from tasks.stage06_find_neighbors import read_edges
from tasks.stage07_cluster_images import neighbor_graph

logger = logging.getLogger(__name__)

Labels = NDArray[np.int32]
Ranks = NDArray[np.int64]


@stage("choose_keepers")
def choose_keepers(
    clusters: Clusters, neighbors: Neighbors, collection: Collection, config: DedupConfig
) -> Keepers:
    """Publish the keeper of every item that is to go, with the exact distance to it."""
    labels = storage.read_table(clusters.url, CLUSTERS)["cluster_id"].to_numpy()
    images = storage.read_table(collection.images_url, IMAGES)
    items = images.filter(pc.is_valid(images["item_id"])).sort_by("item_id")
    if config.clusters.keepers == "cover":
        graph = neighbor_graph(read_edges(list(neighbors.edge_files)), collection.num_items)
        keeper_of = cover_keepers(graph, labels, quality_ranks(items))
    else:
        keeper_of = first_keepers(labels, url_ranks(items))
    removed = np.flatnonzero(keeper_of >= 0)
    features = np.load(storage.local_path(collection.features_url), mmap_mode="r")
    image_ids = items["image_id"].to_numpy(zero_copy_only=False)
    table = pa.Table.from_arrays(
        [
            pa.array(image_ids[removed], pa.string()),
            pa.array(image_ids[keeper_of[removed]], pa.string()),
            pa.array(paired_distances(features, removed, keeper_of[removed])),
        ],
        schema=KEEPERS,
    )
    url = storage.join(collection.run_url, "keepers.parquet")
    storage.publish_table(url, table)
    logger.info("%d of %d images can go", len(removed), collection.num_items)
    return Keepers(url=url, num_removed=len(removed))


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


def cover_keepers(graph: csr_matrix, labels: Labels, ranks: Ranks) -> NDArray[np.int64]:
    """Choose few keepers such that every other image of a cluster is a neighbour of one.

    Greedy cover (Chvátal, 1979): the image that covers most images not covered yet is kept next;
    the better one of equals. Afterwards every image that is not kept gets its nearest keeper.

    Args:
        graph: `(N, N)` float32 distances within eps, symmetric, without a diagonal.
        labels: `(N,)` int32 clusters, -1 for noise.
        ranks: `(N,)` int64, 0 for the best image.

    Returns:
        `(N,)` int64: the item that is kept for this one, -1 for one that is kept itself. A keeper
        is in the same cluster and has a stored distance to the item.
    """
    graph = _within_clusters(graph, labels)
    is_covered = labels == -1
    is_kept = labels == -1
    # Nobody's gain grows, so an entry whose gain is still right is the best there is.
    gains = np.diff(graph.indptr) + 1
    heap = [
        (-int(gains[item]), int(ranks[item]), int(item)) for item in np.flatnonzero(labels >= 0)
    ]
    heapq.heapify(heap)
    while heap:
        gain, rank, item = heapq.heappop(heap)
        neighbors = graph.indices[graph.indptr[item] : graph.indptr[item + 1]]
        gain_now = int((~is_covered[neighbors]).sum()) + int(not is_covered[item])
        if gain_now == 0:
            continue
        if gain_now < -gain:
            heapq.heappush(heap, (-gain_now, rank, item))
            continue
        is_kept[item] = True
        is_covered[item] = True
        is_covered[neighbors] = True
    return _nearest_keepers(graph, is_kept, ranks)


def _within_clusters(graph: csr_matrix, labels: Labels) -> csr_matrix:
    """Drop the pairs between two clusters: a border item may be near both."""
    pairs = graph.tocoo()
    keep = (labels[pairs.row] == labels[pairs.col]) & (labels[pairs.row] >= 0)
    inside = csr_matrix((pairs.data[keep], (pairs.row[keep], pairs.col[keep])), shape=graph.shape)
    inside.sort_indices()
    return inside


def _nearest_keepers(
    graph: csr_matrix, is_kept: NDArray[np.bool_], ranks: Ranks
) -> NDArray[np.int64]:
    keeper_of = np.full(len(is_kept), -1, np.int64)
    pairs = graph.tocoo()
    useful = ~is_kept[pairs.row] & is_kept[pairs.col]
    items, keepers, distances = pairs.row[useful], pairs.col[useful], pairs.data[useful]
    # The last assignment to an item stands, so the nearest and then the best keeper comes last.
    order = np.lexsort((ranks[keepers], distances))[::-1]
    keeper_of[items[order]] = keepers[order]
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
    clusters, first = np.unique(labels[order], return_index=True)
    first_of = dict(zip(clusters.tolist(), order[first].tolist(), strict=True))
    for item in np.flatnonzero(labels >= 0):
        keeper = first_of[int(labels[item])]
        if keeper != item:
            keeper_of[item] = keeper
    return keeper_of


def paired_distances(
    features: NDArray[np.float32], items: NDArray[np.int64], keepers: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Distance of each item to its keeper, recomputed from the features: `(n,)` float32."""
    return cosine_distances(features[items], features[keepers])
