"""Listing: which files of the source are images of the run, and what they are called."""

import hashlib
import json
import os
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import DedupConfig, SourceSettings
from tasks import storage
from tasks.errors import SourceError
from tasks.schemas import INVENTORY
from tasks.stage01_list_images import (
    image_id,
    inventory_table,
    list_images,
    reason_to_ignore,
    rows_digest,
    settled_images,
)
from tasks.storage import StoredFile

NIGHT = datetime(2026, 1, 1, 2, tzinfo=UTC)


def stored(relative_path: str, /, **values: Any) -> StoredFile:
    known: dict[str, Any] = {
        "url": f"s3://bucket/night/{relative_path}",
        "relative_path": relative_path,
        "size_bytes": 10,
        "etag": "e",
        "modified_at": NIGHT,
        "is_regular": True,
        "is_name_valid": True,
    }
    return StoredFile(**known | values)


def config(source: object, workspace: object, /, **settings: Any) -> DedupConfig:
    return DedupConfig(source_url=str(source), workspace_url=str(workspace), **settings)


@pytest.mark.parametrize(
    ("relative_path", "reason"),
    [
        ("a.jpg", None),
        ("A.JPG", None),
        ("north/2026/a.jpeg", None),
        ("a.b.png", None),
        ("a.txt", "other suffixes"),
        ("jpg", "other suffixes"),
        ("a.jpg.txt", "other suffixes"),
        (".a.jpg", "hidden"),
        (".trash/a.jpg", "hidden"),
        ("north/.cache/a.jpg", "hidden"),
        ("a.jpg.part", "partial"),
        ("a.jpg.PARTIAL", "partial"),
        ("a.tmp", "partial"),
        ("north/a.jpg.crdownload", "partial"),
        (".a.jpg.x1Y2z3.tmp", "hidden"),
        ("workshop/a.jpg", None),
        ("work.jpg", None),
    ],
)
def test_reason_to_ignore_a_file(relative_path: str, reason: str | None) -> None:
    file = stored(relative_path)
    assert reason_to_ignore(file, SourceSettings()) == reason


def test_file_that_may_still_be_written_to_is_left_to_the_next_night() -> None:
    ignored: Counter[str] = Counter()
    ages = {"old.jpg": 11, "just.jpg": 10, "new.jpg": 9, "ahead.jpg": -5}
    files = [stored(name, modified_at=NIGHT - timedelta(minutes=age)) for name, age in ages.items()]

    settled = list(settled_images(files, SourceSettings(settle="10m"), NIGHT, ignored))

    assert [file.relative_path for file in settled] == ["old.jpg", "just.jpg"]
    assert ignored == {"too new": 2}


@pytest.mark.parametrize(("settle", "num_images"), [("0s", 1), ("1h", 0)])
def test_listing_waits_only_when_told(tmp_path: Path, settle: str, num_images: int) -> None:
    (tmp_path / "night").mkdir()
    (tmp_path / "night/a.jpg").write_bytes(b"just now")
    (tmp_path / "night/b.txt").write_bytes(b"no image, however new")
    inventory = list_images.fn(
        config(tmp_path / "night", tmp_path / "work", source={"settle": settle})
    )
    ignored = json.loads(storage.read_metadata(inventory.url)["num_ignored"])
    assert inventory.num_images == num_images
    assert ignored == {"other suffixes": 1} | ({"too new": 1} if not num_images else {})


def test_links_are_ignored_whatever_they_are_called() -> None:
    settings = SourceSettings(suffixes=())
    for name in ("a.jpg", "folder", ".hidden"):
        file = stored(name, is_regular=False)
        assert reason_to_ignore(file, settings) == "links or devices"


def test_no_suffix_at_all_takes_every_visible_file() -> None:
    def reason(name: str) -> str | None:
        return reason_to_ignore(stored(name), SourceSettings(suffixes=()))

    assert [reason(name) for name in ("a.txt", "a", ".a", "a.part")] == [
        None,
        None,
        "hidden",
        "partial",
    ]


