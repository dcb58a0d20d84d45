"""Hands a run to other tools: as CSV, as COCO, and as FiftyOne keeps its datasets on disk.

- CSV has all columns of the manifest and what else is known of each image, but no features; its
  `item_id` is the row of the image in the run's features.npy.
- COCO says of each image what was decided by one annotation around all of it, because that is what
  FiftyOne, CVAT and Label Studio all import. Its categories are the decisions: thousands of
  clusters would be thousands of labels to declare there. Everything else is an attribute.
- FiftyOne's format holds the features, too. It is written without FiftyOne.
"""

import base64
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from tasks import storage
from tasks.cells import open_features
from tasks.comparisons import Features
from tasks.paths import relative_to
from tasks.runs import Run

FORMULA = r"^([=+\-@\t\r\n＝＋－＠])"
"""How a cell begins that a spreadsheet would take for a formula."""

FIFTYONE_VERSION = "1.0.0"
"""Oldest FiftyOne that reads what is written here; newer ones migrate it themselves."""

CATEGORIES = ("keep", "remove")

_FEATURES_AT_ONCE = 1_024
_LOCAL = "file://"


def export_csv(url: str, run: Run) -> None:
    """Write one line per image, with a header line, in one step.

    A text that a spreadsheet would take for a formula gets an apostrophe in front. URLs begin with
    their protocol, so it is the names of partitions that this is about.
    """
    table = decided_images(run).drop_columns(["image_id", "path"])
    for number, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            harmless = pc.replace_substring_regex(table[field.name], FORMULA, r"'\1")
            table = table.set_column(number, field, harmless)
    storage.publish(url, lambda path: pyarrow.csv.write_csv(table, path))


def export_coco(url: str, run: Run) -> None:
    """Write a COCO file in one step.

    File names are paths below the source; what was skipped has no size and so no place among the
    images, and is listed as `skipped`.
    """
    rows = decided_images(run).to_pylist()
    readable = [row for row in rows if row["action"] in CATEGORIES]
    lists: dict[str, Iterable[Any]] = {
        "licenses": [],
        "categories": (
            {"id": number, "name": name, "supercategory": "decision"}
            for number, name in enumerate(CATEGORIES, 1)
        ),
        "images": (_coco_image(number, row) for number, row in enumerate(readable, 1)),
        "annotations": (_coco_annotation(number, row) for number, row in enumerate(readable, 1)),
        "skipped": (
            {"file_name": row["path"], "coco_url": row["url"], "reason": row["reason"]}
            for row in rows
            if row["action"] not in CATEGORIES
        ),
    }
    storage.publish(url, lambda path: _write_json(path, {"info": about(run)}, lists))


def export_fiftyone(folder_url: str, run: Run) -> None:
    """Write a dataset as `fiftyone.types.FiftyOneDataset` reads it, without the images themselves.

    Paths of local images are absolute. Others are below the source, for FiftyOne itself reads the
    local disk only: give `rel_dir` the folder where a copy of the source is.
    """
    table = decided_images(run)
    features = open_features(run.features_url)
    samples = (_fiftyone_sample(row, feature) for row, feature in _with_features(table, features))
    storage.publish(
        storage.join(folder_url, "samples.json"),
        lambda path: _write_json(path, {}, {"samples": samples}),
    )
    # Last: without it there is no dataset.
    storage.publish_bytes(
        storage.join(folder_url, "metadata.json"),
        json.dumps(
            {
                "name": run.run_id,
                "version": FIFTYONE_VERSION,
                "media_type": "image",
                "info": about(run),
                "sample_fields": _fiftyone_fields(),
            }
        ).encode(),
    )


def decided_images(run: Run) -> pa.Table:
    """All that is known of every image: a table sorted by URL.

    Returns:
        The columns of `schemas.MANIFEST`, and `similarity_percent` (to the keeper), `partition`,
        `captured_at`, `width`, `height`, `sharpness`, `item_id`, `image_id`, `path` (below the
        source).
    """
    table, images = run.manifest.table, run.images
    distance = pc.cast(table["distance"], pa.float64())
    paths = [relative_to(url, run.source_url) for url in table["url"].to_pylist()]
    added = {
        "similarity_percent": pc.multiply(pc.subtract(1.0, distance), 100.0),
        "partition": images["camera"],
        **{
            name: images[name]
            for name in ("captured_at", "width", "height", "sharpness", "item_id", "image_id")
        },
        "path": pa.array(paths, pa.string()),
    }
    for name, column in added.items():
        table = table.append_column(name, column)
    return table.replace_schema_metadata(None)


def about(run: Run) -> dict[str, Any]:
    """What an export says of the run that it is of."""
    return {
        "description": f"what image-dedup decided in the run {run.run_id}",
        "run_id": run.run_id,
        "source_url": run.source_url,
        "eps": run.config.eps,
        "eps_of_cameras": run.config.eps_of_cameras(),
        "manifest_digest": run.manifest.digest,
    }


