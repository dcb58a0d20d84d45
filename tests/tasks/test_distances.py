"""Cosine distances: right, and the same wherever and in whatever company they are computed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tasks.distances import _ROWS_AT_ONCE, cosine_distances, similarity_percent, within

DIM = 512


def row(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


def random_rows(seed: int, num_rows: int, dim: int = DIM) -> np.ndarray:
    """Rows of very different lengths, none of them zero."""
    rng = np.random.default_rng(seed)
    lengths = 10.0 ** rng.uniform(-3, 3, (num_rows, 1))
    return (rng.standard_normal((num_rows, dim)) * lengths).astype(np.float32)


seeds = st.integers(0, 2**32 - 1)
components = st.floats(-100, 100, width=32).map(lambda x: x if abs(x) > 1e-3 else 0.0)
vectors = arrays(np.float32, (1, 4), elements=components).filter(np.any)


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        (row(1, 0), row(1, 0), 0.0),
        (row(0.1, 0.7, 0.3), row(0.1, 0.7, 0.3), 0.0),
        (row(1, 0), row(0, 1), 1.0),
        (row(1, 0), row(-1, 0), 2.0),
        (row(3, 0), row(0.5, 0), 0.0),
        (row(1, 0), row(3, 4), 0.4),
        (row(1, 1), row(1, 0), 1 - 0.5**0.5),
    ],
)
def test_known_angles_have_known_distances(a: np.ndarray, b: np.ndarray, distance: float) -> None:
    found = cosine_distances(a, b)

    assert found.dtype == np.float32
    assert found.tolist() == pytest.approx([distance], abs=1e-7)


@given(seed=seeds)
def test_equal_rows_are_exactly_zero_apart(seed: int) -> None:
    rows = random_rows(seed, 5)

    assert cosine_distances(rows, rows.copy()).tolist() == [0.0] * 5


def test_no_rows_have_no_distances() -> None:
    assert cosine_distances(np.empty((0, 3), np.float32), np.empty((0, 3), np.float32)).shape == (
        0,
    )


@given(a=vectors, b=vectors)
def test_equals_one_minus_the_cosine(a: np.ndarray, b: np.ndarray) -> None:
    u, v = a[0].astype(np.float64), b[0].astype(np.float64)
    cosine = u @ v / (np.linalg.norm(u) * np.linalg.norm(v))

    (found,) = cosine_distances(a, b)

    assert found == pytest.approx(1 - cosine, abs=1e-6)
    assert 0 <= found <= 2


@given(seed=seeds, num_rows=st.integers(1, 9))
def test_the_order_of_the_two_rows_does_not_change_a_bit(seed: int, num_rows: int) -> None:
    a, b = random_rows(seed, num_rows), random_rows(seed + 1, num_rows)

    assert cosine_distances(a, b).tobytes() == cosine_distances(b, a).tobytes()


@given(seed=seeds, num_rows=st.integers(1, 40), dim=st.sampled_from([1, 3, 130, DIM]))
def test_the_other_rows_do_not_change_a_bit(seed: int, num_rows: int, dim: int) -> None:
    a, b = random_rows(seed, num_rows, dim), random_rows(seed + 1, num_rows, dim)
    together = cosine_distances(a, b)

    alone = [cosine_distances(a[i : i + 1], b[i : i + 1])[0] for i in range(num_rows)]
    backwards = cosine_distances(a[::-1], b[::-1])[::-1]

    assert together.tobytes() == np.array(alone, np.float32).tobytes()
    assert together.tobytes() == backwards.tobytes()


def test_more_rows_than_are_computed_at_once_all_get_their_own_distance() -> None:
    a, b = random_rows(0, _ROWS_AT_ONCE + 3, dim=4), random_rows(1, _ROWS_AT_ONCE + 3, dim=4)

    found = cosine_distances(a, b)

    middle = slice(_ROWS_AT_ONCE - 2, _ROWS_AT_ONCE + 3)
    assert found[middle].tobytes() == cosine_distances(a[middle], b[middle]).tobytes()
    assert found.min() > 0


@given(a=vectors, b=vectors, exponent=st.integers(-20, 20))
def test_the_length_of_a_row_does_not_matter(a: np.ndarray, b: np.ndarray, exponent: int) -> None:
    longer = a * np.float32(2.0**exponent)
    tripled = a * np.float32(3.0)

    assert cosine_distances(longer, b).tobytes() == cosine_distances(a, b).tobytes()
    assert cosine_distances(tripled, b) == pytest.approx(cosine_distances(a, b), abs=1e-6)


def test_within_compares_the_stored_float32_with_the_float64_eps() -> None:
    just_above = np.float32(0.05)
    just_below = np.nextafter(just_above, np.float32(0))
    assert float(just_below) < 0.05 < float(just_above)

    found = within(np.array([0, just_below, just_above, 1], np.float32), 0.05)

    assert found.tolist() == [True, True, False, False]


def test_within_takes_in_eps_itself() -> None:
    assert within(np.array([0.25, 0.5], np.float32), 0.25).tolist() == [True, False]


def test_within_zero_takes_exact_copies_only() -> None:
    tiny = np.nextafter(np.float32(0), np.float32(1))
    assert within(np.array([0, tiny], np.float32), 0.0).tolist() == [True, False]


@pytest.mark.parametrize(("distance", "percent"), [(0, 100), (0.25, 75), (1, 0), (2, -100)])
def test_similarity_is_shown_as_a_percentage(distance: float, percent: float) -> None:
    assert similarity_percent(distance) == percent
