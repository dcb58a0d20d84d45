"""The change gate: frames of a fixed camera that hardly differ from one that is embedded already.

Such a frame takes the feature of the frame it stands on and needs no forward pass. Whether that is
good enough is not believed but checked: a sample of them goes through the model all the same.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Thumbnail = NDArray[np.uint8]

FRAMES_PER_CHAIN = 64
"""Frames after which the gate starts afresh. Chains and not shards are its unit, because the size
of a shard must not change a result."""

_THUMBNAIL_SIDE = 56


class ChangeGate:
    """Follows the frames of a shard in order and says which of them stand on an earlier one."""

    def __init__(self, max_change: int, sample_fraction: float = 0.0) -> None:
        self._max_change = max_change
        self._sample_fraction = sample_fraction
        self._camera: str | None = None
        self._num_frames = 0
        self._base: tuple[str, Thumbnail] | None = None

    def base_of(self, image_id: str, camera: str, pixels: NDArray[np.uint8] | None) -> str | None:
        """Find the frame that this one stands on.

        Args:
            image_id: Identity of the frame.
            camera: Its partition; frames of different ones never stand on each other.
            pixels: `(S, S, 3)` uint8, or None when it cannot be read.

        Returns:
            The image_id of an earlier frame, or None: this one must be embedded.
        """
        if camera != self._camera or self._num_frames == FRAMES_PER_CHAIN:
            self._camera, self._num_frames, self._base = camera, 0, None
        self._num_frames += 1
        if pixels is None:
            return None
        frame = thumbnail(pixels)
        if self._base is not None and largest_change(frame, self._base[1]) < self._max_change:
            return self._base[0]
        self._base = (image_id, frame)
        return None

    def is_sample(self, image_id: str) -> bool:
        """Tell whether a frame that stands on another is embedded all the same, for the check."""
        return is_drawn(image_id, self._sample_fraction)


def thumbnail(pixels: NDArray[np.uint8]) -> Thumbnail:
    """Average an image down to `(56, 56, 3)` uint8, so that noise of single pixels is gone.

    Args:
        pixels: `(S, S, 3)` uint8.
    """
    side = (_THUMBNAIL_SIDE, _THUMBNAIL_SIDE)
    return np.asarray(Image.fromarray(pixels).resize(side, Image.Resampling.BOX))


def largest_change(a: Thumbnail, b: Thumbnail) -> int:
    """Largest difference of one channel of one pixel between two thumbnails, in [0, 255]."""
    return int(np.abs(a.astype(np.int16) - b.astype(np.int16)).max())


def is_drawn(image_id: str, fraction: float) -> bool:
    """Draw a share of all frames at random, by their identity: the same ones every time.

    Args:
        image_id: 32 hexadecimal digits, evenly distributed.
        fraction: Share of the frames drawn, in [0, 1].
    """
    return int(image_id[:8], 16) < fraction * 2**32


def chain_lengths(cameras: Iterable[str]) -> list[int]:
    """Cut frames into the chains that `ChangeGate` will see.

    Args:
        cameras: Partition of every frame, equal ones side by side.

    Returns:
        Number of frames of each chain, each at most `FRAMES_PER_CHAIN`.
    """
    lengths = []
    for _, frames in groupby(cameras):
        num_frames = sum(1 for _ in frames)
        lengths += [FRAMES_PER_CHAIN] * (num_frames // FRAMES_PER_CHAIN)
        if num_frames % FRAMES_PER_CHAIN:
            lengths.append(num_frames % FRAMES_PER_CHAIN)
    return lengths


def shard_lengths(chains: Sequence[int], images_per_shard: int) -> list[int]:
    """Put whole chains together until a shard has at least the images wanted.

    Args:
        chains: Number of frames of each chain.
        images_per_shard: Images wanted; the last shard may have fewer.
    """
    shards: list[int] = []
    for length in chains:
        if shards and shards[-1] < images_per_shard:
            shards[-1] += length
        else:
            shards.append(length)
    return shards
