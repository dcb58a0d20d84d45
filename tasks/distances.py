"""The one definition of how far two features are from each other."""

import numpy as np
from numpy.typing import NDArray

_ROWS_AT_ONCE = 16_384


def cosine_distances(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    r"""Cosine distance of the rows of two matrices, pair by pair.

    Computed in float64 as half the squared distance of the unit vectors, which equals
    `1 - a.b / (|a| |b|)` and is exactly 0 for equal rows. Each value depends on its own two rows
    only, so it is the same wherever it is computed.

    Args:
        a: `(N, D)` float32, no row of zeros.
        b: `(N, D)` float32, no row of zeros.

    Returns:
        `(N,)` float32 in [0, 2].
    """
    distances = np.empty(len(a), np.float32)
    for start in range(0, len(a), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        difference = _unit(a[rows]) - _unit(b[rows])
        distances[rows] = np.square(difference).sum(axis=1) / 2
    return distances


def within(distances: NDArray[np.float32], eps: float | NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell which distances are at most eps, compared as float64 so that any reader agrees."""
    near: NDArray[np.bool_] = distances.astype(np.float64) <= eps
    return near


def similarity_percent(distance: float) -> float:
    """Cosine similarity as a percentage: 100 for equal images."""
    return 100.0 * (1.0 - distance)


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = rows.astype(np.float64)
    norms = np.sqrt(np.square(wide).sum(axis=1, keepdims=True))
    unit: NDArray[np.float64] = np.divide(wide, norms, out=np.zeros_like(wide), where=norms > 0)
    return unit
