"""Small sets of unit vectors with near and exact copies among them, for tests of the search."""

import numpy as np
from hypothesis import strategies as st

from tasks.distances import cosine_distances


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def all_distances(features: np.ndarray) -> np.ndarray:
    """Exact distances of all pairs: `(N, N)`."""
    num_items = len(features)
    i, j = np.indices((num_items, num_items)).reshape(2, -1)
    return cosine_distances(features[i], features[j]).reshape(num_items, num_items)


@st.composite
def feature_sets(draw: st.DrawFn) -> np.ndarray:
    """Up to 30 unit vectors, among them near and exact copies of others."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    originals = unit(rng.standard_normal((draw(st.integers(1, 8)), 4)))
    copies = originals[rng.integers(0, len(originals), draw(st.integers(0, 22)))]
    blur = rng.choice([0.0, 1e-6, 0.05, 0.3], (len(copies), 1))
    nearly = unit(copies + blur * rng.standard_normal(copies.shape))
    mixed = np.concatenate([originals, np.where(blur == 0, copies, nearly)])
    return mixed[rng.permutation(len(mixed))]


@st.composite
def eps_for(draw: st.DrawFn, features: np.ndarray) -> float:
    """An eps in [0, 1], often exactly the distance of two of the items."""
    if len(features) > 1 and draw(st.booleans()):
        i, j = draw(st.permutations(range(len(features))))[:2]
        return min(1.0, float(cosine_distances(features[[i]], features[[j]])[0]))
    return draw(st.sampled_from([0.0, 1e-7, 0.05, 0.3, 1.0]))
