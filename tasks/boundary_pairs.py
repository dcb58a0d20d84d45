"""Finds the pairs of a run that lie around its eps, counts them, and draws some to ask about."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.comparisons import COLUMNS_AT_ONCE, Features, Items, pair_distances

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

MAX_COMPARISONS = 2**26
"""More pairs than that are not looked at: they are estimated from some images against all others.
It takes a few seconds."""

PAIRS_PER_STRATUM = 16
"""Pairs remembered of each partition and stratum of distances."""

BINS_PER_STRATUM = 4

_ROWS_AT_ONCE = 256
_GOLDEN = 0.6180339887498949
_NOTHING = np.zeros((0, 3))


@dataclass(frozen=True)
class BoundaryPairs:
    """What is around the eps of a run."""

    counts: FloatArray
    """`(P, B)` how many pairs of each partition are in each bin of distances."""
    item_a: IntArray
    """`(n,)` one image of each pair that was remembered, the lower item."""
    item_b: IntArray
    """`(n,)` the other image."""
    distances: NDArray[np.float32]
    """`(n,)` cosine distance of the two, exact."""
    partitions: IntArray
    """`(n,)` the partition they are in, counted from 0."""
    strata: IntArray
    """`(n,)` their stratum of distances, counted from 0."""


def find_boundary_pairs(
    features: Features,
    partitions: Sequence[Items],
    edges: FloatArray,
    *,
    seed: int,
    max_comparisons: int = MAX_COMPARISONS,
) -> BoundaryPairs:
    """Look at all pairs, or at those of as many images as can be compared with all others.

    Args:
        features: `(N, D)` float32 of unit length; may be a memory map.
        partitions: The items of each partition; only pairs of one partition count.
        edges: `(B+1,)` increasing bins of distances. The first bin is counted and not remembered:
            what is so near needs no question.
        seed: Of all that is drawn.
        max_comparisons: Largest number of pairs looked at.
    """
    rng = np.random.default_rng(seed)
    num_pairs = sum(len(items) ** 2 for items in partitions)
    share = min(1.0, max_comparisons / max(1, num_pairs))
    searches = [_Search(features, items, edges, share, rng) for items in partitions]
    found = [search.pairs for search in searches]
    pairs = np.concatenate([_NOTHING, *found])
    item_a, item_b = pairs[:, 0].astype(np.int64), pairs[:, 1].astype(np.int64)
    return BoundaryPairs(
        counts=np.array([search.counts for search in searches]).reshape(-1, len(edges) - 1),
        item_a=item_a,
        item_b=item_b,
        distances=pair_distances(features, features, item_a, item_b),
        partitions=np.repeat(np.arange(len(found)), [len(of_one) for of_one in found]),
        strata=pairs[:, 2].astype(np.int64),
    )


class _Search:
    """Compares some images of one partition with all of it."""

    def __init__(
        self,
        features: Features,
        items: Items,
        edges: FloatArray,
        share: float,
        rng: np.random.Generator,
    ) -> None:
        self._edges, self._rng = edges, rng
        self.counts = np.zeros(len(edges) - 1)
        self._kept = np.zeros((0, 4))
        self._limits = np.ones(-(-(len(edges) - 2) // BINS_PER_STRATUM))
        num_anchors = min(len(items), int(np.ceil(len(items) * share)))
        anchors = np.sort(rng.choice(items, num_anchors, replace=False))
        for start in range(0, num_anchors, _ROWS_AT_ONCE):
            rows = anchors[start : start + _ROWS_AT_ONCE]
            for first in range(0, len(items), COLUMNS_AT_ONCE):
                self._compare(features, rows, items[first : first + COLUMNS_AT_ONCE])
        # A pair is met from either end, and each image in so many of the searches.
        self.counts *= len(items) / max(1, num_anchors) / 2
        _, first_met = np.unique(self._kept[:, :2], axis=0, return_index=True)
        self.pairs = self._kept[np.sort(first_met), :3]

    def _compare(self, features: Features, rows: Items, columns: Items) -> None:
        distances = 1.0 - features[rows] @ features[columns].T
        i, j = np.nonzero((distances <= self._edges[-1]) & (rows[:, None] != columns))
        bins = np.searchsorted(self._edges, np.maximum(distances[i, j], 0.0), side="left") - 1
        bins = np.maximum(bins, 0)
        self.counts += np.bincount(bins, minlength=len(self.counts))
        is_asked = bins > 0
        a, b = rows[i[is_asked]], columns[j[is_asked]]
        self._keep(np.minimum(a, b), np.maximum(a, b), (bins[is_asked] - 1) // BINS_PER_STRATUM)

    def _keep(self, a: Items, b: Items, strata: IntArray) -> None:
        """Keep the pairs with the lowest random keys of each stratum, so each is as likely."""
        keys = self._rng.random(len(a))
        may_stay = keys < self._limits[strata]
        new = np.column_stack([a, b, strata, keys])[may_stay]
        together = np.concatenate([self._kept, new])
        together = together[np.lexsort((together[:, 3], together[:, 2]))]
        rank = np.arange(len(together)) - np.searchsorted(together[:, 2], together[:, 2])
        # Twice as many, because a pair may be there from both ends.
        self._kept = together[rank < 2 * PAIRS_PER_STRATUM]
        full = self._kept[rank[rank < 2 * PAIRS_PER_STRATUM] == 2 * PAIRS_PER_STRATUM - 1]
        self._limits[full[:, 2].astype(np.int64)] = full[:, 3]


def draw_pairs(pairs: BoundaryPairs, num_images: IntArray) -> Iterator[int]:
    """Order the pairs as a person is asked about them, near and far ones in turns.

    Distances are evenly spread over their logarithm, whatever number of pairs is taken. Each
    partition comes in proportion to its images. Within both, each pair is as likely as any other.

    Args:
        pairs: What there is.
        num_images: `(P,)` images of each partition.

    Yields:
        Positions in `pairs`, each at most once.
    """
    waiting: dict[int, dict[int, list[int]]] = {}
    for position, (stratum, partition) in enumerate(
        zip(pairs.strata.tolist(), pairs.partitions.tolist(), strict=True)
    ):
        waiting.setdefault(stratum, {}).setdefault(partition, []).append(position)
    num_strata = max(waiting, default=-1) + 1
    asked: Counter[int] = Counter()
    step = 0
    while waiting:
        stratum = int((step * _GOLDEN + 0.5) % 1.0 * num_strata)
        step += 1
        if stratum not in waiting:
            continue
        there = waiting[stratum]
        partition = min(there, key=lambda p: ((asked[p] + 1) / num_images[p], p))
        asked[partition] += 1
        yield there[partition].pop()
        if not there[partition]:
            del there[partition]
        if not there:
            del waiting[stratum]
