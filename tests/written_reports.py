"""Runs that were never embedded: a manifest with all that its report is made of."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from config import DedupConfig
from tasks import storage
from tasks.feature_store import feature_metadata, store_url
from tasks.references import Manifest
from tasks.schemas import FEATURE_DIM, FEATURES, IMAGES
from tasks.stage04_collect_features import write_matrix
from tests.written_nights import publish_manifest

START = datetime(2026, 1, 30, 22, 0, tzinfo=UTC)
SWEEP = {
    "eps": [0.005, 0.05, 0.3],
    "kept_fraction": [0.9, 0.5, 0.1],
    "num_compared": 5,
    "num_images": 5,
    "is_sample": False,
    "nearest_distances": {"edges": [0.0, 0.01, 0.1, 1.0], "counts": [2, 3, 0]},
}


@dataclass(frozen=True)
class WrittenRun:
    """A run and the config that it was made with."""

    manifest: Manifest
    config: DedupConfig
    source_url: str

    @property
    def folder_url(self) -> str:
        """Where its report goes."""
        return storage.join(self.manifest.run_url, "report")

    def read(self, path: str) -> str:
        """A file of its report."""
        return storage.read_bytes(storage.join(self.folder_url, path)).decode()


def jpeg(shade: int = 0, size: tuple[int, int] = (16, 12)) -> bytes:
    """A small picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", size, (shade % 256, 80, 160)).save(file, "JPEG")
    return file.getvalue()


def write_run(
    place: str,
    groups: Mapping[str, Mapping[str, float]],
    *,
    noise: Sequence[str] = (),
    unreadable: Mapping[str, str] | None = None,
    source_url: str | None = None,
    **metadata: str,
) -> WrittenRun:
    """Write everything that the report of a run is made of.

    Args:
        place: An empty folder.
        groups: The path of each keeper, and the distances of the images that go for it.
        noise: Paths of images that are like no other.
        unreadable: Paths of what could not be read, with the reason.
        source_url: Where the images are said to be.
        metadata: Metadata of the manifest.
    """
    place = storage.absolute_url(place)
    source_url = source_url or storage.join(place, "source")
    config = DedupConfig(source_url=source_url, workspace_url=storage.join(place, "workspace"))
    run_url = storage.join(config.workspace_url, "runs", "night-0123456789abcdef")
    decided = [(path, -1, "keep", None, None, "unique") for path in noise]
    decided += [(path, -1, "skip", None, None, why) for path, why in (unreadable or {}).items()]
    for number, (keeper, removed) in enumerate(groups.items()):
        decided.append((keeper, number, "keep", None, None, "keeper"))
        decided += [
            (path, number, "remove", keeper, distance, "within eps" if distance else "exact copy")
            for path, distance in removed.items()
        ]
    decided.sort()
    rows = [
        {
            "url": storage.join(source_url, path),
            "size_bytes": 1_000 + number,
            "etag": "e",
            "sha256": None if action == "skip" else f"{number:064x}",
            "cluster_id": cluster_id,
            "action": action,
            "keeper_url": None if keeper is None else storage.join(source_url, keeper),
            "distance": distance,
            "reason": reason,
        }
        for number, (path, cluster_id, action, keeper, distance, reason) in enumerate(decided)
    ]
    manifest = Manifest(url=storage.join(run_url, "manifest.parquet"), run_url=run_url)
    publish_manifest(manifest.url, source_url, rows, metadata)
    _publish_images(run_url, rows)
    _publish_thumbnails(store_url(config.workspace_url, config.features), rows, config)
    storage.publish_bytes(storage.join(run_url, "sweep.json"), json.dumps(SWEEP).encode())
    return WrittenRun(manifest, config, source_url)


def _publish_images(run_url: str, rows: Sequence[Mapping[str, Any]]) -> None:
    is_readable = [row["action"] != "skip" for row in rows]
    items = np.cumsum(is_readable) - 1
    images = [
        {
            "image_id": f"i{number:06}",
            "url": row["url"],
            "size_bytes": row["size_bytes"],
            "etag": "e",
            "camera": "",
            "captured_at": START + timedelta(minutes=number),
            "error": None if readable else "broken",
            "item_id": int(items[number]) if readable else None,
            "sha256": row["sha256"],
            "width": 640 if readable else None,
            "height": 480 if readable else None,
            "sharpness": 0.25 if readable else None,
            "stands_on": None,
        }
        for number, (row, readable) in enumerate(zip(rows, is_readable, strict=True))
    ]
    url = storage.join(run_url, "images.parquet")
    storage.publish_table(url, pa.Table.from_pylist(images, schema=IMAGES))
    features = np.random.default_rng(0).random((sum(is_readable), FEATURE_DIM), np.float32)
    storage.publish(
        storage.join(run_url, "features.npy"),
        lambda path: write_matrix(
            path, len(features), [(np.arange(len(features)), features)] if len(features) else []
        ),
    )


def _publish_thumbnails(store: str, rows: Sequence[Mapping[str, Any]], config: DedupConfig) -> None:
    columns: dict[str, Any] = {
        name: pa.nulls(len(rows), FEATURES.field(name).type) for name in FEATURES.names
    }
    columns["image_id"] = [f"i{number:06}" for number in range(len(rows))]
    columns["url"] = [row["url"] for row in rows]
    columns["size_bytes"] = [row["size_bytes"] for row in rows]
    columns["etag"] = ["e"] * len(rows)
    shades = [jpeg(shade) for shade in range(256)]
    columns["thumbnail"] = [
        None if row["action"] == "skip" else shades[number % 256] for number, row in enumerate(rows)
    ]
    table = pa.table(columns, schema=FEATURES)
    storage.publish_table(
        storage.join(store, "part.parquet"),
        table.replace_schema_metadata(feature_metadata(config.features)),
    )
