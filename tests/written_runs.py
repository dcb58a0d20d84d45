"""Runs that were never embedded: pictures, made-up features and a manifest that keeps them all."""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from tasks import storage
from tasks.schemas import FEATURE_DIM, IMAGES
from tests.written_nights import publish_manifest

RUN_ID = "night-0123456789abcdef"


@dataclass(frozen=True)
class WrittenRun:
    """A source and a run about it."""

    source_url: str
    workspace_url: str
    manifest_url: str

    def url(self, path: str) -> str:
        return storage.join(self.source_url, path)


def write_run(
    place: str, features: Mapping[str, NDArray[np.float32]], *, gated: frozenset[str] = frozenset()
) -> WrittenRun:
    """Lay out `<place>/source` and a run in `<place>/workspace`.

    Args:
        place: An empty folder.
        features: The `(512,)` float32 feature of each image, by path; the folder is its partition.
        gated: Paths of images that stand on another one.
    """
    base = storage.absolute_url(place)
    source_url, workspace_url = storage.join(base, "source"), storage.join(base, "workspace")
    run_url = storage.join(workspace_url, "runs", RUN_ID)
    rows = []
    for path in features:
        content = _picture(path)
        storage.publish_bytes(storage.join(source_url, path), content)
        rows.append(
            {
                "image_id": path,
                "url": storage.join(source_url, path),
                "size_bytes": len(content),
                "etag": "seen",
                "camera": path.rpartition("/")[0],
                "captured_at": datetime(2026, 1, 31, tzinfo=UTC),
                "sha256": hashlib.sha256(content).hexdigest(),
                "stands_on": "another" if path in gated else None,
            }
        )
    rows.sort(key=lambda row: (row["camera"], row["url"]))
    matrix = np.array([features[str(row["image_id"])] for row in rows], np.float32)
    for item_id, row in enumerate(rows):
        row["item_id"] = item_id
    rows.sort(key=lambda row: str(row["url"]))
    storage.publish_table(
        storage.join(run_url, "images.parquet"), pa.Table.from_pylist(rows, IMAGES)
    )
    storage.publish(
        storage.join(run_url, "features.npy"),
        lambda path: path.write_bytes(_npy(matrix.reshape(-1, FEATURE_DIM))),
    )
    kept = {"cluster_id": -1, "action": "keep", "reason": "unique"}
    manifest_url = storage.join(run_url, "manifest.parquet")
    names = ("url", "size_bytes", "etag", "sha256")
    decided = [{name: row[name] for name in names} | kept for row in rows]
    publish_manifest(manifest_url, source_url, decided, {"run_id": RUN_ID})
    return WrittenRun(source_url, workspace_url, manifest_url)


def made_scenes(
    camera: str, num_scenes: int, frames_per_scene: int, *, seed: int
) -> dict[str, NDArray[np.float32]]:
    """Features of frames whose scene is the middle part of their name.

    Two frames of a scene are up to 0.05 apart, two of different scenes from about 0.04 on.
    """
    rng = np.random.default_rng(seed)

    def step(length: float) -> NDArray[np.float64]:
        direction = rng.normal(size=FEATURE_DIM)
        return length * direction / np.linalg.norm(direction)

    base = step(1.0)
    features = {}
    for scene in range(num_scenes):
        middle = base + step(rng.uniform(0.15, 0.5))
        for frame in range(frames_per_scene):
            feature = middle + step(rng.uniform(0.05, 0.25))
            name = f"{camera}/scene{scene:02}-{frame:02}.jpg"
            features[name] = (feature / np.linalg.norm(feature)).astype(np.float32)
    return features


def _picture(path: str) -> bytes:
    color = tuple(hashlib.sha256(path.encode()).digest()[:3])
    file = io.BytesIO()
    Image.new("RGB", (64, 48), color).save(file, "JPEG")
    return file.getvalue()


def _npy(matrix: NDArray[np.float32]) -> bytes:
    file = io.BytesIO()
    np.save(file, matrix)
    return file.getvalue()
