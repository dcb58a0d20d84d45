"""How well clusters and features agree with groups that people made, and how sure that is.

The intervals come from resampling whole groups: images of one group are no independent witnesses.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

Features = NDArray[np.float32]
Numbers = NDArray[np.integer[Any]]
Values = NDArray[np.float64]

CONFIDENCE = 0.95
NUM_RESAMPLES = 1_000

_QUERIES_AT_ONCE = 512


@dataclass(frozen=True)
class PairCounts:
    """Pairs of images, counted; arrays hold one count for each resample."""

    both: Values
    """Pairs of one cluster and one group."""
    clustered: Values
    """Pairs of one cluster."""
    grouped: Values
    """Pairs of one group."""
    all: Values

    def precision(self) -> Values:
        """Share of the pairs of one cluster that are of one group; NaN where there are none."""
        return ratio(self.both, self.clustered)

    def recall(self) -> Values:
        """Share of the pairs of one group that are of one cluster; NaN where there are none."""
        return ratio(self.both, self.grouped)

    def f1(self) -> Values:
        """Harmonic mean of precision and recall; NaN where there are pairs of neither."""
        return ratio(2 * self.both, self.clustered + self.grouped)

    def adjusted_rand(self) -> Values:
        """Adjusted Rand index (Hubert & Arabie, 1985): 1 for equal partitions, 0 by chance."""
        chance = ratio(self.clustered * self.grouped, self.all)
        spread = (self.clustered + self.grouped) / 2 - chance
        # Both partitions have no pair at all, or nothing but one: they are equal.
        return np.where(spread == 0, 1.0, ratio(self.both - chance, spread))


def ratio(part: Values, whole: Values) -> Values:
    """Divide; NaN where there is nothing to divide by."""
    quotient: Values = np.divide(
        part, whole, out=np.full(np.broadcast(part, whole).shape, np.nan), where=whole != 0
    )
    return quotient


def count_pairs(labels: Numbers, groups: Numbers, weights: Values) -> PairCounts:
    """Count pairs of images, each group as often as it was drawn.

    A group that was drawn twice brings its own pairs twice; pairs between its two copies are no
    pairs, because they would compare images with themselves.

    Args:
        labels: `(N,)` clusters; -1 is like no other.
        groups: `(N,)` groups, numbered from 0.
        weights: `(B, G)` how often each group was drawn in each resample.

    Returns:
        `(B,)` counts.
    """
    sizes = np.bincount(groups, minlength=weights.shape[1])
    is_clustered = labels >= 0
    _, cluster = np.unique(labels[is_clustered], return_inverse=True)
    table = csr_matrix(
        (np.ones(len(cluster)), (cluster, groups[is_clustered])),
        shape=(cluster.max(initial=-1) + 1, weights.shape[1]),
    )
    table.sum_duplicates()
    squares = np.asarray(table.multiply(table).sum(axis=0)).ravel()
    members = np.asarray(table.sum(axis=0)).ravel()
    both = weights @ ((squares - members) / 2)
    drawn = (table @ weights.T).T
    between_clustered = (np.square(drawn).sum(axis=1) - np.square(weights) @ squares) / 2
    grouped = weights @ (sizes * (sizes - 1) / 2)
    between_all = (np.square(weights @ sizes) - np.square(weights) @ np.square(sizes)) / 2
    return PairCounts(
        both=both,
        clustered=both + between_clustered,
        grouped=grouped,
        all=grouped + between_all,
    )


def average_precisions(features: Features, groups: Numbers) -> Values:
    """Rank all other images by cosine distance, for every image, and score the ranking.

    Neighbours that are equally similar share the last of their ranks, as in scikit-learn's
    `average_precision_score`.

    Args:
        features: `(N, D)` float32 of unit length, or zeros for an image that is like no other.
        groups: `(N,)` the group of each.

    Returns:
        `(N,)` average precision, NaN for an image that is alone in its group.
    """
    averages = np.full(len(features), np.nan)
    for start in range(0, len(features), _QUERIES_AT_ONCE):
        similarities = features[start : start + _QUERIES_AT_ONCE] @ features.T
        for query, similarity in enumerate(similarities, start):
            similarity[query] = -np.inf
            ranked = np.argsort(-similarity)[:-1]
            is_same = groups[ranked] == groups[query]
            if is_same.any():
                distances = -similarity[ranked]
                ranks = np.searchsorted(distances, distances[is_same], side="right")
                averages[query] = (np.cumsum(is_same)[ranks - 1] / ranks).mean()
    return averages


def draw_groups(num_groups: int, *, seed: int, num_resamples: int = NUM_RESAMPLES) -> Values:
    """Draw groups with replacement, as many as there are (Efron, 1979).

    Returns:
        `(1 + B, G)` how often each was drawn; the first row has every group once.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups), num_resamples)
    return np.vstack([np.ones(num_groups), drawn])


def interval(resampled: Values) -> tuple[float, float] | None:
    """The 95 % percentile interval of a measure; None where no resample has a value."""
    known = resampled[~np.isnan(resampled)]
    if not len(known):
        return None
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
