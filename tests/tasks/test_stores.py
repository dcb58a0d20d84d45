"""Stores of images: the same promises on the local disk and on S3."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier
from typing import Any
from uuid import uuid4

import pytest

from tasks import storage
from tasks.errors import StorageError
from tasks.stores import (
    HIDDEN_PREFIX,
    ChangedError,
    FileState,
    NotAFileError,
    OccupiedError,
    Store,
    store_of,
)
from tests.one_bucket import one_bucket
from tests.s3_server import S3Server

NAMES = [
    " leading.jpg",
    "#1.jpg",
    "-rf",
    "50%.jpg",
    "\N{RIGHT-TO-LEFT OVERRIDE}gpj.a",
    "a b.jpg",
    "a%20b.jpg",
    "a&b=<c>.jpg",
    "a+b.jpg",
    "a::b.jpg",
    "a?versionId=1",
    "line\N{LINE SEPARATOR}separator.jpg",
    "new\nline.jpg",
    "quotes '\".jpg",
    "trailing ",
    "x" * 251 + ".jpg",
    "ü/日本.jpg",
]
THREADS = 6


@pytest.fixture(scope="module")
def bucket_url(s3_server: S3Server) -> Iterator[str]:
    with one_bucket(s3_server) as url:
        yield url


@pytest.fixture
def s3_url(bucket_url: str) -> str:
    """What `place` begins with: a folder of its own for every test."""
    return f"{bucket_url}/{uuid4().hex}"


@pytest.fixture
def folder(place: str) -> str:
    return storage.absolute_url(place)


@pytest.fixture
def store(folder: str) -> Store:
    return store_of(folder)


def put(store: Store, url: str, content: bytes = b"content") -> FileState:
    """Make a file, and look at it as everybody does."""
    assert store.create(url, content) is not None
    state = store.stat(url)
    assert state is not None
    return state


def overwrite(url: str, content: bytes) -> None:
    """Write as anybody would who knows nothing of us."""
    storage.publish_bytes(url, content)
    if url.startswith("file:"):  # two writes can be nearer than the clock of the disk
        path = url.removeprefix("file://")
        os.utime(path, ns=(0, os.stat(path).st_mtime_ns + 1_000_000_000))


def content_of(store: Store, url: str) -> bytes | None:
    found = store.get(url)
    return None if found is None else found.content


def contents(folder: str) -> dict[str, bytes]:
    """Content of every file, also of hidden ones, by its path."""
    store, found = store_of(folder), {}
    for file in storage.list_files(folder):
        stored = store.get(file.url)
        assert stored is not None
        found[file.relative_path] = stored.content
    return found


def race(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Call all at the same moment; gives results and errors."""
    barrier = Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        barrier.wait()
        try:
            return call()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


@pytest.mark.parametrize("url", ["memory://night", "nonsense://night"])
def test_store_that_cannot_be_acted_on(url: str) -> None:
    with pytest.raises(StorageError, match=r"local disk or on S3: memory://|no storage for"):
        store_of(url)


class TestStat:
    def test_tells_what_a_listing_tells(self, store: Store, folder: str) -> None:
        state = put(store, f"{folder}/north/a.jpg", b"12345")
        (listed,) = storage.list_files(folder)
        assert (state.size_bytes, state.etag) == (5, listed.etag)
        assert abs(state.modified_at - listed.modified_at) < timedelta(seconds=1)
        assert state.modified_at.tzinfo is UTC

    def test_nothing_is_none(self, store: Store, folder: str) -> None:
        assert store.stat(f"{folder}/a.jpg") is None
        assert store.stat(f"{folder}/no/such/folder/a.jpg") is None

    def test_beginning_of_a_name_is_nothing(self, store: Store, folder: str) -> None:
        put(store, f"{folder}/a.jpg")
        assert store.stat(f"{folder}/a") is None
        assert store.stat(f"{folder}/a.jp") is None

    def test_file_that_stays_as_it_is_stays_in_its_state(self, store: Store, folder: str) -> None:
        state = put(store, f"{folder}/a.jpg")
        store.read(f"{folder}/a.jpg", state)
        assert store.stat(f"{folder}/a.jpg") == state

    def test_files_of_one_content_are_two_files(self, store: Store, folder: str) -> None:
        first, second = put(store, f"{folder}/a.jpg"), put(store, f"{folder}/b.jpg")
        assert first.identity != second.identity

    def test_other_content_of_one_size_is_another_state(self, store: Store, folder: str) -> None:
        before = put(store, f"{folder}/a.jpg", b"old")
        overwrite(f"{folder}/a.jpg", b"new")
        after = store.stat(f"{folder}/a.jpg")
        assert after is not None
        assert (after.etag, after.changed) != (before.etag, before.changed)
        assert after.etag != before.etag
        assert after.changed != before.changed


