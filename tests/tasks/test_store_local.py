"""Images on a local disk: links, swapped files, odd permissions, races with other programs."""

import errno
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import pytest

from tasks import storage, store_local
from tasks.errors import DedupError
from tasks.store_local import LocalStore
from tasks.stores import HIDDEN_PREFIX, ChangedError, FileState, NotAFileError, OccupiedError

NOBODY = 65_534
STORE = LocalStore()


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder where everybody may write, on a path that everybody may walk."""
    with tempfile.TemporaryDirectory(prefix="dedup-tests-") as folder:
        Path(folder).chmod(0o777)
        yield Path(folder).resolve()


@contextmanager
def as_nobody() -> Iterator[None]:
    """Go on as a user without any rights."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", *options, str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs more rights")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def url_of(path: Path) -> str:
    return f"file://{path}"


def put(path: Path, content: bytes = b"content") -> FileState:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return state_of(path)


def state_of(path: Path) -> FileState:
    state = STORE.stat(url_of(path))
    assert state is not None
    return state


def names_in(folder: Path) -> list[str]:
    """Everything in a folder, also what is hidden."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def acts_on(path: Path, aside: Path, state: FileState) -> list[Callable[[], object]]:
    """Everything that can be tried on a file."""
    url, aside_url = url_of(path), url_of(aside)
    return [
        lambda: STORE.stat(url),
        lambda: STORE.read(url, state),
        lambda: STORE.sha256(url, state),
        lambda: STORE.get(url),
        lambda: STORE.move(url, aside_url, state),
        lambda: STORE.put_back(url, aside_url, state),
        lambda: STORE.copy(url, aside_url, state),
        lambda: STORE.replace(url, b"", state),
        lambda: STORE.discard(url, state),
    ]


def make_file(path: Path) -> None:
    path.write_bytes(b"content")


def make_link(path: Path) -> None:
    path.symlink_to("target")


def make_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "precious.jpg").write_bytes(b"precious")


SWAPS: list[Callable[[Path], None]] = [
    make_file,
    make_link,
    make_dangling_link,
    os.mkfifo,
    make_folder,
]
swaps = pytest.mark.parametrize("make", SWAPS, ids=lambda make: make.__name__)


class TestLinks:
    def test_are_never_acted_on(self, tmp_path: Path) -> None:
        state = put(tmp_path / "a.jpg")
        (tmp_path / "link.jpg").symlink_to("a.jpg")
        for act in acts_on(tmp_path / "link.jpg", tmp_path / "aside.jpg", state):
            with pytest.raises((NotAFileError, ChangedError)):
                act()
        assert names_in(tmp_path) == ["a.jpg", "link.jpg"]
        assert (tmp_path / "link.jpg").is_symlink()
        assert state_of(tmp_path / "a.jpg") == state

    def test_on_the_way_are_never_followed(self, tmp_path: Path) -> None:
        state = put(tmp_path / "real/north/a.jpg")
        (tmp_path / "link").symlink_to("real")
        for act in acts_on(tmp_path / "link/north/a.jpg", tmp_path / "aside.jpg", state):
            with pytest.raises(NotAFileError, match=r"a folder on the way is a link or a file"):
                act()
        assert names_in(tmp_path) == ["link", "real", "real/north", "real/north/a.jpg"]
        assert state_of(tmp_path / "real/north/a.jpg") == state

    def test_on_the_way_to_another_place_are_never_followed(self, tmp_path: Path) -> None:
        state = put(tmp_path / "a.jpg")
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "link").symlink_to("elsewhere")
        url, to_url = url_of(tmp_path / "a.jpg"), url_of(tmp_path / "link/deep/a.jpg")
        for act in (
            lambda: STORE.move(url, to_url, state),
            lambda: STORE.put_back(url, to_url, state),
            lambda: STORE.copy(url, to_url, state),
            lambda: STORE.create(to_url, b"content"),
        ):
            with pytest.raises(NotAFileError, match="a folder on the way is a link"):
                act()
        assert names_in(tmp_path) == ["a.jpg", "elsewhere", "link"]
        assert state_of(tmp_path / "a.jpg") == state

    @pytest.mark.parametrize("target", ["there.jpg", "nowhere.jpg"])
    def test_are_in_the_way_like_files(self, tmp_path: Path, target: str) -> None:
        state = put(tmp_path / "a.jpg")
        put(tmp_path / "there.jpg", b"another")
        (tmp_path / "link.jpg").symlink_to(target)
        url, to_url = url_of(tmp_path / "a.jpg"), url_of(tmp_path / "link.jpg")
        for act in (STORE.move, STORE.put_back, STORE.copy):
            with pytest.raises(OccupiedError):
                act(url, to_url, state)
        assert STORE.create(to_url, b"content") is None
        assert names_in(tmp_path) == ["a.jpg", "link.jpg", "there.jpg"]
        assert (tmp_path / "there.jpg").read_bytes() == b"another"

    def test_are_not_followed_to_prune(self, tmp_path: Path) -> None:
        (tmp_path / "elsewhere/empty").mkdir(parents=True)
        (tmp_path / "aside/empty").mkdir(parents=True)
        (tmp_path / "aside/link").symlink_to("../elsewhere")
        STORE.prune(url_of(tmp_path / "aside"))
        assert names_in(tmp_path) == ["aside", "aside/link", "elsewhere", "elsewhere/empty"]

    def test_of_a_folder_swapped_while_a_file_is_looked_at_do_not_mislead(
        self, tmp_path: Path
    ) -> None:
        state = put(tmp_path / "north/a.jpg")
        put(tmp_path / "south/a.jpg")
        (tmp_path / "north").rename(tmp_path / "renamed")
        (tmp_path / "north").symlink_to("south")
        with pytest.raises(NotAFileError):
            STORE.move(url_of(tmp_path / "north/a.jpg"), url_of(tmp_path / "aside.jpg"), state)
        assert (tmp_path / "south/a.jpg").read_bytes() == b"content"


def test_file_on_the_way_is_no_folder(tmp_path: Path) -> None:
    state = put(tmp_path / "a.jpg")
    for act in acts_on(tmp_path / "a.jpg/b.jpg", tmp_path / "aside.jpg", state):
        with pytest.raises(NotAFileError):
            act()
    with pytest.raises(NotAFileError):
        STORE.create(url_of(tmp_path / "a.jpg/b.jpg"), b"")
    assert names_in(tmp_path) == ["a.jpg"]


class TestHardLinks:
    def test_are_one_file_of_two_names(self, tmp_path: Path) -> None:
        put(tmp_path / "a.jpg")
        os.link(tmp_path / "a.jpg", tmp_path / "b.jpg")
        assert state_of(tmp_path / "a.jpg") == state_of(tmp_path / "b.jpg")

    def test_go_one_by_one(self, tmp_path: Path) -> None:
        put(tmp_path / "a.jpg")
        os.link(tmp_path / "a.jpg", tmp_path / "b.jpg")
        state = state_of(tmp_path / "a.jpg")
        moved = STORE.move(url_of(tmp_path / "a.jpg"), url_of(tmp_path / "aside/a.jpg"), state)
        assert names_in(tmp_path) == ["aside", "aside/a.jpg", "b.jpg"]
        assert moved.identity == state.identity
        assert STORE.discard(url_of(tmp_path / "aside/a.jpg"), moved)
        assert (tmp_path / "b.jpg").read_bytes() == b"content"

    def test_do_not_vanish_when_one_is_moved_onto_the_other(self, tmp_path: Path) -> None:
        put(tmp_path / "a.jpg")
        os.link(tmp_path / "a.jpg", tmp_path / "b.jpg")
        state = state_of(tmp_path / "a.jpg")
        for act in (STORE.move, STORE.put_back, STORE.copy):
            with pytest.raises(OccupiedError):
                act(url_of(tmp_path / "a.jpg"), url_of(tmp_path / "b.jpg"), state)
        assert names_in(tmp_path) == ["a.jpg", "b.jpg"]


class TestSwappedFiles:
    """The file is another one by the time it is acted on."""

    @swaps
    def test_stay_where_they_are_when_they_would_be_moved(
        self, tmp_path: Path, make: Callable[[Path], None]
    ) -> None:
        put(tmp_path / "source/target", b"another")
        state = put(tmp_path / "source/a.jpg")
        (tmp_path / "source/a.jpg").rename(tmp_path / "seen.jpg")
        make(tmp_path / "source/a.jpg")
        before = names_in(tmp_path / "source")
        inode = os.lstat(tmp_path / "source/a.jpg").st_ino
        with pytest.raises(DedupError):
            STORE.move(url_of(tmp_path / "source/a.jpg"), url_of(tmp_path / "aside.jpg"), state)
        assert names_in(tmp_path / "source") == before
        assert os.lstat(tmp_path / "source/a.jpg").st_ino == inode
        assert not os.path.lexists(tmp_path / "aside.jpg")

    @swaps
    def test_stay_where_they_wait_when_they_would_be_put_back(
        self, tmp_path: Path, make: Callable[[Path], None]
    ) -> None:
        put(tmp_path / "aside/target", b"another")
        state = put(tmp_path / "aside/a.jpg")
        (tmp_path / "aside/a.jpg").rename(tmp_path / "seen.jpg")
        make(tmp_path / "aside/a.jpg")
        before = names_in(tmp_path / "aside")
        with pytest.raises(DedupError):
            STORE.put_back(url_of(tmp_path / "aside/a.jpg"), url_of(tmp_path / "a.jpg"), state)
        assert names_in(tmp_path / "aside") == before
        assert not os.path.lexists(tmp_path / "a.jpg")

    @swaps
    def test_are_not_read(self, tmp_path: Path, make: Callable[[Path], None]) -> None:
        put(tmp_path / "target", b"another")
        state = put(tmp_path / "a.jpg")
        (tmp_path / "a.jpg").rename(tmp_path / "seen.jpg")
        make(tmp_path / "a.jpg")
        for read in (STORE.read, STORE.sha256):
            with pytest.raises((NotAFileError, ChangedError)):
                read(url_of(tmp_path / "a.jpg"), state)

    @swaps
    def test_are_not_deleted(self, tmp_path: Path, make: Callable[[Path], None]) -> None:
        put(tmp_path / "target", b"another")
        state = put(tmp_path / "a.jpg")
        (tmp_path / "a.jpg").rename(tmp_path / "seen.jpg")
        make(tmp_path / "a.jpg")
        before = names_in(tmp_path)
        try:
            assert STORE.discard(url_of(tmp_path / "a.jpg"), state) is False
        except NotAFileError:
            assert make is not make_file
        assert names_in(tmp_path) == before

    def test_are_noticed_while_they_are_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        state = put(tmp_path / "a.jpg", b"seen")
        fstat = os.fstat

        def write_in_between(descriptor: int) -> os.stat_result:
            status = fstat(descriptor)
            (tmp_path / "a.jpg").write_bytes(b"else")
            os.utime(tmp_path / "a.jpg", ns=(0, status.st_mtime_ns))
            return status

        monkeypatch.setattr(os, "fstat", write_in_between)
        with pytest.raises(ChangedError):
            STORE.sha256(url_of(tmp_path / "a.jpg"), state)

    def test_are_noticed_even_if_size_and_time_are_as_before(self, tmp_path: Path) -> None:
        state = put(tmp_path / "a.jpg", b"seen")
        status = os.stat(tmp_path / "a.jpg")
        while os.stat(tmp_path / "a.jpg").st_ctime_ns == status.st_ctime_ns:
            (tmp_path / "a.jpg").write_bytes(b"else")
            os.utime(tmp_path / "a.jpg", ns=(status.st_atime_ns, status.st_mtime_ns))
        assert state_of(tmp_path / "a.jpg").etag == state.etag
        assert state_of(tmp_path / "a.jpg").changed != state.changed
        with pytest.raises(ChangedError):
            STORE.read(url_of(tmp_path / "a.jpg"), state)

    def test_that_cannot_go_back_are_named_with_the_place_where_they_wait(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        state = put(tmp_path / "a.jpg", b"seen")
        put(tmp_path / "a.jpg", b"swapped")
        rename = store_local._rename

        def make_another(*args: Any, **kwargs: Any) -> None:
            rename(*args, **kwargs)
            make_file(tmp_path / "a.jpg")

        monkeypatch.setattr(store_local, "_rename", make_another)
        to_url = url_of(tmp_path / "aside/a.jpg")
        with pytest.raises((DedupError, OSError), match=re.escape(to_url)):
            STORE.move(url_of(tmp_path / "a.jpg"), to_url, state)
        assert (tmp_path / "a.jpg").read_bytes() == b"content"
        assert (tmp_path / "aside/a.jpg").read_bytes() == b"swapped"


@pytest.mark.parametrize("make", SWAPS[1:], ids=lambda make: make.__name__)
def test_what_is_no_file_is_told_apart(tmp_path: Path, make: Callable[[Path], None]) -> None:
    put(tmp_path / "target")
    make(tmp_path / "a.jpg")
    for look in (STORE.stat, STORE.get):
        with pytest.raises(NotAFileError):
            look(url_of(tmp_path / "a.jpg"))
    assert STORE.create(url_of(tmp_path / "a.jpg"), b"") is None


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    state = put(tmp_path / "a.jpg")
    make_link(tmp_path / "link")
    os.mkfifo(tmp_path / "fifo")
    make_folder(tmp_path / "folder")
    before = len(os.listdir("/proc/self/fd"))
    for name in ("link", "fifo", "folder", "nothing", "link/x", "a.jpg/x", "no/such/x"):
        for act in acts_on(tmp_path / name, tmp_path / "aside/b.jpg", state):
            with pytest.raises((DedupError, OSError, AssertionError)):
                assert act()
    assert len(os.listdir("/proc/self/fd")) == before


class TestNames:
    def test_of_255_bytes_have_a_place_aside(self, tmp_path: Path) -> None:
        path = tmp_path / ("é" * 127 + "x")
        state = put(path)
        aside_url = STORE.aside_url(url_of(path))
        assert aside_url is not None
        moved = STORE.move(url_of(path), aside_url, state)
        (aside,) = tmp_path.iterdir()
        assert url_of(aside) == aside_url
        assert len(aside.name) < 100
        STORE.put_back(aside_url, url_of(path), moved)
        assert list(tmp_path.iterdir()) == [path]

    def test_that_are_too_long_are_errors(self, tmp_path: Path) -> None:
        with pytest.raises(OSError, match="too long") as error:
            STORE.stat(url_of(tmp_path / ("x" * 256)))
        assert error.value.errno == errno.ENAMETOOLONG

    def test_of_places_aside_are_hidden(self, tmp_path: Path) -> None:
        aside_url = STORE.aside_url(url_of(tmp_path / "a.jpg"))
        assert aside_url is not None
        assert aside_url.startswith(f"{url_of(tmp_path)}/{HIDDEN_PREFIX}removing-")

    def test_with_a_dot_at_the_beginning_are_names_like_others(self, tmp_path: Path) -> None:
        for name in ("...", "..a", ".a"):
            state = put(tmp_path / name)
            STORE.move(url_of(tmp_path / name), url_of(tmp_path / "aside" / name), state)
        assert names_in(tmp_path) == ["aside", "aside/...", "aside/..a", "aside/.a"]


class TestPermissions:
    def test_folder_that_may_not_be_entered(self, shared: Path) -> None:
        state = put(shared / "closed/a.jpg")
        (shared / "closed").chmod(0o700)
        with as_nobody():
            for act in acts_on(shared / "closed/a.jpg", shared / "aside.jpg", state):
                with pytest.raises(PermissionError):
                    act()
        assert names_in(shared) == ["closed", "closed/a.jpg"]

    def test_folder_that_may_not_be_written_to(self, shared: Path) -> None:
        state = put(shared / "source/a.jpg")
        (shared / "aside").mkdir()
        (shared / "aside").chmod(0o777)
        with as_nobody():
            with pytest.raises(PermissionError):
                STORE.move(url_of(shared / "source/a.jpg"), url_of(shared / "aside/a.jpg"), state)
            with pytest.raises(PermissionError):
                STORE.discard(url_of(shared / "source/a.jpg"), state)
            with pytest.raises(PermissionError):
                STORE.create(url_of(shared / "source/lock"), b"")
            with pytest.raises(PermissionError):
                STORE.replace(url_of(shared / "source/a.jpg"), b"", state)
            assert STORE.read(url_of(shared / "source/a.jpg"), state) == b"content"
        assert names_in(shared) == ["aside", "source", "source/a.jpg"]

    def test_folder_that_may_be_entered_but_not_listed_is_enough(self, shared: Path) -> None:
        state = put(shared / "way/source/a.jpg")
        (shared / "way").chmod(0o711)
        with as_nobody():
            assert STORE.read(url_of(shared / "way/source/a.jpg"), state) == b"content"

    def test_target_that_may_not_be_written_to(self, shared: Path) -> None:
        state = put(shared / "source/a.jpg")
        (shared / "source").chmod(0o777)
        (shared / "aside").mkdir()
        with as_nobody():
            for act in (STORE.move, STORE.put_back, STORE.copy):
                with pytest.raises(PermissionError):
                    act(url_of(shared / "source/a.jpg"), url_of(shared / "aside/a.jpg"), state)
        assert names_in(shared) == ["aside", "source", "source/a.jpg"]

    def test_file_of_another_user_can_be_moved_and_put_back(self, shared: Path) -> None:
        # Linux lets nobody make a hard link to a file that is neither his nor writable for him.
        state = put(shared / "source/a.jpg")
        (shared / "source").chmod(0o777)
        with as_nobody():
            moved = STORE.move(
                url_of(shared / "source/a.jpg"), url_of(shared / "aside/a.jpg"), state
            )
            STORE.put_back(url_of(shared / "aside/a.jpg"), url_of(shared / "source/a.jpg"), moved)
        assert names_in(shared) == ["aside", "source", "source/a.jpg"]

    def test_swapped_file_of_another_user_goes_back_where_it_was(self, shared: Path) -> None:
        state = put(shared / "source/a.jpg")
        (shared / "source/a.jpg").rename(shared / "seen.jpg")
        put(shared / "source/a.jpg", b"another")
        (shared / "source").chmod(0o777)
        with as_nobody(), pytest.raises(DedupError):
            STORE.move(url_of(shared / "source/a.jpg"), url_of(shared / "aside/a.jpg"), state)
        assert (shared / "source/a.jpg").read_bytes() == b"another"
        assert not (shared / "aside/a.jpg").exists()

    def test_file_that_may_not_be_read_is_neither_read_nor_deleted(self, shared: Path) -> None:
        put(shared / "a.jpg")
        (shared / "a.jpg").chmod(0o600)
        state = state_of(shared / "a.jpg")
        with as_nobody():
            for act in (STORE.read, STORE.sha256, STORE.discard):
                with pytest.raises(PermissionError):
                    act(url_of(shared / "a.jpg"), state)
        assert names_in(shared) == ["a.jpg"]

    def test_own_files_can_be_made_and_replaced_by_anybody(self, shared: Path) -> None:
        with as_nobody():
            state = STORE.create(url_of(shared / "lock"), b"ours")
            assert state is not None
            state = STORE.replace(url_of(shared / "lock"), b"renewed", state)
            assert state is not None
            assert STORE.discard(url_of(shared / "lock"), state) is True
        assert names_in(shared) == []


class TestDisks:
    def test_full_disk_keeps_no_part_of_a_new_file(self, tmp_path: Path) -> None:
        with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=64k", "dedup-tests") as disk:
            with pytest.raises(OSError, match="No space left") as error:
                STORE.create(url_of(disk / "copy.jpg"), bytes(100_000))
            assert error.value.errno == errno.ENOSPC
            assert names_in(disk) == []

    def test_full_disk_keeps_the_old_file_only(self, tmp_path: Path) -> None:
        with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=64k", "dedup-tests") as disk:
            state = put(disk / "lock", b"ours")
            with pytest.raises(OSError, match="No space left"):
                STORE.replace(url_of(disk / "lock"), bytes(100_000), state)
            assert state_of(disk / "lock") == state
            assert names_in(disk) == ["lock"]

    def test_other_disk_shares_no_moves(self, tmp_path: Path) -> None:
        state = put(tmp_path / "a.jpg")
        with mounted(tmp_path / "other", "-t", "tmpfs", "dedup-tests") as disk:
            assert STORE.shares_moves_with(url_of(tmp_path), url_of(disk / "new")) is False
            with pytest.raises(OSError, match="cross-device"):
                STORE.move(url_of(tmp_path / "a.jpg"), url_of(disk / "a.jpg"), state)
            assert names_in(disk) == []
        assert state_of(tmp_path / "a.jpg") == state

    def test_same_disk_mounted_twice_shares_no_moves(self, tmp_path: Path) -> None:
        # As the folders are that a container is given: one disk, but nothing can be renamed.
        (tmp_path / "real").mkdir()
        with mounted(tmp_path / "again", "--bind", str(tmp_path / "real")) as again:
            assert STORE.shares_moves_with(url_of(tmp_path), url_of(again / "new")) is False

    def test_folder_below_a_file_is_found_out_when_something_is_moved_there(
        self, tmp_path: Path
    ) -> None:
        state = put(tmp_path / "a.jpg")
        place = tmp_path / "a.jpg/b"
        assert STORE.shares_moves_with(url_of(tmp_path), url_of(place)) in (True, False)
        with pytest.raises(NotAFileError):
            STORE.move(url_of(tmp_path / "a.jpg"), url_of(place / "a.jpg"), state)
        assert names_in(tmp_path) == ["a.jpg"]

    def test_parts_of_one_mount_that_are_disks_of_their_own_share_no_moves(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # As the subvolumes of Btrfs: one mount, but nothing can be renamed from one to another.
        (tmp_path / "subvolume").mkdir()
        inode = os.stat(tmp_path / "subvolume").st_ino

        def elsewhere(original: Callable[..., os.stat_result]) -> Callable[..., os.stat_result]:
            def look(*args: Any, **kwargs: Any) -> os.stat_result:
                status = original(*args, **kwargs)
                if status.st_ino != inode:
                    return status
                return os.stat_result((*status[:2], status.st_dev + 1, *status[3:]))

            return look

        for name in ("stat", "fstat"):
            monkeypatch.setattr(os, name, elsewhere(getattr(os, name)))
        assert STORE.shares_moves_with(url_of(tmp_path), url_of(tmp_path / "subvolume")) is False

    def test_that_knows_no_files_without_names_can_be_used(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # NFS and most FUSE filesystems answer so.
        open_file = os.open

        def refuse(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            return open_file(path, flags, *args, **kwargs)

        monkeypatch.setattr(os, "open", refuse)
        assert STORE.create(url_of(tmp_path / "lock"), b"ours") is not None
        assert STORE.create(url_of(tmp_path / "lock"), b"theirs") is None
        assert names_in(tmp_path) == ["lock"]
        assert (tmp_path / "lock").read_bytes() == b"ours"


class TestDisksThatMayOverwrite:
    """Without a way to rename that fails where a file is, as on NFS."""

    @pytest.fixture(autouse=True)
    def no_exclusive_renaming(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*args: Any) -> None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

        monkeypatch.setattr(store_local, "_rename_exclusively", refuse)

    def test_file_is_moved_and_put_back(self, tmp_path: Path) -> None:
        state = put(tmp_path / "a.jpg")
        url, aside_url = url_of(tmp_path / "a.jpg"), url_of(tmp_path / "aside/a.jpg")
        moved = STORE.move(url, aside_url, state)
        assert names_in(tmp_path) == ["aside", "aside/a.jpg"]
        STORE.put_back(aside_url, url, moved)
        assert names_in(tmp_path) == ["a.jpg", "aside"]

    def test_nothing_is_overwritten(self, tmp_path: Path) -> None:
        state = put(tmp_path / "a.jpg")
        put(tmp_path / "b.jpg", b"another")
        for act in (STORE.move, STORE.put_back):
            with pytest.raises(OccupiedError):
                act(url_of(tmp_path / "a.jpg"), url_of(tmp_path / "b.jpg"), state)
        assert (tmp_path / "a.jpg").read_bytes() == b"content"
        assert (tmp_path / "b.jpg").read_bytes() == b"another"

    @swaps
    def test_swapped_file_stays_or_goes_back(
        self, tmp_path: Path, make: Callable[[Path], None]
    ) -> None:
        put(tmp_path / "source/target", b"another")
        state = put(tmp_path / "source/a.jpg")
        (tmp_path / "source/a.jpg").rename(tmp_path / "seen.jpg")
        make(tmp_path / "source/a.jpg")
        before = names_in(tmp_path / "source")
        with pytest.raises((DedupError, OSError)):
            STORE.move(url_of(tmp_path / "source/a.jpg"), url_of(tmp_path / "aside.jpg"), state)
        assert names_in(tmp_path / "source") == before
        assert not os.path.lexists(tmp_path / "aside.jpg")

    def test_newer_file_survives_that_appears_when_one_is_put_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        state = put(tmp_path / "aside/a.jpg", b"old")
        is_there, written = store_local._is_there, []

        def appear_after(*args: Any) -> bool:
            result = is_there(*args)
            (tmp_path / "a.jpg").write_bytes(b"newer")
            written.append(b"newer")
            return result

        monkeypatch.setattr(store_local, "_is_there", appear_after)
        with suppress(DedupError, OSError):
            STORE.put_back(url_of(tmp_path / "aside/a.jpg"), url_of(tmp_path / "a.jpg"), state)
        found = {path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert found == {b"old", *written}

    @pytest.mark.parametrize("step", ["link", "rename"])
    def test_newer_file_survives_that_appears_while_the_old_one_is_moved(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        state = put(tmp_path / "a.jpg", b"old")
        put(tmp_path / "part", b"newer")
        original = getattr(os, step)

        def write_after(*args: Any, **kwargs: Any) -> None:
            original(*args, **kwargs)
            if (tmp_path / "part").exists():
                os.replace(tmp_path / "part", tmp_path / "a.jpg")

        monkeypatch.setattr(os, step, write_after)
        with suppress(DedupError, OSError):
            STORE.move(url_of(tmp_path / "a.jpg"), url_of(tmp_path / "aside/a.jpg"), state)
        found = {path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert b"newer" in found


class TestRaces:
    def test_image_that_is_put_back_never_overwrites_one_that_appears(self, tmp_path: Path) -> None:
        for number in range(60):
            path, aside = tmp_path / f"{number}.jpg", tmp_path / f"aside/{number}.jpg"
            state = put(aside, b"waits")
            barrier = Barrier(2)

            def appear(path: Path = path, barrier: Barrier = barrier) -> bool:
                barrier.wait()
                try:
                    with path.open("xb") as file:
                        return bool(file.write(b"new"))
                except FileExistsError:
                    return False

            with ThreadPoolExecutor(1) as pool:
                has_appeared = pool.submit(appear)
                barrier.wait()
                try:
                    STORE.put_back(url_of(aside), url_of(path), state)
                except OccupiedError:
                    assert has_appeared.result()
                    assert (path.read_bytes(), aside.read_bytes()) == (b"new", b"waits")
                else:
                    assert not has_appeared.result()
                    assert path.read_bytes() == b"waits"
                    assert not aside.exists()

    def test_only_the_file_that_was_seen_is_taken_from_a_busy_camera(self, tmp_path: Path) -> None:
        path, stop = tmp_path / "a.jpg", Event()

        def write() -> int:
            number = 0
            while not stop.is_set():
                number += 1
                (tmp_path / "part").write_bytes(b"x" * number)
                os.replace(tmp_path / "part", path)
            return number

        with ThreadPoolExecutor(1) as pool:
            writer = pool.submit(write)
            try:
                for number in range(300):
                    state = STORE.stat(url_of(path))
                    if state is None:
                        continue
                    aside = tmp_path / f"aside/{number}"
                    try:
                        moved = STORE.move(url_of(path), url_of(aside), state)
                    except (DedupError, OSError):
                        # It waits there only if yet another one has taken its place.
                        assert not aside.exists() or aside.stat().st_size > state.size_bytes
                    else:
                        assert moved.size_bytes == aside.stat().st_size == state.size_bytes
            finally:
                stop.set()
        # What was written last is nobody's to lose.
        assert writer.result() in {
            file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()
        }

    def test_file_of_ours_is_deleted_by_one_of_many(self, tmp_path: Path) -> None:
        for _ in range(20):
            state = put(tmp_path / "lock")
            barrier = Barrier(8)

            def discard(
                _: int, state: FileState = state, barrier: Barrier = barrier
            ) -> bool | Exception:
                barrier.wait()
                return STORE.discard(url_of(tmp_path / "lock"), state)

            with ThreadPoolExecutor(8) as pool:
                results = list(pool.map(discard, range(8)))
            assert sorted(results) == [False] * 7 + [True]

    def test_dead_lock_is_replaced_or_deleted_and_never_both(self, tmp_path: Path) -> None:
        for number in range(20):
            state = put(tmp_path / f"lock {number}")
            url, barrier = url_of(tmp_path / f"lock {number}"), Barrier(8)

            def act(
                worker: int, url: str = url, state: FileState = state, barrier: Barrier = barrier
            ) -> bool:
                barrier.wait()
                if worker % 2:
                    return STORE.discard(url, state)
                return STORE.replace(url, f"{worker}".encode(), state) is not None

            with ThreadPoolExecutor(8) as pool:
                results = list(pool.map(act, range(8)))
            (winner,) = [worker for worker, has_won in enumerate(results) if has_won]
            found = STORE.get(url)
            assert (found and found.content) == (None if winner % 2 else f"{winner}".encode())

    def test_lock_of_a_file_is_waited_for(self, tmp_path: Path) -> None:
        # Nothing else holds it but ourselves, for as long as a small file is written.
        state = put(tmp_path / "lock", b"0")
        for number in range(1, 30):
            following = STORE.replace(url_of(tmp_path / "lock"), f"{number}".encode(), state)
            assert following is not None
            assert STORE.discard(url_of(tmp_path / "lock"), state) is False
            state = following
        assert (tmp_path / "lock").read_bytes() == b"29"
        assert names_in(tmp_path) == ["lock"]


class TestFiles:
    @pytest.mark.parametrize(
        "modified_at",
        [
            datetime(2026, 1, 1, 2, 3, 4, 567_891, tzinfo=UTC),
            datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
            datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=1),
        ],
    )
    def test_have_the_time_they_are_given(self, tmp_path: Path, modified_at: datetime) -> None:
        state = STORE.create(url_of(tmp_path / "a.jpg"), b"content", modified_at)
        assert state is not None
        assert state.modified_at == modified_at
        assert state_of(tmp_path / "a.jpg").modified_at == modified_at

    def test_keep_their_time_when_they_are_copied(self, tmp_path: Path) -> None:
        put(tmp_path / "a.jpg")
        os.utime(tmp_path / "a.jpg", ns=(0, 1_767_225_600_123_456_789))
        STORE.copy(
            url_of(tmp_path / "a.jpg"), url_of(tmp_path / "b.jpg"), state_of(tmp_path / "a.jpg")
        )
        assert os.stat(tmp_path / "b.jpg").st_mtime_ns // 1_000 == 1_767_225_600_123_456

    def test_keep_everything_when_they_are_moved_and_put_back(self, tmp_path: Path) -> None:
        put(tmp_path / "a.jpg")
        (tmp_path / "a.jpg").chmod(0o640)
        before = os.stat(tmp_path / "a.jpg")
        moved = STORE.move(
            url_of(tmp_path / "a.jpg"),
            url_of(tmp_path / "aside/a.jpg"),
            state_of(tmp_path / "a.jpg"),
        )
        STORE.put_back(url_of(tmp_path / "aside/a.jpg"), url_of(tmp_path / "a.jpg"), moved)
        after = os.stat(tmp_path / "a.jpg")
        for what in ("st_ino", "st_mode", "st_nlink", "st_uid", "st_size", "st_mtime_ns"):
            assert getattr(after, what) == getattr(before, what)

    def test_leave_nothing_beside_them(self, tmp_path: Path) -> None:
        url = url_of(tmp_path / "lock")
        state = STORE.create(url, b"ours")
        assert STORE.create(url, b"theirs") is None
        assert state is not None
        assert STORE.replace(url, b"renewed", state) is not None
        assert STORE.replace(url, b"late", state) is None
        assert names_in(tmp_path) == ["lock"]

    def test_are_readable_by_others(self, tmp_path: Path) -> None:
        mask = os.umask(0o022)
        try:
            state = STORE.create(url_of(tmp_path / "lock"), b"ours")
            assert state is not None
            assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o644
            assert STORE.replace(url_of(tmp_path / "lock"), b"renewed", state) is not None
            assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o644
        finally:
            os.umask(mask)


def test_disk_has_no_conditional_deletion(tmp_path: Path) -> None:
    state = put(tmp_path / "a.jpg")
    with pytest.raises(NotImplementedError, match="move it aside"):
        STORE.remove(url_of(tmp_path / "a.jpg"), state)
    assert (tmp_path / "a.jpg").exists()


def test_nothing_is_left_of_a_move_of_nothing(tmp_path: Path) -> None:
    state = put(tmp_path / "a.jpg")
    for act in (STORE.move, STORE.put_back):
        with pytest.raises(FileNotFoundError):
            act(url_of(tmp_path / "b.jpg"), url_of(tmp_path / "deep/down/b.jpg"), state)
    assert names_in(tmp_path) == ["a.jpg"]


def test_only_spelling_of_a_location_is_expected(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg")
    (tmp_path / "link").symlink_to(tmp_path)
    assert STORE.stat(storage.absolute_url(str(tmp_path / "link/a.jpg"))) == state_of(
        tmp_path / "a.jpg"
    )
