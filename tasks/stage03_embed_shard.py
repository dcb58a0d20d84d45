"""Stage 3: read, decode and embed the images of one shard."""

import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from config import DedupConfig, FeatureSettings, GateSettings
from tasks import storage
from tasks.change_gate import ChangeGate
from tasks.distances import cosine_distances
from tasks.errors import UnreadableImageError
from tasks.feature_store import (
    GONE,
    feature_fingerprint,
    feature_metadata,
    gate_name,
    store_url,
)
from tasks.images import decode_image
from tasks.machine import named_format
from tasks.memo import Embed, Feature, FeatureMemo, Pixels, Seen, feature_memo
from tasks.references import FeatureFile, Shard
from tasks.schemas import FEATURES, fingerprint
from tasks.stage import stage
from tasks.stage02_plan_shards import read_shard
from tasks.vgg16 import normalize_features, pool_maps, usual_batch_size, vgg16_maps
from tasks.views import WHOLE_IMAGE, View, open_view, whole_images

logger = logging.getLogger(__name__)

Row = dict[str, Any]
"""One row of a table of `schemas.FEATURES`."""

Read = Callable[[str], bytes]
"""The bytes of a URL."""

ViewOf = Callable[[str], View]
"""The view of a partition."""

READERS_PER_SHARD = 2
"""Threads that read and decode while the shard before them waits for the model."""


@stage("embed_shard", run_name="embed_shard-{shard.number}")
def embed_shard(shard: Shard, config: DedupConfig) -> FeatureFile:
    """Publish the feature file of one shard."""
    started = time.perf_counter()
    named_format(config.features)  # before anything is written under a format that has no name
    images = read_shard(shard).to_pylist()
    rows = embed_images(
        images,
        read=storage.read_bytes,
        embed=lambda pixels: embed_pixels(pixels, config),
        settings=config.features,
        batch_size=config.execution.batch_size or usual_batch_size(config.features.engine),
        memo=feature_memo(feature_fingerprint(config.features)),
        gate=change_gate(config.gate),
        view_of=lru_cache(
            lambda partition: open_view(partition, shard.plan_url.rpartition("/")[0], config)
        ),
    )
    table = pa.Table.from_pylist(rows, schema=FEATURES)
    table = table.replace_schema_metadata(feature_metadata(config.features, gate_name(config)))
    workspace_url = storage.absolute_url(config.workspace_url)
    # Named by its images: the same shard, tried again, replaces its own file and no other.
    name = f"{fingerprint([[image['image_id'], image['view']] for image in images])}.parquet"
    url = storage.join(store_url(workspace_url, config.features), name)
    storage.publish_table(url, table)
    num_unreadable = len(rows) - table["error"].null_count
    num_gated = len(rows) - table["stands_on"].null_count
    seconds = time.perf_counter() - started
    logger.info(
        "shard %d: %d images, %d unreadable%s, %.1f images/s",
        shard.number,
        len(rows),
        num_unreadable,
        f", {num_gated} stand on another" if config.gate.enabled else "",
        len(rows) / seconds,
    )
    return FeatureFile(
        url=url,
        num_images=len(rows),
        num_unreadable=num_unreadable,
        num_embedded=len(rows) - num_unreadable - num_gated,
        seconds=round(seconds, 3),
    )


def change_gate(settings: GateSettings) -> ChangeGate | None:
    """A gate that has seen nothing yet, if the settings want one."""
    return ChangeGate(settings.max_change, settings.sample_fraction) if settings.enabled else None


def embed_pixels(pixels: Pixels, config: DedupConfig) -> NDArray[np.float32]:
    """Turn decoded images into features.

    Args:
        pixels: `(N, S, S, 3)` uint8 RGB.
        config: How; its number format has a name.

    Returns:
        `(N, 512)` float32, of unit length.
    """
    settings = config.features
    maps = vgg16_maps(
        pixels,
        batch_size=config.execution.batch_size or usual_batch_size(settings.engine),
        engine=settings.engine,
        dtype=named_format(settings),
        weights_path=config.execution.weights_path,
    )
    pooled = pool_maps(maps, pooling=settings.pooling, gem_p=settings.gem_p)
    return normalize_features(pooled, power=settings.power)


