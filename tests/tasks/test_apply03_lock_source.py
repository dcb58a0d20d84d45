"""The lock of a source: one at a time, whatever dies meanwhile."""

import json
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from threading import Barrier
from typing import Any
from uuid import uuid4

import pytest
from botocore.exceptions import EndpointConnectionError

from config import SourceSettings
from tasks import apply03_lock_source, storage, store_local, store_s3
from tasks.apply03_lock_source import LOCK_NAME, LockRecord, SourceLock, holder_of, lock_source
from tasks.errors import DedupError, GuardError, LockHeldError, LockLostError, StorageError
from tasks.stage01_list_images import reason_to_ignore
from tasks.store_local import LocalStore
from tasks.stores import Stored, store_of
from tests.one_bucket import as_client, make_bucket, one_bucket
from tests.rclone_server import run_rclone_server
from tests.s3_server import S3Server

TAKERS = 4


@pytest.fixture(scope="module")
def bucket_url(s3_server: S3Server) -> Iterator[str]:
    with one_bucket(s3_server) as url:
        yield url


@pytest.fixture
def s3_url(bucket_url: str) -> str:
    """What `place` begins with: a folder of its own for every test."""
    return f"{bucket_url}/{uuid4().hex}"


@pytest.fixture
def source(place: str) -> str:
    """The URL of a source with an image."""
    url = storage.absolute_url(storage.join(storage.absolute_url(place), "source"))
    storage.publish_bytes(f"{url}/north/a.jpg", b"image")
    return url


@pytest.fixture
def local_source(tmp_path: Path) -> str:
    (tmp_path / "source/north").mkdir(parents=True)
    return storage.absolute_url(str(tmp_path / "source"))


@pytest.fixture
def busy_heart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks are renewed many times a second, and yet nobody is ever late."""
    monkeypatch.setattr(apply03_lock_source, "_HEARTBEATS_PER_EXPIRY", 2_000)


def lock(url: str, *folders: str, **options: Any) -> AbstractContextManager[SourceLock]:
    return lock_source(
        url,
        folders,
        **{"purpose": "a test", "expiry_seconds": 60.0, "allow_unlocked": False} | options,
    )


def lock_file(url: str) -> Stored | None:
    return store_of(url).get(f"{url}/{LOCK_NAME}")


def record_of(url: str) -> LockRecord:
    found = lock_file(url)
    assert found is not None
    return LockRecord.model_validate_json(found.content)


def content(**changes: Any) -> bytes:
    """A lock file of another program."""
    record = {
        "owner": "anna@north, process 7",
        "purpose": "night-1-quarantine",
        "since": "2026-01-01T02:00:00+00:00",
        "expiry_seconds": 60.0,
        "token": uuid4().hex,
        "num_renewals": 0,
    }
    return json.dumps(record | changes).encode()


def write_lock(url: str, **changes: Any) -> None:
    storage.publish_bytes(f"{url}/{LOCK_NAME}", content(**changes))


def write_dead_lock(url: str) -> None:
    """Leave a lock that has expired by the clock of the store, which may count whole seconds."""
    write_lock(url, expiry_seconds=0.001)
    if url.startswith("file:"):
        os.utime(f"{url.removeprefix('file://')}/{LOCK_NAME}", (1, 1))
    else:
        time.sleep(1.2)


def grow_old(url: str) -> None:
    """Let a local lock look as if nobody had renewed it for long."""
    os.utime(f"{url.removeprefix('file://')}/{LOCK_NAME}", (1, 1))


def wait_until(is_so: Callable[[], bool]) -> None:
    for _ in range(1_500):
        if is_so():
            return
        time.sleep(0.01)
    raise AssertionError("it never came")


class FastClock(datetime):
    """The clock of a machine that is two hours ahead."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime.now(tz) + timedelta(hours=2)


def is_lost(held: SourceLock) -> bool:
    try:
        held.check()
    except LockLostError:
        return True
    return False


