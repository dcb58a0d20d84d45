"""Features made up to look like those of real nights, as many as one wants.

What they imitate was measured on real images: consecutive frames of a fixed camera are 0.003 to
0.015 apart, frames of one empty road up to 0.06, unrelated images at least 0.09.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tasks import storage
from tasks.references import Collection
from tasks.schemas import FEATURE_DIM, IMAGES

GIANT_GROUP = 20_000
"""Near-identical images in one group, where there are that many images at all."""

_NUM_DIRECTIONS = 24  # in which scenes differ
_ROWS_AT_ONCE = 65_536


def group_sizes(num_items: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Sizes of groups: a giant one, many of one image, and a heavy tail between them."""
    sizes = [min(GIANT_GROUP, num_items // 3)]
    num_left = num_items - sizes[0]
    while num_left > 0:
        tail = 2 + np.floor(2 * rng.pareto(1.1, 4_096)).astype(np.int64)
        drawn = np.where(rng.random(4_096) < 0.6, 1, np.minimum(tail, num_items // 50 + 2))
        fits = drawn[np.cumsum(drawn) <= num_left]
        sizes.extend(fits.tolist() or [num_left])
        num_left = num_items - sum(sizes)
    return np.array(sizes)


def write_features(path: Path, num_items: int, seed: int = 0) -> None:
    """Write a matrix of made-up features: `(num_items, 512)` float32, not negative, unit length."""
    rng = np.random.default_rng(seed)
    sizes = group_sizes(num_items, rng)
    num_groups = len(sizes)
    usual = rng.normal(0, 1, FEATURE_DIM).astype(np.float32)
    directions = rng.normal(0, _NUM_DIRECTIONS**-0.5, (_NUM_DIRECTIONS, FEATURE_DIM))
    scenes = rng.normal(0, 1, (num_groups, _NUM_DIRECTIONS))
    # A tenth of the groups lie beside another one, some within eps of it and most not.
    beside = np.flatnonzero(rng.random(num_groups) < 0.1)
    away = rng.uniform(0.4, 0.9, (len(beside), 1)) * rng.normal(0, 1, (len(beside), 24))
    scenes[beside] = scenes[rng.integers(0, num_groups, len(beside))] + away
    # The variance of the logarithms is about four times the cosine distance of two frames.
    spread = np.sqrt(4 * np.exp(rng.uniform(np.log(0.002), np.log(0.03), num_groups)))
    spread[0] = np.sqrt(4 * 0.0005)
    group_of = np.repeat(np.arange(num_groups), sizes)
    order = np.lexsort((group_of, rng.permutation(num_groups)[group_of]))
    group_of = group_of[order]
    matrix = np.lib.format.open_memmap(path, "w+", np.float32, (num_items, FEATURE_DIM))
    for start in range(0, num_items, _ROWS_AT_ONCE):
        groups = group_of[start : start + _ROWS_AT_ONCE]
        logs = rng.standard_normal((len(groups), FEATURE_DIM), np.float32)
        # Half of what moves within a group moves like scenes do, half is noise of each component.
        drift = rng.standard_normal((len(groups), _NUM_DIRECTIONS), np.float32)
        width = (spread[groups, None] * 0.5**0.5).astype(np.float32)
        logs *= width
        logs += (scenes[groups] + width * drift).astype(np.float32) @ directions.astype(np.float32)
        logs += usual
        rows = np.exp(logs / 2)
        matrix[start : start + _ROWS_AT_ONCE] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    matrix.flush()


def kept_features(num_items: int, seed: int) -> NDArray[np.float32]:
    """Features of images that a night has kept, one of a scene: `(num_items, 512)` float32.

    Args:
        num_items: How many.
        seed: Of the night; all nights see one world.
    """
    world, rng = np.random.default_rng(0), np.random.default_rng([1, seed])
    usual = world.normal(0, 1, FEATURE_DIM).astype(np.float32)
    directions = world.normal(0, _NUM_DIRECTIONS**-0.5, (_NUM_DIRECTIONS, FEATURE_DIM))
    logs = usual + rng.normal(0, 1, (num_items, _NUM_DIRECTIONS)).astype(np.float32) @ (
        directions.astype(np.float32)
    )
    logs += np.float32(0.2) * rng.standard_normal(logs.shape, np.float32)
    rows = np.exp(logs / 2)
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def write_collection(folder: Path, num_items: int, seed: int = 0) -> Collection:
    """Write what stage 4 would have written of that many images of one camera."""
    write_features(folder / "features.npy", num_items, seed)
    numbers = np.arange(num_items)
    urls = pa.array([f"file:///made/{number:09}.jpg" for number in range(num_items)])
    sharpness = np.random.default_rng(seed).lognormal(0, 1, num_items).astype(np.float32)
    columns = {
        "image_id": urls,
        "url": urls,
        "size_bytes": pa.array(np.full(num_items, 100_000)),
        "etag": urls,
        "camera": pa.array(np.full(num_items, ""), pa.string()),
        "captured_at": pa.array(numbers).cast(IMAGES.field("captured_at").type),
        "error": pa.nulls(num_items, pa.string()),
        "view": pa.nulls(num_items, pa.string()),
        "background": pa.nulls(num_items, pa.string()),
        "item_id": pa.array(numbers.astype(np.int32)),
        "sha256": urls,
        "width": pa.array(np.full(num_items, 1920, np.int32)),
        "height": pa.array(np.full(num_items, 1080, np.int32)),
        "sharpness": pa.array(sharpness),
        "stands_on": pa.nulls(num_items, pa.string()),
    }
    images_url = str(folder / "images.parquet")
    storage.publish_table(images_url, pa.table(columns, IMAGES))
    return Collection(
        run_id="made",
        run_url=str(folder),
        images_url=images_url,
        features_url=str(folder / "features.npy"),
        num_images=num_items,
        num_items=num_items,
        largest_partition=num_items,
        num_missing=0,
    )