def embed_images(
    images: Sequence[Row],
    *,
    read: Read,
    embed: Embed,
    settings: FeatureSettings,
    batch_size: int,
    memo: FeatureMemo,
    gate: ChangeGate | None = None,
    view_of: ViewOf = whole_images,
) -> list[Row]:
    """Embed images in full batches of what is readable, each content once.

    Args:
        images: Rows of `schemas.SHARD`.
        read: Gives the bytes of a URL.
        embed: Gives the features of a batch.
        settings: Limits and size of the decoded images.
        batch_size: Images in one batch; the last one may have fewer.
        memo: Features that are known already.
        gate: Says which images take the feature of an earlier one of the shard.
        view_of: Gives the view of a partition.

    Returns:
        One row of `schemas.FEATURES` per image, in the same order; an unreadable image's has its
        error.

    Raises:
        OSError: An image could not be read for a reason that is not the image's own.
    """
    rows: list[Row] = []
    features: dict[Seen, Feature] = {}
    batch: dict[Seen, Pixels] = {}
    for row, pixels in read_ahead(images, read, settings, num_ahead=batch_size, view_of=view_of):
        rows.append(row)
        if gate is not None:
            row["stands_on"] = gate.base_of(row["image_id"], row["camera"], pixels)
            if row["stands_on"] is not None and not gate.is_sample(row["image_id"]):
                continue
        if pixels is None:
            continue
        known = memo.get(seen_of(row))
        if known is not None:
            features[seen_of(row)] = known
        elif seen_of(row) not in features:
            batch[seen_of(row)] = pixels
        if len(batch) == batch_size:
            features |= memo.embed(batch, embed)
            batch = {}
    if batch:
        features |= memo.embed(batch, embed)
    for row in rows:
        row["feature"] = features.get(seen_of(row))
    if gate is not None:
        fill_stand_ins(rows, gate.is_sample)
    return rows


def seen_of(row: Row) -> Seen:
    """What of an image goes through the model; equal ones have one feature."""
    return row["sha256"], row["view"], row["background"]


def fill_stand_ins(rows: Sequence[Row], is_sample: Callable[[str], bool]) -> None:
    """Give each row that stands on another the other's feature.

    A sampled one keeps its own, stands on nothing, and notes how far the two are from each other.

    Args:
        rows: Rows of `schemas.FEATURES`; is changed.
        is_sample: Tells from an image_id whether the image is one of the sample.
    """
    feature_of = {row["image_id"]: row["feature"] for row in rows}
    for row in rows:
        base = row["stands_on"]
        if base is None:
            continue
        if is_sample(row["image_id"]):
            pair = row["feature"][np.newaxis], feature_of[base][np.newaxis]
            row["stands_on"], row["gate_error"] = None, float(cosine_distances(*pair)[0])
        else:
            row["feature"] = feature_of[base]


def read_ahead(
    images: Sequence[Row],
    read: Read,
    settings: FeatureSettings,
    *,
    num_ahead: int,
    view_of: ViewOf = whole_images,
) -> Iterator[tuple[Row, Pixels | None]]:
    """Read and decode images in order, some of them before they are asked for.

    Args:
        images: Rows of `schemas.SHARD`.
        read: Gives the bytes of a URL.
        settings: Limits and size of the decoded images.
        num_ahead: Decoded images that may wait to be asked for.
        view_of: Gives the view of a partition.

    Yields:
        What `read_image` returns for each image.
    """
    pool = ThreadPoolExecutor(READERS_PER_SHARD, thread_name_prefix="read-ahead")
    pending: deque[Future[tuple[Row, Pixels | None]]] = deque()
    try:
        for image in images:
            view = view_of(image["camera"])
            pending.append(pool.submit(read_image, image, read, settings, view))
            if len(pending) > num_ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def read_image(
    image: Row, read: Read, settings: FeatureSettings, view: View = WHOLE_IMAGE
) -> tuple[Row, Pixels | None]:
    """Read and decode one image, and turn it into what is compared of it.

    Returns:
        Its row, still without a feature, and its `(S, S, 3)` uint8 pixels, or None with the
        reason in the row's `error`.
    """
    row: Row = dict.fromkeys(FEATURES.names) | image | {"view": view.name}
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
            content,
            image_size=settings.image_size,
            max_pixels=settings.max_image_pixels,
            region=view.region,
            masks=view.masks,
        )
    except UnreadableImageError as error:
        row["error"] = str(error)
        return row, None
    row.update(
        width=decoded.width,
        height=decoded.height,
        sharpness=decoded.sharpness,
        thumbnail=decoded.thumbnail,
    )
    row["background"] = view.background and view.background.digest
    return row, view.of(decoded.pixels)
