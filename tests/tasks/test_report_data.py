"""What the page of the report loads: rows, groups and paths as scripts."""

import base64
import json
import re
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.report_data import (
    ThumbnailFile,
    as_script,
    data_scripts,
    group_columns,
    paths_below,
    report_rows,
    rows_script,
    with_earlier_images,
)
from tasks.schemas import IMAGES, MANIFEST, MATCHES

SOURCE = "s3://bucket/night"


def decision(path: str, cluster_id: int, action: str, **values: Any) -> dict[str, Any]:
    known = {"size_bytes": 7, "etag": "e", "sha256": path, "reason": "within eps"}
    return known | {
        "url": f"{SOURCE}/{path}",
        "cluster_id": cluster_id,
        "action": action,
        **values,
    }


def kept(path: str, cluster_id: int = 0) -> dict[str, Any]:
    return decision(path, cluster_id, "keep", reason="keeper")


def removed(path: str, keeper: str, distance: float, cluster_id: int = 0) -> dict[str, Any]:
    keeper_url = f"{SOURCE}/{keeper}"
    return decision(path, cluster_id, "remove", keeper_url=keeper_url, distance=distance)


def rows_of(*decisions: dict[str, Any], camera: str = "") -> pa.Table:
    """The rows of a report; the decisions may come in any order."""
    ordered = sorted(decisions, key=lambda row: row["url"])
    images = [
        {
            "image_id": row["url"],
            "url": row["url"],
            "size_bytes": 7,
            "etag": "e",
            "camera": camera,
            "captured_at": datetime(2026, 1, 30, 22, 5, 6, 789, UTC),
            "width": 640,
            "height": 480,
            "sharpness": 0.123456,
        }
        for row in ordered
    ]
    return report_rows(
        pa.Table.from_pylist(ordered, MANIFEST), pa.Table.from_pylist(images, IMAGES), SOURCE
    )


def script_argument(script: bytes) -> Any:
    """What a script calls its function with."""
    arguments = re.fullmatch(r"report\.\w+\((.*)\);\n", script.decode("ascii"), re.DOTALL)
    assert arguments is not None
    return json.loads(f"[{arguments[1]}]")


def test_a_row_says_all_that_a_page_shows_of_an_image() -> None:
    rows = rows_of(kept("cam/a.jpg"), removed("cam/b.jpg", "cam/a.jpg", 0.03125))
    assert rows.to_pylist()[1] == {
        "image_id": f"{SOURCE}/cam/b.jpg",
        "url": f"{SOURCE}/cam/b.jpg",
        "cluster_id": 0,
        "partition": "cam",
        "path": "cam/b.jpg",
        "captured_at": "2026-01-30 22:05:06",
        "size_bytes": 7,
        "width": 640,
        "height": 480,
        "sharpness": 0.1235,
        "action": "remove",
        "reason": "within eps",
        "keeper": 0,
        "similarity": 96.88,
        "is_elsewhere": False,
    }
    assert (rows["keeper"][0].as_py(), rows["similarity"][0].as_py()) == (None, None)


def test_keeper_of_an_earlier_night_is_shown_as_one() -> None:
    old = "s3://bucket/monday/old.jpg"
    manifest = pa.Table.from_pylist(
        [
            decision("x", 0, "library", reason="kept by an earlier night") | {"url": old},
            removed("a.jpg", "unused", 0.03125) | {"keeper_url": old},
        ],
        MANIFEST,
    )
    match = {
        "image_id": "a",
        "keeper_image_id": "o",
        "keeper_url": old,
        "distance": 0.03125,
        "keeper_size_bytes": 7,
        "keeper_etag": "e",
        "keeper_sha256": "ab",
    }
    matches = pa.Table.from_pylist([match, match | {"image_id": "b"}], MATCHES)
    image = {
        "image_id": "a",
        "url": f"{SOURCE}/a.jpg",
        "size_bytes": 7,
        "etag": "e",
        "camera": "east",
        "captured_at": datetime(2026, 1, 30, tzinfo=UTC),
    }

    images = with_earlier_images(pa.Table.from_pylist([image], IMAGES), matches)
    rows = report_rows(manifest, images, SOURCE).to_pylist()

    assert images["image_id"].to_pylist() == ["a", "o"]
    chosen = ("image_id", "path", "partition", "action", "keeper", "captured_at", "is_elsewhere")
    assert [tuple(row[name] for name in chosen) for row in rows] == [
        ("o", old, "east", "keep", None, None, True),
        ("a", "a.jpg", "east", "remove", 0, "2026-01-30 00:00:00", False),
    ]


def test_keepers_come_first_and_then_the_weakest_similarity_and_its_keeper_before_others() -> None:
    rows = rows_of(
        kept("a"),
        removed("b", "a", 0.0),
        kept("c"),
        removed("d", "c", 0.5),
        removed("e", "a", 0.25),
        removed("f", "c", 0.25),
        kept("g"),
    )
    assert rows["path"].to_pylist() == ["c", "a", "g", "d", "e", "f", "b"]
    assert rows["keeper"].to_pylist() == [None, None, None, 0, 1, 0, 1]
    assert rows["similarity"].to_pylist()[3:] == [50.0, 75.0, 75.0, 100.0]


