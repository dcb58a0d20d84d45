"""Images on a local disk: no step follows a link, no step overwrites."""

import ctypes
import errno
import fcntl
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from io import BufferedReader
from pathlib import PurePosixPath

from tasks import storage
from tasks.errors import DedupError
from tasks.stores import (
    HIDDEN_PREFIX,
    ChangedError,
    FileState,
    NotAFileError,
    OccupiedError,
    Stored,
)

# O_PATH needs no permission to list the folder; where it is missing, reading it must do.
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK

_LOCK_TRIES = 100
_LOCK_DELAY_SECONDS = 0.1

_LIBC = ctypes.CDLL(None, use_errno=True)
_RENAME_NOREPLACE = 1

_EPOCH = datetime.fromtimestamp(0, UTC)


class LocalStore:
    """The local disk. See `stores.Store`."""

    has_folders = True
    default_verification = "content"

    def stat(self, url: str) -> FileState | None:
        try:
            with _parent(url) as (folder, name):
                return _state(os.stat(name, dir_fd=folder, follow_symlinks=False), url)
        except FileNotFoundError:
            return None

    def read(self, url: str, state: FileState) -> bytes:
        with _opened(url, state) as file:
            return file.read()

    def sha256(self, url: str, state: FileState) -> str:
        with _opened(url, state) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def shares_moves_with(self, url: str, other_url: str) -> bool:
        is_disk = storage.is_local(storage.filesystem(other_url)[0])
        return is_disk and _mount(url) == _mount(other_url)

    def move(self, url: str, to_url: str, state: FileState) -> FileState:
        with _parent(url) as (folder, name):
            os.stat(name, dir_fd=folder, follow_symlinks=False)  # no folder is made for nothing
            with _parent(to_url, create=True) as (to_folder, to_name):
                try:
                    # Renaming takes whatever is there at this moment, out of everybody's reach;
                    # only then can be said for sure what it was.
                    _rename(folder, name, to_folder, to_name, is_to_ours=True)
                except FileExistsError:
                    raise OccupiedError(f"there is a file already: {to_url}") from None
                taken = os.stat(to_name, dir_fd=to_folder, follow_symlinks=False)
                if stat.S_ISREG(taken.st_mode) and _is_same(_state(taken, to_url), state):
                    return _state(taken, to_url)
                try:
                    _rename(to_folder, to_name, folder, name, is_to_ours=False)
                except OSError as error:
                    raise OSError(
                        f"what took the place of {url} waits at {to_url}: {error}"
                    ) from error
                raise ChangedError("changed while it was moved")

    def put_back(self, from_url: str, url: str, state: FileState) -> None:
        with _parent(from_url) as (from_folder, from_name):
            found = os.stat(from_name, dir_fd=from_folder, follow_symlinks=False)
            if not _is_same(_state(found, from_url), state):
                raise ChangedError("changed while it was put back")
            with _parent(url, create=True) as (folder, name):
                try:
                    _rename(from_folder, from_name, folder, name, is_to_ours=False)
                except FileExistsError:
                    raise OccupiedError(f"there is a file already: {url}") from None

    def remove(self, url: str, state: FileState) -> None:
        raise NotImplementedError(f"a disk has no conditional deletion: move it aside: {url}")

    def copy(self, url: str, to_url: str, state: FileState) -> None:
        if self.create(to_url, self.read(url, state), state.modified_at) is None:
            raise OccupiedError(f"there is a file already: {to_url}")

    def get(self, url: str) -> Stored | None:
        state = self.stat(url)
        if state is None:
            return None
        try:
            return Stored(self.read(url, state), state, _present(url))
        except (ChangedError, FileNotFoundError):
            return self.get(url)  # replaced in between, which happens in one step

    def create(
        self, url: str, content: bytes, modified_at: datetime | None = None
    ) -> FileState | None:
        with _parent(url, create=True) as (folder, name):
            with _new_file(folder) as descriptor:
                _write(descriptor, content)
                if modified_at is not None:
                    nanoseconds = (modified_at - _EPOCH) // timedelta(microseconds=1) * 1_000
                    os.utime(descriptor, ns=(nanoseconds, nanoseconds))
                try:
                    # A second name never replaces another file.
                    opened = f"/proc/self/fd/{descriptor}"
                    os.link(opened, name, dst_dir_fd=folder, follow_symlinks=True)
                except FileExistsError:
                    return None
            _sync(folder)
            return _state(os.stat(name, dir_fd=folder, follow_symlinks=False), url)

    def replace(self, url: str, content: bytes, state: FileState) -> FileState | None:
        with _alone_with(url, state) as (folder, name):
            if not name:
                return None
            # Of a fixed name, which only the holder of the lock uses: what a crash leaves of it is
            # gone with the next replacement.
            following = f"{HIDDEN_PREFIX}following"
            with suppress(FileNotFoundError):
                os.unlink(following, dir_fd=folder)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            descriptor = os.open(following, flags, 0o644, dir_fd=folder)
            try:
                _write(descriptor, content)
                os.replace(following, name, src_dir_fd=folder, dst_dir_fd=folder)
            except OSError:
                os.unlink(following, dir_fd=folder)
                raise
            finally:
                os.close(descriptor)
            return _state(os.stat(name, dir_fd=folder, follow_symlinks=False), url)

    def discard(self, url: str, state: FileState) -> bool:
        with _alone_with(url, state) as (folder, name):
            if name:
                os.unlink(name, dir_fd=folder)
            return bool(name)

    def aside_url(self, url: str) -> str | None:
        # Renamed first, so that what is deleted is what was seen, and nothing that took its place
        # in between. Hidden, in its own folder, and the name not too long.
        folder, _, name = url.rpartition("/")
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        return f"{folder}/{HIDDEN_PREFIX}removing-{digest}"

    def prune(self, url: str) -> None:
        for path, _, _ in os.walk(_path(url), topdown=False):
            with suppress(OSError):
                os.rmdir(path)

    def honours_conditions(self, url: str, content: bytes) -> bool:  # noqa: ARG002
        return True  # a second name for a file never replaces another