class TestRead:
    def test_gives_the_whole_content(self, store: Store, folder: str) -> None:
        for number, content in enumerate([b"", b"content", bytes(range(256)) * 5_000]):
            state = put(store, f"{folder}/{number}", content)
            assert store.read(f"{folder}/{number}", state) == content
            assert store.sha256(f"{folder}/{number}", state) == hashlib.sha256(content).hexdigest()

    def test_refuses_another_state(self, store: Store, folder: str) -> None:
        state = put(store, f"{folder}/a.jpg", b"old")
        overwrite(f"{folder}/a.jpg", b"new")
        with pytest.raises(ChangedError, match="changed while it was read"):
            store.read(f"{folder}/a.jpg", state)
        with pytest.raises(ChangedError, match="changed while it was read"):
            store.sha256(f"{folder}/a.jpg", state)

    def test_of_nothing_is_an_error(self, store: Store, folder: str) -> None:
        state = put(store, f"{folder}/a.jpg")
        with pytest.raises(FileNotFoundError):
            store.read(f"{folder}/b.jpg", state)


class TestMove:
    def test_takes_the_file_away(self, store: Store, folder: str) -> None:
        state = put(store, f"{folder}/source/north/a.jpg", b"image")
        moved = store.move(f"{folder}/source/north/a.jpg", f"{folder}/deep/down/a.jpg", state)
        assert contents(folder) == {"deep/down/a.jpg": b"image"}
        assert store.stat(f"{folder}/source/north/a.jpg") is None
        assert (moved.size_bytes, moved.etag) == (state.size_bytes, state.etag)
        assert store.read(f"{folder}/deep/down/a.jpg", moved) == b"image"

    def test_gives_the_state_that_its_new_place_is_seen_in(self, store: Store, folder: str) -> None:
        state = put(store, f"{folder}/a.jpg")
        moved = store.move(f"{folder}/a.jpg", f"{folder}/b.jpg", state)
        seen = store.stat(f"{folder}/b.jpg")
        assert seen is not None
        assert (moved.size_bytes, moved.etag, moved.identity) == (
            seen.size_bytes,
            seen.etag,
            seen.identity,
        )

    def test_leaves_a_changed_file_alone(self, store: Store, folder: str) -> None:
        state = put(store, f"{folder}/a.jpg", b"old")
        overwrite(f"{folder}/a.jpg", b"new")
        with pytest.raises(ChangedError):
            store.move(f"{folder}/a.jpg", f"{folder}/aside/a.jpg", state)
        assert contents(folder) == {"a.jpg": b"new"}

    def test_of_nothing_is_an_error(self, store: Store, folder: str) -> None:
        state = put(store, f"{folder}/a.jpg")
        with pytest.raises(FileNotFoundError):
            store.move(f"{folder}/b.jpg", f"{folder}/c.jpg", state)
        assert contents(folder) == {"a.jpg": b"content"}

    def test_never_overwrites(self, store: Store, folder: str) -> None:
        state = put(store, f"{folder}/a.jpg", b"image")
        put(store, f"{folder}/aside/a.jpg", b"waits there already")
        with pytest.raises(OccupiedError, match=f"there is a file already: {folder}/aside/a.jpg"):
            store.move(f"{folder}/a.jpg", f"{folder}/aside/a.jpg", state)
        assert contents(folder) == {"a.jpg": b"image", "aside/a.jpg": b"waits there already"}

    def test_of_one_file_by_many_happens_once(self, store: Store, folder: str) -> None:
        state = put(store, f"{folder}/a.jpg", b"image")
        results = race(
            [
                lambda number=number: store.move(f"{folder}/a.jpg", f"{folder}/{number}", state)
                for number in range(THREADS)
            ]
        )
        # On S3, where moving is copying and then deleting, some may have found a copy of it.
        left = contents(folder)
        assert set(left.values()) == {b"image"}
        assert "a.jpg" not in left
        assert len(left) == sum(isinstance(result, FileState) for result in results) >= 1
        assert {type(result) for result in results} <= {FileState, FileNotFoundError, ChangedError}


