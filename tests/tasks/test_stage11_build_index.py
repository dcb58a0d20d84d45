"""The Annoy index: the same bytes for the same features, and every item finds itself."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from tasks.schemas import FEATURE_DIM
from tasks.stage11_build_index import load_index, write_index

NUM_ITEMS = 1_500


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    # More than fit into one leaf of Annoy's, so that the trees have hyperplanes.
    rows = np.random.default_rng(0).random((NUM_ITEMS, FEATURE_DIM)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_same_features_give_same_bytes(features: np.ndarray, tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_index(features, tmp_path / name, n_trees=5, seed=1)

    assert digest(tmp_path / "first") == digest(tmp_path / "second")


def test_another_seed_gives_other_bytes(features: np.ndarray, tmp_path: Path) -> None:
    for seed in (1, 2):
        write_index(features, tmp_path / str(seed), n_trees=5, seed=seed)

    assert digest(tmp_path / "1") != digest(tmp_path / "2")


def test_every_item_finds_itself_first(features: np.ndarray, tmp_path: Path) -> None:
    write_index(features, tmp_path / "index.ann", n_trees=5, seed=1)

    index = load_index(tmp_path / "index.ann")

    assert index.get_n_items() == NUM_ITEMS
    assert index.get_n_trees() == 5
    assert [index.get_nns_by_item(i, 1)[0] for i in range(NUM_ITEMS)] == list(range(NUM_ITEMS))


def test_distances_are_angular(tmp_path: Path) -> None:
    features = np.eye(3, FEATURE_DIM, dtype=np.float32)
    features[2] = -features[0]
    write_index(features, tmp_path / "index.ann", n_trees=1, seed=1)

    index = load_index(tmp_path / "index.ann")

    assert index.get_distance(0, 1) == pytest.approx(2**0.5)
    assert index.get_distance(0, 2) == pytest.approx(2.0)
