"""Stage 3: read, decode and embed the images of one shard."""

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from config import DedupConfig, FeatureSettings
from tasks import storage
from tasks.errors import UnreadableImageError
from tasks.feature_store import GONE, feature_metadata, store_url
from tasks.images import decode_image
from tasks.references import FeatureFile, Shard
from tasks.schemas import FEATURES, fingerprint
from tasks.stage import stage
from tasks.stage02_plan_shards import read_shard
from tasks.vgg16 import normalize_features, pool_maps, vgg16_maps

logger = logging.getLogger(__name__)

Row = dict[str, Any]
"""One row of a table of `schemas.FEATURES`."""

Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""`(N, S, S, 3)` uint8 RGB to `(N, 512)` float32 features."""


@stage("embed_shard", run_name="embed_shard-{shard.number}")
def embed_shard(shard: Shard, config: DedupConfig) -> FeatureFile:
    """Publish the feature file of one shard."""
    started = time.perf_counter()
    images = read_shard(shard).to_pylist()
    rows = embed_images(
        images,
        read=storage.read_bytes,
        embed=lambda pixels: embed_pixels(pixels, config),
        settings=config.features,
        batch_size=config.execution.batch_size,
    )
    table = pa.Table.from_pylist(rows, schema=FEATURES)
    table = table.replace_schema_metadata(feature_metadata(config.features))
    workspace_url = storage.absolute_url(config.workspace_url)
    # Named by its images: the same shard, tried again, replaces its own file and no other.
    name = f"{fingerprint([image['image_id'] for image in images])}.parquet"
    url = storage.join(store_url(workspace_url, config.features), name)
    storage.publish_table(url, table)
    num_unreadable = len(rows) - table["error"].null_count
    seconds = time.perf_counter() - started
    logger.info(
        "shard %d: %d images, %d unreadable, %.1f images/s",
        shard.number,
        len(rows),
        num_unreadable,
        len(rows) / seconds,
    )
    return FeatureFile(
        url=url,
        num_images=len(rows),
        num_unreadable=num_unreadable,
        num_embedded=len(rows) - num_unreadable,
    )


def embed_pixels(pixels: NDArray[np.uint8], config: DedupConfig) -> NDArray[np.float32]:
    """Turn decoded images into features.

    Args:
        pixels: `(N, S, S, 3)` uint8 RGB.
        config: How.

    Returns:
        `(N, 512)` float32, of unit length.
    """
    settings = config.features
    maps = vgg16_maps(
        pixels,
        batch_size=config.execution.batch_size,
        dtype=settings.dtype,
        weights_path=config.execution.weights_path,
    )
    pooled = pool_maps(maps, pooling=settings.pooling, gem_p=settings.gem_p)
    return normalize_features(pooled, power=settings.power)


def embed_images(
    images: Sequence[Row],
    *,
    read: Callable[[str], bytes],
    embed: Embed,
    settings: FeatureSettings,
    batch_size: int,
) -> list[Row]:
    """Embed images batch by batch; an unreadable one becomes a row with its error.

    Args:
        images: Rows of `schemas.SHARD`.
        read: Gives the bytes of a URL.
        embed: Gives the features of a batch.
        settings: Limits and size of the decoded images.
        batch_size: Images in one batch.

    Returns:
        One row of `schemas.FEATURES` per image, in the same order.

    Raises:
        OSError: An image could not be read for a reason that is not the image's own.
    """
    rows: list[Row] = []
    for start in range(0, len(images), batch_size):
        batch = [read_image(image, read, settings) for image in images[start : start + batch_size]]
        readable = [(row, pixels) for row, pixels in batch if pixels is not None]
        if readable:
            features = embed(np.stack([pixels for _, pixels in readable]))
            for (row, _), feature in zip(readable, features, strict=True):
                row["feature"] = feature
        rows.extend(row for row, _ in batch)
    return rows


def read_image(
    image: Row, read: Callable[[str], bytes], settings: FeatureSettings
) -> tuple[Row, NDArray[np.uint8] | None]:
    """Read and decode one image.

    Returns:
        Its row, still without a feature, and its `(S, S, 3)` uint8 pixels, or None with the
        reason in the row's `error`.
    """
    row: Row = dict.fromkeys(FEATURES.names) | image
    if image["size_bytes"] > settings.max_file_bytes:
        size = image["size_bytes"]
        row["error"] = f"file of {size} bytes, at most {settings.max_file_bytes} are read"
        return row, None
    try:
        content = read(image["url"])
    except FileNotFoundError:
        row["error"] = GONE
        return row, None
    row["sha256"] = hashlib.sha256(content).hexdigest()
    try:
        decoded = decode_image(
            content, image_size=settings.image_size, max_pixels=settings.max_image_pixels
        )
    except UnreadableImageError as error:
        row["error"] = str(error)
        return row, None
    row.update(width=decoded.width, height=decoded.height, sharpness=decoded.sharpness)
    return row, decoded.pixels