def test_suffixes_may_be_longer_than_an_extension() -> None:
    def reason(name: str) -> str | None:
        settings = SourceSettings(suffixes=(".Thumb.JPG",))
        return reason_to_ignore(stored(name), settings)

    assert [reason(name) for name in ("a.thumb.jpg", "a.jpg")] == [None, "other suffixes"]


def test_image_id_never_changes() -> None:
    assert image_id("s3://bucket/a.jpg", 123, "etag") == "b4ab0f65c618c82bfb7bd33b5173e2f1"


@pytest.mark.parametrize(
    "other",
    [
        ("s3://bucket/b.jpg", 123, "etag"),
        ("s3://bucket/a.jpg", 124, "etag"),
        ("s3://bucket/a.jpg", 123, "etag2"),
        ("s3://bucket/a.jpg1", 23, "etag"),
        ("s3://bucket/a.jpg", 12, "3etag"),
    ],
)
def test_overwritten_file_is_another_image(other: tuple[str, int, str]) -> None:
    assert image_id(*other) != image_id("s3://bucket/a.jpg", 123, "etag")


def test_rows_digest_changes_with_a_value_its_row_and_its_column() -> None:
    def digest(*urls: str, columns: tuple[str, ...] = ("url", "etag")) -> str:
        table = inventory_table([stored("a.jpg", url=url) for url in urls], SourceSettings())
        return rows_digest(table, list(columns))

    assert digest("a", "b") == digest("a", "b")
    digests = {digest("a", "b"), digest("b", "a"), digest("a"), digest("ab"), digest()}
    assert len(digests | {digest("a", "b", columns=("etag", "url"))}) == 6


@given(st.datetimes(min_value=datetime(1700, 1, 1), timezones=st.just(UTC)), st.text())
def test_rows_digest_is_of_the_values_as_text(modified_at: datetime, url: str) -> None:
    file = stored("a.jpg", url=url, modified_at=modified_at)
    table = inventory_table([file], SourceSettings()).select(["url", "captured_at", "error"])
    text = json.dumps([url, str(modified_at), "None"])
    assert rows_digest(table, table.column_names) == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_inventory_table_has_one_row_per_image_in_the_order_of_the_files() -> None:
    files = [
        stored("north/a.jpg", size_bytes=3, etag="x"),
        stored("b\\udcff.jpg", relative_path="b\udcff.jpg", is_name_valid=False),
    ]
    table = inventory_table(files, SourceSettings(partition_by="^[^/]+"))
    assert table.schema.equals(INVENTORY)
    assert table.to_pylist() == [
        {
            "image_id": image_id("s3://bucket/night/north/a.jpg", 3, "x"),
            "url": "s3://bucket/night/north/a.jpg",
            "size_bytes": 3,
            "etag": "x",
            "camera": "north",
            "captured_at": NIGHT,
            "error": None,
        },
        {
            "image_id": image_id("s3://bucket/night/b\\udcff.jpg", 10, "e"),
            "url": "s3://bucket/night/b\\udcff.jpg",
            "size_bytes": 10,
            "etag": "e",
            "camera": "",
            "captured_at": NIGHT,
            "error": "file name is not valid UTF-8",
        },
    ]


