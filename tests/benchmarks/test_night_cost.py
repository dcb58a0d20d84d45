"""The made-up library of a night's cost is of the size, the partitions and the likeness it says."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.made_features import kept_features
from benchmarks.night_cost import OTHER_CAMERAS, exponent, write_library
from config import FeatureSettings
from tasks.library import features_of, iterate_segments, library_url, segment_names
from tasks.references import Library
from tasks.schemas import LIBRARY


def test_library_has_some_images_near_those_of_the_night(tmp_path: Path) -> None:
    near = kept_features(3, seed=99)
    settings = FeatureSettings(dtype="float32")

    write_library(str(tmp_path), 100, 2, settings, near, ["road", "road", "table"])

    folder = library_url(str(tmp_path), settings)
    names = segment_names(folder)
    segments = list(iterate_segments(Library(folder, tuple(names)), LIBRARY.names))
    assert [rows.num_rows for rows in segments] == [50, 50]
    assert {camera for rows in segments for camera in rows["camera"].to_pylist()} == {
        "road",
        "table",
        *OTHER_CAMERAS,
    }
    distances = 1 - near @ np.concatenate([features_of(rows) for rows in segments]).T
    assert (distances.min(axis=1) < 0.01).all()
    assert ((distances < 0.05).sum(axis=1) < 3).all()


def test_kept_images_are_hardly_ever_near_each_other() -> None:
    features = np.concatenate([kept_features(200, seed) for seed in (1, 2)])

    distances = 1 - features @ features.T

    assert np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
    assert (features >= 0).all()
    assert np.median(distances) > 0.09
    assert (distances[np.triu_indices(400, 1)] < 0.05).mean() < 0.01


def test_exponent_is_that_of_the_first_and_the_last_size() -> None:
    assert exponent([100, 1_000, 10_000], [1.0, 7.0, 10.0]) == pytest.approx(0.5)
    assert exponent([100], [1.0]) is None
