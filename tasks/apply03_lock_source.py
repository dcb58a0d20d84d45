"""Apply, step 3: nobody else acts on the source meanwhile.

The lock is a file in the source itself, because two workspaces may share one source: one apply
could remove the keeper that the other one counts on. It is made by a conditional write, renewed by
a heartbeat, and taken over when its owner has not renewed it for longer than it promised. All
times are compared by the clock of the store, so the clocks of the machines do not matter.
"""

import logging
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks import storage
from tasks.errors import GuardError, LockHeldError, LockLostError, StorageError, is_transient
from tasks.journal import now, who
from tasks.stores import HIDDEN_PREFIX, FileState, NotAFileError, Store, Stored, store_of

logger = logging.getLogger(__name__)

LOCK_NAME = f"{HIDDEN_PREFIX}lock"

_HEARTBEATS_PER_EXPIRY = 5
_EXPIRY_OF_DAMAGED_SECONDS = 60.0


class LockRecord(BaseModel):
    """What the lock file says."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    owner: str
    """User, host and process."""
    purpose: str
    since: str
    expiry_seconds: float = Field(gt=0, le=86_400, allow_inf_nan=False)
    token: str
    num_renewals: int = 0


class SourceLock:
    """A lock that is held. Ask `check` before every action."""

    def __init__(
        self, url: str, record: LockRecord, state: FileState, store: Store, taken: float
    ) -> None:
        self._url = url
        self._record = record
        self._state = state
        self._store = store
        self._renewed = taken
        self._lost: str | None = None
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Make sure that the lock is still ours.

        Raises:
            LockLostError: It could not be renewed in time, or is somebody else's.
        """
        # Stops well before anybody may take it over, so that what is under way can end.
        silent = uptime() - self._renewed
        if self._lost is None and silent > self._record.expiry_seconds / 2:
            self._lost = f"it could not be renewed for {silent:.0f} s"
        if self._lost is not None:
            raise LockLostError(f"lost the lock {self._url}: {self._lost}")

    def release(self) -> None:
        """Stop the heartbeat and remove the lock file, if it still is ours."""
        self._released.set()
        self._thread.join()
        try:
            found = self._store.get(self._url)
            if found is not None and self._is_ours(found):
                self._store.discard(self._url, found.state)
        except Exception as error:
            # What was done under the lock is done, whatever becomes of the lock.
            logger.warning("the lock stays until it expires: %s: %s", self._url, error)

    def _beat(self) -> None:
        while not self._released.wait(self._record.expiry_seconds / _HEARTBEATS_PER_EXPIRY):
            began = uptime()
            self._record = self._record.model_copy(
                update={"num_renewals": self._record.num_renewals + 1}
            )
            try:
                state = self._store.replace(self._url, _to_bytes(self._record), self._state)
                if state is None:
                    # A renewal whose answer was lost has changed the state that we know of.
                    found = self._store.get(self._url)
                    if found is not None and self._is_ours(found):
                        self._state = found.state
                        continue
            except Exception as error:
                logger.warning("cannot renew the lock %s: %s", self._url, error)
                continue
            if state is None:
                self._lost = "somebody else has taken it over"
                return
            self._state, self._renewed = state, began

    def _is_ours(self, found: Stored) -> bool:
        record = _parse(found)
        return record is not None and record.token == self._record.token


