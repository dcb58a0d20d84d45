"""Synthetic nights look to the stages like embedded ones."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.large_night import peak_of
from benchmarks.synthetic_night import fill_store, lay_out_files, scene_features
from config import FeatureSettings
from tasks import storage
from tasks.feature_store import settled_image_ids, store_url
from tasks.stage01_list_images import image_id


def test_filled_store_settles_every_image(tmp_path: Path) -> None:
    lay_out_files(tmp_path / "source", 7)
    files = storage.list_files(storage.absolute_url(str(tmp_path / "source")))
    fill_store(str(tmp_path / "workspace"), FeatureSettings(), files, rows_per_file=3)
    store = store_url(storage.absolute_url(str(tmp_path / "workspace")), FeatureSettings())
    ids = [image_id(file.url, file.size_bytes, file.etag) for file in files]
    assert len(storage.list_parquet(store)) == 3
    assert len(set(ids)) == 7
    assert settled_image_ids(store, pa.chunked_array([ids])).to_pylist() == ids


def test_images_of_a_scene_are_twins_and_those_of_others_are_not() -> None:
    features = scene_features(np.random.default_rng(0), 40, images_per_scene=20)
    assert np.allclose(np.linalg.norm(features, axis=1), 1)
    similarity = features @ features.T
    assert (1 - similarity[:20, :20]).max() < 0.01
    assert (1 - similarity[:20, 20:]).min() > 0.1


def test_peak_counts_the_children_of_a_command() -> None:
    hold = "import time; held = bytearray(b'x' * 100_000_000); time.sleep(1)"
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    found = peak_of([sys.executable, "-c", start])
    assert found["peak_mib"] > 95
    assert found["peak_alone_mib"] < 95
