"""Stage 7: DBSCAN over the pairs within eps."""

import logging

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import coo_matrix, csr_matrix
from sklearn.cluster import DBSCAN

from config import DedupConfig
from tasks import storage
from tasks.references import Clusters, Collection, Neighbors
from tasks.schemas import CLUSTERS, IMAGES, ITEMS
from tasks.stage import stage
from tasks.stage05_build_index import item_table
from tasks.stage06_find_neighbors import Pairs, read_edges

logger = logging.getLogger(__name__)


@stage("cluster_images")
def cluster_images(neighbors: Neighbors, collection: Collection, config: DedupConfig) -> Clusters:
    """Publish the cluster of every item."""
    graph = neighbor_graph(read_edges(list(neighbors.edge_files)), collection.num_items)
    labels = dbscan_labels(graph, eps=config.neighbors.eps, min_samples=config.clusters.min_samples)
    items = item_table(storage.read_table(collection.images_url, IMAGES, ITEMS.names))
    table = pa.Table.from_arrays(
        [items["image_id"], pa.array(labels), pa.array(np.diff(graph.indptr).astype(np.int32))],
        schema=CLUSTERS,
    )
    url = storage.join(collection.run_url, "clusters.parquet")
    storage.publish_table(url, table)
    num_clusters = int(labels.max(initial=-1)) + 1
    logger.info("%d clusters, %d noise", num_clusters, int((labels == -1).sum()))
    return Clusters(url=url, num_clusters=num_clusters)


def neighbor_graph(pairs: Pairs, num_items: int) -> csr_matrix:
    """Turn pairs into a symmetric sparse matrix of distances.

    Args:
        pairs: Every pair once.
        num_items: N.

    Returns:
        `(N, N)` float32 CSR matrix with sorted indices. Distance 0 between exact copies is stored,
        the diagonal is not.
    """
    items, neighbors, distances = pairs
    rows = np.concatenate([items, neighbors])
    columns = np.concatenate([neighbors, items])
    graph = coo_matrix(
        (np.concatenate([distances, distances]), (rows, columns)), shape=(num_items, num_items)
    ).tocsr()
    graph.sort_indices()
    return graph


def dbscan_labels(graph: csr_matrix, *, eps: float, min_samples: int) -> NDArray[np.int32]:
    """Label each item with its DBSCAN cluster (Ester et al., 1996).

    Args:
        graph: `(N, N)` float32 cosine distances; a missing entry is farther than eps.
        eps: Largest cosine distance, in [0, 2], that joins two items.
        min_samples: Items within eps, itself included, that make a core item.

    Returns:
        `(N,)` int32 labels, numbered by first appearance; -1 marks noise.
    """
    if graph.shape[0] == 0:
        return np.empty(0, np.int32)
    # scikit-learn compares in float32 and refuses a radius of 0.
    radius = np.float32(eps)
    if radius > eps:
        radius = np.nextafter(radius, np.float32(0))
    radius = max(radius, np.finfo(np.float32).tiny)
    dbscan = DBSCAN(eps=float(radius), min_samples=min_samples, metric="precomputed")
    return number_by_first_appearance(dbscan.fit_predict(graph))


def number_by_first_appearance(labels: NDArray[np.int64]) -> NDArray[np.int32]:
    """Renumber labels 0, 1, 2, … in the order in which they appear; -1 stays."""
    values, first, position = np.unique(labels, return_index=True, return_inverse=True)
    is_cluster = values >= 0
    numbers = np.full(len(values), -1, np.int32)
    by_appearance = np.flatnonzero(is_cluster)[np.argsort(first[is_cluster])]
    numbers[by_appearance] = np.arange(len(by_appearance))
    return numbers[position]
