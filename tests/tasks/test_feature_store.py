"""The feature store: what is known of which image, whatever file it lies in."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import FeatureSettings, load_config
from tasks import feature_store, storage
from tasks.errors import ArtifactError
from tasks.feature_store import (
    GONE,
    LEARNED,
    best_rows,
    feature_fingerprint,
    feature_metadata,
    gate_name,
    iterate_features,
    iterate_thumbnails,
    read_gate_rows,
    read_image_rows,
    read_store,
    settled_image_ids,
    store_url,
)
from tasks.schemas import FEATURES

SETTINGS = FeatureSettings()
GATE = "a gate"


def feature_of(value: float) -> np.ndarray:
    return np.full(512, value, np.float32)


def row(image_id: str, **values: Any) -> dict[str, Any]:
    """A row with a feature, or with an error if it is given one."""
    known = {"image_id": image_id, "url": f"/{image_id}.jpg", "size_bytes": 1, "etag": "e"}
    if "error" in values:
        return known | values
    read = {"sha256": "ab", "width": 4, "height": 3, "sharpness": 0.5, "feature": feature_of(1)}
    return known | read | values


def write(
    store: str,
    name: str,
    *rows: dict[str, Any],
    decoder: str | None = None,
    gate: str | None = None,
    rows_per_group: int | None = None,
) -> None:
    """Write one feature file, by this decoder unless told otherwise."""
    table = pa.Table.from_pylist(list(rows), FEATURES)
    metadata = feature_metadata(SETTINGS, gate) | ({"decoder": decoder} if decoder else {})
    storage.publish_table(
        f"{store}/{name}.parquet",
        table.replace_schema_metadata(metadata),
        rows_per_group=rows_per_group,
    )


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


def test_store_is_a_folder_named_by_the_fingerprint() -> None:
    url = store_url("s3://bucket/dedup", SETTINGS)
    assert url == f"s3://bucket/dedup/features/{feature_fingerprint(SETTINGS)}"


def ids(*image_ids: str) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(image_ids, pa.string())])


def settled(store: str, *image_ids: str) -> list[str]:
    found: list[str] = settled_image_ids(store, ids(*image_ids)).to_pylist()
    return found


def first_components(store: str, *image_ids: str) -> dict[str, float]:
    """The first component of each image's feature, as the two readers give it."""
    rows = read_image_rows(store, ids(*image_ids))
    rows = rows.filter(pc.is_null(rows["error"]))
    return {
        rows["image_id"][position].as_py(): float(feature[0])
        for positions, features in iterate_features(store, rows)
        for position, feature in zip(positions.tolist(), features, strict=True)
    }


def test_store_that_is_not_there_settles_nothing(place: str) -> None:
    assert settled(f"{place}/store", "a") == []
    assert read_image_rows(f"{place}/store", ids("a")).num_rows == 0


def test_features_and_unreadable_images_settle_but_vanished_ones_do_not(place: str) -> None:
    write(place, "1", row("feature"), row("broken", error="empty file"), row("gone", error=GONE))
    assert settled(place, "gone", "broken", "unknown", "feature") == ["broken", "feature"]


def test_what_another_decoder_could_not_read_is_not_settled(place: str) -> None:
    rows = [row("feature"), row("broken", error="empty file"), row("gone", error=GONE)]
    write(place, "1", *rows, decoder="pillow 1.0, pillow-heif none")
    assert settled(place, "feature", "broken", "gone") == ["feature"]


def test_image_is_settled_by_any_of_its_rows(tmp_path: Path) -> None:
    store = store_url(str(tmp_path), SETTINGS)
    write(store, "1", row("a", error=GONE), row("b", error="empty file"), decoder="other")
    write(store, "2", row("a"), row("c", error=GONE))
    write(store, "3", row("b", error="empty file"))
    assert settled(store, "a", "b", "c") == ["a", "b"]


@pytest.mark.parametrize("names", [("1", "2", "3"), ("3", "2", "1"), ("2", "3", "1")])
def test_feature_wins_over_an_error_and_any_error_over_gone(
    tmp_path: Path, names: tuple[str, str, str]
) -> None:
    store = store_url(str(tmp_path), SETTINGS)
    write(store, names[0], row("a", error="empty file"), row("b", error=GONE))
    write(store, names[1], row("a", sha256="feature"), row("b", error="a truncated file"))
    write(store, names[2], row("a", error=GONE), row("b", error="b truncated file"))

    rows = read_image_rows(store, ids("a", "b")).to_pylist()

    assert [(row["image_id"], row["sha256"], row["error"]) for row in rows] == [
        ("a", "feature", None),
        ("b", None, "a truncated file"),
    ]


