"""Each image is judged by the settings of its partition, as if the partition were alone."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config import CameraSettings, DedupConfig
from tasks import storage
from tasks.partitions import eps_of, eps_of_rows
from tasks.references import Collection, SearchRange
from tasks.schemas import CLUSTERS, IMAGES, KEEPERS, MANIFEST
from tasks.stage05_plan_cells import plan_cells
from tasks.stage06_find_neighbors import find_cores, find_neighbors, mark_cores
from tasks.stage07_cluster_images import cluster_images, measure_recall
from tasks.stage08_choose_keepers import choose_keepers
from tests.made_items import eps_for, feature_sets

Decided = tuple[list[int], dict[str, tuple[str, float]], float]


def decided(folder: Path, night: dict[str, np.ndarray], config: DedupConfig) -> Decided:
    """Labels, keepers with their distance, and recall of partitions of features."""
    names = [f"{camera}/{n:03}" for camera, rows in night.items() for n in range(len(rows))]
    images = [
        {
            "image_id": name,
            "url": f"file:///{name}",
            "size_bytes": 1,
            "etag": "e",
            "camera": name.partition("/")[0],
            "captured_at": 0,
            "item_id": item,
            "width": 1,
            "height": 1,
            "sharpness": 1.0,
        }
        for item, name in enumerate(names)
    ]
    folder.mkdir()
    images_url, features_url = f"{folder}/images.parquet", f"{folder}/features.npy"
    storage.publish_table(images_url, pa.Table.from_pylist(images, IMAGES))
    np.save(features_url, np.concatenate(list(night.values())))
    collection = Collection(
        "run", str(folder), images_url, features_url, len(names), len(names), len(names), 0
    )
    cells = plan_cells.fn(collection, 2, config)
    everything = SearchRange(0, cells.num_items)
    if config.clusters.min_samples > 2:
        cells = mark_cores.fn([find_cores.fn(everything, cells, collection, config)], cells)
    links = [find_neighbors.fn(everything, cells, collection)]
    clusters = cluster_images.fn(links, cells, collection, config)
    recall = measure_recall.fn(clusters, cells, collection, config)
    keepers = choose_keepers.fn(clusters, collection, config)
    rows = storage.read_table(keepers.url, KEEPERS).to_pylist()
    return (
        storage.read_table(clusters.url, CLUSTERS)["cluster_id"].to_pylist(),
        {row["image_id"]: (row["keeper_id"], row["distance"]) for row in rows},
        recall,
    )


def config_with(**said: object) -> DedupConfig:
    return DedupConfig.model_validate({"source_url": "s", "workspace_url": "w", **said})


@settings(max_examples=60)
@given(data=st.data())
def test_two_partitions_together_are_decided_as_each_alone(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("night")
    night = {camera: data.draw(feature_sets()) for camera in ("east", "west")}
    eps = {camera: data.draw(eps_for(features)) for camera, features in night.items()}
    said = {
        "clusters": {"min_samples": data.draw(st.integers(1, 4))},
        "neighbors": {"exact_up_to": data.draw(st.sampled_from([0, 10, 1_000]))},
    }
    cameras = [{"pattern": f"^{camera}$", "eps": eps[camera]} for camera in night]

    labels, keepers, recall = decided(folder / "both", night, config_with(**said, cameras=cameras))

    alone = {
        camera: decided(
            folder / camera,
            {camera: night[camera]},
            config_with(
                **said | {"neighbors": {**said["neighbors"], "eps": eps[camera]}},
            ),
        )
        for camera in night
    }
    east, west = alone["east"], alone["west"]
    # Pivots are drawn by where a partition begins, so only a complete comparison is the same.
    if said["neighbors"]["exact_up_to"] >= max(map(len, night.values())):
        first = max(east[0], default=-1) + 1
        assert labels == east[0] + [label + first if label >= 0 else -1 for label in west[0]]
        assert keepers == east[1] | west[1]
        assert recall == 1.0
    for name, (keeper, distance) in keepers.items():
        assert name.partition("/")[0] == keeper.partition("/")[0]
        assert float(distance) <= eps[name.partition("/")[0]]


CAMERAS = [{"pattern": "^tunnel", "eps": 0.01}, {"pattern": "-8$", "eps": 0.3}]


def test_each_image_has_the_eps_of_its_partition() -> None:
    names = pa.chunked_array([["b", "tunnel-8"], ["b-8", "b", "tunnel-1"]], pa.string())
    config = config_with(cameras=CAMERAS, neighbors={"eps": 0.04})

    assert eps_of(names, config).tolist() == [0.04, 0.01, 0.3, 0.04, 0.01]
    assert eps_of(names.slice(0, 0), config).tolist() == []


def test_patterns_are_asked_once_for_each_partition(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(CameraSettings, "is_of", lambda camera, name: asked.append(name))
    names = pa.chunked_array([[f"camera-{n % 1_000}" for n in range(50_000)]], pa.string())

    eps = eps_of(names, config_with(cameras=[{"pattern": f"^{n}$"} for n in range(20)]))

    assert len(eps) == 50_000
    assert len(asked) == 20_000


def manifest_of(*urls: str) -> pa.Table:
    rows = [{"url": url, "size_bytes": 1, "etag": "", "cluster_id": -1} for url in urls]
    return pa.Table.from_pylist([row | {"action": "keep", "reason": ""} for row in rows], MANIFEST)


def test_manifest_says_the_eps_of_each_of_its_rows() -> None:
    table = manifest_of("s3://b/night/a/0.jpg", "s3://b/night/tunnel/0.jpg", "s3://old/k.jpg")
    source = {"partition_by": "^([^/]+)/"}
    said = {"source": source, "neighbors": {"eps": 0.04, "seed": 1}, "cameras": CAMERAS}
    metadata = {"source_url": "s3://b/night", "eps": "0.04", "config": json.dumps(said)}

    assert eps_of_rows(table, metadata)[:2].tolist() == [0.04, 0.01]
    assert eps_of_rows(table, metadata | {"config": json.dumps({"source": source})}) == 0.04
    assert eps_of_rows(table, {"source_url": "s3://b/night", "eps": "0.07"}) == 0.07