class TestPutBack:
    def test_moves_the_file_back(self, store: Store, folder: str) -> None:
        state = put(store, f"{folder}/aside/a.jpg", b"image")
        store.put_back(f"{folder}/aside/a.jpg", f"{folder}/source/north/a.jpg", state)
        assert contents(folder) == {"source/north/a.jpg": b"image"}

    def test_of_a_moved_file_gives_it_its_state_again(self, store: Store, folder: str) -> None:
        state = put(store, f"{folder}/a.jpg", b"image")
        moved = store.move(f"{folder}/a.jpg", f"{folder}/aside/a.jpg", state)
        store.put_back(f"{folder}/aside/a.jpg", f"{folder}/a.jpg", moved)
        back = store.stat(f"{folder}/a.jpg")
        assert back is not None
        assert (back.size_bytes, back.etag, back.identity) == (
            state.size_bytes,
            state.etag,
            state.identity,
        )

    def test_never_overwrites(self, store: Store, folder: str) -> None:
        state = put(store, f"{folder}/aside/a.jpg", b"image")
        put(store, f"{folder}/a.jpg", b"new one")
        with pytest.raises(OccupiedError, match=f"there is a file already: {folder}/a.jpg"):
            store.put_back(f"{folder}/aside/a.jpg", f"{folder}/a.jpg", state)
        assert contents(folder) == {"a.jpg": b"new one", "aside/a.jpg": b"image"}

    def test_never_overwrites_an_equal_file(self, store: Store, folder: str) -> None:
        state = put(store, f"{folder}/aside/a.jpg", b"image")
        put(store, f"{folder}/a.jpg", b"image")
        with pytest.raises(OccupiedError):
            store.put_back(f"{folder}/aside/a.jpg", f"{folder}/a.jpg", state)
        assert contents(folder) == {"a.jpg": b"image", "aside/a.jpg": b"image"}

    def test_leaves_another_file_where_it_waits(self, store: Store, folder: str) -> None:
        state = put(store, f"{folder}/aside/a.jpg", b"old")
        overwrite(f"{folder}/aside/a.jpg", b"new")
        with pytest.raises(ChangedError):
            store.put_back(f"{folder}/aside/a.jpg", f"{folder}/a.jpg", state)
        assert contents(folder) == {"aside/a.jpg": b"new"}

    def test_of_nothing_is_an_error(self, store: Store, folder: str) -> None:
        state = put(store, f"{folder}/aside/a.jpg")
        with pytest.raises(FileNotFoundError):
            store.put_back(f"{folder}/aside/b.jpg", f"{folder}/b.jpg", state)
        assert contents(folder) == {"aside/a.jpg": b"content"}

    def test_of_many_files_to_one_place_succeeds_once(self, store: Store, folder: str) -> None:
        states = [
            put(store, f"{folder}/aside/{number}", f"image {number}".encode())
            for number in range(THREADS)
        ]
        before = contents(folder)
        results = race(
            [
                lambda number=number, state=state: store.put_back(
                    f"{folder}/aside/{number}", f"{folder}/a.jpg", state
                )
                for number, state in enumerate(states)
            ]
        )
        (winner,) = [number for number, result in enumerate(results) if result is None]
        assert {type(result) for result in results} == {type(None), OccupiedError}
        content = before.pop(f"aside/{winner}")
        assert contents(folder) == before | {"a.jpg": content}


