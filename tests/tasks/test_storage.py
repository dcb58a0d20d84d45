"""Storage: the same promises on the local disk and on S3."""

import errno
import itertools
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.memory import MemoryFileSystem

from tasks import storage
from tasks.errors import (
    ArtifactError,
    MissingArtifactError,
    SourceError,
    StorageError,
    is_transient,
)
from tests.s3_server import S3Server

NAMES = [
    " leading.jpg",
    "#1.jpg",
    "*.jpg",
    "50%.jpg",
    "[1].jpg",
    "a b.jpg",
    "a%20b.jpg",
    "a&b=c.jpg",
    "a+b.jpg",
    "a::b.jpg",
    "new\nline.jpg",
    "q?x=1.jpg",
    "{date}.jpg",
    "~.jpg",
    "ü.jpg",
    "日本.jpg",
]


def put(folder: str, *names: str, content: bytes = b"content") -> str:
    """Write some files and give the folder as listings want it."""
    folder = storage.absolute_url(folder)
    for name in names:
        storage.publish_bytes(storage.join(folder, name), content)
    return folder


def listed(url: str) -> list[str]:
    return [file.relative_path for file in storage.list_files(storage.absolute_url(url))]


def become(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Go on as another client of the S3 server."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    storage._filesystem.cache_clear()


@pytest.fixture
def own_tempdir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that temporary files of this test go to."""
    folder = tmp_path_factory.mktemp("own")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@contextmanager
def allowed(folder: Path, mode: int) -> Iterator[None]:
    """Let a folder be used in some ways only."""
    folder.chmod(mode)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("root may do everything")
        yield
    finally:
        folder.chmod(0o700)


def mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "dedup-tests", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs more rights")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "small", "size=64k")


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "read-only", "size=64k,ro")


class TestListing:
    def test_is_recursive_and_sorted(self, place: str) -> None:
        folder = put(place, "b/2.jpg", "c.jpg", "b/10.jpg", "B.jpg", "a/x/y/z.jpg")
        assert listed(place) == ["B.jpg", "a/x/y/z.jpg", "b/10.jpg", "b/2.jpg", "c.jpg"]
        assert storage.list_files(folder)[1].url == f"{folder}/a/x/y/z.jpg"

    def test_tells_sizes_and_times(self, place: str) -> None:
        folder = put(place, "empty.jpg", content=b"")
        put(place, "full.jpg", content=b"12345")
        files = storage.list_files(folder)
        assert [file.size_bytes for file in files] == [0, 5]
        assert {file.modified_at.tzinfo for file in files} == {UTC}
        assert {(file.is_regular, file.is_name_valid) for file in files} == {(True, True)}

    def test_any_name_can_be_listed_and_read_by_its_url(self, place: str) -> None:
        for name in reversed(NAMES):
            folder = put(place, name, content=name.encode())
        files = storage.list_files(folder)
        assert [file.relative_path for file in files] == NAMES
        assert [file.url for file in files] == [f"{folder}/{name}" for name in NAMES]
        assert [storage.read_bytes(file.url).decode() for file in files] == NAMES

    def test_siblings_with_the_same_beginning_are_not_mixed_in(self, place: str) -> None:
        put(place, "night/a.jpg", "nightly/b.jpg", "night.jpg", "night-2/c.jpg")
        assert listed(f"{place}/night") == ["a.jpg"]

    def test_etag_changes_with_the_content(self, place: str, tmp_path: Path) -> None:
        folder = put(place, "a.jpg", content=b"old")
        (before,) = storage.list_files(folder)
        (again,) = storage.list_files(folder)
        put(place, "a.jpg", content=b"new")
        if folder.startswith("file:"):  # two writes can be nearer than the clock of the disk
            os.utime(tmp_path / "a.jpg", (2_000_000_000, 2_000_000_000))
        (after,) = storage.list_files(folder)
        assert before == again
        assert before.etag != after.etag

    def test_local_etag_is_the_time_of_the_last_change(self, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").touch()
        os.utime(tmp_path / "a.jpg", ns=(0, 1_767_225_600_000_001_999))
        (file,) = storage.list_files(storage.absolute_url(str(tmp_path)))
        assert file.etag == "mtime_ns:1767225600000001999"
        assert file.modified_at == datetime(2026, 1, 1, 0, 0, 0, 1, tzinfo=UTC)

    def test_s3_etag_is_the_store_s_own(self, s3_url: str) -> None:
        put(s3_url, "a.jpg", content=b"abc")
        (file,) = storage.list_files(s3_url)
        assert file.etag == "900150983cd24fb0d6963f7d28e17f72"

    def test_links_are_marked(self, tmp_path: Path) -> None:
        put(f"{tmp_path}/night", "a.jpg")
        (tmp_path / "night/link.jpg").symlink_to("a.jpg")
        (tmp_path / "night/nowhere.jpg").symlink_to("missing.jpg")
        (tmp_path / "night/itself.jpg").symlink_to("itself.jpg")
        files = storage.list_files(storage.absolute_url(f"{tmp_path}/night"))
        assert {file.relative_path: file.is_regular for file in files} == {
            "a.jpg": True,
            "itself.jpg": False,
            "link.jpg": False,
            "nowhere.jpg": False,
        }

    def test_linked_folders_are_not_entered(self, tmp_path: Path) -> None:
        put(f"{tmp_path}/other", "secret.jpg")
        put(f"{tmp_path}/night", "sub/a.jpg")
        (tmp_path / "night/other").symlink_to(tmp_path / "other")
        (tmp_path / "night/sub/loop").symlink_to(tmp_path / "night")
        files = storage.list_files(storage.absolute_url(f"{tmp_path}/night"))
        assert [(file.relative_path, file.is_regular) for file in files] == [
            ("other", False),
            ("sub/a.jpg", True),
            ("sub/loop", False),
        ]

    def test_pipes_are_marked_as_something_that_is_not_read(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.jpg")
        (file,) = storage.list_files(storage.absolute_url(str(tmp_path)))
        assert not file.is_regular

    def test_name_that_is_no_utf8_is_marked_and_printable(self, tmp_path: Path) -> None:
        Path(os.fsdecode(bytes(tmp_path) + b"/b\xff.jpg")).touch()
        (file,) = storage.list_files(storage.absolute_url(str(tmp_path)))
        assert file.is_name_valid is False
        assert file.url.endswith("/b\\udcff.jpg")

    def test_folder_markers_of_s3_are_no_files(self, s3_url: str) -> None:
        fs, path = storage.filesystem(s3_url)
        for name in ("night/", "night/sub/"):
            fs.pipe_file(f"{path}/{name}", b"")
        put(f"{s3_url}/night", "sub/a.jpg")
        assert listed(f"{s3_url}/night") == ["sub/a.jpg"]

    def test_empty_folder_is_an_empty_night(self, tmp_path: Path) -> None:
        (tmp_path / "night/sub").mkdir(parents=True)
        assert listed(f"{tmp_path}/night") == []

    def test_empty_prefix_of_a_bucket_is_an_empty_night(self, s3_url: str) -> None:
        assert listed(s3_url) == listed(f"{s3_url}/night") == []

    def test_missing_folder_is_named(self, tmp_path: Path) -> None:
        url = storage.absolute_url(f"{tmp_path}/nowhere")
        with pytest.raises(SourceError) as refusal:
            storage.list_files(url)
        assert str(refusal.value) == f"expected a folder of images, found nothing: {url}"

    def test_missing_bucket_is_named(self, s3_url: str) -> None:
        with pytest.raises(SourceError) as refusal:
            storage.list_files("s3://no-such-bucket/night")
        assert str(refusal.value) == (
            "expected a folder of images, found nothing: s3://no-such-bucket/night"
        )

    def test_file_is_no_folder(self, place: str) -> None:
        url = put(place, "night") + "/night"
        with pytest.raises(SourceError) as refusal:
            storage.list_files(url)
        assert str(refusal.value) == f"expected a folder of images, found a file: {url}"

    def test_folder_below_a_file_is_explained(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(SourceError, match=r"/file/night"):
            storage.list_files(storage.absolute_url(f"{tmp_path}/file/night"))

    def test_folder_that_may_not_be_read_is_no_empty_folder(self, tmp_path: Path) -> None:
        put(f"{tmp_path}/night", "a.jpg")
        refused = pytest.raises(SourceError, match=r"^not allowed to list file://.*/night: ")
        with allowed(tmp_path / "night", 0o000), refused:
            listed(f"{tmp_path}/night")

    def test_subfolder_that_may_not_be_read_is_not_passed_over(self, tmp_path: Path) -> None:
        put(f"{tmp_path}/night", "a.jpg", "closed/b.jpg")
        refused = pytest.raises(SourceError, match=r"^not allowed to list file://.*/night: ")
        with allowed(tmp_path / "night/closed", 0o000), refused:
            listed(f"{tmp_path}/night")

    def test_wrong_secret_may_not_list(
        self, s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(s3_url, "night/a.jpg")
        become({"AWS_SECRET_ACCESS_KEY": "hunter2"}, monkeypatch)
        with pytest.raises(SourceError) as refusal:
            storage.list_files(f"{s3_url}/night")
        assert str(refusal.value) == f"not allowed to list {s3_url}/night: Forbidden"

    def test_reader_may_list_and_read(
        self, s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(s3_url, "night/a.jpg", content=b"abc")
        become(s3_server.reader, monkeypatch)
        (file,) = storage.list_files(f"{s3_url}/night")
        assert storage.read_bytes(file.url) == b"abc"

    def test_store_that_tells_times_as_datetimes_can_be_listed(self, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").write_bytes(b"abc")
        os.utime(tmp_path / "a.jpg", (1_767_225_600, 1_767_225_600))
        (file,) = storage.list_files(f"arrow-local://{tmp_path}")
        assert file.etag == "mtime_ns:1767225600000000000"
        assert file.modified_at == datetime(2026, 1, 1, tzinfo=UTC)


class TestLookingAtOneFile:
    def test_it_looks_as_in_a_listing(self, place: str) -> None:
        folder = put(place, *NAMES, "below/1.jpg")
        listed = storage.list_files(folder)
        assert len(listed) == len(NAMES) + 1
        for file in listed:
            seen = storage.look_at(file.url)
            assert seen is not None
            for name in ("url", "size_bytes", "etag", "is_regular", "is_name_valid"):
                assert getattr(seen, name) == getattr(file, name)

    def test_nothing_is_none(self, place: str) -> None:
        folder = put(place, "1.jpg")
        assert storage.look_at(f"{folder}/2.jpg") is None
        assert storage.look_at(f"{folder}/1.jpg/2.jpg") is None

    def test_folder_is_no_regular_file(self, place: str) -> None:
        seen = storage.look_at(put(place, "1.jpg"))
        assert seen is not None
        assert not seen.is_regular

    def test_what_may_not_be_looked_at_is_explained(
        self, s3_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(s3_url, "1.jpg")
        become({"AWS_SECRET_ACCESS_KEY": "hunter2"}, monkeypatch)
        with pytest.raises(StorageError, match=r"not allowed to look at s3://test-.*/1\.jpg: Forb"):
            storage.look_at(f"{s3_url}/1.jpg")


class ArrowLocalFileSystem(ArrowFSWrapper):  # type: ignore[misc]
    """The local disk through Arrow, which tells times as fsspec's SFTP and HDFS do."""

    protocol = "arrow-local"

    def __init__(self, **options: Any) -> None:
        super().__init__(pyarrow.fs.LocalFileSystem(), **options)


fsspec.register_implementation("arrow-local", ArrowLocalFileSystem, clobber=True)


class TestUrls:
    @pytest.fixture(autouse=True)
    def here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        (tmp_path / "night").mkdir()
        (tmp_path / "link").symlink_to("night")
        monkeypatch.chdir(tmp_path)
        return os.path.realpath(tmp_path)

    @pytest.mark.parametrize(
        "spelling",
        [
            "night",
            "night/",
            "./night//",
            "link",
            "link/../night",
            "{here}/night",
            "{here}/night/",
            "file://{here}/night",
            "file://{here}/link/",
            "local://{here}/night",
        ],
    )
    def test_local_folder_has_one_spelling(self, here: str, spelling: str) -> None:
        assert storage.absolute_url(spelling.format(here=here)) == f"file://{here}/night"

    @pytest.mark.parametrize(
        ("spelling", "url"),
        [
            ("s3://bucket/night", "s3://bucket/night"),
            ("s3://bucket/night/", "s3://bucket/night"),
            ("s3a://bucket/night", "s3://bucket/night"),
            ("s3://bucket/", "s3://bucket"),
            ("memory://night/", "memory:///night"),
            ("memory:///night", "memory:///night"),
        ],
    )
    def test_remote_folder_has_one_spelling(self, spelling: str, url: str) -> None:
        assert storage.absolute_url(spelling) == url
        assert storage.absolute_url(url) == url

    @pytest.mark.parametrize("root", ["/", "file:///", "memory://"])
    def test_root_of_a_store_is_spelt_so_that_it_can_be_read_again(self, root: str) -> None:
        url = storage.absolute_url(root)
        assert storage.filesystem(url) == storage.filesystem(root)

    def test_join_puts_one_slash_between_names(self) -> None:
        assert storage.join("s3://bucket/a/", "b", "c.parquet") == "s3://bucket/a/b/c.parquet"
        assert storage.join("/a", "b") == "/a/b"

    def test_unknown_protocol_is_explained(self) -> None:
        with pytest.raises(StorageError) as refusal:
            storage.absolute_url("ftps+x://bucket/night")
        assert str(refusal.value) == (
            "no storage for ftps+x://bucket/night: Protocol not known: ftps+x"
        )


def half_a_file(path: Path) -> None:
    path.write_bytes(b"half")
    raise OSError(errno.EIO, "Input/output error")


class TestPublishing:
    def test_file_reads_back(self, place: str) -> None:
        url = storage.join(storage.absolute_url(place), "new", "folder", "a.bin")
        assert not storage.exists(url)
        with pytest.raises(FileNotFoundError):
            storage.read_bytes(url)
        storage.publish_bytes(url, b"\x00\xff" * 1000)
        assert storage.exists(url)
        assert storage.read_bytes(url) == b"\x00\xff" * 1000

    def test_file_is_written_to_a_path_first(self, place: str) -> None:
        url = storage.join(storage.absolute_url(place), "a.bin")
        is_there_meanwhile: list[bool] = []

        def write(path: Path) -> None:
            path.write_bytes(b"content")
            is_there_meanwhile.append(storage.exists(url))

        storage.publish(url, write)
        assert is_there_meanwhile == [False]
        assert storage.read_bytes(url) == b"content"

    def test_file_is_replaced_and_no_temporary_one_left(
        self, place: str, own_tempdir: Path
    ) -> None:
        put(place, "a.bin", content=b"a longer content")
        url = put(place, "a.bin", content=b"short") + "/a.bin"
        assert storage.read_bytes(url) == b"short"
        assert listed(place) == ["a.bin"]
        assert list(own_tempdir.iterdir()) == []

    def test_failing_write_leaves_the_old_file_and_nothing_else(
        self, place: str, own_tempdir: Path
    ) -> None:
        url = put(place, "a.bin", content=b"old") + "/a.bin"
        with pytest.raises(OSError, match="Input/output error") as failure:
            storage.publish(url, half_a_file)
        assert failure.value.errno == errno.EIO
        assert storage.read_bytes(url) == b"old"
        assert listed(place) == ["a.bin"]
        assert list(own_tempdir.iterdir()) == []

    def test_failing_first_write_leaves_nothing(self, place: str) -> None:
        url = storage.join(storage.absolute_url(place), "a.bin")
        with pytest.raises(OSError, match="Input/output error"):
            storage.publish(url, half_a_file)
        assert not storage.exists(url)
        assert listed(place) == []

    @pytest.mark.parametrize("name", ["file/a.bin", "file/folder/a.bin"])
    def test_place_below_a_file_is_not_writable(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "file").write_bytes(b"content")
        with pytest.raises(StorageError, match=f"^cannot write {tmp_path}/{name}: "):
            storage.publish_bytes(f"{tmp_path}/{name}", b"")
        assert (tmp_path / "file").read_bytes() == b"content"

    def test_missing_bucket_is_not_made(self, s3_url: str) -> None:
        url = "s3://no-such-bucket/a.bin"
        with pytest.raises(StorageError, match=f"^no such bucket or folder to write {url}: "):
            storage.publish_bytes(url, b"")
        with pytest.raises(FileNotFoundError):
            storage.read_bytes(url)

    def test_reader_may_not_write(
        self, s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(s3_url, "a.bin", content=b"old")
        become(s3_server.reader, monkeypatch)
        with pytest.raises(StorageError) as refusal:
            put(s3_url, "a.bin", content=b"new")
        assert str(refusal.value) == f"cannot write {s3_url}/a.bin: Access Denied."
        assert storage.read_bytes(f"{s3_url}/a.bin") == b"old"

    @pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
    def test_wrong_credentials_may_not_write_and_are_not_repeated(
        self, s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        become({name: "hunter2"}, monkeypatch)
        with pytest.raises(StorageError, match=f"^cannot write {s3_url}/a.bin: ") as refusal:
            storage.publish_bytes(f"{s3_url}/a.bin", b"")
        assert "hunter2" not in str(refusal.value)

    def test_folder_that_may_not_be_written_is_named(self, tmp_path: Path) -> None:
        with allowed(tmp_path, 0o500), pytest.raises(StorageError) as refusal:
            storage.publish_bytes(f"{tmp_path}/a.bin", b"")
        assert str(refusal.value) == f"cannot write {tmp_path}/a.bin: Permission denied"

    def test_full_disk_keeps_the_old_file_and_no_part_of_the_new_one(
        self, small_disk: Path
    ) -> None:
        url = put(str(small_disk), "a.bin", content=b"old") + "/a.bin"
        with pytest.raises(StorageError) as refusal:
            storage.publish_bytes(url, bytes(1_000_000))
        assert str(refusal.value) == f"cannot write {url}: No space left on device"
        assert storage.read_bytes(url) == b"old"
        assert listed(str(small_disk)) == ["a.bin"]
        put(str(small_disk), "b.bin", content=bytes(30_000))

    def test_read_only_disk_is_not_writable(self, read_only_disk: Path) -> None:
        url = f"{read_only_disk}/a.bin"
        with pytest.raises(StorageError) as refusal:
            storage.publish_bytes(url, b"")
        assert str(refusal.value) == f"cannot write {url}: Read-only file system"

    def test_reading_with_a_wrong_secret_is_not_tried_again(
        self, s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(s3_url, "a.bin")
        become({"AWS_SECRET_ACCESS_KEY": "hunter2"}, monkeypatch)
        with pytest.raises(StorageError, match=f"not allowed to read {s3_url}/a.bin") as refusal:
            storage.read_bytes(f"{s3_url}/a.bin")
        assert not is_transient(refusal.value)


class PlainFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """A store whose uploads can be seen half done, as those of FTP."""

    protocol = "plain"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    uploads: ClassVar[list[str]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("plain://")))

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        self.uploads.append(rpath)
        super().put_file(lpath, rpath, **options)


fsspec.register_implementation("plain", PlainFileSystem, clobber=True)


class TestOtherStores:
    def test_store_without_atomic_upload_gets_the_file_under_another_name_first(self) -> None:
        PlainFileSystem.uploads.clear()
        for content in (b"old", b"new"):
            storage.publish_bytes("plain://folder/sub/a.bin", content)
        assert storage.read_bytes("plain://folder/sub/a.bin") == b"new"
        assert listed("plain://folder") == ["sub/a.bin"]
        assert len(set(PlainFileSystem.uploads)) == 2
        for upload in PlainFileSystem.uploads:
            assert upload.startswith("/folder/sub/a.bin.")
            assert upload.endswith(".tmp")

    def test_memory_lists_reads_and_publishes(self, own_tempdir: Path) -> None:
        folder = put("memory://night", "b.jpg", "sub/a.jpg", content=b"abc")
        files = storage.list_files(folder)
        assert [(file.url, file.relative_path, file.size_bytes) for file in files] == [
            ("memory:///night/b.jpg", "b.jpg", 3),
            ("memory:///night/sub/a.jpg", "sub/a.jpg", 3),
        ]
        assert storage.read_bytes(files[1].url) == b"abc"
        with pytest.raises(SourceError, match=r"found nothing: memory:///nowhere$"):
            storage.list_files("memory:///nowhere")
        with pytest.raises(SourceError, match=r"found a file: memory:///night/b.jpg$"):
            storage.list_files("memory:///night/b.jpg")
        assert list(own_tempdir.iterdir()) == []

    def test_memory_holds_tables(self) -> None:
        storage.publish_table("memory://tables/a.parquet", TABLE)
        assert storage.list_parquet("memory://tables") == ["memory:///tables/a.parquet"]
        assert storage.read_table("memory:///tables/a.parquet", SCHEMA) == TABLE


SCHEMA = pa.schema([("a", pa.int64()), ("b", pa.string())])
TABLE = pa.table({"a": [1, 2, None], "b": ["x", None, "ü"]}, SCHEMA)


class TestTables:
    def test_table_reads_back_with_its_metadata(self, place: str) -> None:
        url = f"{place}/a.parquet"
        storage.publish_table(url, TABLE.replace_schema_metadata({"run": "né"}))
        assert storage.read_table(url, SCHEMA).equals(TABLE)
        assert storage.read_metadata(url) == {"run": "né"}

    def test_same_table_gives_the_same_bytes(self, place: str) -> None:
        first, second, other = (f"{place}/{name}.parquet" for name in ("1", "2", "3"))
        for url in (first, second):
            storage.publish_table(url, TABLE.replace_schema_metadata({"run": "1"}))
        storage.publish_table(other, TABLE.replace_schema_metadata({"run": "2"}))
        assert storage.read_bytes(first) == storage.read_bytes(second)
        assert storage.read_bytes(first) != storage.read_bytes(other)

    def test_cut_of_a_table_into_chunks_does_not_change_its_bytes(self, tmp_path: Path) -> None:
        chunked = pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(1)])
        storage.publish_table(f"{tmp_path}/whole", TABLE)
        storage.publish_table(f"{tmp_path}/chunked", chunked)
        assert (tmp_path / "whole").read_bytes() == (tmp_path / "chunked").read_bytes()

    def test_only_the_columns_asked_for_are_read(self, tmp_path: Path) -> None:
        url = f"{tmp_path}/a.parquet"
        storage.publish_table(url, TABLE.append_column("more", [[1, 2, 3]]))
        assert storage.read_table(url, SCHEMA).column_names == ["a", "b"]
        assert storage.read_table(url, SCHEMA, ["b"]).to_pydict() == {"b": ["x", None, "ü"]}

    def test_open_table_is_read_group_by_group(self, place: str) -> None:
        url = f"{place}/a.parquet"
        storage.publish_table(url, TABLE.replace_schema_metadata({"run": "é"}), rows_per_group=2)
        with storage.open_table(url, SCHEMA) as table:
            assert (table.metadata, table.num_rows, table.num_groups) == ({"run": "é"}, 3, 2)
            assert table.read(0, ["b"]).to_pydict() == {"b": ["x", None]}
            assert table.read(1, ["a", "b"]).to_pydict() == {"a": [None], "b": ["ü"]}

    def test_open_table_of_other_columns_is_named(self, tmp_path: Path) -> None:
        url = f"{tmp_path}/a.parquet"
        storage.publish_table(url, pa.table({"a": ["text"]}))
        for column in ("a", "b"):
            with (
                pytest.raises(ArtifactError, match=f"column {column} is .*, expected .*: {url}"),
                storage.open_table(url, SCHEMA) as table,
            ):
                table.read(0, [column])

    def test_open_table_that_is_missing_is_told_from_a_damaged_one(self, place: str) -> None:
        url = f"{place}/a.parquet"
        with pytest.raises(MissingArtifactError, match=url), storage.open_table(url, SCHEMA):
            pass
        storage.publish_bytes(url, b"hello")
        with pytest.raises(ArtifactError) as refusal, storage.open_table(url, SCHEMA):
            pass
        assert not isinstance(refusal.value, MissingArtifactError)

    def test_missing_table_is_named(self, place: str) -> None:
        url = f"{place}/a.parquet"
        for read in (lambda: storage.read_table(url, SCHEMA), lambda: storage.read_metadata(url)):
            with pytest.raises(ArtifactError) as refusal:
                read()
            assert str(refusal.value) == f"expected a Parquet file, found nothing: {url}"

    @pytest.mark.parametrize("content", [b"", b"hello", b"PAR1" + bytes(100), b"half"])
    def test_file_that_is_no_parquet_is_named(self, tmp_path: Path, content: bytes) -> None:
        url = f"{tmp_path}/a.parquet"
        if content == b"half":
            storage.publish_table(url, TABLE)
            content = storage.read_bytes(url)[:-20]
        storage.publish_bytes(url, content)
        expected = f"^expected a Parquet file, found something else: {url} "
        with pytest.raises(ArtifactError, match=expected):
            storage.read_table(url, SCHEMA)
        with pytest.raises(ArtifactError, match=expected):
            storage.read_metadata(url)

    def test_flipped_bit_is_refused_or_changes_nothing(self, tmp_path: Path) -> None:
        schema = pa.schema([("a", pa.float64())])
        table = pa.table({"a": np.random.default_rng(0).random(30)}, schema)
        url = f"{tmp_path}/a.parquet"
        storage.publish_table(url, table)
        content = storage.read_bytes(url)
        found = []
        for place, bit in itertools.product(range(len(content)), (0, 2, 4, 7)):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            Path(url).write_bytes(damaged)
            try:
                found.append(storage.read_table(url, schema).column(0).to_pylist())
            except ArtifactError as error:
                found.append("checksum" if "CRC checksum" in str(error) else "damaged")
        # Numbers look right whatever their bits are, so the checksum of the page must tell.
        assert found.count("checksum") > 800
        expected = ("checksum", "damaged", table["a"].to_pylist())
        assert [rows for rows in found if rows not in expected] == []

    def test_tables_are_written_with_checksums(self, tmp_path: Path) -> None:
        url = f"{tmp_path}/a.parquet"
        storage.publish_table(url, TABLE)
        without = pa.BufferOutputStream()
        pq.write_table(TABLE, without, compression="zstd")
        assert len(storage.read_bytes(url)) > without.getvalue().size

    def test_text_that_is_no_utf8_is_refused(self, tmp_path: Path) -> None:
        binary = pa.array([b"x", b"\xff\xfe", b"z"], pa.binary())
        text = pa.Array.from_buffers(pa.string(), 3, binary.buffers())
        url = f"{tmp_path}/a.parquet"
        storage.publish_table(url, TABLE.set_column(1, "b", text))
        expected = f"^expected a Parquet file, found something else: {url} .*UTF8"
        with pytest.raises(ArtifactError, match=expected):
            storage.read_table(url, SCHEMA)
        assert storage.read_table(url, SCHEMA, ["a"]).num_rows == 3

    def test_column_name_that_is_no_utf8_is_refused(self, tmp_path: Path) -> None:
        url = f"{tmp_path}/a.parquet"
        schema = pa.schema([("column", pa.int64())])
        storage.publish_table(url, pa.table({"column": [1]}, schema))
        damaged = storage.read_bytes(url).replace(b"column", b"col\xff\xfen")
        storage.publish_bytes(url, damaged)
        for read in (lambda: storage.read_table(url, schema), lambda: storage.read_metadata(url)):
            with pytest.raises(ArtifactError, match=f"^expected a Parquet file, .*{url}"):
                read()

    def test_two_columns_of_one_name_are_refused(self, tmp_path: Path) -> None:
        url = f"{tmp_path}/a.parquet"
        storage.publish_table(url, TABLE.append_column("a", [[1, 2, 3]]))
        with pytest.raises(ArtifactError, match="column a"):
            storage.read_table(url, SCHEMA)

    def test_column_of_another_type_is_named_with_what_was_expected(self, tmp_path: Path) -> None:
        url = f"{tmp_path}/a.parquet"
        storage.publish_table(url, pa.table({"a": ["1"], "b": ["x"]}))
        with pytest.raises(ArtifactError) as refusal:
            storage.read_table(url, SCHEMA)
        assert str(refusal.value).startswith(f"column a is string, expected int64: {url} (")
        assert storage.read_table(url, SCHEMA, ["b"]).to_pydict() == {"b": ["x"]}

    def test_feature_of_another_length_is_named_with_what_was_expected(
        self, tmp_path: Path
    ) -> None:
        url = f"{tmp_path}/a.parquet"
        wrong, right = (pa.schema([("f", pa.list_(pa.float32(), n))]) for n in (3, 4))
        storage.publish_table(url, pa.table({"f": [[1, 2, 3]]}, wrong))
        with pytest.raises(ArtifactError, match=r"^column f is fixed_size_list.*\[3\], expected"):
            storage.read_table(url, right)

    def test_missing_column_is_named_with_what_was_expected(self, tmp_path: Path) -> None:
        url = f"{tmp_path}/a.parquet"
        storage.publish_table(url, TABLE.select(["a"]))
        with pytest.raises(ArtifactError) as refusal:
            storage.read_table(url, SCHEMA)
        assert str(refusal.value).startswith(f"column b is missing, expected string: {url} (")

    def test_missing_column_is_refused(self, tmp_path: Path) -> None:
        url = f"{tmp_path}/a.parquet"
        storage.publish_table(url, TABLE.select(["a"]))
        with pytest.raises(ArtifactError, match=url):
            storage.read_table(url, SCHEMA)

    def test_parquet_files_of_a_folder_are_listed_sorted(self, place: str) -> None:
        folder = put(place, "b.parquet", "a.parquet", "c.json", "sub/d.parquet", ".e.parquet.tmp")
        assert storage.list_parquet(place) == [f"{folder}/a.parquet", f"{folder}/b.parquet"]

    def test_file_of_another_writer_is_listed_at_once(self, s3_url: str) -> None:
        folder = put(s3_url, "tables/a.parquet") + "/tables"
        assert storage.list_parquet(folder) == [f"{folder}/a.parquet"]
        other = fsspec.filesystem("s3", skip_instance_cache=True)
        other.pipe_file(f"{folder}/b.parquet", b"")
        assert storage.list_parquet(folder) == [f"{folder}/a.parquet", f"{folder}/b.parquet"]

    def test_missing_folder_holds_no_parquet_files(self, place: str) -> None:
        assert storage.list_parquet(f"{place}/nowhere") == []


class TestNames:
    def test_of_a_folder_are_listed_sorted_and_with_its_folders(self, place: str) -> None:
        folder = put(place, "b.jsonl", "a.jsonl", "c.json", "sub/d.jsonl")
        names = [url.rstrip("/") for url in storage.list_names(folder)]
        assert names == [f"{folder}/{name}" for name in ("a.jsonl", "b.jsonl", "c.json", "sub")]

    def test_can_be_those_with_one_ending(self, place: str) -> None:
        folder = put(place, "b.jsonl", "a.jsonl", "c.json", "sub.jsonl.tmp")
        assert storage.list_names(folder, ".jsonl") == [f"{folder}/a.jsonl", f"{folder}/b.jsonl"]

    def test_of_a_missing_folder_are_none(self, place: str) -> None:
        assert storage.list_names(f"{place}/nowhere") == []

    def test_of_another_writer_are_listed_at_once(self, s3_url: str) -> None:
        folder = put(s3_url, "runs/a") + "/runs"
        assert storage.list_names(folder) == [f"{folder}/a"]
        fsspec.filesystem("s3", skip_instance_cache=True).pipe_file(f"{folder}/b", b"")
        assert storage.list_names(folder) == [f"{folder}/a", f"{folder}/b"]


class TestSizes:
    def test_of_files_are_listed_sorted(self, place: str) -> None:
        folder = put(place, "b.parquet", "c.json", "sub/d.parquet")
        storage.publish_bytes(f"{folder}/a.parquet", b"12345")
        sizes = storage.list_sizes(folder, ".parquet")
        assert list(sizes) == [f"{folder}/a.parquet", f"{folder}/b.parquet"]
        assert sizes[f"{folder}/a.parquet"] == 5

    def test_of_a_missing_folder_are_none(self, place: str) -> None:
        assert storage.list_sizes(f"{place}/nowhere") == {}


class TestTimes:
    def test_of_a_change_are_those_of_the_listing(self, place: str) -> None:
        folder = put(place, "a.jpg")
        (file,) = storage.list_files(folder)
        # A listing of S3 tells milliseconds, a look at one object seconds.
        assert abs(storage.modified_at(file.url) - file.modified_at) < timedelta(seconds=1)
        assert storage.modified_at(file.url).tzinfo == UTC

    def test_of_a_local_file_are_those_of_the_disk(self, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").touch()
        os.utime(tmp_path / "a.jpg", (0, 1_767_225_600))
        assert storage.modified_at(f"{tmp_path}/a.jpg") == datetime(2026, 1, 1, tzinfo=UTC)

    def test_of_what_is_not_there_are_an_error(self, place: str) -> None:
        with pytest.raises(FileNotFoundError):
            storage.modified_at(storage.join(storage.absolute_url(place), "nowhere.jpg"))


class TestMakeFolder:
    def test_makes_it_and_those_above_it(self, tmp_path: Path) -> None:
        for _ in range(2):
            storage.make_folder(storage.absolute_url(f"{tmp_path}/a/b/c"))
            assert (tmp_path / "a/b/c").is_dir()

    def test_makes_nothing_on_s3(self, s3_url: str) -> None:
        storage.make_folder(f"{s3_url}/a/b")
        assert storage.list_names(s3_url) == []

    def test_below_a_file_is_explained(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(StorageError) as refusal:
            storage.make_folder(f"{tmp_path}/file/a")
        assert str(refusal.value) == (f"cannot make the folder {tmp_path}/file/a: Not a directory")

    def test_in_the_place_of_a_file_is_explained(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(StorageError, match=r"^cannot make the folder .*: File exists$"):
            storage.make_folder(f"{tmp_path}/file")


@pytest.mark.parametrize(
    ("url", "is_local", "is_s3"),
    [
        ("/images", True, False),
        ("images", True, False),
        ("file:///images", True, False),
        ("s3://bucket/images", False, True),
        ("s3a://bucket/images", False, True),
        ("memory://images", False, False),
        ("arrow-local:///images", False, False),
    ],
)
def test_stores_are_told_apart(url: str, is_local: bool, is_s3: bool) -> None:
    fs, _ = storage.filesystem(url)
    assert (storage.is_local(fs), storage.is_s3(fs)) == (is_local, is_s3)


class TestLocalPaths:
    def test_local_file_is_used_in_place(self, tmp_path: Path) -> None:
        url = put(str(tmp_path), "a b.bin") + "/a b.bin"
        assert storage.local_path(url) == Path(os.path.realpath(tmp_path)) / "a b.bin"

    def test_remote_file_is_downloaded_once(self, s3_url: str) -> None:
        url = put(s3_url, "folder/index.ann", content=b"first") + "/folder/index.ann"
        path = storage.local_path(url)
        put(s3_url, "folder/index.ann", content=b"second")
        assert storage.local_path(url) == path
        assert (path.name, path.read_bytes()) == ("index.ann", b"first")
        path.unlink()

    def test_files_of_one_name_do_not_mix(self, s3_url: str) -> None:
        for folder in ("a", "b"):
            put(s3_url, f"{folder}/index.ann", content=folder.encode())
        paths = [storage.local_path(f"{s3_url}/{folder}/index.ann") for folder in ("a", "b")]
        assert [path.read_bytes() for path in paths] == [b"a", b"b"]

    def test_missing_remote_file_is_missing(self, s3_url: str) -> None:
        with pytest.raises(FileNotFoundError):
            storage.local_path(f"{s3_url}/nowhere.ann")


def test_open_file_reads_at_random_positions(place: str) -> None:
    url = put(place, "a.bin", content=bytes(range(100))) + "/a.bin"
    with storage.open_file(url) as file:
        file.seek(50)
        assert file.read(3) == b"\x32\x33\x34"
        file.seek(-1, os.SEEK_END)
        assert file.read() == b"\x63"
