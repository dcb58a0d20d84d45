"""Stage 11: the Annoy index, for users to query; no decision waits for it."""

import logging
from pathlib import Path

import numpy as np
from annoy import AnnoyIndex
from numpy.typing import NDArray

from config import DedupConfig
from tasks import storage
from tasks.references import Collection, Index
from tasks.schemas import FEATURE_DIM, IMAGES, ITEMS
from tasks.stage import stage
from tasks.stage04_collect_features import item_table

logger = logging.getLogger(__name__)


@stage("build_index")
def build_index(collection: Collection, config: DedupConfig) -> Index:
    """Publish the index of all items; one that is there already is the same, so it stays."""
    index = Index(
        url=storage.join(collection.run_url, "index.ann"),
        items_url=storage.join(collection.run_url, "items.parquet"),
        num_items=collection.num_items,
    )
    if index.num_items == 0 or storage.exists(index.url):
        return index
    images = storage.read_table(collection.images_url, IMAGES, ITEMS.names)
    storage.publish_table(index.items_url, item_table(images))
    features = np.load(storage.local_path(collection.features_url), mmap_mode="r")
    settings = config.neighbors
    storage.publish(
        index.url,
        lambda path: write_index(features, path, n_trees=settings.n_trees, seed=settings.seed),
    )
    logger.info("index of %d items, %d trees", index.num_items, settings.n_trees)
    return index


def write_index(features: NDArray[np.float32], path: Path, *, n_trees: int, seed: int) -> None:
    """Build an Annoy index and save it.

    Args:
        features: `(N, D)` float32 of unit length; row i becomes item i.
        path: File to write.
        n_trees: Number of trees; more find more and need more room.
        seed: Seed of the random hyperplanes.
    """
    index = AnnoyIndex(features.shape[1], "angular")
    index.set_seed(seed)
    for item, feature in enumerate(features):
        index.add_item(item, feature)
    # Every thread has its own seed and they race for node numbers: one thread, one file.
    index.build(n_trees, n_jobs=1)
    index.save(str(path))


def load_index(path: Path) -> AnnoyIndex:
    """Map a saved index into memory."""
    index = AnnoyIndex(FEATURE_DIM, "angular")
    index.load(str(path))
    return index