class TestListImages:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        """Three images of two cameras, and some files that are none."""
        source = tmp_path / "night"
        for name in (
            *("north/b.jpg", "north/a.JPG", "south/c.png"),
            *("notes.txt", "north/.d.jpg", "south/e.jpg.part", "south/f.csv"),
        ):
            path = source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(name.encode())
            os.utime(path, (NIGHT.timestamp(), NIGHT.timestamp()))
        (source / "north/link.jpg").symlink_to("b.jpg")
        return source

    def test_publishes_the_inventory(self, source: Path, tmp_path: Path) -> None:
        by_camera = {"partition_by": "^([^/]+)/"}
        inventory = list_images.fn(config(source, tmp_path / "work", source=by_camera))

        table = storage.read_table(inventory.url, INVENTORY)
        source_url = storage.absolute_url(str(source))
        assert inventory.num_images == table.num_rows == 3
        assert table["url"].to_pylist() == [
            f"{source_url}/north/a.JPG",
            f"{source_url}/north/b.jpg",
            f"{source_url}/south/c.png",
        ]
        assert table["camera"].to_pylist() == ["north", "north", "south"]
        assert table["size_bytes"].to_pylist() == [11] * 3
        assert table["captured_at"].to_pylist() == [NIGHT] * 3

    def test_says_what_was_listed_and_what_was_left_out(self, source: Path, tmp_path: Path) -> None:
        inventory = list_images.fn(config(source, tmp_path / "work"))
        metadata = storage.read_metadata(inventory.url)
        assert metadata["source_url"] == storage.absolute_url(str(source))
        assert json.loads(metadata["num_ignored"]) == {
            "hidden": 1,
            "links or devices": 1,
            "other suffixes": 2,
            "partial": 1,
        }

    def test_lies_in_the_workspace_under_the_name_of_the_night(
        self, source: Path, tmp_path: Path
    ) -> None:
        inventory = list_images.fn(config(source, tmp_path / "work"))
        work = storage.absolute_url(str(tmp_path / "work"))
        assert inventory.url == f"{work}/nights/{inventory.night_id}/inventory.parquet"
        assert inventory.night_id.startswith("night-")

    def test_same_listing_has_the_same_name_and_bytes(self, source: Path, tmp_path: Path) -> None:
        first = list_images.fn(config(source, tmp_path / "1"))
        second = list_images.fn(config(f"{source}/", tmp_path / "2", neighbors={"eps": 0.2}))
        assert first.night_id == second.night_id
        assert storage.read_bytes(first.url) == storage.read_bytes(second.url)

    def test_changed_file_gives_the_night_another_name(self, source: Path, tmp_path: Path) -> None:
        before = list_images.fn(config(source, tmp_path / "work"))
        (source / "north/b.jpg").write_bytes(b"longer than it was")
        after = list_images.fn(config(source, tmp_path / "work"))
        assert before.night_id != after.night_id
        assert storage.exists(before.url)

    def test_workspace_in_the_source_is_left_out(self, source: Path) -> None:
        first = list_images.fn(config(source, source / "work"))
        (source / "work/picture.jpg").write_bytes(b"")
        second = list_images.fn(config(source, source / "work"))
        assert (first.num_images, second.night_id) == (3, first.night_id)
        assert storage.read_metadata(second.url) == storage.read_metadata(first.url)

    @pytest.mark.parametrize("below", ["", "night", "night/deeper"])
    def test_source_in_the_workspace_is_refused(self, tmp_path: Path, below: str) -> None:
        (tmp_path / "work" / below).mkdir(parents=True)
        with pytest.raises(SourceError, match=r"^the source file://.* lies in the workspace file:"):
            list_images.fn(config(tmp_path / "work" / below, tmp_path / "work"))

    def test_source_that_is_linked_into_the_workspace_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "work/night").mkdir(parents=True)
        (tmp_path / "link").symlink_to("work/night")
        with pytest.raises(SourceError, match="lies in the workspace"):
            list_images.fn(config(tmp_path / "link", tmp_path / "work"))

    def test_is_the_same_on_s3(self, s3_url: str) -> None:
        for name in ("night/north/a.jpg", "night/.hidden.jpg", "nightly/b.jpg"):
            storage.publish_bytes(f"{s3_url}/{name}", b"abc")
        inventory = list_images.fn(config(f"{s3_url}/night/", f"{s3_url}/night/work"))
        (row,) = storage.read_table(inventory.url, INVENTORY).to_pylist()
        md5 = "900150983cd24fb0d6963f7d28e17f72"
        assert (row["url"], row["etag"]) == (f"{s3_url}/night/north/a.jpg", md5)
        assert row["image_id"] == image_id(row["url"], 3, md5)
        assert inventory.url.startswith(f"{s3_url}/night/work/nights/night-")


def test_empty_folders_of_one_name_are_two_nights(tmp_path: Path) -> None:
    for place in ("north", "south"):
        (tmp_path / place / "night").mkdir(parents=True)
    nights = {
        list_images.fn(config(tmp_path / place / "night", tmp_path / "work")).night_id
        for place in ("north", "south")
    }
    assert len(nights) == 2
