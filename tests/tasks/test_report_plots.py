"""Where things are in the plots of the report."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from tasks.report_plots import (
    Bar,
    Scale,
    Tick,
    distance_plot,
    eps_plot,
    group_size_plot,
    map_plot,
    nearest_plot,
    partition_plot,
    principal_plane,
    round_numbers,
    round_ratios,
    sampled,
    short,
    size_classes,
    time_plot,
)


def test_scales_put_values_where_they_belong() -> None:
    assert [Scale(0, 10, 100, 200)(value) for value in (0, 5, 10)] == [100, 150, 200]
    assert Scale(0, 4, 200, 0)(1) == 150
    log = Scale(0.001, 10, 0, 400, is_log=True)
    assert [log(value) for value in (0.001, 0.01, 1)] == [0, 100, 300]


def test_round_numbers_are_what_a_person_would_write_at_an_axis() -> None:
    assert round_numbers(0, 10) == [0, 5, 10]
    assert round_numbers(0, 1) == [0, 0.5, 1]
    assert round_numbers(0, 0.055) == [0, 0.02, 0.04]
    assert round_numbers(0, 1231) == [0, 500, 1000]
    assert round_ratios(0.0002, 2) == [0.001, 0.01, 0.1, 1]
    assert round_ratios(0.005, 0.3) == [0.005, 0.01, 0.02, 0.05, 0.1, 0.2]


@given(st.floats(1e-6, 1e9))
def test_an_axis_has_a_few_round_numbers(highest: float) -> None:
    numbers = round_numbers(0, highest)
    assert 2 <= len(numbers) <= 6
    assert all(0 <= number <= highest * 1.0000001 for number in numbers)


def test_counts_are_written_short() -> None:
    assert [short(number) for number in (0, 7, 950, 1_500, 20_000, 3_000_000)] == [
        *("0", "7", "950", "1.5k", "20k", "3M")
    ]


def test_distances_are_counted_in_bins_up_to_eps_and_a_little_more() -> None:
    plot = distance_plot(np.array([0.0, 0.0, 0.028, 0.055], np.float32), eps=0.05)
    assert [bar.tooltip for bar in plot.bars] == [
        *("0.0000 to 0.0014: 2", "0.0275 to 0.0289: 1", "0.0536 to 0.0550: 1")
    ]
    assert plot.bars[0] == Bar(46.0, 18.0, 7.0, 168.0, "plain", "0.0000 to 0.0014: 2")
    assert plot.mark == Tick(318.73, "eps 0.05")
    assert plot.bars[-1].x + plot.bars[-1].width < 346


def test_orphans_are_beyond_the_line() -> None:
    plot = distance_plot(np.array([0.4], np.float32), eps=0.05)
    assert plot.mark is not None
    assert plot.mark.at < plot.bars[0].x


def test_nothing_removed_makes_an_empty_plot() -> None:
    assert distance_plot(np.array([], np.float32), eps=0.05).bars == ()
    assert distance_plot(np.array([0.0], np.float32), eps=0.0).mark == Tick(46.0, "eps 0")


def test_nearest_distances_have_bars_of_equal_width_on_a_logarithmic_axis() -> None:
    plot = nearest_plot([0.0, 0.01, 0.1, 1.0], [2, 0, 3], eps=0.05)
    assert [(bar.x, bar.width, bar.height) for bar in plot.bars] == [
        (46.0, 99.5, 112.0),
        (246.0, 99.5, 168.0),
    ]
    assert [tick.label for tick in plot.x_ticks] == ["0.001", "0.01", "0.1", "1"]
    assert plot.mark == Tick(round(46 + 300 * math.log(50) / math.log(1000), 2), "eps 0.05")


def test_group_sizes_double_from_class_to_class() -> None:
    assert size_classes(2, 2) == [(2, 2)]
    assert size_classes(1, 5) == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 8)]
    assert size_classes(3, 17) == [(3, 3), (4, 4), (5, 8), (9, 16), (17, 32)]
    plot = group_size_plot({2: 10, 6: 1, 8: 2})
    assert [bar.tooltip for bar in plot.bars] == ["2 images: 10 groups", "5–8 images: 3 groups"]
    assert [tick.label for tick in plot.x_ticks] == ["2", "3", "4", "5–8"]
    assert group_size_plot({}).bars == ()


@given(st.dictionaries(st.integers(1, 100_000), st.integers(1, 9), min_size=1, max_size=20))
def test_every_group_is_in_one_bar(cluster_sizes: dict[int, int]) -> None:
    said = [bar.tooltip.split(": ")[1] for bar in group_size_plot(cluster_sizes).bars]
    counted = [int(text.removesuffix(" groups").replace(",", "")) for text in said]
    assert sum(counted) == sum(cluster_sizes.values())


def test_kept_and_removed_are_stacked_hour_by_hour() -> None:
    ten = 1_769_810_400  # 2026-01-30 22:00:00 UTC
    seconds = np.array([ten, ten + 10, ten + 8 * 3_600, ten + 8 * 3_600])
    plot = time_plot(seconds, np.array([False, True, True, True]))
    assert [(bar.kind, bar.y, bar.height, bar.tooltip) for bar in plot.bars] == [
        ("keep", 102.0, 84.0, "2026-01-30 22:00:00: 1 kept, 1 removed"),
        ("remove", 18.0, 84.0, "2026-01-30 22:00:00: 1 kept, 1 removed"),
        ("remove", 18.0, 168.0, "2026-01-31 06:00:00: 0 kept, 2 removed"),
    ]
    assert plot.x_label == "time from 2026-01-30, UTC"
    assert [tick.label for tick in plot.x_ticks] == ["22:00", "00:15", "02:30", "04:45"]


@pytest.mark.parametrize("span", [0, 47, 3_600, 86_400, 86_400 * 400, 86_400 * 20_000])
def test_any_span_of_time_fits(span: int) -> None:
    plot = time_plot(np.array([-5, span]), np.array([False, False]))
    assert 1 <= len(plot.bars) <= 2
    assert 1 <= len(plot.x_ticks) <= 4
    assert time_plot(np.array([], np.int64), np.array([], bool)).bars == ()


def test_partitions_with_most_images_come_first() -> None:
    names = ["b", "a", "a", "", *(f"c{number:02}" for number in range(15))]
    plot = partition_plot(names, np.array([True, True, False, *[False] * 16]))
    assert [(bar.x, bar.width, bar.kind) for bar in plot.bars[:4]] == [
        (0.0, 180.0, "keep"),
        (180.0, 180.0, "remove"),
        (0.0, 180.0, "keep"),
        (0.0, 180.0, "remove"),
    ]
    texts = [label.text for label in plot.labels]
    assert texts[:6] == [*("a", "1 of 2 kept", "(no folder)", "1 of 1 kept", "b", "0 of 1 kept")]
    assert plot.note == "and 2 with fewer images"
    assert len(partition_plot(["x" * 255], np.array([True])).labels[0].text) == 34
    assert partition_plot([], np.array([], bool)).bars == ()


def test_curve_of_kept_images_over_eps() -> None:
    plot = eps_plot([0.003, 0.03, 0.3], [1.0, 0.5, 0.0], eps=0.03, is_sample=False)
    assert plot.curve == ((46.0, 18.0), (196.0, 102.0), (346.0, 186.0))
    assert plot.mark == Tick(196.0, "eps 0.03")
    assert plot.note == ""
    sample = eps_plot([0.0, 0.005, 0.3], [1.0, 1.0, 1.0], eps=0.0, is_sample=True)
    assert sample.note == "estimated: not every pair was compared"
    assert len(sample.curve) == 2


def test_map_shows_images_in_the_plane_in_which_they_differ_most() -> None:
    features = np.zeros((4, 512), np.float32)
    features[:, 7] = [0, 0, 8, 8]
    features[:, 9] = [0, 2, 0, 2]
    plot = map_plot(features, np.array([False, True, False, True]), ["a", "b", "c", "d"])
    assert plot.x_label == "first component, 94% of the variance"
    assert plot.y_label == "second, 6%"
    assert [(dot.tooltip, dot.kind) for dot in plot.dots] == [
        *(("a", "keep"), ("b", "remove"), ("c", "keep"), ("d", "remove"))
    ]
    assert {dot.x for dot in plot.dots} == {46.0, 346.0}
    assert plot.dots[0].x == plot.dots[1].x != plot.dots[2].x == plot.dots[3].x
    assert {dot.y for dot in plot.dots} == {18.0, 186.0}


def test_map_of_equal_images_and_of_hardly_any() -> None:
    equal = map_plot(np.ones((3, 512), np.float32), np.zeros(3, bool), ["a", "b", "c"])
    assert len(equal.dots) == 3
    assert equal.x_label == "first component, 0% of the variance"
    assert map_plot(np.ones((2, 512), np.float32), np.zeros(2, bool), ["a", "b"]).dots == ()


@given(st.integers(3, 40), st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_principal_plane_is_that_of_scikit_learn(n: int, dim: int, seed: int) -> None:
    features = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    points, shares = principal_plane(features)
    pca = PCA(n_components=2, svd_solver="full")
    expected = pca.fit_transform(features.astype(np.float64))
    np.testing.assert_allclose(shares, pca.explained_variance_ratio_, atol=1e-9)
    # The two may look at the plane from different sides.
    np.testing.assert_allclose(np.abs(points), np.abs(expected), atol=1e-5)


def test_map_takes_all_of_a_few_images_and_a_fixed_sample_of_many() -> None:
    assert sampled(3).tolist() == [0, 1, 2]
    sample = sampled(100_000)
    assert len(np.unique(sample)) == 2_000
    assert (np.diff(sample) > 0).all()
    assert (sampled(100_000) == sample).all()
