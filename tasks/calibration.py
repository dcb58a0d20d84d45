"""How precise each eps would be, from what a person said about some pairs of images.

A person's answers to pairs at growing distances follow a psychometric function: "same" nearly
always when they are near, nearly never when they are far. It is fitted on a grid of its three
parameters, and every point of the grid says how many of a run's pairs within an eps are the same.
So even a few dozen answers give each eps a precision with an honest interval.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

NUM_BINS = 60
"""Bins of the distances that a person is asked about, 12 to an octave, so that eps itself is an
edge; one more bin holds what is nearer."""

_BELOW, _ABOVE = 1 / 8, 4.0
_DIGITS_OF_EPS = 3

# More midpoints, slopes or lapses move no precision by more than a fraction of its interval.
_MIDPOINTS_PER_OCTAVE = 8
_SLOPES = np.geomspace(1.0, 24.0, 14)
# How often even a pair at distance 0 is not the same: probably never, possibly one in twelve.
_LAPSES = np.array([0.0, 0.005, 0.01, 0.02, 0.04, 0.08])
_LAPSE_PRIOR = np.array([0.50, 0.20, 0.12, 0.08, 0.06, 0.04])

# Where a run has no pair at all, an eps is as precise as pairs there would be.
_A_TRACE = 1e-9

_QUANTILES = np.array([0.025, 0.5, 0.975])


def distance_edges(eps: float) -> FloatArray:
    """Bins of the distances around an eps, from an eighth to four times of it, at most 1.

    Args:
        eps: The cosine distance that the run was decided with, in [0, 1]; 0 counts as 0.05.

    Returns:
        `(62,)` increasing, the first one 0, evenly spaced in the logarithm from the second on, each
        rounded to three digits, as each may become somebody's eps.
    """
    center = eps or 0.05
    edges = np.geomspace(_BELOW * center, min(_ABOVE * center, 1.0), NUM_BINS + 1)
    return np.array([0.0, *(float(f"{edge:.{_DIGITS_OF_EPS}g}") for edge in edges)])


@dataclass(frozen=True)
class PrecisionCurve:
    """How precise each eps would be."""

    eps: FloatArray
    """`(B,)` increasing."""
    precision: FloatArray
    """`(B,)` in [0, 1]: share of the pairs within eps that show the same, the median."""
    low: FloatArray
    """`(B,)` lower end of its central 95 % interval."""
    high: FloatArray
    """`(B,)` upper end of it."""
    is_same: FloatArray
    """`(B,)` probability that a pair right within eps, and no nearer, shows the same."""

    def best(self, precision: float) -> int | None:
        """The largest eps that reaches a precision.

        None beyond where most pairs differ: there the many pairs that are near hide what eps adds.

        Args:
            precision: Wanted, in [0, 1].

        Returns:
            Its position, None when no eps reaches it.
        """
        reached = np.flatnonzero((self.precision >= precision) & (self.is_same >= 0.5))
        return int(reached[-1]) if len(reached) else None


def precision_curve(
    distances: FloatArray, shares: FloatArray, edges: FloatArray, counts: FloatArray
) -> PrecisionCurve:
    r"""Estimate how precise each eps would be.

    The probability that a pair at distance d shows the same is `(1 - lapse) / (1 + (d / midpoint)
    ** slope)`, a psychometric function of log d (F. Wichmann and J. Hill, The psychometric function
    I, 2001). Its parameters have a distribution on a grid (as in L. Kontsevich and C. Tyler,
    Bayesian adaptive estimation of psychometric slope and threshold, 1999), and so has the
    precision of each eps: the mean of that probability over all pairs within it.

    Args:
        distances: `(n,)` of the pairs that were answered, above 0.
        shares: `(n,)` 1 for the same, 0 for different, 0.5 for unsure.
        edges: `(B+1,)` as `distance_edges` gives them.
        counts: `(B,)` how many pairs are in each bin, of all that could be merged.

    Returns:
        The curve over the upper ends of the bins from the second on, `(B-1,)` each.
    """
    grid = _Grid(edges)
    weights = grid.weights(distances, shares)
    counts = counts + _A_TRACE
    precisions = np.cumsum(grid.is_same(_centers(edges)) * counts, axis=1) / np.cumsum(counts)
    low, middle, high = _weighted_quantiles(precisions[:, 1:], weights, _QUANTILES)
    return PrecisionCurve(
        eps=edges[2:],
        precision=middle,
        low=low,
        high=high,
        is_same=weights @ grid.is_same(edges[2:]),
    )


class _Grid:
    """All psychometric functions that are thought possible, and how likely each is."""

    def __init__(self, edges: FloatArray) -> None:
        lowest, highest = np.log2(edges[1] / 2), np.log2(edges[-1] * 2)
        num_midpoints = round((highest - lowest) * _MIDPOINTS_PER_OCTAVE) + 1
        midpoints = np.exp2(np.linspace(lowest, highest, num_midpoints))
        points = np.meshgrid(midpoints, _SLOPES, _LAPSES, indexing="ij")
        self._midpoint, self._slope, self._lapse = (axis.reshape(-1, 1) for axis in points)
        self._log_prior = np.log(np.tile(_LAPSE_PRIOR, num_midpoints * len(_SLOPES)))

    def is_same(self, distances: FloatArray) -> FloatArray:
        """`(G, n)` probability of "same" at each distance, never quite 0 or 1."""
        odds = (distances / self._midpoint) ** self._slope
        is_same: FloatArray = np.clip((1 - self._lapse) / (1 + odds), 1e-6, 1 - 1e-6)
        return is_same

    def weights(self, distances: FloatArray, shares: FloatArray) -> FloatArray:
        """`(G,)` probability of each function after the answers; they sum to 1."""
        is_same = self.is_same(distances)
        log_weights = self._log_prior + np.log(is_same) @ shares + np.log1p(-is_same) @ (1 - shares)
        weights = np.exp(log_weights - log_weights.max())
        return np.asarray(weights / weights.sum())


def _centers(edges: FloatArray) -> FloatArray:
    return np.array([edges[1] / 2, *np.sqrt(edges[1:-1] * edges[2:])])


def _weighted_quantiles(
    values: FloatArray, weights: FloatArray, quantiles: FloatArray
) -> FloatArray:
    """Quantiles of each column of `(G, B)` values with `(G,)` weights: `(Q, B)`."""
    order = np.argsort(values, axis=0, kind="stable")
    reached = np.cumsum(weights[order], axis=0)
    found = np.empty((len(quantiles), values.shape[1]))
    for column in range(values.shape[1]):
        rows = np.searchsorted(reached[:, column], quantiles * reached[-1, column])
        found[:, column] = values[order[rows, column], column]
    return found