def take_together(takers: list[Callable[[], AbstractContextManager[SourceLock]]]) -> list[Any]:
    """Let all take a lock at one moment and keep it until all have tried; locks and errors."""
    taken: list[AbstractContextManager[SourceLock]] = []
    barrier = Barrier(len(takers))

    def take(taker: Callable[[], AbstractContextManager[SourceLock]]) -> Any:
        manager = taker()
        barrier.wait()
        try:
            held = manager.__enter__()
        except Exception as error:
            return error
        taken.append(manager)
        return held

    with ThreadPoolExecutor(len(takers)) as pool:
        results = list(pool.map(take, takers))
    for manager in taken:
        manager.__exit__(None, None, None)
    return results


class TestTaking:
    def test_is_a_file_in_the_source_that_tells_who_and_why(self, source: str) -> None:
        with lock(source, purpose="night-2-permanent", expiry_seconds=90) as held:
            held.check()
            record = record_of(source)
            assert record.purpose == "night-2-permanent"
            assert record.owner.endswith(f", process {os.getpid()}")
            assert (record.expiry_seconds, record.num_renewals) == (90.0, 0)
        assert lock_file(source) is None

    def test_leaves_nothing_but_the_images(self, source: str) -> None:
        with lock(source):
            names = [file.relative_path for file in storage.list_files(source)]
            assert names == [LOCK_NAME, "north/a.jpg"]
        assert [file.relative_path for file in storage.list_files(source)] == ["north/a.jpg"]

    def test_is_never_listed_as_an_image(self, local_source: str) -> None:
        with lock(local_source):
            file = storage.list_files(local_source)[0]
            assert reason_to_ignore(file, SourceSettings(suffixes=())) == "hidden"

    def test_can_be_repeated(self, local_source: str) -> None:
        tokens = set()
        for _ in range(3):
            with lock(local_source):
                tokens.add(record_of(local_source).token)
        assert len(tokens) == 3

    def test_second_one_is_told_who_holds_it(self, source: str) -> None:
        with (
            lock(source, purpose="night-1-quarantine"),
            pytest.raises(LockHeldError) as error,
            lock(source),
        ):
            raise AssertionError("two hold one lock")
        record = record_of_message(str(error.value))
        assert record["owner"].endswith(f", process {os.getpid()}")
        assert record["where"] == f"{source}/{LOCK_NAME}"
        assert record["purpose"] == "night-1-quarantine"
        assert record["expiry"] == "60"

    def test_refused_one_leaves_the_lock_alone(self, local_source: str) -> None:
        with lock(local_source) as held:
            before = lock_file(local_source)
            with pytest.raises(LockHeldError), lock(local_source):
                pass
            after = lock_file(local_source)
            assert before is not None
            assert after is not None
            assert (after.content, after.state) == (before.content, before.state)
            held.check()

    def test_lock_of_another_program_is_respected(self, local_source: str) -> None:
        write_lock(local_source)
        with (
            pytest.raises(
                LockHeldError,
                match=r"^anna@north, process 7 holds the lock of .* since "
                r"2026-01-01T02:00:00\+00:00 for night-1-quarantine; last renewed .*, "
                r"free 60 s after the last renewal$",
            ),
            lock(local_source, expiry_seconds=1),
        ):
            pass

    def test_only_one_of_many_gets_it(self, source: str) -> None:
        results = take_together([lambda: lock(source)] * TAKERS)
        assert sum(isinstance(result, SourceLock) for result in results) == 1
        assert sum(isinstance(result, LockHeldError) for result in results) == TAKERS - 1
        assert lock_file(source) is None

    def test_is_given_back_when_the_work_fails(self, local_source: str) -> None:
        with pytest.raises(ZeroDivisionError), lock(local_source):
            _ = 1 / 0
        assert lock_file(local_source) is None

    def test_source_that_is_missing_is_not_made(self, tmp_path: Path) -> None:
        with (
            pytest.raises(StorageError, match=r"^no such source: file://"),
            lock(storage.absolute_url(str(tmp_path / "nothing"))),
        ):
            pass
        assert list(tmp_path.iterdir()) == []

    def test_source_in_a_missing_bucket(self, bucket_url: str) -> None:
        with (
            pytest.raises(StorageError, match=r"^no such source: s3://"),
            lock(f"{bucket_url}-missing/night"),
        ):
            pass

    def test_source_that_may_not_be_written_to(self, s3_server: S3Server, s3_url: str) -> None:
        with (
            as_client(s3_server.reader),
            pytest.raises(StorageError, match=r"^cannot lock s3://.*Access Denied"),
            lock(s3_url),
        ):
            pass

    @pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("nowhere")])
    def test_what_is_no_file_is_no_lock_to_take(
        self, local_source: str, tmp_path: Path, make: Callable[[Path], None]
    ) -> None:
        make(tmp_path / "source" / LOCK_NAME)
        with pytest.raises(DedupError, match="a link, a folder or a device"), lock(local_source):
            pass
        assert os.path.lexists(tmp_path / "source" / LOCK_NAME)
        assert not (tmp_path / "source/nowhere").exists()


