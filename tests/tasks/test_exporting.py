"""Exports, read as the tools they are for read them."""

import base64
import csv
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks import storage
from tasks.exporting import export_coco, export_csv, export_fiftyone
from tasks.runs import Run, open_run
from tests.made_runs import MadeRun, make_run

DEGREES = {"=1+1/0.png": 0, "=1+1/1.png": 5, "b/0.png": 90, "b/broken.png": 0}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    return make_run(
        str(tmp_path_factory.mktemp("made")),
        DEGREES,
        contents={"b/broken.png": b"no image"},
        source={"partition_by": "^([^/]+)/"},
    )


@pytest.fixture(scope="module")
def run(made: MadeRun) -> Run:
    return open_run(made.workspace_url, made.run_id)


def read_json(url: str) -> Any:
    return json.loads(storage.read_bytes(url))


def decided(run: Run) -> Iterator[tuple[str, dict[str, Any]]]:
    """Path below the source and row of the manifest of each image."""
    for row in run.manifest.table.to_pylist():
        yield row["url"][len(run.source_url) + 1 :], row


def test_csv_has_every_image_and_no_formula(run: Run, place: str) -> None:
    url = storage.join(storage.absolute_url(place), "run.csv")
    export_csv(url, run)
    rows = list(csv.DictReader(io.StringIO(storage.read_bytes(url).decode(), newline="")))
    assert list(rows[0]) == [
        *("url", "size_bytes", "etag", "sha256", "cluster_id", "action", "keeper_url", "distance"),
        *("reason", "similarity_percent", "partition", "captured_at", "width", "height"),
        *("sharpness", "item_id"),
    ]
    assert [row["url"] for row in rows] == run.manifest.table["url"].to_pylist()
    assert [row["partition"] for row in rows] == ["'=1+1", "'=1+1", "b", "b"]
    assert [row["action"] for row in rows[2:]] == ["keep", "skip"]
    [removed] = [row for row in rows if row["action"] == "remove"]
    assert float(removed["similarity_percent"]) == pytest.approx(
        100 * np.cos(np.deg2rad(5)), abs=1e-4
    )
    assert {row["item_id"] for row in rows} == {"0", "1", "2", ""}
    assert [row["cluster_id"] for row in rows] == ["0", "0", "-1", "-1"]


def test_coco_says_the_decision_with_one_annotation_per_image(run: Run, tmp_path: Path) -> None:
    url = str(tmp_path / "coco.json")
    export_coco(url, run)
    coco = read_json(url)
    names = {category["id"]: category["name"] for category in coco["categories"]}
    assert names == {1: "keep", 2: "remove"}
    decisions = dict(decided(run))
    files = {image["id"]: image["file_name"] for image in coco["images"]}
    assert list(files.values()) == ["=1+1/0.png", "=1+1/1.png", "b/0.png"]
    assert len(coco["annotations"]) == 3
    for annotation in coco["annotations"]:
        row = decisions[files[annotation["image_id"]]]
        assert names[annotation["category_id"]] == row["action"]
        assert annotation["bbox"] == [0, 0, 40, 30]
        assert annotation["area"] == 1200
        assert annotation["attributes"]["cluster_id"] == row["cluster_id"]
        assert annotation["attributes"].get("keeper_url") == row["keeper_url"]
    assert {(image["width"], image["height"]) for image in coco["images"]} == {(40, 30)}
    assert coco["skipped"] == [
        {
            "file_name": "b/broken.png",
            "coco_url": f"{run.source_url}/b/broken.png",
            "reason": decisions["b/broken.png"]["reason"],
        }
    ]
    assert coco["info"]["manifest_digest"] == run.manifest.digest


def test_fiftyone_dataset_has_features_and_declared_fields(run: Run, place: str) -> None:
    folder = storage.join(storage.absolute_url(place), "dataset")
    export_fiftyone(folder, run)
    samples = read_json(f"{folder}/samples.json")["samples"]
    metadata = read_json(f"{folder}/metadata.json")
    matrix = np.load(storage.local_path(run.features_url))
    items = dict(zip(*(run.images[name].to_pylist() for name in ("url", "item_id")), strict=True))
    by_path = {sample["filepath"]: sample for sample in samples}
    assert len(by_path) == 4
    for path, row in decided(run):
        sample = by_path[f"{run.source_url.removeprefix('file://')}/{path}"]
        assert sample["decision"]["label"] == row["action"]
        assert sample["tags"] == [row["action"]]
        for name in ("url", "cluster_id", "keeper_url", "distance", "reason"):
            assert sample[name] == row[name]
        if row["action"] == "skip":
            assert sample["features"] is None
        else:
            packed = base64.b64decode(sample["features"]["$binary"]["base64"])
            feature = np.load(io.BytesIO(zlib.decompress(packed)))
            assert (feature == matrix[items[row["url"]]]).all()
    declared = {field["db_field"] for field in metadata["sample_fields"]}
    assert set(samples[0]) <= declared
    assert metadata["info"]["run_id"] == run.run_id
    assert len({sample["_id"]["$oid"] for sample in samples}) == 4


def test_fiftyone_gets_paths_below_the_source_of_a_bucket(s3_url: str, tmp_path: Path) -> None:
    made = make_run(s3_url, {"a/0.png": 0})
    export_fiftyone(str(tmp_path), open_run(made.workspace_url, made.run_id))
    [sample] = read_json(str(tmp_path / "samples.json"))["samples"]
    assert (sample["filepath"], sample["url"]) == ("a/0.png", made.url("a/0.png"))


def test_same_run_gives_same_bytes(run: Run, tmp_path: Path) -> None:
    for export, name in ((export_csv, "csv"), (export_coco, "coco")):
        urls = [str(tmp_path / f"{name}-{number}") for number in (1, 2)]
        for url in urls:
            export(url, run)
        assert storage.read_bytes(urls[0]) == storage.read_bytes(urls[1])
