"""Features of contents that this process has embedded, so that exact copies cost nothing.

A module of its own, because Prefect ships the modules of tasks by value: there, every task would
start with an empty memo.
"""

import threading
from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Feature = NDArray[np.float32]
Embed = Callable[[Pixels], Feature]
"""`(N, S, S, 3)` uint8 RGB to `(N, 512)` float32 features."""
Seen = tuple[str | None, ...]
"""What went through the model: SHA-256 of a content, the view of it, and its background."""

_creation_lock = threading.Lock()

MAX_CONTENTS = 16_384
"""Contents remembered, of some 2.5 kB each; the oldest are forgotten first."""


class FeatureMemo:
    """What contents gave in one view. One thread embeds at a time."""

    def __init__(self, max_contents: int = MAX_CONTENTS) -> None:
        self._max_contents = max_contents
        self._features: dict[Seen, Feature] = {}
        self._lock = threading.Lock()

    def get(self, seen: Seen) -> Feature | None:
        """The `(512,)` feature of a content in a view, or None if it is not known here."""
        return self._features.get(seen)

    def embed(self, batch: Mapping[Seen, Pixels], embed: Embed) -> dict[Seen, Feature]:
        """Embed what is not known by the time that it is this thread's turn.

        Args:
            batch: `(S, S, 3)` pixels by what they are.
            embed: Gives the features of pixels.

        Returns:
            The `(512,)` feature of all of the batch.
        """
        with self._lock:
            known = {seen: self._features[seen] for seen in batch if seen in self._features}
            unknown = [seen for seen in batch if seen not in known]
            if not unknown:
                return known
            features = embed(np.stack([batch[seen] for seen in unknown]))
            found = dict(zip(unknown, features, strict=True))
            self._features |= found
            for oldest in list(self._features)[: -self._max_contents]:
                del self._features[oldest]
            return known | found


def feature_memo(fingerprint: str) -> FeatureMemo:
    """The memo of this process for one way of embedding; asking for another way empties it."""
    with _creation_lock:
        return _feature_memo(fingerprint)


def forget_features() -> None:
    """Empty the memo of this process."""
    _feature_memo.cache_clear()


@lru_cache(maxsize=1)
def _feature_memo(fingerprint: str) -> FeatureMemo:  # noqa: ARG001 (it is the key)
    return FeatureMemo()
