"""Scenes: what differs in a frame of a fixed camera from its background, and nothing else.

What differs stays as it is, and all the rest becomes a fixed pattern. On plain grey instead of it,
the network would see nothing but the last specks of noise.
"""

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, maximum_filter, minimum_filter, uniform_filter

from tasks.memo import Pixels

Samples = NDArray[np.float32]
Area = NDArray[np.bool_]

NOISE = 12.0
"""Steps of 256 by which a pixel may leave the range of the background around it."""

REACH = 5
"""Side in pixels of the square around a pixel: a camera shakes, and edges are sharpened."""

BLUR = 1.0
"""Standard deviation in pixels of the blur that takes noise out before pixels are compared."""

_FIT_ROUNDS = 3
_FIT_STRIDE = 4
_FIT_MARGIN = 2.5
_FIT_NOISE = 2.0
_FIT_PRIOR = 25.0

_PATTERN_MEAN = 128
_PATTERN_DEVIATION = 30
_PATTERN_BLOCKS = (1, 2, 4, 8, 16, 32, 64)


def median_of(frames: Pixels) -> Pixels:
    """The median of each sample, the upper of two: what most frames agree on.

    Args:
        frames: `(N, S, S, 3)` uint8 RGB.

    Returns:
        `(S, S, 3)` uint8 RGB.
    """
    middle = len(frames) // 2
    median: Pixels = np.partition(frames, middle, axis=0)[middle]
    return median


def scene(frame: Pixels, background: Pixels, counts: Area) -> tuple[Pixels, float]:
    """Show what differs from the background, on a fixed pattern.

    Args:
        frame: `(S, S, 3)` uint8 RGB.
        background: `(S, S, 3)` uint8 RGB.
        counts: `(S, S)` bool, the pixels that are looked at.

    Returns:
        `(S, S, 3)` uint8 RGB, in the exposure of the background; and the share of all pixels that
        differ.
    """
    matched = same_exposure(frame, background, counts)
    is_news = differs(matched, background) & counts
    shown = np.rint(matched).clip(0, 255).astype(np.uint8)
    canvas = pattern(len(frame))[..., np.newaxis]
    return np.where(is_news[..., np.newaxis], shown, canvas), float(is_news.mean())


def differs(frame: Samples, background: Pixels) -> Area:
    """Tell which pixels are none that the background has thereabouts, specks apart.

    Args:
        frame: `(S, S, 3)` float32, in the exposure of the background.
        background: `(S, S, 3)` uint8 RGB.

    Returns:
        `(S, S)` bool.
    """
    blur, around = (BLUR, BLUR, 0), (REACH, REACH, 1)
    seen = gaussian_filter(frame, blur)
    usual = gaussian_filter(background.astype(np.float32), blur)
    is_darker = seen < minimum_filter(usual, around) - NOISE
    is_brighter = seen > maximum_filter(usual, around) + NOISE
    is_strange = (is_darker | is_brighter).any(axis=-1)
    most: Area = uniform_filter(is_strange.astype(np.float32), REACH) > 0.5
    return most


@lru_cache
def pattern(size: int) -> NDArray[np.uint8]:
    """A grey pattern of blocks of all sizes, as much of each: the same for ever.

    Args:
        size: Its side in pixels.

    Returns:
        `(size, size)` uint8 of mean 128 and standard deviation 30, about.
    """
    total = np.zeros((size, size), np.int64)
    for block in _PATTERN_BLOCKS:
        side = -(-size // block)
        random = hashlib.shake_256(str(block).encode()).digest(side * side)
        blocks = np.frombuffer(random, np.uint8).reshape(side, side).astype(np.int64) - 128
        total += blocks.repeat(block, axis=0).repeat(block, axis=1)[:size, :size]
    # Each block size adds the variance of 256 equally likely steps.
    deviation = np.sqrt(len(_PATTERN_BLOCKS) * (256**2 - 1) / 12)
    scaled = np.rint(_PATTERN_MEAN + _PATTERN_DEVIATION / deviation * total)
    steps: NDArray[np.uint8] = scaled.clip(0, 255).astype(np.uint8)
    return steps


def same_exposure(frame: Pixels, background: Pixels, counts: Area) -> Samples:
    """Bring a frame to the exposure of its background, whatever moves in it.

    Args:
        frame: `(S, S, 3)` uint8 RGB.
        background: `(S, S, 3)` uint8 RGB.
        counts: `(S, S)` bool, the pixels that are looked at.

    Returns:
        `(S, S, 3)` float32; may leave the range of uint8.
    """
    few = (slice(None, None, _FIT_STRIDE),) * 2
    samples, wanted = (pixels[few][counts[few]].T for pixels in (frame, background))
    lines = [fit_exposure(*channel) for channel in zip(samples, wanted, strict=True)]
    gains, offsets = np.array(lines, np.float32).T
    matched: Samples = frame * gains + offsets
    return matched


def fit_exposure(samples: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> tuple[float, float]:
    """Fit a line to most of some samples: least squares, trimmed three times.

    Where all samples are alike a line has no slope of its own; then it goes through black.

    Args:
        samples: `(n,)` uint8, of one channel.
        wanted: `(n,)` uint8: what they are in the exposure wanted.

    Returns:
        Gain and offset; 1 and 0 without samples.
    """
    if not len(samples):
        return 1.0, 0.0
    x, y = samples.astype(np.float64), wanted.astype(np.float64)
    gain, offset = float(np.median(y) / max(1.0, np.median(x))), 0.0
    for _ in range(_FIT_ROUNDS):
        errors = np.abs(y - (gain * x + offset))
        most = errors <= max(_FIT_NOISE, _FIT_MARGIN * float(np.median(errors)))
        mean_x, mean_y = x[most].mean(), y[most].mean()
        covariance = ((x[most] - mean_x) * (y[most] - mean_y)).mean()
        through_black = mean_y / max(1.0, mean_x)
        gain = (covariance + _FIT_PRIOR * through_black) / (x[most].var() + _FIT_PRIOR)
        offset = mean_y - gain * mean_x
    return float(gain), float(offset)
