"""The feature store: what is known of which image, whatever file it lies in."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from config import FeatureSettings
from tasks import feature_store, storage
from tasks.feature_store import (
    GONE,
    feature_files,
    feature_fingerprint,
    feature_metadata,
    iterate_features,
    read_image_rows,
    settled_image_ids,
    store_url,
)
from tasks.schemas import FEATURES

SETTINGS = FeatureSettings()
COLUMNS = [name for name in FEATURES.names if name != "feature"]


def feature_of(value: float) -> np.ndarray:
    return np.full(512, value, np.float32)


def row(image_id: str, **values: Any) -> dict[str, Any]:
    """A row with a feature, or with an error if it is given one."""
    known = {"image_id": image_id, "url": f"/{image_id}.jpg", "size_bytes": 1, "etag": "e"}
    if "error" in values:
        return known | values
    read = {"sha256": "ab", "width": 4, "height": 3, "sharpness": 0.5, "feature": feature_of(1)}
    return known | read | values


def write(store: str, name: str, *rows: dict[str, Any], decoder: str | None = None) -> None:
    """Write one feature file, by this decoder unless told otherwise."""
    table = pa.Table.from_pylist(list(rows), FEATURES)
    metadata = feature_metadata(SETTINGS) | ({"decoder": decoder} if decoder else {})
    storage.publish_table(f"{store}/{name}.parquet", table.replace_schema_metadata(metadata))


@pytest.fixture
def place(place: str) -> str:
    """The folder of these settings in an empty workspace."""
    return store_url(place, SETTINGS)


@pytest.mark.parametrize(
    "other",
    [
        {"pooling": "max"},
        {"pooling": "gem"},
        {"power": 1.0},
        {"image_size": 112},
        {"dtype": "bfloat16"},
        {"engine": "openvino"},
        {"engine": "openvino", "dtype": "bfloat16"},
        {"engine": "openvino", "dtype": "int8"},
        {"max_image_pixels": 1_000_000},
        {"max_file_bytes": 1_000_000},
    ],
    ids=str,
)
def test_every_shaping_setting_changes_the_fingerprint(other: dict[str, Any]) -> None:
    assert feature_fingerprint(FeatureSettings(**other)) != feature_fingerprint(SETTINGS)


def test_all_settings_of_features_are_in_the_test_above() -> None:
    assert set(FeatureSettings.model_fields) == {
        *("pooling", "gem_p", "power", "image_size", "engine", "dtype"),
        *("max_image_pixels", "max_file_bytes"),
    }


@pytest.mark.parametrize(("pooling", "is_same"), [("avg", True), ("max", True), ("gem", False)])
def test_gem_p_changes_the_fingerprint_of_gem_pooling_only(pooling: Any, is_same: bool) -> None:
    two, three = (
        feature_fingerprint(FeatureSettings(pooling=pooling, gem_p=p)) for p in (2.0, 3.0)
    )
    assert (two == three) is is_same


def test_eight_bit_ranges_are_part_of_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    def fingerprints() -> list[str]:
        return [
            feature_fingerprint(FeatureSettings(engine="openvino", dtype=dtype))
            for dtype in ("float32", "int8")
        ]

    before = fingerprints()
    monkeypatch.setattr(feature_store, "QUANTIZATION_DIGEST", "another")
    after = fingerprints()

    assert before[0] == after[0]
    assert before[1] != after[1]


def test_features_of_the_time_before_there_were_engines_are_still_found() -> None:
    assert feature_fingerprint(FeatureSettings(dtype="float32")) == "41dd4ab3d4c866db"


def test_store_is_a_folder_named_by_the_fingerprint() -> None:
    url = store_url("s3://bucket/work", SETTINGS)
    assert url == f"s3://bucket/work/features/{feature_fingerprint(SETTINGS)}"


def test_store_that_is_not_there_settles_nothing(place: str) -> None:
    assert settled_image_ids(f"{place}/store") == set()
    assert read_image_rows(f"{place}/store", {"a"}).num_rows == 0
    assert list(iterate_features(f"{place}/store", {"a": 0})) == []


def test_features_and_unreadable_images_settle_but_vanished_ones_do_not(place: str) -> None:
    write(place, "1", row("feature"), row("broken", error="empty file"), row("gone", error=GONE))
    assert settled_image_ids(place) == {"feature", "broken"}


def test_what_another_decoder_could_not_read_is_not_settled(place: str) -> None:
    rows = [row("feature"), row("broken", error="empty file"), row("gone", error=GONE)]
    write(place, "1", *rows, decoder="pillow 1.0, pillow-heif none")
    assert settled_image_ids(place) == {"feature"}


def test_image_is_settled_by_any_of_its_rows(tmp_path: Path) -> None:
    store = store_url(str(tmp_path), SETTINGS)
    write(store, "1", row("a", error=GONE), row("b", error="empty file"), decoder="other")
    write(store, "2", row("a"), row("c", error=GONE))
    write(store, "3", row("b", error="empty file"))
    assert settled_image_ids(store) == {"a", "b"}


@pytest.mark.parametrize("names", [("1", "2", "3"), ("3", "2", "1"), ("2", "3", "1")])
def test_feature_wins_over_an_error_and_any_error_over_gone(
    tmp_path: Path, names: tuple[str, str, str]
) -> None:
    store = store_url(str(tmp_path), SETTINGS)
    write(store, names[0], row("a", error="empty file"), row("b", error=GONE))
    write(store, names[1], row("a", sha256="feature"), row("b", error="a truncated file"))
    write(store, names[2], row("a", error=GONE), row("b", error="b truncated file"))

    rows = read_image_rows(store, {"a", "b"}).to_pylist()

    assert [(row["image_id"], row["sha256"], row["error"]) for row in rows] == [
        ("a", "feature", None),
        ("b", None, "a truncated file"),
    ]


def test_rows_are_those_wanted_sorted_and_without_features(place: str) -> None:
    write(place, "1", row("c"), row("a", width=7), row("other"))
    write(place, "2", row("b", error="empty file"))

    rows = read_image_rows(place, {"a", "b", "c", "unknown"})

    assert rows.column_names == COLUMNS
    assert rows["image_id"].to_pylist() == ["a", "b", "c"]
    assert rows["width"].to_pylist() == [7, None, 4]
    assert rows["error"].to_pylist() == [None, "empty file", None]


def test_no_image_wanted_gives_no_row(tmp_path: Path) -> None:
    write(store_url(str(tmp_path), SETTINGS), "1", row("a"))
    assert read_image_rows(store_url(str(tmp_path), SETTINGS), set()).num_rows == 0
    assert list(iterate_features(store_url(str(tmp_path), SETTINGS), {})) == []


def test_features_come_with_the_items_of_their_images(place: str) -> None:
    write(place, "1", row("a", feature=feature_of(1)), row("bad", error="empty file"))
    write(place, "2", row("c", feature=feature_of(3)), row("unwanted"))
    write(place, "3", row("unwanted"), row("bad", error="empty file"))
    write(place, "4", row("unwanted"), row("b", feature=feature_of(2)), row("a"))

    found = list(iterate_features(place, {"a": 0, "b": 10, "c": 20, "bad": 30}))

    assert [items.tolist() for items, _ in found] == [[0], [20], [10, 0]]
    assert [features[:, 0].tolist() for _, features in found] == [[1], [3], [2, 1]]
    assert {(features.shape[1], features.dtype.name) for _, features in found} == {(512, "float32")}


def test_features_after_rows_without_one_stay_with_their_image(tmp_path: Path) -> None:
    rows = [
        row(f"i{number}", error="empty file")
        if number % 3 == 0
        else row(f"i{number}", feature=np.arange(512, dtype=np.float32) + number)
        for number in range(10)
    ]
    write(store_url(str(tmp_path), SETTINGS), "1", *rows)

    ((items, features),) = iterate_features(
        store_url(str(tmp_path), SETTINGS), {f"i{n}": n for n in range(10)}
    )

    assert items.tolist() == [1, 2, 4, 5, 7, 8]
    assert features[:, 0].tolist() == [1, 2, 4, 5, 7, 8]
    assert features[:, 511].tolist() == [512, 513, 515, 516, 518, 519]


def test_file_with_another_fingerprint_is_not_there(tmp_path: Path) -> None:
    store = store_url(str(tmp_path), FeatureSettings())
    for name, settings in (("ours", FeatureSettings()), ("foreign", FeatureSettings(power=1.0))):
        table = FEATURES.empty_table().replace_schema_metadata(feature_metadata(settings))
        storage.publish_table(storage.join(store, f"{name}.parquet"), table)
    assert [url.rpartition("/")[2] for url in feature_files(store)] == ["ours.parquet"]