def _coco_image(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": number,
        "file_name": row["path"],
        "width": row["width"],
        "height": row["height"],
        "date_captured": row["captured_at"].isoformat(),
        "coco_url": row["url"],
        "sha256": row["sha256"],
        "size_bytes": row["size_bytes"],
    }


def _coco_annotation(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("cluster_id", "keeper_url", "distance", "similarity_percent", "reason", "partition")
    return {
        "id": number,
        "image_id": number,
        "category_id": CATEGORIES.index(row["action"]) + 1,
        "bbox": [0, 0, row["width"], row["height"]],
        "area": row["width"] * row["height"],
        "segmentation": [],
        "iscrowd": 0,
        "attributes": {name: row[name] for name in names if row[name] is not None},
    }


def _with_features(
    table: pa.Table, features: Features
) -> Iterator[tuple[dict[str, Any], np.ndarray[Any, Any] | None]]:
    for batch in table.to_batches(max_chunksize=_FEATURES_AT_ONCE):
        for row in batch.to_pylist():
            yield row, None if row["item_id"] is None else features[row["item_id"]]


def _fiftyone_sample(
    row: Mapping[str, Any], feature: np.ndarray[Any, Any] | None
) -> dict[str, Any]:
    url = row["url"]
    names = (
        *("url", "sha256", "cluster_id", "keeper_url", "distance", "similarity_percent", "reason"),
        *("partition", "sharpness"),
    )
    return {
        "_id": _object_id(row["image_id"]),
        "_media_type": "image",
        # FiftyOne shuffles by it.
        "_rand": int(row["image_id"][:8], 16) / 2**32,
        "filepath": url.removeprefix(_LOCAL) if url.startswith(_LOCAL) else row["path"],
        "tags": [row["action"]],
        "metadata": {
            "_cls": "ImageMetadata",
            **{name: row[name] for name in ("size_bytes", "width", "height")},
        },
        "decision": {
            "_id": _object_id(row["image_id"]),
            "_cls": "Classification",
            "tags": [],
            "label": row["action"],
        },
        "captured_at": {"$date": row["captured_at"].isoformat(timespec="milliseconds")},
        "features": None if feature is None else _as_binary(feature),
        **{name: row[name] for name in names},
    }


def _fiftyone_fields() -> list[dict[str, Any]]:
    text, number, whole = "StringField", "FloatField", "IntField"
    metadata = [_field(name, whole) for name in ("size_bytes", "width", "height")]
    label = [
        _field("id", "ObjectIdField", db_field="_id"),
        _field("tags", "ListField", subfield=text),
        _field("label", text),
    ]
    return [
        _field("id", "ObjectIdField", db_field="_id"),
        _field("filepath", text),
        _field("tags", "ListField", subfield=text),
        _field("metadata", document="metadata.ImageMetadata", fields=metadata),
        _field("_media_type", text),
        _field("_rand", number),
        _field("decision", document="labels.Classification", fields=label),
        *(_field(name, text) for name in ("url", "sha256", "keeper_url", "reason", "partition")),
        *(_field(name, number) for name in ("distance", "similarity_percent", "sharpness")),
        _field("cluster_id", whole),
        _field("captured_at", "DateTimeField"),
        _field("features", "VectorField"),
    ]


def _field(
    name: str,
    kind: str = "EmbeddedDocumentField",
    *,
    db_field: str | None = None,
    subfield: str | None = None,
    document: str | None = None,
    fields: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    return {
        "name": name,
        "ftype": f"fiftyone.core.fields.{kind}",
        "subfield": subfield and f"fiftyone.core.fields.{subfield}",
        "embedded_doc_type": document and f"fiftyone.core.{document}",
        "fields": fields or [],
        "db_field": db_field or name,
        "description": None,
        "info": None,
    }


def _object_id(image_id: str) -> dict[str, str]:
    return {"$oid": image_id[:24]}


def _as_binary(feature: np.ndarray[Any, Any]) -> dict[str, Any]:
    """A vector as FiftyOne keeps it: a compressed `.npy` file."""
    file = io.BytesIO()
    np.save(file, np.asarray(feature), allow_pickle=False)
    content = base64.b64encode(zlib.compress(file.getvalue())).decode()
    return {"$binary": {"base64": content, "subType": "00"}}


def _write_json(path: Path, head: Mapping[str, Any], lists: Mapping[str, Iterable[Any]]) -> None:
    """Write an object whose long lists never are in memory."""
    with path.open("w", encoding="utf-8") as file:
        file.write("{")
        for name, value in head.items():
            file.write(f"{json.dumps(name)}: {json.dumps(value)}, ")
        for number, (name, values) in enumerate(lists.items()):
            file.write(f"{', ' if number else ''}{json.dumps(name)}: ")
            _write_list(file, values)
        file.write("}\n")


def _write_list(file: TextIO, values: Iterable[Any]) -> None:
    file.write("[")
    for number, value in enumerate(values):
        file.write(f"{',' if number else ''}\n{json.dumps(value)}")
    file.write("]")