def _path(url: str) -> str:
    return storage.filesystem(url)[1]


@contextmanager
def _parent(url: str, *, create: bool = False) -> Iterator[tuple[int, str]]:
    """Open the folder of a file, refusing links on the way; gives its descriptor and the name."""
    *names, name = PurePosixPath(_path(url)).parts[1:]
    folder = os.open("/", _FOLDER)
    try:
        for part in names:
            deeper = _enter(folder, part, create)
            os.close(folder)
            folder = deeper
        yield folder, name
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise NotAFileError(f"a folder on the way is a link or a file: {url}") from error
        raise
    finally:
        os.close(folder)


def _enter(folder: int, name: str, create: bool) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=folder)
    except FileNotFoundError:
        if not create:
            raise
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=folder)
        return os.open(name, _FOLDER, dir_fd=folder)


@contextmanager
def _alone_with(url: str, state: FileState) -> Iterator[tuple[int, str]]:
    """Hold the lock of a file while it is replaced; the name is empty if its state is another.

    A replaced file is another inode, so of two that wait for one lock the second finds another
    state.
    """
    with _parent(url) as (folder, name):
        try:
            held = os.open(name, _FILE, dir_fd=folder)
        except FileNotFoundError:
            yield folder, ""
            return
        try:
            _lock(held, url)
            is_same = _is_there(folder, name) and _is_same(
                _state(os.stat(name, dir_fd=folder, follow_symlinks=False), url), state
            )
            yield folder, name if is_same else ""
        finally:
            os.close(held)


def _lock(descriptor: int, url: str) -> None:
    """Take the lock of an open file, but do not wait for ever for a stranger that holds it."""
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOCK_DELAY_SECONDS)
        else:
            return
    raise OSError(errno.EBUSY, f"another program keeps {url} locked")


@contextmanager
def _opened(url: str, state: FileState) -> Iterator[BufferedReader]:
    """Open a file in the state it was seen in, and make sure it kept it while it was read."""
    with _parent(url) as (folder, name):
        try:
            descriptor = os.open(name, _FILE, dir_fd=folder)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise NotAFileError(f"a link now: {url}") from error
            raise
    with closing(os.fdopen(_checked(descriptor, url, state), "rb")) as file:
        yield file
        _require(os.fstat(descriptor), url, state)


