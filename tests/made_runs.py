"""Runs that no model has seen: pictures of one colour, features by hand, and the real stages."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from config import load_config
from tasks import storage
from tasks.feature_store import feature_metadata, gate_name, store_url
from tasks.references import GateCheck, Neighbors, SearchRange
from tasks.schemas import FEATURE_DIM, FEATURES
from tasks.stage01_list_images import image_id, list_images
from tasks.stage03_embed_shard import read_image
from tasks.stage04_collect_features import collect_features
from tasks.stage05_plan_cells import plan_cells
from tasks.stage06_find_neighbors import find_cores, find_neighbors, mark_cores
from tasks.stage07_cluster_images import cluster_images
from tasks.stage08_choose_keepers import choose_keepers
from tasks.stage09_write_manifest import write_manifest
from tasks.stage11_build_index import build_index
from tasks.stores import store_of
from tasks.views import view_of

FEATURES_OF_TESTS = {"image_size": 32, "dtype": "float32"}
"""The fewest pixels that VGG16 takes, for what a test has embedded after all."""


@dataclass(frozen=True)
class MadeRun:
    """A source, its workspace and a run about it."""

    source_url: str
    workspace_url: str
    run_id: str

    def url(self, path: str) -> str:
        return storage.join(self.source_url, path)


def on_circle(degrees: float) -> np.ndarray:
    """A feature at an angle: two of them have the cosine distance 1 - cos(difference)."""
    feature = np.zeros(FEATURE_DIM, np.float32)
    feature[:2] = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return feature


def picture(number: int) -> bytes:
    """A PNG of one colour, another for each number."""
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (number * 37 % 256, number * 91 % 256, number % 256)).save(
        file, "PNG"
    )
    return file.getvalue()


def make_run(
    place: str,
    degrees: Mapping[str, float],
    *,
    contents: Mapping[str, bytes] | None = None,
    stands_on: Mapping[str, str] | None = None,
    **settings: Any,
) -> MadeRun:
    """Lay out a source at `<place>/source`, and decide about it in `<place>/workspace`.

    Args:
        place: An empty folder.
        degrees: Path of each image, and where on the circle its feature is.
        contents: What lies there instead of a picture; what is no image has no feature.
        stands_on: Frames that have the feature of an earlier one, and which; with a gate only.
        settings: Of the run.
    """
    place = storage.absolute_url(place)
    source_url, workspace_url = storage.join(place, "source"), storage.join(place, "workspace")
    storage.make_folder(source_url)
    said = {"source_url": source_url, "workspace_url": workspace_url}
    config = load_config(None, {"features": FEATURES_OF_TESTS} | settings | said)
    for number, path in enumerate(degrees):
        content = (contents or {}).get(path, picture(number))
        assert store_of(source_url).create(storage.join(source_url, path), content)
    fill_store(workspace_url, config, degrees, stands_on or {})
    inventory = list_images.fn(config)
    gate = GateCheck(len(stands_on), 0, None, is_trusted=True) if stands_on else None
    collection = collect_features.fn(inventory, config, gate)
    cells = plan_cells.fn(collection, 0, config)
    everything = SearchRange(0, cells.num_items)
    if config.clusters.min_samples > 2:
        cells = mark_cores.fn([find_cores.fn(everything, cells, collection, config)], cells)
    links = [find_neighbors.fn(everything, cells, collection)] if cells.num_items else []
    clusters = cluster_images.fn(links, cells, collection, config)
    keepers = choose_keepers.fn(clusters, collection, config)
    exact = Neighbors(recall=1.0, depth=0)
    write_manifest.fn(inventory, collection, exact, clusters, keepers, config)
    build_index.fn(collection, config)
    return MadeRun(source_url, workspace_url, collection.run_id)


def fill_store(
    workspace_url: str,
    config: Any,
    degrees: Mapping[str, float],
    stands_on: Mapping[str, str],
    *,
    name: str = "made",
) -> None:
    """Write what the embedding would have found out, and the features by hand."""
    rows = []
    image_ids = {}
    for file in storage.list_files(config.source_url):
        image_ids[file.relative_path] = image_id(file.url, file.size_bytes, file.etag)
        image = {
            "image_id": image_ids[file.relative_path],
            "url": file.url,
            "size_bytes": file.size_bytes,
            "etag": file.etag,
            "camera": "",
        }
        view = view_of(config.view)
        row, pixels = read_image(image, storage.read_bytes, config.features, view)
        if pixels is not None:
            base = stands_on.get(file.relative_path, file.relative_path)
            row["feature"] = on_circle(degrees[base])
            row["stands_on"] = None if base == file.relative_path else image_ids[base]
        rows.append(row)
    table = pa.Table.from_pylist(rows, FEATURES)
    storage.publish_table(
        storage.join(store_url(workspace_url, config.features), f"{name}.parquet"),
        table.replace_schema_metadata(feature_metadata(config.features, gate_name(config))),
    )
