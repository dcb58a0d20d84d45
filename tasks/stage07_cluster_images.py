"""Stage 7: DBSCAN's clusters, and a measurement of how many pairs within eps they honour."""

import logging
import math

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from config import DedupConfig
from tasks import blas, storage
from tasks.cells import open_features, read_is_core, read_partitions
from tasks.comparisons import (
    COLUMNS_AT_ONCE,
    ROWS_AT_ONCE,
    Components,
    Eps,
    Features,
    Items,
    are_within,
    unite,
)
from tasks.references import Cells, Clusters, Collection, LinkFile
from tasks.schemas import CLUSTERS, IMAGES, ITEMS, LINKS
from tasks.stage import stage
from tasks.stage04_collect_features import item_table
from tasks.stage06_find_neighbors import Links

logger = logging.getLogger(__name__)

Labels = NDArray[np.int32]


@stage("cluster_images", run_name="cluster_images-{cells.depth}")
def cluster_images(
    link_files: list[LinkFile], cells: Cells, collection: Collection, config: DedupConfig
) -> Clusters:
    """Publish the cluster of every item."""
    component: Components = np.arange(collection.num_items, dtype=np.int32)
    is_core = None
    if cells.cores_url is not None:
        is_core = read_is_core(cells.cores_url, collection.num_items)
    borders = []
    for file in link_files:
        table = storage.read_table(file.url, LINKS)
        links = table["item_id"].to_numpy(), table["linked_id"].to_numpy()
        between_cores, to_borders = split_links(links, is_core)
        component = unite(component, *between_cores)
        borders.append(to_borders)
    if is_core is None:
        is_core = are_large(component, config.clusters.min_samples)
    labels = dbscan_labels(component, is_core, borders)
    items = item_table(storage.read_table(collection.images_url, IMAGES, ITEMS.names))
    table = pa.Table.from_arrays(
        [items["image_id"], pa.array(labels), pa.array(is_core)], schema=CLUSTERS
    )
    url = storage.join(cells.folder_url, "clusters.parquet")
    storage.publish_table(url, table)
    num_clusters = int(labels.max(initial=-1)) + 1
    logger.info("%d clusters, %d noise", num_clusters, int((labels == -1).sum()))
    return Clusters(url=url, num_clusters=num_clusters)


def split_links(links: Links, is_core: NDArray[np.bool_] | None) -> tuple[Links, Links]:
    """Part the links between core items from those of border items.

    Args:
        links: As `links_of_cell` returns them.
        is_core: `(N,)` which items are core items; None says that every linked one is.
    """
    items, linked = links
    starts_in_core = np.ones(len(items), np.bool_) if is_core is None else is_core[items]
    return (
        (items[starts_in_core], linked[starts_in_core]),
        (items[~starts_in_core], linked[~starts_in_core]),
    )


def are_large(component: Components, min_size: int) -> NDArray[np.bool_]:
    """Tell which things have a component of at least a size: `(N,)` bool."""
    large: NDArray[np.bool_] = np.bincount(component, minlength=1)[component] >= min_size
    return large


def dbscan_labels(
    component: Components, is_core: NDArray[np.bool_], borders: list[Links]
) -> Labels:
    """Label each item with its DBSCAN cluster (Ester et al., 1996).

    Args:
        component: `(N,)` the lowest core item that a core item is connected with.
        is_core: `(N,)` which items are core items.
        borders: Other items with the core items within eps of them. As in scikit-learn such an
            item belongs to the cluster whose lowest core item is lowest.

    Returns:
        `(N,)` int32 labels, numbered by first appearance; -1 marks noise.
    """
    is_free = np.iinfo(np.int32).max
    labels = np.where(is_core, component, is_free)
    for items, cores in borders:
        np.minimum.at(labels, items, component[cores])
    return number_by_first_appearance(np.where(labels == is_free, -1, labels))