class TestDeletion:
    def test_has_a_place_aside_or_a_condition(self, store: Store, folder: str) -> None:
        state = put(store, f"{folder}/north/a.jpg")
        aside_url = store.aside_url(f"{folder}/north/a.jpg")
        if aside_url is None:
            store.remove(f"{folder}/north/a.jpg", state)
        else:
            assert aside_url.startswith(f"{folder}/north/{HIDDEN_PREFIX}")
            moved = store.move(f"{folder}/north/a.jpg", aside_url, state)
            assert store.discard(aside_url, moved) is True
        assert contents(folder) == {}

    def test_has_another_place_aside_for_every_name(self, store: Store, folder: str) -> None:
        places = [store.aside_url(f"{folder}/{name}") for name in NAMES]
        assert places == [None] * len(NAMES) or len(set(places)) == len(NAMES)
        assert places == [store.aside_url(f"{folder}/{name}") for name in NAMES]

    def test_in_a_place_of_ours(self, store: Store, folder: str) -> None:
        state = put(store, f"{folder}/a.jpg")
        put(store, f"{folder}/a.jpg.txt")
        assert store.discard(f"{folder}/a.jpg", state) is True
        assert contents(folder) == {"a.jpg.txt": b"content"}

    def test_spares_a_changed_file(self, store: Store, folder: str) -> None:
        state = put(store, f"{folder}/a.jpg", b"old")
        overwrite(f"{folder}/a.jpg", b"new")
        assert store.discard(f"{folder}/a.jpg", state) is False
        assert contents(folder) == {"a.jpg": b"new"}

    def test_by_many_leaves_nothing_and_raises_nothing(self, store: Store, folder: str) -> None:
        state = put(store, f"{folder}/a.jpg")
        results = race([lambda: store.discard(f"{folder}/a.jpg", state)] * THREADS)
        assert set(results) <= {True, False}
        assert True in results
        assert contents(folder) == {}


class TestCopy:
    def test_leaves_the_file_where_it_is(self, store: Store, folder: str) -> None:
        state = put(store, f"{folder}/a.jpg", b"image")
        store.copy(f"{folder}/a.jpg", f"{folder}/deep/down/b.jpg", state)
        assert contents(folder) == {"a.jpg": b"image", "deep/down/b.jpg": b"image"}
        assert store.stat(f"{folder}/a.jpg") == state

    def test_never_overwrites(self, store: Store, folder: str) -> None:
        state = put(store, f"{folder}/a.jpg", b"image")
        put(store, f"{folder}/b.jpg", b"another")
        with pytest.raises(OccupiedError, match=f"there is a file already: {folder}/b.jpg"):
            store.copy(f"{folder}/a.jpg", f"{folder}/b.jpg", state)
        assert contents(folder) == {"a.jpg": b"image", "b.jpg": b"another"}

    def test_refuses_another_state(self, store: Store, folder: str) -> None:
        state = put(store, f"{folder}/a.jpg", b"old")
        overwrite(f"{folder}/a.jpg", b"new")
        with pytest.raises(ChangedError):
            store.copy(f"{folder}/a.jpg", f"{folder}/b.jpg", state)
        assert contents(folder) == {"a.jpg": b"new"}

    def test_of_nothing_is_an_error(self, store: Store, folder: str) -> None:
        state = put(store, f"{folder}/a.jpg")
        with pytest.raises(FileNotFoundError):
            store.copy(f"{folder}/b.jpg", f"{folder}/c.jpg", state)
        assert contents(folder) == {"a.jpg": b"content"}