@pytest.mark.parametrize("names", [("1", "2", "3"), ("3", "1", "2"), ("2", "3", "1")])
def test_feature_is_that_of_the_row_that_wins(tmp_path: Path, names: tuple[str, str, str]) -> None:
    store = store_url(str(tmp_path), SETTINGS)
    write(store, names[0], row("a", sha256="cd", feature=feature_of(1)), row("b", width=8))
    write(store, names[1], row("a", sha256="ab", feature=feature_of(2)))
    write(store, names[2], row("b", width=7, feature=feature_of(3)), row("a", sha256="ef"))

    assert read_image_rows(store, ids("a", "b"))["width"].to_pylist() == [4, 7]
    assert first_components(store, "a", "b") == {"a": 2, "b": 3}


def test_rows_are_those_wanted_sorted_and_without_features(place: str) -> None:
    write(place, "1", row("c"), row("a", width=7), row("other"))
    write(place, "2", row("b", error="empty file"))

    rows = read_image_rows(place, ids("b", "a", "unknown", "c"))

    assert rows.column_names == LEARNED
    assert rows["image_id"].to_pylist() == ["a", "b", "c"]
    assert rows["width"].to_pylist() == [7, None, 4]
    assert rows["error"].to_pylist() == [None, "empty file", None]


def test_each_view_of_an_image_is_an_image_of_its_own(place: str) -> None:
    store = store_url(storage.absolute_url(place), SETTINGS)
    write(store, "1", row("a", feature=feature_of(1)), row("b", view="v", feature=feature_of(2)))
    write(store, "2", row("a", view="v", error="empty file"), row("c", view="w"))
    whole = ids("a", "b", "c")

    def settled_in(*views: str | None) -> list[str]:
        names = pa.array(views, pa.string())
        found: list[str] = settled_image_ids(store, whole, views=names).to_pylist()
        return found

    assert settled_image_ids(store, whole).to_pylist() == ["a"]
    assert settled_in("v", "v", "v") == ["a", "b"]
    assert settled_in("w", None, "w") == ["c"]

    views = pa.array([None, "v", "v"], pa.string())
    rows = read_image_rows(store, whole, views=views)
    assert rows.select(["image_id", "view", "error"]).to_pylist() == [
        {"image_id": "a", "view": None, "error": None},
        {"image_id": "b", "view": "v", "error": None},
    ]
    ((_, features),) = list(iterate_features(store, rows.slice(1)))
    assert features[0, 0] == 2


def test_of_two_backgrounds_the_values_decide(tmp_path: Path) -> None:
    store = store_url(str(tmp_path), SETTINGS)
    write(store, "1", row("a", view="v", background="cd", feature=feature_of(1)))
    write(store, "2", row("a", view="v", background="ab", feature=feature_of(2)))

    rows = read_image_rows(store, ids("a"), views=pa.array(["v"]))

    assert rows["background"].to_pylist() == ["ab"]
    assert next(iterate_features(store, rows))[1][0, 0] == 2


def test_no_image_wanted_gives_no_row(tmp_path: Path) -> None:
    write(store_url(str(tmp_path), SETTINGS), "1", row("a"))
    assert read_image_rows(store_url(str(tmp_path), SETTINGS), ids()).num_rows == 0
    assert first_components(store_url(str(tmp_path), SETTINGS)) == {}


def test_features_come_file_by_file_each_once(place: str) -> None:
    write(place, "1", row("a", feature=feature_of(1)), row("bad", error="empty file"))
    write(place, "2", row("c", feature=feature_of(3)), row("unwanted"))
    write(place, "3", row("unwanted"), row("bad", error="empty file"))
    write(place, "4", row("unwanted"), row("b", feature=feature_of(2)), row("a"))

    rows = read_image_rows(place, ids("a", "b", "c"))
    found = list(iterate_features(place, rows))

    assert [positions.tolist() for positions, _ in found] == [[0], [2], [1]]
    assert [features[:, 0].tolist() for _, features in found] == [[1], [3], [2]]
    assert {(features.shape[1], features.dtype.name) for _, features in found} == {(512, "float32")}