def number_by_first_appearance(labels: NDArray[np.int32]) -> Labels:
    """Renumber labels 0, 1, 2, … in the order in which they appear; -1 stays."""
    values, first, position = np.unique(labels, return_index=True, return_inverse=True)
    is_cluster = values >= 0
    numbers = np.full(len(values), -1, np.int32)
    by_appearance = np.flatnonzero(is_cluster)[np.argsort(first[is_cluster])]
    numbers[by_appearance] = np.arange(len(by_appearance))
    return numbers[position]


@stage("measure_recall", run_name="measure_recall-{cells.depth}")
def measure_recall(
    clusters: Clusters, cells: Cells, collection: Collection, config: DedupConfig
) -> float:
    """Measure which share of the pairs within eps of a random sample the clusters honour."""
    settings = config.neighbors
    features = open_features(collection.features_url)
    partitions = read_partitions(collection.images_url)
    table = storage.read_table(clusters.url, CLUSTERS)
    with blas.one_thread():
        recall = recall_of_pairs(
            features,
            list(partitions.values()),
            table["cluster_id"].to_numpy(),
            table["is_core"].to_numpy(),
            sample_items(len(features), settings.num_recall_samples, settings.seed),
            eps=np.array([config.of_partition(name).eps for name in partitions]),
            min_samples=config.clusters.min_samples,
        )
    logger.info("search depth %d: recall %.4f of the pairs within eps", cells.depth, recall)
    return recall


def sample_items(num_items: int, num_samples: int, seed: int) -> Items:
    """Draw items without replacement, sorted; all of them when there are no more."""
    if num_items <= num_samples:
        return np.arange(num_items)
    return np.sort(np.random.default_rng(seed).choice(num_items, num_samples, replace=False))


def recall_of_pairs(
    features: Features,
    partitions: list[tuple[int, int]],
    labels: Labels,
    is_core: NDArray[np.bool_],
    sample: Items,
    *,
    eps: Eps,
    min_samples: int,
) -> float:
    """Compare sampled items with every other by brute force and count the pairs that are honoured.

    A pair counts when the sampled item truly is a core item. It is honoured when that item was
    found to be one, and the other is in its cluster or, as a border item, in any. Every sampled
    item weighs the same: the pairs of one large group would outweigh those of all small ones.

    Args:
        features: `(N, D)` float32 of unit length.
        partitions: Ranges of items that may be neighbours of each other.
        labels: `(N,)` int32 clusters, -1 for noise.
        is_core: `(N,)` which items were found to be core items.
        sample: Sorted items to check.
        eps: Largest cosine distance of a pair, for all or for each partition.
        min_samples: Items within eps, itself included, that make a core item.

    Returns:
        Share of its pairs that are honoured, averaged over the sampled items that have any; 1 when
        there are none.
    """
    shares: list[float] = []
    eps_of_each = np.broadcast_to(eps, len(partitions)).tolist()
    for (start, stop), largest in zip(partitions, eps_of_each, strict=True):
        items = sample[(sample >= start) & (sample < stop)]
        for row in range(0, len(items), ROWS_AT_ONCE):
            rows = items[row : row + ROWS_AT_ONCE]
            within_eps = np.zeros(len(rows), np.int64)
            honoured = np.zeros(len(rows), np.int64)
            for column in range(start, stop, COLUMNS_AT_ONCE):
                some = slice(column, min(column + COLUMNS_AT_ONCE, stop))
                near = are_within(features[rows], features[some], largest)
                within_eps += near.sum(axis=1)
                near &= (labels[rows][:, None] == labels[some]) | (
                    ~is_core[some] & (labels[some] >= 0)
                )
                honoured += near.sum(axis=1)
            honoured[~is_core[rows]] = 1
            # An item is within eps of itself: that is a sample of DBSCAN, but no pair.
            counts = within_eps >= max(min_samples, 2)
            shares += ((honoured - 1) / np.maximum(within_eps - 1, 1))[counts].tolist()
    return math.fsum(shares) / len(shares) if shares else 1.0