class TestSmallFiles:
    def test_are_read_with_the_state_they_have(self, store: Store, folder: str) -> None:
        state = put(store, f"{folder}/lock", b"ours")
        found = store.get(f"{folder}/lock")
        assert found is not None
        assert (found.content, found.state) == (b"ours", state)
        assert abs(found.seen_at - state.modified_at) < timedelta(hours=1)
        assert found.seen_at.tzinfo is UTC

    def test_that_are_not_there_are_none(self, store: Store, folder: str) -> None:
        assert store.get(f"{folder}/lock") is None
        assert store.get(f"{folder}/no/such/folder/lock") is None

    def test_appear_in_the_state_that_everybody_sees(self, store: Store, folder: str) -> None:
        created = store.create(f"{folder}/deep/down/lock", b"ours")
        assert created is not None
        assert created == store.stat(f"{folder}/deep/down/lock")
        assert abs(created.modified_at - datetime.now(UTC)) < timedelta(hours=1)
        assert contents(folder) == {"deep/down/lock": b"ours"}

    def test_appear_only_where_nothing_is(self, store: Store, folder: str) -> None:
        put(store, f"{folder}/lock", b"theirs")
        assert store.create(f"{folder}/lock", b"ours") is None
        assert contents(folder) == {"lock": b"theirs"}

    def test_appear_once_when_many_make_them(self, store: Store, folder: str) -> None:
        results = race(
            [
                lambda number=number: store.create(f"{folder}/lock", f"{number}".encode())
                for number in range(THREADS)
            ]
        )
        (winner,) = [number for number, result in enumerate(results) if result is not None]
        assert isinstance(results[winner], FileState)
        assert contents(folder) == {"lock": f"{winner}".encode()}

    def test_are_replaced_in_their_state(self, store: Store, folder: str) -> None:
        state = put(store, f"{folder}/lock", b"ours")
        following = store.replace(f"{folder}/lock", b"renewed", state)
        assert following == store.stat(f"{folder}/lock")
        assert contents(folder) == {"lock": b"renewed"}
        assert following is not None
        assert store.replace(f"{folder}/lock", b"again", following) is not None
        assert contents(folder) == {"lock": b"again"}

    def test_are_not_replaced_in_another_state(self, store: Store, folder: str) -> None:
        state = put(store, f"{folder}/lock", b"ours")
        overwrite(f"{folder}/lock", b"their")
        assert store.replace(f"{folder}/lock", b"renewed", state) is None
        assert contents(folder) == {"lock": b"their"}

    def test_are_not_replaced_when_they_are_gone(self, store: Store, folder: str) -> None:
        state = put(store, f"{folder}/lock")
        assert store.discard(f"{folder}/lock", state)
        assert store.replace(f"{folder}/lock", b"renewed", state) is None
        assert contents(folder) == {}

    def test_are_replaced_once_when_many_do_it(self, store: Store, folder: str) -> None:
        state = put(store, f"{folder}/lock", b"dead")
        results = race(
            [
                lambda number=number: store.replace(f"{folder}/lock", f"{number}".encode(), state)
                for number in range(THREADS)
            ]
        )
        (winner,) = [number for number, result in enumerate(results) if result is not None]
        assert isinstance(results[winner], FileState)
        assert contents(folder) == {"lock": f"{winner}".encode()}

    def test_are_seen_whole_while_they_are_replaced(self, store: Store, folder: str) -> None:
        put(store, f"{folder}/lock", b"0" * 1_000)

        def renew() -> None:
            for number in range(1, 8):
                found = store.get(f"{folder}/lock")
                assert found is not None
                assert store.replace(f"{folder}/lock", f"{number}".encode() * 1_000, found.state)

        def look() -> set[bytes | None]:
            return {content_of(store, f"{folder}/lock") for _ in range(10)}

        results = race([renew, look, look])
        assert results[0] is None
        assert set.union(*results[1:]) <= {f"{number}".encode() * 1_000 for number in range(8)}


