"""Compares items in blocks: a matrix product settles what is clear, the exact distance the rest.

So no result depends on the last bits of a product, which change with the shape of the block, the
number of threads and the processor.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from tasks.distances import cosine_distances, within

Features = NDArray[np.float32]
Items = NDArray[np.integer[Any]]
Eps = float | NDArray[np.float64]
"""Largest cosine distance, in [0, 1]: one for all, or one for each."""

Components = NDArray[np.int32]
"""`(N,)` int32: for each of N things the lowest one that it is connected with, maybe itself."""

ROWS_AT_ONCE = 1_024
COLUMNS_AT_ONCE = 4_096
# A float32 product of unit vectors of 512 components is off by at most 512 * 2**-24 = 3.1e-5
# (N. Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1).
SLACK = 4e-5

_PAIRS_AT_ONCE = 16_384
_EXACT_AT_ONCE = 2_048
_NUM_LEADERS = 128


def are_within(a: Features, b: Features, eps: float) -> NDArray[np.bool_]:
    """Tell which rows of two matrices are within eps of each other.

    Args:
        a: `(R, D)` float32 of unit length, D at most 512.
        b: `(C, D)` likewise.
        eps: Largest cosine distance, in [0, 1].

    Returns:
        `(R, C)` bool, exactly what `cosine_distances` and `within` say of each pair.
    """
    return are_within_by(a @ b.T, a, b, eps)


def are_within_by(
    products: NDArray[np.float32], a: Features, b: Features, eps: float
) -> NDArray[np.bool_]:
    """The same as `are_within`, where `(R, C)` products `a @ b.T` are at hand."""
    near = products >= _surely(eps)
    i, j = np.nonzero((products >= _possibly(eps)) & ~near)
    near[i, j] = within(pair_distances(a, b, i, j), eps)
    return near


def pair_distances(a: Features, b: Features, i: Items, j: Items) -> NDArray[np.float32]:
    """Exact distances of pairs of rows, however many: of `a[i]` and `b[j]`, `(E,)` float32."""
    distances = np.empty(len(i), np.float32)
    for start in range(0, len(i), _EXACT_AT_ONCE):
        some = slice(start, start + _EXACT_AT_ONCE)
        distances[some] = cosine_distances(a[i[some]], b[j[some]])
    return distances


def connect(features: Features, items: Items, num_rows: int, eps: float) -> Components:
    """Connect the first of some items with all of them that are within eps.

    Pairs that are connected already are not looked at, as far as that is known for a whole block:
    a group of near-identical items costs little more than a look at a few of its members.

    Args:
        features: `(N, D)` float32 of unit length; may be a memory map.
        items: `(C,)` rows of `features`, each at most once.
        num_rows: How many of `items`, from the first, are compared with all.
        eps: Largest cosine distance of a pair, in [0, 1].

    Returns:
        `(C,)` the components of the graph of these pairs, as positions in `items`.
    """
    component = np.arange(len(items), dtype=np.int32)
    rows = np.arange(num_rows)
    if num_rows > ROWS_AT_ONCE:
        # Spread over all rows, they connect most of what a large group has.
        is_leader = rows % -(-num_rows // _NUM_LEADERS) == 0
        component = _connect_rows(features, items, rows[is_leader], component, eps)
        rows = rows[~is_leader]
        rows = rows[np.argsort(component[rows], kind="stable")]
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[start : start + ROWS_AT_ONCE]
        component = _connect_rows(features, items, some, component, eps)
    return component


def _connect_rows(
    features: Features, items: Items, rows: Items, component: Components, eps: float
) -> Components:
    columns = np.arange(len(items))
    if (component[rows] == component[rows[0]]).all():
        columns = np.flatnonzero(component != component[rows[0]])
    a = features[items[rows]]
    for start in range(0, len(columns), COLUMNS_AT_ONCE):
        some = columns[start : start + COLUMNS_AT_ONCE]
        component = _connect_block(a, features[items[some]], rows, some, component, eps)
    return component


def _connect_block(
    a: Features, b: Features, rows: Items, columns: Items, component: Components, eps: float
) -> Components:
    products = a @ b.T
    is_open = products >= _possibly(eps)
    while True:
        is_open &= component[rows][:, None] != component[columns]
        i, j = _telling_pairs(is_open)
        if not len(i):
            return component
        near = products[i, j] >= _surely(eps)
        near[~near] = within(pair_distances(a, b, i[~near], j[~near]), eps)
        is_open[i, j] = False
        component = unite(component, rows[i[near]], columns[j[near]])


def _telling_pairs(is_open: NDArray[np.bool_]) -> tuple[Items, Items]:
    """All pairs of a block, or of very many the first of each row and of each column."""
    found = np.flatnonzero(is_open)
    if len(found) > _PAIRS_AT_ONCE:
        of_rows = np.arange(is_open.shape[0]) * is_open.shape[1] + is_open.argmax(axis=1)
        of_columns = is_open.argmax(axis=0) * is_open.shape[1] + np.arange(is_open.shape[1])
        found = np.concatenate([of_rows, of_columns])
        found = found[is_open.ravel()[found]]
    i, j = np.divmod(found, is_open.shape[1])
    return i, j


def unite(component: Components, a: Items, b: Items) -> Components:
    """Connect things pair by pair.

    Args:
        component: `(N,)` what is connected already.
        a: `(E,)` one thing of each pair.
        b: `(E,)` the other one.

    Returns:
        `(N,)` the components with these pairs.
    """
    ends, position = np.unique(np.concatenate([component[a], component[b]]), return_inverse=True)
    pairs = (position[: len(a)], position[len(a) :])
    graph = coo_matrix((np.ones(len(a)), pairs), shape=(len(ends), len(ends)))
    num_groups, group = connected_components(graph, directed=False)
    lowest = np.empty(num_groups, component.dtype)
    lowest[group[::-1]] = ends[::-1]  # the last assignment stands, and that is the lowest end
    of_end = np.arange(len(component), dtype=component.dtype)
    of_end[ends] = lowest[group]
    united: Components = of_end[component]
    return united


def _surely(eps: float) -> np.float32:
    return np.float32(1.0 - eps + SLACK)


def _possibly(eps: float) -> np.float32:
    return np.float32(1.0 - eps - SLACK)