def test_features_after_rows_without_one_stay_with_their_image(tmp_path: Path) -> None:
    store = store_url(str(tmp_path), SETTINGS)
    rows = [
        row(f"i{number}", error="empty file")
        if number % 3 == 0
        else row(f"i{number}", feature=np.arange(512, dtype=np.float32) + number)
        for number in range(10)
    ]
    write(store, "1", *rows)

    wanted = read_image_rows(store, ids("i1", "i2", "i4", "i5", "i7", "i8"))
    ((positions, features),) = iterate_features(store, wanted)

    assert positions.tolist() == [0, 1, 2, 3, 4, 5]
    assert features[:, 0].tolist() == [1, 2, 4, 5, 7, 8]
    assert features[:, 511].tolist() == [512, 513, 515, 516, 518, 519]


def test_row_groups_without_a_wanted_image_are_passed_over(place: str) -> None:
    rows = [row(name, feature=feature_of(number)) for number, name in enumerate("abcdef")]
    write(place, "1", *rows, rows_per_group=2)
    assert settled(place, "f", "a") == ["f", "a"]
    assert first_components(place, "f", "a") == {"a": 0, "f": 5}


def test_row_whose_feature_is_missing_is_one_clear_error(place: str) -> None:
    write(place, "1", row("a"), row("b", feature=None))
    rows = read_image_rows(place, ids("a", "b"))
    with pytest.raises(
        ArtifactError, match="expected a feature of each of 2 images, found none of 1, such as b"
    ):
        list(iterate_features(place, rows))


def test_file_with_another_fingerprint_is_not_there(tmp_path: Path) -> None:
    store = store_url(str(tmp_path), SETTINGS)
    write(store, "ours", row("a"))
    foreign = pa.Table.from_pylist([row("b")], FEATURES).replace_schema_metadata(
        feature_metadata(FeatureSettings(power=1.0))
    )
    storage.publish_table(storage.join(store, "foreign.parquet"), foreign)
    assert settled(store, "a", "b") == ["a"]
    assert read_image_rows(store, ids("a", "b"))["image_id"].to_pylist() == ["a"]


def file_names(table: storage.OpenTable, group: int) -> list[str]:
    names: list[str] = table.read(group, ["image_id"])["image_id"].to_pylist()
    return names


def test_files_are_read_in_the_order_of_their_names(place: str) -> None:
    for number in range(40):
        write(place, f"{number:02}", row(f"{number:02}"))
    assert list(read_store(place, file_names)) == [[f"{number:02}"] for number in range(40)]


def test_large_files_are_read_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_url(str(tmp_path), SETTINGS)
    for number in range(4):
        write(store, str(number), row(str(number)))
    at_once, most = [], [0]

    def read(table: storage.OpenTable, group: int) -> str:
        at_once.append(group)
        most[0] = max(most[0], len(at_once))
        (name,) = file_names(table, group)
        at_once.pop()
        return name

    monkeypatch.setattr("tasks.feature_store.MAX_BYTES_AHEAD", 1)
    assert list(read_store(store, read)) == ["0", "1", "2", "3"]
    assert most == [1]


def test_rows_that_move_to_another_file_while_it_is_read_are_found(place: str) -> None:
    write(place, "1", row("a"))
    write(place, "2", row("b"), row("c"))
    fs, path = storage.filesystem(place)
    groups = read_store(place, file_names)
    assert next(groups) == ["a"]
    write(place, "0-merged", row("a"), row("b"), row("c"), row("late"))
    for name in ("1", "2"):
        fs.rm_file(f"{path}/{name}.parquet")
    # The second file may have been read ahead or not; its rows come in any case.
    assert list(groups)[-1] == ["a", "b", "c", "late"]


def test_damaged_file_is_one_clear_error(place: str) -> None:
    write(place, "1", row("a"))
    storage.publish_bytes(f"{place}/2.parquet", b"no parquet")
    with pytest.raises(ArtifactError, match=r"expected a Parquet file, .*/2.parquet"):
        settled(place, "a")