def uptime() -> float:
    """Seconds since the machine was started, also those in which it slept."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


@contextmanager
def lock_source(
    source_url: str,
    image_folders: Iterable[str],
    *,
    purpose: str,
    expiry_seconds: float,
    allow_unlocked: bool,
) -> Iterator[SourceLock]:
    """Hold the lock of a source.

    Args:
        source_url: The folder of images.
        image_folders: All folders, from the source down, that hold images to be acted on; their
            locks and those of all folders above the source belong to overlapping sources.
        purpose: Shown to others who want the lock.
        expiry_seconds: Others may take it over when it was not renewed for so long.
        allow_unlocked: Go on where the store ignores conditional writes.

    Raises:
        LockHeldError: Somebody else acts on this source or on one that overlaps it.
        GuardError: The store ignores conditional writes, so that no lock can hold.
        StorageError: The lock cannot be written.
    """
    store = store_of(source_url)
    url = storage.join(source_url, LOCK_NAME)
    record = LockRecord(
        owner=who(),
        purpose=purpose,
        since=now().isoformat(),
        expiry_seconds=expiry_seconds,
        token=secrets.token_hex(16),
    )
    if store.has_folders and not storage.exists(source_url):
        raise StorageError(f"no such source: {source_url}")  # and none is made by locking it
    taken = uptime()
    try:
        state = _take(store, url, record)
    except FileNotFoundError as error:
        raise StorageError(f"no such source: {source_url}") from error
    except OSError as error:
        if is_transient(error):
            raise
        raise StorageError(f"cannot lock {source_url}: {error.strerror or error}") from error
    lock = SourceLock(url, record, state, store, taken)
    try:
        if not store.honours_conditions(url, _to_bytes(record)) and not allow_unlocked:
            raise GuardError(
                f"the store of {source_url} ignores conditional writes, so that no lock can hold "
                "and two could remove each other's keepers; --allow-unlocked acts all the same"
            )
        # After our own is there: of two that overlap, at least one sees the other.
        for folder in image_folders:
            other = _lock_in(store, folder) if folder != source_url else None
            if other is not None and not _is_expired(other, expiry_seconds):
                raise LockHeldError(_describe(other, folder))
        yield lock
    finally:
        lock.release()


def _lock_in(store: Store, folder_url: str) -> Stored | None:
    try:
        return store.get(storage.join(folder_url, LOCK_NAME))
    except NotAFileError:
        return None  # behind a link, where nothing is acted on
    except PermissionError as error:
        if not store.has_folders:
            return None  # S3 also says so of what is not there, to who may not list the bucket
        raise StorageError(f"cannot read the lock in {folder_url}: {error.strerror}") from error


def holder_of(source_url: str) -> str | None:
    """Say who holds the lock of a source; None when nobody does, or none that still lives."""
    found = store_of(source_url).get(storage.join(source_url, LOCK_NAME))
    is_held = found is not None and not _is_expired(found, _EXPIRY_OF_DAMAGED_SECONDS)
    return _describe(found, source_url) if is_held else None


def _take(store: Store, url: str, record: LockRecord) -> FileState:
    found = store.get(url)
    if found is None:
        taken = store.create(url, _to_bytes(record))
    elif _is_expired(found, record.expiry_seconds):
        logger.warning("taking over an expired lock: %s", _describe(found, url))
        taken = store.replace(url, _to_bytes(record), found.state)
    else:
        taken = None
    if taken is None:
        raise LockHeldError(_describe(store.get(url) or found, url))
    return taken


def _is_expired(found: Stored, default_seconds: float) -> bool:
    record = _parse(found)
    expiry = record.expiry_seconds if record is not None else default_seconds
    return found.seen_at - found.state.modified_at > timedelta(seconds=expiry)


def _describe(found: Stored | None, where: str) -> str:
    record = _parse(found) if found is not None else None
    if found is None or record is None:
        return f"somebody holds the lock of {where}"
    return (
        f"{record.owner} holds the lock of {where} since {record.since} for {record.purpose}; "
        f"last renewed {found.state.modified_at.isoformat(timespec='seconds')}, free "
        f"{record.expiry_seconds:g} s after the last renewal"
    )


def _parse(found: Stored) -> LockRecord | None:
    try:
        return LockRecord.model_validate_json(found.content)
    except ValidationError:
        return None


def _to_bytes(record: LockRecord) -> bytes:
    return record.model_dump_json().encode() + b"\n"
