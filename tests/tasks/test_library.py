"""The library: which segments a night sees, and what they are called."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import FeatureSettings
from tasks import storage
from tasks.errors import ArtifactError
from tasks.feature_store import feature_fingerprint
from tasks.library import (
    features_of,
    iterate_segments,
    latest,
    library_url,
    pruned_name,
    seen_by,
    segment_name,
    segment_names,
)
from tasks.references import Library
from tasks.schemas import LIBRARY

ONE, TWO = "0123456789abcdef", "fedcba9876543210"
MONDAY, MONDAY_ANEW = f"000001-monday-{ONE}.parquet", f"000003-monday-{TWO}.parquet"
TUESDAY = f"000002-tuesday-a1-{ONE}.parquet"


def segment(*image_ids: str) -> pa.Table:
    rows = [
        {
            "image_id": image_id,
            "url": f"file:///{image_id}",
            "size_bytes": 1,
            "etag": "e",
            "camera": "",
            "captured_at": 0,
            "sha256": "ab",
            "feature": np.full(512, number, np.float32),
        }
        for number, image_id in enumerate(image_ids)
    ]
    return pa.Table.from_pylist(rows, LIBRARY)


def test_library_lies_beside_the_features_of_its_kind() -> None:
    settings = FeatureSettings()

    assert library_url("s3://b/w", settings) == f"s3://b/w/library/{feature_fingerprint(settings)}"


def test_last_segment_of_each_night_counts_in_order() -> None:
    names = [MONDAY_ANEW, TUESDAY, MONDAY, "000004-odd.parquet", "note.txt"]

    assert latest(names, besides="friday") == [TUESDAY, MONDAY_ANEW]
    assert latest(names, besides="monday") == [TUESDAY]
    assert latest([], besides="monday") == []


def test_segment_gets_the_next_number_once() -> None:
    names = [MONDAY, TUESDAY]

    assert segment_name([], "monday", f"monday-{ONE}") == MONDAY
    assert segment_name(names, "monday", f"monday-{TWO}") == MONDAY_ANEW
    assert segment_name(names, "monday", f"monday-{ONE}") == MONDAY
    assert segment_name(["odd.parquet"], "monday", f"monday-{ONE}") == MONDAY


def test_decision_that_comes_back_takes_the_place_of_the_one_between() -> None:
    names = [MONDAY, TUESDAY, MONDAY_ANEW]

    again = segment_name(names, "monday", f"monday-{ONE}")

    assert again == f"000004-monday-{ONE}.parquet"
    assert latest([*names, again]) == [TUESDAY, again]


def test_night_whose_name_ends_like_another_is_another_night() -> None:
    name = segment_name([f"000001-late-monday-{ONE}.parquet"], "monday", f"monday-{ONE}")

    assert name == f"000002-monday-{ONE}.parquet"


@given(nights=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([ONE, TWO])), max_size=12))
def test_whatever_is_decided_last_is_seen(nights: list[tuple[str, str]]) -> None:
    names: list[str] = []
    for night_id, decision in nights:
        name = segment_name(names, night_id, f"run-{decision}")
        if name not in names:
            names.append(name)

    seen = latest(names, besides="")

    assert len(seen) == len({night_id for night_id, _ in nights})
    assert seen == sorted(seen)


def test_night_sees_for_ever_what_it_saw_first(place: str) -> None:
    library, night = f"{place}/library/f", f"{place}/nights/wednesday"
    storage.publish_table(f"{library}/{MONDAY}", segment("a"))

    first = seen_by(library, night, "wednesday")
    storage.publish_table(f"{library}/{TUESDAY}", segment("b"))

    assert first == Library(folder_url=library, names=(MONDAY,))
    assert seen_by(library, night, "wednesday") == first
    assert seen_by(library, f"{place}/nights/friday", "friday").names == (MONDAY, TUESDAY)
    assert seen_by(library, f"{place}/nights/monday", "monday").names == (TUESDAY,)
    assert json.loads(storage.read_bytes(f"{night}/library-f.json")) == [MONDAY]


def test_night_sees_what_is_left_of_what_was_pruned(place: str) -> None:
    library, night = f"{place}/library/f", f"{place}/nights/n"
    for name in (MONDAY, TUESDAY):
        storage.publish_table(f"{library}/{name}", segment("a", "b"))
    assert seen_by(library, night, "n").names == (MONDAY, TUESDAY)
    left = pruned_name(MONDAY, ["b"])
    storage.publish_table(f"{library}/{left}", segment("b"))

    fs, path = storage.filesystem(library)
    for name in (MONDAY, TUESDAY):
        fs.rm_file(f"{path}/{name}")

    assert seen_by(library, night, "n").names == (left,)
    assert left.startswith("000001-monday-")


def test_new_night_does_not_see_what_pruning_has_left_nothing_of(tmp_path: Path) -> None:
    library = f"{tmp_path}/library/f"
    nothing = pruned_name(MONDAY, [])
    storage.publish_table(f"{library}/{MONDAY}", segment("a"))
    assert seen_by(library, f"{tmp_path}/nights/early", "early").names == (MONDAY,)
    storage.publish_table(f"{library}/{nothing}", segment())
    storage.publish_table(f"{library}/{TUESDAY}", segment("b"))

    assert seen_by(library, f"{tmp_path}/nights/n", "n").names == (TUESDAY,)
    assert seen_by(library, f"{tmp_path}/nights/early", "early").names == ()
    assert segment_name([nothing], "wednesday", f"run-{ONE}") == f"000002-wednesday-{ONE}.parquet"


def test_first_night_of_all_sees_nothing(place: str) -> None:
    assert seen_by(f"{place}/library/f", f"{place}/nights/n", "n").names == ()


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'["../secret.parquet"]', b"\xff"])
def test_damaged_list_is_refused(tmp_path: object, content: bytes) -> None:
    storage.publish_bytes(f"{tmp_path}/library-f.json", content)

    with pytest.raises(ArtifactError, match=r"expected a list of library segments: .*library-f"):
        seen_by(f"{tmp_path}/library/f", str(tmp_path), "n")


def test_segments_are_read_in_pieces_in_order(place: str) -> None:
    storage.publish_table(f"{place}/{MONDAY}", segment("a", "b", "c"), rows_per_group=2)
    storage.publish_table(f"{place}/{TUESDAY}", segment("d"))
    library = Library(place, (TUESDAY, MONDAY))

    read = list(iterate_segments(library, ["image_id", "feature"]))

    assert [rows["image_id"].to_pylist() for rows in read] == [["d"], ["a", "b"], ["c"]]
    assert [features_of(rows)[:, 0].tolist() for rows in read] == [[0], [0, 1], [2]]
    assert features_of(read[1].slice(1)).shape == (1, 512)
    assert features_of(read[1].slice(1))[0, 0] == 1
    assert segment_names(place) == [MONDAY, TUESDAY]


def test_no_features_of_no_rows() -> None:
    assert features_of(segment()).shape == (0, 512)
