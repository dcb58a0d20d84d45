"""The memo: a content goes through the model once, whoever asks and however many at a time."""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest

from tasks.memo import FeatureMemo, feature_memo, forget_features


def pixels(red: int) -> np.ndarray:
    return np.full((2, 2, 3), red, np.uint8)


class FakeNetwork:
    """Gives the red of each image as its feature, and notes the batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        self.batches.append(batch[:, 0, 0, 0].tolist())
        return batch[:, 0, 0, :1].astype(np.float32)


def test_only_what_is_not_known_is_embedded() -> None:
    memo, network = FeatureMemo(), FakeNetwork()

    first = memo.embed({"a": pixels(1), "b": pixels(2)}, network)
    second = memo.embed({"b": pixels(2), "c": pixels(3)}, network)
    third = memo.embed({"c": pixels(3)}, network)

    assert network.batches == [[1, 2], [3]]
    assert {name: feature.tolist() for name, feature in first.items()} == {"a": [1], "b": [2]}
    assert {name: feature.tolist() for name, feature in second.items()} == {"b": [2], "c": [3]}
    assert {name: feature.tolist() for name, feature in third.items()} == {"c": [3]}


def test_content_has_a_feature_for_each_view_and_background() -> None:
    memo, network = FeatureMemo(), FakeNetwork()
    seen = {("a", None, None): 1, ("a", "v", None): 2, ("a", "v", "b"): 3}

    memo.embed({name: pixels(red) for name, red in seen.items()}, network)

    assert {name: int(memo.get(name)[0]) for name in seen} == seen  # type: ignore[index]


def test_known_content_can_be_asked_for() -> None:
    memo = FeatureMemo()
    assert memo.get("a") is None
    memo.embed({"a": pixels(7)}, FakeNetwork())
    known = memo.get("a")
    assert known is not None
    assert known.tolist() == [7]


def test_oldest_contents_are_forgotten_first() -> None:
    memo = FeatureMemo(max_contents=2)
    memo.embed({"a": pixels(1)}, FakeNetwork())
    memo.embed({"b": pixels(2), "c": pixels(3)}, FakeNetwork())
    assert [memo.get(name) is None for name in "abc"] == [True, False, False]


def test_batch_larger_than_the_memo_comes_back_whole() -> None:
    memo = FeatureMemo(max_contents=1)
    assert set(memo.embed({"a": pixels(1), "b": pixels(2)}, FakeNetwork())) == {"a", "b"}


def test_fault_of_the_network_leaves_nothing_behind() -> None:
    def broken(batch: np.ndarray) -> np.ndarray:
        raise RuntimeError("out of memory")

    memo, network = FeatureMemo(), FakeNetwork()
    with pytest.raises(RuntimeError, match="out of memory"):
        memo.embed({"a": pixels(1)}, broken)
    memo.embed({"a": pixels(1)}, network)
    assert network.batches == [[1]]


def test_threads_that_come_with_the_same_content_embed_it_once() -> None:
    memo, network, start = FeatureMemo(), FakeNetwork(), Barrier(8)

    def slowly(batch: np.ndarray) -> np.ndarray:
        time.sleep(0.05)  # so that the others are there before it is done
        return network(batch)

    def embed(_: int) -> list[float]:
        start.wait()
        return memo.embed({"a": pixels(5)}, slowly)["a"].tolist()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(embed, range(8))) == [[5]] * 8
    assert network.batches == [[5]]


def test_process_has_one_memo_for_one_way_of_embedding() -> None:
    memo = feature_memo("fingerprint")
    assert feature_memo("fingerprint") is memo
    other = feature_memo("another")
    assert other is not memo
    assert feature_memo("another") is other
    forget_features()
    assert feature_memo("another") is not other
