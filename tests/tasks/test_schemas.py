"""Schemas: stable names of artifacts, and files that other tools read."""

import json
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from config import FeatureSettings
from tasks import storage
from tasks.feature_store import feature_metadata
from tasks.schemas import FEATURES, IMAGES, INVENTORY, fingerprint


def test_fingerprint_never_changes() -> None:
    assert fingerprint() == "4f53cda18c2baa0c"
    assert fingerprint("a", 1, None, {"x": [1.5, True]}) == "c5c95555c38fde02"
    assert fingerprint("ü") == "1796f4352e23b046"


def test_order_of_dict_keys_is_irrelevant() -> None:
    assert fingerprint({"a": 1, "b": {"c": 2, "d": 3}}) == fingerprint(
        {"b": {"d": 3, "c": 2}, "a": 1}
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["ab"], ["a", "b"]),
        ([["a"], "b"], ["a", ["b"]]),
        ([1], ["1"]),
        ([1], [1.0]),
        ([None], []),
        ([[1, 2]], [[2, 1]]),
        ([{"a": None}], [{}]),
    ],
)
def test_other_parts_have_another_fingerprint(one: list[object], other: list[object]) -> None:
    assert fingerprint(*one) != fingerprint(*other)


def test_what_json_cannot_write_has_no_fingerprint() -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        fingerprint({1, 2})


def test_table_of_images_begins_with_the_inventory() -> None:
    assert IMAGES.names[: len(INVENTORY)] == INVENTORY.names
    assert [IMAGES.field(name) for name in INVENTORY.names] == list(INVENTORY)


class TestFeatureFile:
    @pytest.fixture(scope="class")
    def features(self) -> np.ndarray:
        return np.random.default_rng(0).random((3, 512), np.float32)

    @pytest.fixture(scope="class")
    def path(self, features: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A file of three images, the second of which has no feature."""
        rows = [
            {
                "image_id": f"id-{number}",
                "url": f"s3://bucket/{number}.jpg",
                "size_bytes": 1000 + number,
                "etag": "etag",
                "sha256": None if number == 1 else "ab",
                "width": None if number == 1 else 640,
                "height": None if number == 1 else 480,
                "sharpness": None if number == 1 else 0.5,
                "feature": None if number == 1 else feature,
                "error": "empty file" if number == 1 else None,
            }
            for number, feature in enumerate(features)
        ]
        table = pa.Table.from_pylist(rows, FEATURES)
        path = tmp_path_factory.mktemp("features") / "features.parquet"
        storage.publish_table(
            str(path), table.replace_schema_metadata(feature_metadata(FeatureSettings()))
        )
        return path

    def test_is_compressed_with_zstd(self, path: Path) -> None:
        group = pq.ParquetFile(path).metadata.row_group(0)
        compressions = {group.column(i).compression for i in range(group.num_columns)}
        assert compressions == {"ZSTD"}

    def test_is_read_by_plain_pyarrow(self, path: Path, features: np.ndarray) -> None:
        table = pq.read_table(path)
        assert table.schema.equals(FEATURES)
        assert table.schema.field("feature").type == pa.list_(pa.float32(), 512)
        assert table["feature"].is_null().to_pylist() == [False, True, False]
        assert table["feature"][2].as_py() == features[2].tolist()

    def test_is_read_by_pandas(self, path: Path, features: np.ndarray) -> None:
        frame = pd.read_parquet(path)
        assert list(frame.columns) == FEATURES.names
        assert frame.loc[1, "error"] == "empty file"
        np.testing.assert_array_equal(np.stack(frame["feature"].dropna()), features[[0, 2]])

    def test_is_read_by_duckdb(self, path: Path, features: np.ndarray) -> None:
        rows = duckdb.execute(
            "SELECT url, len(feature), feature, error FROM read_parquet(?) ORDER BY url",
            [str(path)],
        ).fetchall()
        assert rows[0] == ("s3://bucket/0.jpg", 512, pytest.approx(features[0].tolist()), None)
        assert rows[1] == ("s3://bucket/1.jpg", None, None, "empty file")

    def test_duckdb_computes_with_its_features(self, path: Path, features: np.ndarray) -> None:
        (distance,) = duckdb.execute(
            "SELECT array_cosine_distance(a.feature::FLOAT[512], b.feature::FLOAT[512])"
            " FROM read_parquet($path) a, read_parquet($path) b"
            " WHERE a.image_id = 'id-0' AND b.image_id = 'id-2'",
            {"path": str(path)},
        ).fetchone() or (None,)
        a, b = features[0].astype(np.float64), features[2].astype(np.float64)
        expected = 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        assert distance == pytest.approx(expected, abs=1e-6)

    def test_says_what_made_it(self, path: Path) -> None:
        metadata = storage.read_metadata(str(path))
        assert sorted(metadata) == [
            "decoder",
            "fingerprint",
            "schema_version",
            "settings",
            "weights_digest",
        ]
        assert FeatureSettings(**json.loads(metadata["settings"])) == FeatureSettings()
