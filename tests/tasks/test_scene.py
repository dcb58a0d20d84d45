"""Scenes: light and noise vanish, and what is new stays."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from tasks.scene import differs, fit_exposure, median_of, pattern, same_exposure, scene
from tests.conftest import Night

SIZE = 64
ALL = np.ones((SIZE, SIZE), np.bool_)


def road(seed: int = 0) -> np.ndarray:
    """Smooth patches of any brightness between 40 and 200."""
    coarse = np.random.default_rng(seed).integers(40, 200, (8, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def with_car(frame: np.ndarray, *, left: int = 20) -> np.ndarray:
    frame = frame.copy()
    frame[24:44, left : left + 20] = (250, 5, 5)
    return frame


def on_pattern(size: int = SIZE) -> np.ndarray:
    return np.repeat(pattern(size)[..., np.newaxis], 3, axis=-1)


def test_median_is_what_most_frames_agree_on() -> None:
    frames = np.array([[[[1, 9, 0]]], [[[3, 9, 0]]], [[[200, 0, 7]]]], np.uint8)
    assert median_of(frames).tolist() == [[[3, 9, 0]]]
    assert median_of(frames[:2]).tolist() == [[[3, 9, 0]]]
    assert median_of(frames[:1]).tolist() == [[[1, 9, 0]]]


def test_pattern_is_the_same_for_ever() -> None:
    assert pattern(4).tolist() == [
        [77, 73, 94, 93],
        [82, 86, 72, 75],
        [99, 87, 47, 77],
        [94, 84, 82, 74],
    ]
    assert pattern(224).shape == (224, 224)
    assert abs(pattern(224).mean() - 128) < 10
    assert abs(pattern(224).std() - 30) < 5


def test_frame_that_is_its_background_is_the_pattern() -> None:
    pixels, share = scene(road(), road(), ALL)
    np.testing.assert_array_equal(pixels, on_pattern())
    assert share == 0.0


@given(
    gains=st.tuples(*[st.floats(0.6, 1.2)] * 3),
    offsets=st.tuples(*[st.floats(-15, 15)] * 3),
    seed=st.integers(0, 9),
)
def test_light_and_noise_vanish(
    gains: tuple[float, ...], offsets: tuple[float, ...], seed: int
) -> None:
    noise = np.random.default_rng(seed).integers(-4, 5, (SIZE, SIZE, 3))
    frame = (road(seed) * np.array(gains) + np.array(offsets) + noise).clip(0, 255)

    pixels, share = scene(np.rint(frame).astype(np.uint8), road(seed), ALL)

    np.testing.assert_array_equal(pixels, on_pattern())
    assert share == 0.0


def test_shaken_camera_shows_nothing() -> None:
    large = Image.fromarray(road()).resize((80, 80)).filter(ImageFilter.UnsharpMask(2, 200))
    background, shaken = (np.asarray(large.crop((x, x, x + SIZE, x + SIZE))) for x in (8, 9))
    assert not np.array_equal(background, shaken)
    assert scene(shaken, background, ALL)[1] == 0.0


@pytest.mark.parametrize("light", [0.6, 1.0, 1.2])
def test_car_stays_where_it_is_in_any_light(light: float) -> None:
    frame = np.rint(with_car(road()) * light).clip(0, 255).astype(np.uint8)

    pixels, share = scene(frame, road(), ALL)

    is_news = (pixels != on_pattern()).any(axis=-1)
    assert is_news[26:42, 22:38].all()
    assert not is_news[:20].any()
    assert not is_news[48:].any()
    assert share == pytest.approx(20 * 20 / SIZE**2, rel=0.3)
    assert (pixels[34, 30] > [180, 0, 0]).all()
    assert (pixels[34, 30] < [256, 40, 40]).all()


def test_what_is_painted_over_is_never_news_and_moves_no_exposure() -> None:
    counts = ALL.copy()
    counts[:, :44] = False
    background, frame = road().copy(), (road() * 0.7).astype(np.uint8)
    background[:, :44] = frame[:, :44] = 128

    pixels, share = scene(with_car(frame, left=10), background, counts)

    np.testing.assert_array_equal(pixels, on_pattern())
    assert share == 0.0


def test_nothing_counts_where_all_is_painted() -> None:
    assert scene(with_car(road()), road(), ~ALL)[1] == 0.0


@pytest.mark.parametrize(
    ("samples", "wanted", "line"),
    [
        ([10, 20, 30, 40], [10, 20, 30, 40], (1.0, 0.0)),
        ([10, 20, 30, 40, 50, 60, 70], [25, 45, 65, 85, 105, 125, 0], (2.0, 5.0)),
        ([100, 100, 100], [50, 50, 50], (0.5, 0.0)),
        ([0, 0, 0], [0, 0, 0], (0.0, 0.0)),
        ([], [], (1.0, 0.0)),
    ],
)
def test_line_is_that_of_most_samples(
    samples: list[int], wanted: list[int], line: tuple[float, float]
) -> None:
    found = fit_exposure(np.array(samples, np.uint8), np.array(wanted, np.uint8))
    assert found == pytest.approx(line, abs=0.5)


def test_exposure_is_fitted_for_each_channel() -> None:
    background = road()
    frame = np.rint(background * np.array([0.5, 0.8, 1.0])).astype(np.uint8)
    matched = same_exposure(frame, background, ALL)
    assert np.abs(matched - background).max() < 3


def test_speck_is_noise_and_a_patch_is_not() -> None:
    background = np.full((SIZE, SIZE, 3), 100, np.uint8)
    frame = background.astype(np.float32)
    frame[10, 10] = 255
    frame[40:50, 40:50] = 160
    found = differs(frame, background)
    assert not found[:35].any()
    assert found[42:48, 42:48].all()


def test_real_photograph_in_another_light_shows_nothing(night: Night) -> None:
    image = Image.open(night.folder / "junction-1/000.jpg").convert("RGB").resize((224, 224))
    dimmed = image.point(lambda step: round(step * 0.75))
    _, share = scene(np.asarray(dimmed), np.asarray(image), np.ones((224, 224), np.bool_))
    assert share == 0.0