def _checked(descriptor: int, url: str, state: FileState) -> int:
    try:
        _require(os.fstat(descriptor), url, state)
    except DedupError:
        os.close(descriptor)
        raise
    return descriptor


def _require(status: os.stat_result, url: str, state: FileState) -> None:
    if _state(status, url) != state:
        raise ChangedError("changed while it was read")


def _present(url: str) -> datetime:
    """The time by the clock of the disk, which may be a server's, as a new file there has it."""
    try:
        with _parent(url) as (folder, _), _new_file(folder) as descriptor:
            nanoseconds = os.fstat(descriptor).st_mtime_ns
    except OSError:  # a folder that may only be read
        return datetime.now(UTC)
    return _EPOCH + timedelta(microseconds=nanoseconds // 1_000)


def _write(descriptor: int, content: bytes) -> None:
    """Write a whole file, safe against a power cut."""
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
        file.flush()
    os.fsync(descriptor)


def _sync(folder: int) -> None:
    """Make a new name in a folder safe against a power cut."""
    try:
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
    except PermissionError:  # one may write there without being allowed to list it
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _new_file(folder: int) -> Iterator[int]:
    """Open a file without a name: whatever happens to us, nothing of it stays."""
    try:
        descriptor = os.open(".", os.O_WRONLY | os.O_TMPFILE, 0o644, dir_fd=folder)
        name = None
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        # Network filesystems need a name.
        name = f"{HIDDEN_PREFIX}{secrets.token_hex(8)}.tmp"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        descriptor = os.open(name, flags, 0o644, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
        if name is not None:
            os.unlink(name, dir_fd=folder)


def _rename(folder: int, name: str, to_folder: int, to_name: str, *, is_to_ours: bool) -> None:
    """Rename a file, and fail when there is one of the new name.

    Python's own renaming overwrites, and not every filesystem knows the one that does not. There it
    depends on which of the two places only we write to: the new one can be looked at first; for the
    old one, the file is given a second name, which never overwrites.
    """
    try:
        _rename_exclusively(folder, name, to_folder, to_name)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
            raise
    else:
        return
    if not is_to_ours:
        try:
            os.link(name, to_name, src_dir_fd=folder, dst_dir_fd=to_folder, follow_symlinks=False)
        except PermissionError:
            pass  # folders and other users' files get no second name
        else:
            os.unlink(name, dir_fd=folder)
            return
    if _is_there(to_folder, to_name):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), to_name)
    os.rename(name, to_name, src_dir_fd=folder, dst_dir_fd=to_folder)


def _rename_exclusively(folder: int, name: str, to_folder: int, to_name: str) -> None:
    rename = getattr(_LIBC, "renameat2", None)
    if rename is None:
        raise OSError(errno.ENOSYS, "no renameat2 in the C library")
    old, new = os.fsencode(name), os.fsencode(to_name)
    if rename(folder, old, to_folder, new, _RENAME_NOREPLACE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


def _is_there(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _is_same(found: FileState, seen: FileState) -> bool:
    # Not `changed`: renaming and linking move the inode's change time.
    return (found.identity, found.size_bytes, found.etag) == (
        seen.identity,
        seen.size_bytes,
        seen.etag,
    )


def _state(status: os.stat_result, url: str) -> FileState:
    if not stat.S_ISREG(status.st_mode):
        raise NotAFileError(f"a link, a folder or a device now: {url}")
    return FileState(
        size_bytes=status.st_size,
        etag=f"mtime_ns:{status.st_mtime_ns}",
        identity=f"{status.st_dev}:{status.st_ino}",
        changed=str(status.st_ctime_ns),
        modified_at=_EPOCH + timedelta(microseconds=status.st_mtime_ns // 1_000),
    )


def _mount(url: str) -> tuple[int, str]:
    """Name the disk and the mount that a folder is on, or will be: files move within one."""
    path = PurePosixPath(_path(url))
    while not os.path.isdir(path):
        path = path.parent
    descriptor = os.open(path, _FOLDER & ~os.O_NOFOLLOW)
    try:
        device = os.fstat(descriptor).st_dev
        with open(f"/proc/self/fdinfo/{descriptor}") as info:
            return device, next((line for line in info if line.startswith("mnt_id:")), "")
    except FileNotFoundError:
        return device, ""
    finally:
        os.close(descriptor)