def test_largest_group_comes_first_and_the_lower_number_of_equals() -> None:
    rows = rows_of(
        *(kept("a", 0), removed("b", "a", 0.0, 0)),
        *(kept("c", 1), removed("d", "c", 0.0, 1), removed("e", "c", 0.5, 1)),
        *(kept("f", 2), kept("g", 2)),
    )
    assert rows["cluster_id"].to_pylist() == [1, 1, 1, 0, 0, 2, 2]
    assert group_columns(rows) == {
        "partitions": [""],
        "cluster_id": [1, 0, 2],
        "first": [0, 3, 5],
        "images": [3, 2, 2],
        "removed": [2, 1, 0],
        "weakest": [50.0, 100.0, None],
        "partition": [0, 0, 0],
    }


def test_partitions_are_numbered_by_name_and_fall_back_to_the_first_folder() -> None:
    rows = rows_of(kept("west/1.jpg", 0), kept("east/x/2.jpg", 1), kept("3.jpg", 2))
    assert group_columns(rows)["partitions"] == ["", "east", "west"]
    assert group_columns(rows)["partition"] == [2, 1, 0]
    assert set(rows_of(kept("west/1.jpg"), camera="cam-7")["partition"].to_pylist()) == {"cam-7"}
    assert rows_of(kept("we\nst/1.jpg"))["partition"].to_pylist() == ["we\nst"]


def test_noise_and_skipped_images_are_in_no_group() -> None:
    rows = rows_of(kept("a", -1), decision("b", -1, "skip"))
    assert rows.num_rows == 0
    assert group_columns(rows)["first"] == []


def test_paths_below_a_source_that_is_the_root() -> None:
    urls = pa.chunked_array([["file:///a/b.jpg"]])
    assert paths_below(urls, "file:///").to_pylist() == ["a/b.jpg"]
    assert paths_below(urls, "file:///a").to_pylist() == ["b.jpg"]


@given(st.text() | st.lists(st.text()) | st.dictionaries(st.text(), st.floats(allow_nan=False)))
def test_scripts_are_plain_ascii_without_markup_and_say_the_same(value: Any) -> None:
    script = as_script("report.rows", 7, value)
    assert not set(script) & set(b"<\x7f")
    assert max(script) < 128
    assert script_argument(script) == [7, value]


def test_names_cannot_end_a_script() -> None:
    assert as_script("report.paths", 0, ["</script>\u2028é"]) == (
        b'report.paths(0,["\\u003c/script>\\u2028\\u00e9"]);\n'
    )


def test_thumbnails_come_back_by_row() -> None:
    with ThumbnailFile(4) as thumbnails:
        thumbnails.put(np.array([2, 0]), [b"two", b"zero"])
        thumbnails.put(np.array([3]), [b"three"])
        assert [thumbnails.get(row) for row in range(4)] == [b"zero", None, b"two", b"three"]


def test_scripts_hold_fifty_rows_with_their_thumbnails() -> None:
    rows = rows_of(kept("k"), *(removed(f"r{number:02}", "k", 0.0) for number in range(50)))
    with ThumbnailFile(rows.num_rows) as thumbnails:
        thumbnails.put(np.array([50]), [b"jpeg"])
        scripts = dict(data_scripts(rows, thumbnails))
        assert list(scripts) == [
            "data/groups.js",
            "data/paths-000000.js",
            "data/rows-000000.js",
            "data/rows-000001.js",
        ]
        first, second = (
            script_argument(scripts[f"data/rows-00000{number}.js"]()) for number in (0, 1)
        )
        paths = script_argument(scripts["data/paths-000000.js"]())
    assert (first[0], len(first[1]), second[0], len(second[1])) == (0, 50, 1, 1)
    assert first[1][1] == {
        "path": "r00",
        "captured_at": "2026-01-30 22:05:06",
        "size_bytes": 7,
        "width": 640,
        "height": 480,
        "sharpness": 0.1235,
        "action": "remove",
        "reason": "within eps",
        "keeper": 0,
        "similarity": 100.0,
        "is_elsewhere": False,
        "thumbnail": None,
    }
    assert second[1][0]["thumbnail"] == (
        f"data:image/jpeg;base64,{base64.b64encode(b'jpeg').decode()}"
    )
    assert paths == [0, ["k", *(f"r{number:02}" for number in range(50))]]


@pytest.mark.parametrize("number", [0, 1])
def test_a_script_is_the_same_whichever_was_written_before(number: int) -> None:
    rows = rows_of(kept("k"), *(removed(f"r{place:02}", "k", 0.0) for place in range(60)))
    with ThumbnailFile(rows.num_rows) as thumbnails:
        assert rows_script(rows, number, thumbnails) == rows_script(rows, number, thumbnails)
