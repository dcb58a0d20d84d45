"""The yardstick itself."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality import (
    describe,
    find_image,
    mean_average_precision,
    measure,
    precision_and_recall,
)

# Two groups on a circle; the third image of the first lies nearer to the second group.
ANGLES = np.deg2rad([0, 10, 80, 90, 100])
FEATURES = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1).astype(np.float32)
GROUPS = np.array([0, 0, 0, 1, 1])


def test_precision_and_recall_of_pairs_from_the_nearest_on() -> None:
    # Similarities: 0.8 for (0, 1), 0.6 for (0, 2), 0.48 for (1, 2), 0 for the pairs with 3.
    features = np.array([[1, 0, 0], [0.8, 0.6, 0], [0.6, 0, 0.8], [0, 0, 0]], np.float32)
    precision, recall = precision_and_recall(features, np.array([0, 0, 1, 1]))
    assert precision.tolist() == [1.0, 1 / 2, 1 / 3, 2 / 6]
    assert recall.tolist() == [0.5, 0.5, 0.5, 1.0]


def test_no_threshold_divides_equally_distant_pairs() -> None:
    # All six pairs are equally distant, two of them are right.
    precision, recall = precision_and_recall(np.eye(4, dtype=np.float32), np.array([0, 0, 1, 1]))
    assert (precision.tolist(), recall.tolist()) == ([2 / 6], [1.0])
    assert mean_average_precision(np.eye(4, dtype=np.float32), np.array([0, 0, 1, 1])) == 1 / 3


def test_a_nearest_pair_that_is_wrong_leaves_a_best_f1() -> None:
    features = np.array([[1, 0], [0.6, 0.8], [1, 0]], np.float32)
    assert measure(features, np.array([0, 0, 1])) == (1 / 2, 0.0, 1 / 2)


def test_mean_average_precision_of_a_perfect_and_a_mixed_ranking() -> None:
    apart = np.eye(4, dtype=np.float32)[[0, 0, 1, 1]]
    assert mean_average_precision(apart, np.array([0, 0, 1, 1])) == 1.0
    # Queries 0 and 1 rank perfectly; 2 has its own at ranks 3 and 4; 3 has its own at 1 or 2.
    mixed = mean_average_precision(FEATURES, GROUPS)
    assert (1 + 1 + (1 / 3 + 2 / 4) / 2) / 5 < mixed < 1


def test_description_names_all_three_measures() -> None:
    text = describe(np.eye(4, dtype=np.float32)[[0, 0, 1, 1]], np.array([0, 0, 1, 1]))
    assert text == "mAP 1.000  recall at precision 0.99 1.000  best F1 1.000"


def test_image_is_found_below_the_folder_or_its_only_subfolder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").touch()
    (tmp_path / "b.jpg").touch()
    assert find_image(tmp_path, "b.jpg") == tmp_path / "b.jpg"
    assert find_image(tmp_path, "a.jpg") == tmp_path / "images/a.jpg"
    with pytest.raises(FileNotFoundError, match=r"groups.csv names c.jpg"):
        find_image(tmp_path, "c.jpg")