def record_of_message(message: str) -> dict[str, str]:
    """Take the message about a held lock apart."""
    owner, _, rest = message.partition(" holds the lock of ")
    where, _, rest = rest.partition(" since ")
    _, _, rest = rest.partition(" for ")
    purpose, _, rest = rest.partition("; last renewed ")
    _, _, rest = rest.partition(", free ")
    return {
        "owner": owner,
        "where": where,
        "purpose": purpose,
        "expiry": rest.removesuffix(" s after the last renewal"),
    }


class TestExpiry:
    def test_dead_lock_is_taken_over(self, source: str) -> None:
        write_dead_lock(source)
        with lock(source) as held:
            held.check()
            assert record_of(source).owner.endswith(f", process {os.getpid()}")
        assert lock_file(source) is None

    def test_dead_lock_is_taken_over_by_one_of_many(self, source: str) -> None:
        write_dead_lock(source)
        results = take_together([lambda: lock(source)] * TAKERS)
        assert sum(isinstance(result, SourceLock) for result in results) == 1
        assert sum(isinstance(result, LockHeldError) for result in results) == TAKERS - 1
        assert lock_file(source) is None

    def test_dead_lock_that_another_takes_over_first_is_his(
        self, source: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_dead_lock(source)
        is_expired = apply03_lock_source._is_expired

        def take_over(*args: Any) -> bool:
            result = is_expired(*args)
            write_lock(source)
            return result

        monkeypatch.setattr(apply03_lock_source, "_is_expired", take_over)
        with pytest.raises(LockHeldError, match=r"^anna@north, process 7 holds"), lock(source):
            pass
        assert record_of(source).owner == "anna@north, process 7"

    def test_is_what_the_owner_promised_and_not_what_the_taker_would(
        self, local_source: str, tmp_path: Path
    ) -> None:
        write_lock(local_source, expiry_seconds=1_000.0)
        now = time.time()
        os.utime(tmp_path / "source" / LOCK_NAME, (now - 900, now - 900))
        with pytest.raises(LockHeldError), lock(local_source, expiry_seconds=1):
            pass
        os.utime(tmp_path / "source" / LOCK_NAME, (now - 1_100, now - 1_100))
        with lock(local_source, expiry_seconds=3_600) as held:
            held.check()

    def test_clock_of_this_machine_does_not_matter(
        self, source: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A disk may be on a server whose clock is another one.
        write_lock(source)
        for module in (store_local, store_s3, apply03_lock_source):
            monkeypatch.setattr(module, "datetime", FastClock, raising=False)
        with pytest.raises(LockHeldError), lock(source):
            pass

    def test_lock_from_the_future_is_alive(self, local_source: str, tmp_path: Path) -> None:
        write_lock(local_source, expiry_seconds=1.0)
        os.utime(tmp_path / "source" / LOCK_NAME, (4_000_000_000, 4_000_000_000))
        with pytest.raises(LockHeldError), lock(local_source):
            pass

    def test_one_that_lost_it_is_told(self, local_source: str, busy_heart: None) -> None:
        with lock(local_source) as first:
            first.check()
            write_lock(local_source)
            wait_until(lambda: is_lost(first))
            with pytest.raises(LockLostError, match="somebody else has taken it over"):
                first.check()
        assert record_of(local_source).owner == "anna@north, process 7"

    def test_takeover_from_one_that_slept_is_noticed_by_it(
        self, local_source: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        beat, awake = SourceLock._beat, threading.Event()

        def sleep_first(held: SourceLock) -> None:
            awake.wait()
            beat(held)

        monkeypatch.setattr(SourceLock, "_beat", sleep_first)
        with lock(local_source, expiry_seconds=0.5) as first:
            monkeypatch.setattr(SourceLock, "_beat", beat)
            grow_old(local_source)
            with lock(local_source) as second:
                awake.set()
                wait_until(lambda: is_lost(first))
                second.check()
            # Given back by the second one; the first one must not make it anew.
        assert lock_file(local_source) is None

    @pytest.mark.parametrize(
        "damage", [b"", b"no JSON", b"[]", b'{"owner": 1}', content(expiry_seconds="60"), b"\xff"]
    )
    def test_damaged_lock_is_respected_as_long_as_our_own_would_be(
        self, local_source: str, tmp_path: Path, damage: bytes
    ) -> None:
        (tmp_path / "source" / LOCK_NAME).write_bytes(damage)
        with (
            pytest.raises(LockHeldError, match=r"^somebody holds the lock of file://"),
            lock(local_source),
        ):
            pass
        assert (tmp_path / "source" / LOCK_NAME).read_bytes() == damage
        grow_old(local_source)
        with lock(local_source) as held:
            held.check()

    @pytest.mark.parametrize("expiry", ["1e300", "Infinity", "NaN"])
    def test_lock_with_a_promise_that_makes_no_sense_is_damaged(
        self, local_source: str, tmp_path: Path, expiry: str
    ) -> None:
        damaged = content(expiry_seconds="@").replace(b'"@"', expiry.encode())
        (tmp_path / "source" / LOCK_NAME).write_bytes(damaged)
        with pytest.raises(LockHeldError), lock(local_source):
            pass


class TestHeartbeat:
    def test_renews_the_lock(self, source: str, busy_heart: None) -> None:
        with lock(source) as held:
            before = record_of(source)
            wait_until(lambda: record_of(source).num_renewals >= 3)
            held.check()
            assert record_of(source).token == before.token
        assert lock_file(source) is None

    def test_keeps_others_away(self, local_source: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(apply03_lock_source, "_HEARTBEATS_PER_EXPIRY", 40)
        with lock(local_source, expiry_seconds=2) as held:
            taken = lock_file(local_source)
            assert taken is not None

            def would_have_expired() -> bool:
                found = lock_file(local_source)
                assert found is not None
                return (found.state.modified_at - taken.state.modified_at).total_seconds() > 2.1

            wait_until(would_have_expired)
            with pytest.raises(LockHeldError), lock(local_source):
                pass
            held.check()

    def test_does_not_make_a_lock_anew_that_was_deleted(
        self, source: str, busy_heart: None
    ) -> None:
        with lock(source) as held:
            # A renewal in between is the only thing that can keep it from being deleted.
            store = store_of(source)
            wait_until(
                lambda: (
                    (found := lock_file(source)) is None
                    or store.discard(f"{source}/{LOCK_NAME}", found.state)
                )
            )
            wait_until(lambda: is_lost(held))
            assert lock_file(source) is None

    def test_that_fails_for_a_while_is_made_up_for(
        self, local_source: str, busy_heart: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        renew, failures = LocalStore.replace, iter([OSError(5, "Input/output error")] * 3)

        def fail_first(*args: Any) -> Any:
            for error in failures:
                raise error
            return renew(*args)

        monkeypatch.setattr(LocalStore, "replace", fail_first)
        with lock(local_source) as held:
            wait_until(lambda: record_of(local_source).num_renewals >= 5)
            held.check()

    def test_whose_answer_is_lost_for_good_does_not_cost_the_lock(
        self, local_source: str, busy_heart: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        renew, failures = LocalStore.replace, iter([TimeoutError("timed out")])

        def renew_and_fail(*args: Any) -> Any:
            state = renew(*args)
            for error in failures:
                raise error
            return state

        monkeypatch.setattr(LocalStore, "replace", renew_and_fail)
        with lock(local_source) as held:
            wait_until(lambda: record_of(local_source).num_renewals >= 5 or is_lost(held))
            held.check()
        assert lock_file(local_source) is None

    def test_that_stopped_is_noticed_well_before_anybody_takes_over(
        self, local_source: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = [apply03_lock_source.uptime()]
        monkeypatch.setattr(apply03_lock_source, "uptime", lambda: clock[0])
        with lock(local_source, expiry_seconds=60) as held:
            clock[0] += 29
            held.check()
            clock[0] += 2
            with pytest.raises(LockLostError, match=r"could not be renewed for 31 s"):
                held.check()
            clock[0] -= 20
            with pytest.raises(LockLostError):
                held.check()

    def test_ends_with_the_lock(self, local_source: str, busy_heart: None) -> None:
        before = threading.active_count()
        with lock(local_source):
            assert threading.active_count() == before + 1
        assert threading.active_count() == before


class TestRelease:
    def test_leaves_the_lock_of_another(self, source: str) -> None:
        with lock(source):
            write_lock(source)
        assert record_of(source).owner == "anna@north, process 7"

    def test_does_not_mind_that_the_lock_is_gone(self, local_source: str) -> None:
        with lock(local_source):
            found = lock_file(local_source)
            assert found is not None
            store_of(local_source).discard(f"{local_source}/{LOCK_NAME}", found.state)
        assert lock_file(local_source) is None

    @pytest.mark.parametrize(
        "fault",
        [
            OSError(5, "Input/output error"),
            PermissionError(13, "Permission denied"),
            EndpointConnectionError(endpoint_url="http://s3"),
        ],
        ids=lambda fault: type(fault).__name__,
    )
    def test_that_fails_does_not_hide_what_happened(
        self, local_source: str, monkeypatch: pytest.MonkeyPatch, fault: Exception
    ) -> None:
        def fail(*args: Any) -> bool:
            raise fault

        monkeypatch.setattr(LocalStore, "discard", fail)
        with pytest.raises(ZeroDivisionError), lock(local_source):
            _ = 1 / 0

    def test_does_not_mind_that_the_lock_is_a_link_now(
        self, local_source: str, tmp_path: Path
    ) -> None:
        with lock(local_source):
            (tmp_path / "source" / LOCK_NAME).unlink()
            (tmp_path / "source" / LOCK_NAME).symlink_to("north")
        assert (tmp_path / "source" / LOCK_NAME).is_symlink()


class TestOverlaps:
    def test_lock_above_is_respected(self, source: str) -> None:
        with (
            lock(source),
            pytest.raises(LockHeldError, match="for a test"),
            lock(f"{source}/north", source),
        ):
            pass
        assert lock_file(f"{source}/north") is None
        assert lock_file(source) is None

    def test_lock_inside_is_respected(self, source: str) -> None:
        with (
            lock(f"{source}/north"),
            pytest.raises(LockHeldError, match=f"lock of {source}/north since"),
            lock(source, source, f"{source}/north"),
        ):
            pass
        assert lock_file(source) is None

    def test_lock_beside_is_none_of_our_business(self, local_source: str) -> None:
        storage.make_folder(f"{local_source}/south")
        with (
            lock(f"{local_source}/north"),
            lock(f"{local_source}/south", local_source, f"{local_source}/south") as held,
        ):
            held.check()

    def test_dead_lock_above_or_inside_does_not_matter(
        self, local_source: str, tmp_path: Path
    ) -> None:
        for folder in (local_source, storage.absolute_url(str(tmp_path))):
            write_dead_lock(folder)
        north = f"{local_source}/north"
        with lock(north, local_source, storage.absolute_url(str(tmp_path)), north) as held:
            held.check()

    def test_own_lock_does_not_matter(self, local_source: str) -> None:
        with lock(local_source, local_source, f"{local_source}/north") as held:
            held.check()

    def test_folder_that_is_gone_holds_no_lock(self, source: str) -> None:
        with lock(source, f"{source}/gone/deep") as held:
            held.check()

    def test_folder_behind_a_link_holds_no_lock(self, local_source: str, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "source/link").symlink_to("../elsewhere")
        write_lock(storage.absolute_url(str(tmp_path / "elsewhere")))
        with lock(local_source, f"{local_source}/link") as held:
            held.check()

    def test_lock_above_that_may_not_be_read_is_explained(self) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root can become another user")
        with tempfile.TemporaryDirectory(prefix="dedup-tests-") as name:
            above = Path(name).resolve()
            (above / "source").mkdir()
            above.chmod(0o755)
            (above / "source").chmod(0o777)
            (above / LOCK_NAME).write_bytes(content())
            (above / LOCK_NAME).chmod(0o600)
            os.seteuid(65_534)
            try:
                with (
                    pytest.raises(DedupError, match=re.escape(str(above))),
                    lock(f"file://{above}/source", f"file://{above}"),
                ):
                    pass
            finally:
                os.seteuid(0)
            assert list((above / "source").iterdir()) == []

    def test_damaged_lock_inside_is_respected(self, local_source: str) -> None:
        storage.publish_bytes(f"{local_source}/north/{LOCK_NAME}", b"no JSON")
        with (
            pytest.raises(LockHeldError, match="somebody holds the lock of"),
            lock(local_source, f"{local_source}/north"),
        ):
            pass
        assert lock_file(local_source) is None

    def test_of_two_that_overlap_at_most_one_gets_it(self, source: str) -> None:
        results = take_together(
            [
                lambda: lock(source, source, f"{source}/north"),
                lambda: lock(f"{source}/north", source, f"{source}/north"),
            ]
        )
        assert sum(isinstance(result, SourceLock) for result in results) <= 1
        assert {type(result) for result in results} <= {SourceLock, LockHeldError}
        assert lock_file(source) is None
        assert lock_file(f"{source}/north") is None


class TestHolder:
    def test_nobody(self, local_source: str) -> None:
        assert holder_of(local_source) is None
        assert holder_of(f"{local_source}/no/such/folder") is None

    def test_somebody(self, source: str) -> None:
        write_lock(source)
        assert str(holder_of(source)).startswith(
            f"anna@north, process 7 holds the lock of {source} since 2026-01-01T02:00:00+00:00 "
            "for night-1-quarantine; last renewed "
        )

    def test_nobody_knows_whom(self, local_source: str) -> None:
        storage.publish_bytes(f"{local_source}/{LOCK_NAME}", b"no JSON")
        assert holder_of(local_source) == f"somebody holds the lock of {local_source}"


@contextmanager
def careless_store(folder: Path) -> Iterator[str]:
    """A source on a store that ignores conditions."""
    with run_rclone_server(folder) as server, as_client(server.client):
        yield f"{make_bucket()}/source"


def test_store_that_ignores_conditions_is_refused_unless_that_is_allowed(
    tmp_path: Path, busy_heart: None
) -> None:
    with careless_store(tmp_path) as url:
        with (
            pytest.raises(GuardError, match=r"ignores conditional writes.*--allow-unlocked"),
            lock(url),
        ):
            pass
        assert lock_file(url) is None
        with lock(url, allow_unlocked=True) as held:
            held.check()
            wait_until(
                lambda: (found := lock_file(url)) is not None and found.content.startswith(b"{")
            )
            # Whoever looks first is still kept away.
            with pytest.raises(LockHeldError), lock(url, allow_unlocked=True):
                pass
            held.check()
        assert lock_file(url) is None


def test_release_leaves_the_lock_of_another_on_a_store_that_ignores_conditions(
    tmp_path: Path,
) -> None:
    with careless_store(tmp_path) as url:
        with lock(url, allow_unlocked=True):
            write_lock(url)
        assert record_of(url).owner == "anna@north, process 7"


def test_lock_survives_a_store_without_conditional_deletion(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of(s3_url)
    ask = store._call  # type: ignore[attr-defined]

    def forget_condition(operation: str, url: str, **arguments: Any) -> Any:
        if operation == "delete_object":
            arguments.pop("IfMatch", None)
        return ask(operation, url, **arguments)

    monkeypatch.setattr(store, "_call", forget_condition)
    with lock(s3_url):
        with pytest.raises(LockHeldError), lock(s3_url):
            pass
        write_lock(s3_url)
    assert record_of(s3_url).owner == "anna@north, process 7"
