"""What acting on images asks of a store: to do nothing to a file that is not the one it saw.

`storage` reads and publishes artifacts through fsspec, on any store. Moving and deleting images
needs more than fsspec offers (conditions, no overwriting, links told from files), so the stores
that can be acted on have an implementation each: `store_local` and `store_s3`.
"""

from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Protocol

from tasks import storage
from tasks.errors import DedupError, StorageError

HIDDEN_PREFIX = ".image-dedup."
"""How the names of our own short-lived files in a source begin; listings pass over them."""


@dataclass(frozen=True)
class FileState:
    """One file at one moment."""

    size_bytes: int
    etag: str
    """As a listing gives it: the store's version tag, or `mtime_ns:<nanoseconds since 1970>`."""
    identity: str
    """Equal for two names of one file, and only then."""
    changed: str
    """Different after every change of the content, also one that keeps the modification time."""
    modified_at: datetime
    """Time of the last change by the clock of the store, in UTC."""


@dataclass(frozen=True)
class Stored:
    """A small file with its content."""

    content: bytes
    state: FileState
    seen_at: datetime
    """The time by the clock of the store, in UTC."""


class NotAFileError(DedupError):
    """There is something else: a link, a folder, a device, or a link on the way."""


class ChangedError(DedupError):
    """The file is not, or no longer, the one that was expected."""


class OccupiedError(DedupError):
    """There is a file already where one was to appear."""


class Store(Protocol):
    """A store whose images can be acted on. All locations are URLs as `absolute_url` spells them.

    Everything that changes something takes the state that was seen, and raises `ChangedError`
    instead of acting on a file in any other state. Other faults are `OSError`s.
    """

    has_folders: bool
    """Whether a folder can be missing; S3 only knows names with slashes in them."""
    default_verification: str
    """`content` where reading is cheap and a version tag can be forged, else `version`."""

    def stat(self, url: str) -> FileState | None:
        """Look at a file; None when there is nothing. Raises NotAFileError."""
        ...

    def read(self, url: str, state: FileState) -> bytes:
        """Read the whole content that a file has in this state."""
        ...

    def sha256(self, url: str, state: FileState) -> str:
        """Digest the content that a file has in this state, as 64 hexadecimal digits."""
        ...

    def shares_moves_with(self, url: str, other_url: str) -> bool:
        """Tell whether files can be moved between two folders without being downloaded."""
        ...

    def move(self, url: str, to_url: str, state: FileState) -> FileState:
        """Move a file to a place that is free and that nobody else writes to.

        Returns:
            Its state there.
        """
        ...

    def put_back(self, from_url: str, url: str, state: FileState) -> None:
        """Move a file from a place that nobody else writes to; raises OccupiedError."""
        ...

    def remove(self, url: str, state: FileState) -> None:
        """Delete a file in a place where others write too, by a conditional request.

        Only where `aside_url` gives None; elsewhere move it there first.
        """
        ...

    def copy(self, url: str, to_url: str, state: FileState) -> None:
        """Copy a file within the store, on S3 without downloading it; raises OccupiedError."""
        ...

    def get(self, url: str) -> Stored | None:
        """Read a small file and its state in one step; None when there is nothing."""
        ...

    def create(
        self, url: str, content: bytes, modified_at: datetime | None = None
    ) -> FileState | None:
        """Make a file appear in one step unless there is one; None when there is."""
        ...

    def replace(self, url: str, content: bytes, state: FileState) -> FileState | None:
        """Replace a file that only we write in one step; None if its state is another."""
        ...

    def discard(self, url: str, state: FileState) -> bool:
        """Delete a file in a place that only we write to; False if its state is another."""
        ...

    def aside_url(self, url: str) -> str | None:
        """Where a file waits while it is deleted; None where a condition guards the deletion."""
        ...

    def prune(self, url: str) -> None:
        """Remove the empty folders below a folder, and itself when it is empty."""
        ...

    def honours_conditions(self, url: str, content: bytes) -> bool:
        """Try out on a file of our own, with this content, whether writes are conditional."""
        ...


def store_of(url: str) -> Store:
    """The store that a location is on.

    Raises:
        StorageError: It is neither a local disk nor S3.
    """
    fs, _ = storage.filesystem(url)
    if storage.is_local(fs):
        from tasks.store_local import LocalStore

        return LocalStore()
    if storage.is_s3(fs):
        return _s3_store(url.partition("://")[0])
    raise StorageError(f"images can be acted on where they lie on a local disk or on S3: {url}")


@lru_cache
def _s3_store(protocol: str) -> Store:
    from tasks.store_s3 import S3Store

    return S3Store(protocol)