@given(st.permutations(range(6)))
def test_best_rows_do_not_depend_on_the_order(order: list[int]) -> None:
    rows = [
        row("a", error=GONE),
        row("a", error="empty file"),
        row("a", sha256="cd"),
        row("a", sha256="ab", sharpness=0.75),
        row("a", sha256="ab", sharpness=0.25),
        row("b", error=GONE),
    ]
    table = pa.Table.from_pylist([rows[number] for number in order], FEATURES).select(LEARNED)
    assert best_rows(table).select(["image_id", "sha256", "sharpness"]).to_pylist() == [
        {"image_id": "a", "sha256": "ab", "sharpness": 0.25},
        {"image_id": "b", "sha256": None, "sharpness": None},
    ]


class TestStandIns:
    """Rows whose feature is that of another frame: for the gate that let them, and nobody else."""

    @pytest.fixture
    def store(self, place: str) -> str:
        write(place, "1", row("a"), row("b", stands_on="a"), row("c", gate_error=0.01), gate=GATE)
        return place

    @pytest.mark.parametrize(
        ("gate", "found"),
        [
            (GATE, ["a", "b", "c"]),
            (None, ["a", "c"]),
            ("another gate", ["a", "c"]),
        ],
    )
    def test_count_under_their_own_gate_only(
        self, store: str, gate: str | None, found: list[str]
    ) -> None:
        wanted = ids("a", "b", "c")
        assert settled_image_ids(store, wanted, gate).to_pylist() == found
        assert read_image_rows(store, wanted, gate)["image_id"].to_pylist() == found

    def test_give_way_to_features_of_the_frames_themselves(self, store: str) -> None:
        write(store, "2", row("b", feature=feature_of(2)))
        write(store, "3", row("b", error="broken"), gate=GATE)
        rows = read_image_rows(store, ids("b"), GATE)
        assert rows["stands_on"].to_pylist() == [None]
        ((_, features),) = iterate_features(store, rows)
        assert features[0, 0] == 2

    def test_are_better_than_errors(self, store: str) -> None:
        write(store, "2", row("b", error="broken"))
        assert read_image_rows(store, ids("b"), GATE)["stands_on"].to_pylist() == ["a"]
        assert read_image_rows(store, ids("b"))["error"].to_pylist() == ["broken"]

    def test_what_the_gate_did_is_still_known_when_it_was_distrusted(self, store: str) -> None:
        write(store, "2", row("b", feature=feature_of(2)))
        rows = read_gate_rows(store, ids("a", "b"), GATE)
        assert rows["stands_on"].to_pylist() == [None, "a"]
        assert read_gate_rows(store, ids("c"), GATE)["gate_error"].to_pylist() == [
            pytest.approx(0.01)
        ]
        assert read_gate_rows(store, ids("a", "b"), None).num_rows == 0

    @pytest.mark.parametrize(
        "other",
        [
            {"gate": {"enabled": True, "max_change": 15}},
            {"gate": {"enabled": True, "sample_fraction": 0.5}},
            {"gate": {"enabled": True}, "source": {"partition_by": "^(.)"}},
        ],
    )
    def test_gate_is_named_by_all_that_shapes_it(self, other: dict[str, Any]) -> None:
        urls = {"source_url": "/a", "workspace_url": "/b"}
        name = gate_name(load_config(None, urls | {"gate": {"enabled": True}}))
        assert name is not None
        assert gate_name(load_config(None, urls)) is None
        assert gate_name(load_config(None, urls | other)) not in (name, None)
        checked = {"gate": {"enabled": True, "max_error": 0.5}}
        assert gate_name(load_config(None, urls | checked)) == name


class TestThumbnails:
    def test_are_found_wherever_they_lie(self, place: str) -> None:
        write(place, "1", row("a", thumbnail=b"A"), row("b", error="empty file"))
        write(place, "2", row("c", thumbnail=b"C"), row("a", thumbnail=b"A"))

        assert thumbnails(place, "c", "b", "unknown", "a") == {0: b"C", 3: b"A"}

    def test_an_image_read_at_the_second_try_has_that_one(self, place: str) -> None:
        write(place, "1", row("a", error=GONE))
        write(place, "2", row("a", thumbnail=b"A"))

        assert thumbnails(place, "a") == {0: b"A"}

    def test_of_an_empty_store_are_none(self, place: str) -> None:
        assert thumbnails(place, "a") == {}


def thumbnails(store: str, *image_ids: str) -> dict[int, bytes]:
    return {
        position: thumbnail
        for positions, found in iterate_thumbnails(store, ids(*image_ids))
        for position, thumbnail in zip(positions.tolist(), found, strict=True)
    }