def test_any_name_can_be_acted_on(store: Store, folder: str) -> None:
    for name in NAMES:
        state = put(store, f"{folder}/source/{name}", name.encode())
        moved = store.move(f"{folder}/source/{name}", f"{folder}/aside/{name}", state)
        assert store.stat(f"{folder}/source/{name}") is None
        store.put_back(f"{folder}/aside/{name}", f"{folder}/source/{name}", moved)
        state = store.stat(f"{folder}/source/{name}") or state
        store.copy(f"{folder}/source/{name}", f"{folder}/copy/{name}", state)
        aside_url = store.aside_url(f"{folder}/source/{name}")
        if aside_url is None:
            store.remove(f"{folder}/source/{name}", state)
        else:
            moved = store.move(f"{folder}/source/{name}", aside_url, state)
            assert store.discard(aside_url, moved)
    assert contents(folder) == {f"copy/{name}": name.encode() for name in sorted(NAMES)}


def test_neighbours_of_odd_names_are_left_alone(store: Store, folder: str) -> None:
    for name in ("a", "a b.jpg", "a%20b.jpg", "a#b", "a?versionId=1"):
        put(store, f"{folder}/{name}", name.encode())
    for name in ("a?versionId=1", "a%20b.jpg", "a#b"):
        state = store.stat(f"{folder}/{name}")
        assert state is not None
        assert store.discard(f"{folder}/{name}", state)
    assert contents(folder) == {"a": b"a", "a b.jpg": b"a b.jpg"}


def test_moves_are_shared_within_a_store(store: Store, folder: str, tmp_path: Path) -> None:
    assert store.shares_moves_with(folder, f"{folder}/not/yet/there") is True
    assert store.shares_moves_with(f"{folder}/not/yet/there", folder) is True
    other = "s3://bucket/quarantine" if folder.startswith("file:") else f"file://{tmp_path}"
    assert store.shares_moves_with(folder, other) is False


def test_pruning_removes_empty_folders_only(store: Store, folder: str) -> None:
    for path in ("aside/north/a.jpg", "aside/south/deep/b.jpg"):
        put(store, f"{folder}/{path}")
    state = store.stat(f"{folder}/aside/south/deep/b.jpg")
    assert state is not None
    store.discard(f"{folder}/aside/south/deep/b.jpg", state)
    store.prune(f"{folder}/aside")
    assert contents(folder) == {"aside/north/a.jpg": b"content"}
    if store.has_folders:
        assert [url.rpartition("/")[2] for url in storage.list_names(f"{folder}/aside")] == [
            "north"
        ]
    state = store.stat(f"{folder}/aside/north/a.jpg")
    assert state is not None
    store.discard(f"{folder}/aside/north/a.jpg", state)
    store.prune(f"{folder}/aside")
    assert not store.has_folders or not storage.exists(f"{folder}/aside")
    store.prune(f"{folder}/aside")


def test_conditions_are_honoured(store: Store, folder: str) -> None:
    state = put(store, f"{folder}/lock", b"ours")
    assert store.honours_conditions(f"{folder}/lock", b"ours") is True
    assert contents(folder) == {"lock": b"ours"}
    assert store.stat(f"{folder}/lock") == state


def test_stores_differ_in_what_they_are(store: Store, folder: str) -> None:
    is_disk = folder.startswith("file:")
    assert store.has_folders is is_disk
    assert store.default_verification == ("content" if is_disk else "version")


def test_state_of_another_size_is_another_file(store: Store, folder: str) -> None:
    state = replace(put(store, f"{folder}/a.jpg"), size_bytes=6, etag="another")
    with pytest.raises(ChangedError):
        store.move(f"{folder}/a.jpg", f"{folder}/b.jpg", state)
    assert store.discard(f"{folder}/a.jpg", state) is False
    assert store.replace(f"{folder}/a.jpg", b"", state) is None
    assert contents(folder) == {"a.jpg": b"content"}


def test_folder_is_not_a_file(store: Store, folder: str) -> None:
    put(store, f"{folder}/north/a.jpg")
    if store.has_folders:
        with pytest.raises(NotAFileError):
            store.stat(f"{folder}/north")
    else:
        assert store.stat(f"{folder}/north") is None
