"""The gate: what may stand on what, and that shards never change it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tasks.change_gate import (
    FRAMES_PER_CHAIN,
    ChangeGate,
    chain_lengths,
    is_drawn,
    largest_change,
    shard_lengths,
    thumbnail,
)


def flat(value: int, size: int = 112) -> NDArray[np.uint8]:
    return np.full((size, size, 3), value, np.uint8)


def bases(frames: list[tuple[str, str, int | None]], max_change: int = 16) -> list[str | None]:
    gate = ChangeGate(max_change)
    return [
        gate.base_of(name, camera, None if value is None else flat(value))
        for name, camera, value in frames
    ]


def test_frame_stands_on_the_last_embedded_one_and_not_on_the_last_one() -> None:
    # Ten at a time a slow dusk would never be noticed if each stood on the frame before.
    frames = [("a", "", 100), ("b", "", 110), ("c", "", 120), ("d", "", 130)]
    assert bases(frames) == [None, "a", None, "c"]


def test_change_of_exactly_the_limit_is_a_change() -> None:
    assert bases([("a", "", 100), ("b", "", 116)]) == [None, None]
    assert bases([("a", "", 100), ("b", "", 115)]) == [None, "a"]


def test_cameras_never_stand_on_each_other() -> None:
    frames = [("a", "north", 100), ("b", "south", 100), ("c", "south", 100), ("d", "north", 100)]
    assert bases(frames) == [None, None, "b", None]


def test_unreadable_frame_stands_on_nothing_and_carries_nothing() -> None:
    assert bases([("a", "", 100), ("b", "", None), ("c", "", 100)]) == [None, None, "a"]


def test_every_chain_starts_afresh() -> None:
    frames: list[tuple[str, str, int | None]] = [
        (f"{n}", "", 100) for n in range(2 * FRAMES_PER_CHAIN)
    ]
    found = bases(frames)
    assert [n for n, base in enumerate(found) if base is None] == [0, FRAMES_PER_CHAIN]
    assert found[-1] == str(FRAMES_PER_CHAIN)


def test_one_small_object_is_a_change_and_noise_is_none() -> None:
    road = flat(100, 224)
    car = road.copy()
    car[100:108, 100:108] = 200
    noise = road + np.random.default_rng(0).integers(-8, 9, road.shape).astype(np.int16)
    assert largest_change(thumbnail(road), thumbnail(car)) == 100
    assert largest_change(thumbnail(road), thumbnail(noise.astype(np.uint8))) < 10


def test_difference_of_dark_and_bright_does_not_wrap() -> None:
    assert largest_change(thumbnail(flat(0)), thumbnail(flat(255))) == 255


@pytest.mark.parametrize("size", [32, 56, 112, 224])
def test_thumbnail_of_any_size(size: int) -> None:
    small = thumbnail(flat(7, size))
    assert (small.shape, small.dtype, set(small.flat)) == ((56, 56, 3), np.uint8, {7})


def test_sample_is_drawn_by_identity() -> None:
    assert is_drawn("00000000" + "f" * 24, 0.05)
    assert not is_drawn("f" * 32, 0.999)
    assert is_drawn("f" * 32, 1.0)
    assert not is_drawn("0" * 32, 0.0)


def test_chains_end_with_their_camera() -> None:
    assert chain_lengths(["a"] * 130 + ["b"] * 64 + ["c"]) == [64, 64, 2, 64, 1]
    assert chain_lengths([]) == []


def test_shards_are_whole_chains() -> None:
    assert shard_lengths([64, 64, 2, 64, 1], 64) == [64, 64, 66, 1]
    assert shard_lengths([64, 64, 2, 64, 1], 100) == [128, 67]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 200)), max_size=6),
    st.integers(1, 300),
)
def test_every_shard_sees_the_chains_of_the_whole(
    runs: list[tuple[str, int]], images_per_shard: int
) -> None:
    cameras = [name for name, length in sorted(runs) for _ in range(length)]
    chains = chain_lengths(cameras)
    shards = shard_lengths(chains, images_per_shard)
    assert sum(shards) == len(cameras)
    seen, start = [], 0
    for length in shards:
        seen += chain_lengths(cameras[start : start + length])
        start += length
    assert seen == chains
