"""Drift: what is usual after the nights before."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tasks.drift import Band, usual_band

values = st.floats(-1e6, 1e6, allow_nan=False)
nights = st.lists(values, min_size=1, max_size=20)


def test_band_is_median_and_scaled_mad() -> None:
    band = usual_band([1.0, 2.0, 3.0, 4.0, 100.0], max_deviation=3.5)
    assert band.median == 3.0
    assert band.allowed == pytest.approx(3.5 * 1.4826 * 1.0)


@pytest.mark.parametrize(
    ("value", "is_usual"), [(2.0, True), (4.0, True), (1.9, False), (4.1, False), (3.0, True)]
)
def test_value_is_usual_up_to_the_edge(value: float, is_usual: bool) -> None:
    assert Band(median=3.0, allowed=1.0).has(value) is is_usual


def test_nights_that_are_all_alike_have_a_floor() -> None:
    alike = [0.5] * 7
    assert usual_band(alike, max_deviation=3.5) == Band(0.5, 0.0)
    assert usual_band(alike, max_deviation=3.5, min_change=0.1) == Band(0.5, 0.1)
    assert usual_band(alike, max_deviation=3.5, min_relative_change=0.5) == Band(0.5, 0.25)
    assert usual_band([-0.5] * 7, max_deviation=3.5, min_relative_change=0.5).allowed == 0.25


def test_one_bad_night_hides_nothing() -> None:
    usual = [0.60, 0.61, 0.62, 0.63, 0.59, 0.58]
    with_bad = usual_band([*usual, 0.05], max_deviation=3.5)
    assert not with_bad.has(0.05)
    mean, deviation = np.mean([*usual, 0.05]), np.std([*usual, 0.05])
    assert abs(0.05 - mean) < 3.5 * deviation  # which would have called it usual


def test_scale_is_that_of_normal_values() -> None:
    sample = np.random.default_rng(0).normal(10.0, 2.0, 20_001)
    band = usual_band(sample.tolist(), max_deviation=1.0)
    assert band.allowed == pytest.approx(2.0, rel=0.02)


@pytest.mark.parametrize(("num_nights", "share"), [(7, 0.032), (14, 0.0036)])
def test_usual_nights_seldom_seem_unusual(num_nights: int, share: float) -> None:
    sample = np.random.default_rng(0).normal(size=(5_000, num_nights + 1))
    num_alarms = sum(
        not usual_band(earlier, max_deviation=5.0).has(tonight) for *earlier, tonight in sample
    )
    assert num_alarms / len(sample) == pytest.approx(share, rel=0.3)


@given(nights=nights, max_deviation=st.floats(0.1, 10), floor=st.floats(0, 10))
def test_median_is_usual_and_the_floor_holds(
    nights: list[float], max_deviation: float, floor: float
) -> None:
    band = usual_band(nights, max_deviation=max_deviation, min_change=floor)
    assert min(nights) <= band.median <= max(nights)
    assert band.has(band.median)
    assert band.allowed >= floor


@given(nights=nights, seed=st.integers(0, 100))
def test_order_of_the_nights_does_not_matter(nights: list[float], seed: int) -> None:
    shuffled = np.random.default_rng(seed).permutation(nights).tolist()
    assert usual_band(shuffled, max_deviation=3.5) == usual_band(nights, max_deviation=3.5)


@given(
    nights=st.lists(st.integers(-1000, 1000), min_size=1, max_size=20),
    factor=st.sampled_from([0.25, 2.0, 8.0, -4.0]),
    shift=st.integers(-1000, 1000),
)
def test_units_do_not_matter(nights: list[int], factor: float, shift: int) -> None:
    band = usual_band(nights, max_deviation=3.5)
    other = usual_band([factor * night + shift for night in nights], max_deviation=3.5)
    assert math.isclose(other.median, factor * band.median + shift, abs_tol=1e-9)
    assert math.isclose(other.allowed, abs(factor) * band.allowed, abs_tol=1e-9)


@given(
    good=st.lists(st.floats(0.4, 0.6), min_size=4, max_size=8),
    bad=st.lists(st.floats(-1e6, 1e6), max_size=3),
)
def test_fewer_bad_nights_than_good_ones_cannot_move_the_band_away(
    good: list[float], bad: list[float]
) -> None:
    assume(len(bad) < len(good))
    band = usual_band([*good, *bad], max_deviation=3.5)
    assert 0.4 <= band.median <= 0.6
    assert band.allowed <= 3.5 * 1.4826 * 0.2 + 1e-9
