"""Stage 2b: what a fixed camera looks like when nothing happens, where scenes are compared."""

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np

from config import DedupConfig
from tasks import storage
from tasks.backgrounds import (
    Background,
    background_of,
    background_url,
    publish_background,
    recall,
    remember,
    remembered_url,
)
from tasks.cells import partition_ranges
from tasks.memo import Pixels
from tasks.references import Shard
from tasks.scene import median_of
from tasks.schemas import SHARD
from tasks.stage import stage
from tasks.stage03_embed_shard import Row, read_image
from tasks.views import open_view

logger = logging.getLogger(__name__)

MAX_FRAMES = 64
"""Frames of a night, evenly spread over it, whose median is the background of a partition."""

FEWEST_FRAMES = 25
"""Of fewer frames, whatever stood still for some of them would be background. Then the last one
of an earlier night is taken, if there is one."""

LARGEST_SHARE = 0.25
"""Share of the pixels in which the median frame may differ from the background. Above it, the
camera was moved or its light has changed, and the background says nothing."""

READERS = 8


@stage("make_backgrounds")
def make_backgrounds(shards: Sequence[Shard], config: DedupConfig) -> None:
    """Publish the background of each partition to embed whose scenes are compared.

    One that the night has already stays: what is embedded later is compared with the same.
    """
    if not shards:
        return
    pending = storage.read_table(shards[0].plan_url, SHARD)
    order = [(name, "ascending") for name in ("camera", "captured_at", "url")]
    pending = pending.sort_by(order)
    night_url = shards[0].plan_url.rpartition("/")[0]
    with ThreadPoolExecutor(READERS) as pool:
        for start, stop in partition_ranges(pending["camera"].combine_chunks()):
            partition = pending["camera"][start].as_py()
            if config.of_partition(partition).view.compare == "scene":
                frames = pending.slice(start, stop - start).to_pylist()
                _publish_once(partition, frames, night_url, config, pool)


def _publish_once(
    partition: str, frames: Sequence[Row], night_url: str, config: DedupConfig, pool: Executor
) -> None:
    view = open_view(partition, night_url, config)
    if view.background is not None:
        return
    read = partial(read_image, read=storage.read_bytes, settings=config.features, view=view)
    found = sample_frames(frames, lambda some: pool.map(lambda frame: read(frame)[1], some))
    workspace_url = storage.absolute_url(config.workspace_url)
    folder_url = remembered_url(workspace_url, config.features, view.name, partition)
    background = choose_background(found, folder_url, frames)
    if background is None:
        logger.warning("no frame of partition %r could be read, so it has no background", partition)
        return
    publish_background(background_url(night_url, config.features, view.name, partition), background)
    view = replace(view, background=background)
    shares = [view.scene(pixels)[1] for pixels in found]
    if found and (share := float(np.median(shares))) > LARGEST_SHARE:
        logger.warning(
            "frames of partition %r differ from their background in %.0f %% of all pixels: was the "
            "camera moved, or has its light changed?",
            partition,
            100 * share,
        )


def choose_background(
    pixels: Sequence[Pixels], folder_url: str, frames: Sequence[Row]
) -> Background | None:
    """Make a background and remember it, or take one of an earlier night where frames are few.

    Args:
        pixels: `(S, S, 3)` uint8 of each frame that could be read.
        folder_url: The backgrounds that are remembered.
        frames: All frames of the night, in the order in which they were captured.
    """
    captured_at = frames[-1]["captured_at"]
    is_enough = len(pixels) >= FEWEST_FRAMES
    earlier = None if is_enough else recall(folder_url, captured_at)
    if earlier is not None or not pixels:
        return earlier
    background = background_of(median_of(np.stack(pixels)))
    if is_enough:
        remember(folder_url, background, captured_at)
    return background


def sample_frames(
    frames: Sequence[Row], read: Callable[[Sequence[Row]], Iterable[Pixels | None]]
) -> list[Pixels]:
    """Read frames evenly spread over all, and others only when none of those can be read.

    Args:
        frames: Rows of `schemas.SHARD`.
        read: Gives the pixels of frames, None of one that cannot be read.
    """
    first = {number * len(frames) // MAX_FRAMES for number in range(MAX_FRAMES)}
    order = sorted(range(len(frames)), key=lambda position: (position not in first, position))
    for start in range(0, len(order), MAX_FRAMES):
        some = [frames[position] for position in order[start : start + MAX_FRAMES]]
        found = [pixels for pixels in read(some) if pixels is not None]
        if found:
            return found
    return []
