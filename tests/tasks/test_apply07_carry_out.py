"""Acting on many images: intents before, outcomes after, and one failure stops no other."""

import errno
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from config import ActingSettings
from tasks import apply03_lock_source, apply07_carry_out, storage
from tasks.apply03_lock_source import LOCK_NAME, SourceLock, lock_source
from tasks.apply04_check_twin import RefusedError
from tasks.apply07_carry_out import Act, carry_out
from tasks.errors import ActionsFailedError, LockLostError
from tasks.journal import Entry, ImageRecord, Journal, Status, read_journal
from tasks.stores import store_of

APPLY_ID = "night-quarantine-01234567-1"


def entry(name: str) -> Entry:
    image = ImageRecord(url=f"file:///images/{name}.jpg", size_bytes=1, etag="e", sha256="0" * 64)
    return Entry(image=image, to_url=None, keeper=None, rule="within eps, distance 0.000000")


def name_of(entry: Entry) -> str:
    return entry.image.url.rpartition("/")[2].removesuffix(".jpg")


@pytest.fixture(autouse=True)
def no_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply07_carry_out, "RETRY_DELAYS_SECONDS", (0.0, 0.0))


@pytest.fixture
def source(place: str) -> str:
    url = storage.join(storage.absolute_url(place), "source")
    storage.make_folder(url)
    return url


@pytest.fixture
def local_source(tmp_path: Path) -> str:
    url = storage.absolute_url(str(tmp_path / "source"))
    storage.make_folder(url)
    return url


class Apply:
    """A journal, a lock that is held, and what was written while it was acted."""

    def __init__(self, source: str, lock: SourceLock) -> None:
        self.source, self.lock = source, lock
        self.url = f"{source}-journal"
        self.journal = Journal(self.url, APPLY_ID)

    def __call__(
        self, names: str, act: Act, *, per_batch: int = 500, workers: int = 4, tried: str = ""
    ) -> None:
        carry_out(
            [entry(name) for name in names],
            act,
            operation="quarantine",
            journal=self.journal,
            lock=self.lock,
            settings=ActingSettings(images_per_batch=per_batch, workers=workers),
            tried={entry(name).image.url for name in tried},
        )

    def written(self) -> Journal:
        """The journal as anybody else would read it now."""
        return read_journal(self.url, APPLY_ID)

    def kinds(self) -> list[str]:
        return [head.kind for head in self.written().heads]

    def outcomes(self) -> dict[str, tuple[Status | None, str]]:
        return {
            name_of(last): (last.status, last.detail)
            for last in self.written().entries("quarantine")
        }


def held(source: str) -> Iterator[Apply]:
    with lock_source(source, (), purpose="a test", expiry_seconds=60, allow_unlocked=False) as lock:
        yield Apply(source, lock)


@pytest.fixture
def apply(local_source: str) -> Iterator[Apply]:
    yield from held(local_source)


@pytest.fixture
def apply_anywhere(source: str) -> Iterator[Apply]:
    yield from held(source)


def succeed(_entry: Entry, _is_in_doubt: bool) -> tuple[Status, str]:
    return "done", ""


def failing(names: str, error: Callable[[], Exception]) -> Act:
    def act(entry: Entry, _is_in_doubt: bool) -> tuple[Status, str]:
        if name_of(entry) in names:
            raise error()
        return "done", ""

    return act


class TestJournal:
    def test_has_intents_before_the_first_action_and_outcomes_after_the_last(
        self, apply_anywhere: Apply
    ) -> None:
        apply = apply_anywhere
        seen = []

        def act(entry: Entry, _is_in_doubt: bool) -> tuple[Status, str]:
            journal = apply.written()
            seen.append([head.kind for head in journal.heads])
            assert journal.is_in_doubt(entry.image.url, "quarantine")
            return "done", "well"

        apply("abc", act)
        assert seen == [["intents"]] * 3
        assert apply.kinds() == ["intents", "outcomes"]
        assert apply.outcomes() == {
            "a": ("done", "well"),
            "b": ("done", "well"),
            "c": ("done", "well"),
        }

    def test_has_intents_of_a_batch_only_before_that_batch(self, apply: Apply) -> None:
        known = {}

        def act(entry: Entry, _is_in_doubt: bool) -> tuple[Status, str]:
            known[name_of(entry)] = len(apply.written().entries("quarantine"))
            return "done", ""

        apply("abcde", act, per_batch=2)
        assert known == {"a": 2, "b": 2, "c": 4, "d": 4, "e": 5}
        assert apply.kinds() == ["intents", "outcomes"] * 3

    def test_outcomes_keep_what_the_entries_said_and_have_a_time(self, apply: Apply) -> None:
        apply("a", succeed)
        (outcome,) = apply.written().entries("quarantine")
        assert outcome.at is not None
        assert outcome.model_copy(update={"status": None, "at": None}) == entry("a")

    def test_intents_of_images_that_had_an_outcome_have_none_yet(self, apply: Apply) -> None:
        before = entry("a").model_copy(update={"status": "done", "detail": "x", "at": "then"})

        def act(_entry: Entry, _is_in_doubt: bool) -> tuple[Status, str]:
            assert apply.written().last(before.image.url, "undo") == entry("a")
            return "already", ""

        carry_out(
            [before],
            act,
            operation="undo",
            journal=apply.journal,
            lock=apply.lock,
            settings=ActingSettings(),
        )
        assert apply.written().is_back(before.image.url)

    def test_is_not_touched_when_there_is_nothing_to_do(self, apply: Apply) -> None:
        apply("", succeed)
        assert apply.kinds() == []

    def test_of_somebody_else_stops_everything(self, apply: Apply) -> None:
        Journal(apply.url, APPLY_ID).append("quarantine", "begin")
        acted = []
        with pytest.raises(LockLostError, match="somebody else has written"):
            apply("abc", lambda entry, _: acted.append(entry) or ("done", ""))  # type: ignore[func-returns-value]
        assert acted == []


class TestOutcomes:
    def test_are_what_the_action_said(self, apply: Apply) -> None:
        said: dict[str, tuple[Status, str]] = {"a": ("done", ""), "b": ("already", "was gone")}
        apply("ab", lambda entry, _: said[name_of(entry)])
        assert apply.outcomes() == said

    def test_of_a_check_that_failed_is_refused_and_the_others_go_on(self, apply: Apply) -> None:
        apply("abcd", failing("b", lambda: RefusedError("its keeper is gone")), per_batch=2)
        assert apply.outcomes() == {
            "a": ("done", ""),
            "b": ("refused", "its keeper is gone"),
            "c": ("done", ""),
            "d": ("done", ""),
        }

    def test_of_a_fault_is_failed_and_the_others_go_on(self, apply: Apply) -> None:
        apply("abcd", failing("c", lambda: PermissionError(errno.EACCES, "not yours")), per_batch=2)
        assert apply.outcomes() == {
            "a": ("done", ""),
            "b": ("done", ""),
            "c": ("failed", "PermissionError: [Errno 13] not yours"),
            "d": ("done", ""),
        }

    def test_of_a_programming_error_is_failed_too(self, apply: Apply) -> None:
        apply("ab", failing("a", lambda: KeyError("etag")))
        assert apply.outcomes() == {"a": ("failed", "KeyError: 'etag'"), "b": ("done", "")}


class TestRetries:
    @pytest.mark.parametrize("num_faults", [0, 1, 2])
    def test_fault_that_passes_is_tried_again_and_the_attempt_is_in_doubt(
        self, apply: Apply, num_faults: int
    ) -> None:
        doubts = []

        def act(_entry: Entry, is_in_doubt: bool) -> tuple[Status, str]:
            doubts.append(is_in_doubt)
            if len(doubts) <= num_faults:
                raise OSError(errno.EIO, "a fault")
            return "done", ""

        apply("a", act)
        assert doubts == [False, True, True][: num_faults + 1]
        assert apply.outcomes() == {"a": ("done", "")}

    def test_fault_that_stays_is_failed_after_three_attempts(self, apply: Apply) -> None:
        attempts = []

        def act(entry: Entry, _is_in_doubt: bool) -> tuple[Status, str]:
            attempts.append(name_of(entry))
            if name_of(entry) == "b":
                raise OSError(errno.EIO, "a fault")
            return "done", ""

        apply("ab", act)
        assert sorted(attempts) == ["a", "b", "b", "b"]
        assert apply.outcomes()["b"] == ("failed", "OSError: [Errno 5] a fault")

    @pytest.mark.parametrize(
        "error",
        [
            RefusedError("no"),
            PermissionError(errno.EACCES, "no"),
            FileNotFoundError(errno.ENOENT, "no"),
            OSError(errno.ENOSPC, "no"),
            ValueError("no"),
        ],
    )
    def test_what_will_not_pass_is_tried_once(self, apply: Apply, error: Exception) -> None:
        attempts = []

        def act(entry: Entry, _is_in_doubt: bool) -> tuple[Status, str]:
            attempts.append(name_of(entry))
            if name_of(entry) == "a":
                raise error
            return "done", ""

        apply("ab", act)
        assert sorted(attempts) == ["a", "b"]

    def test_refusal_after_a_fault_is_refused(self, apply: Apply) -> None:
        errors = iter([OSError(errno.EIO, "a fault"), RefusedError("its keeper is gone")])

        def act(_entry: Entry, _is_in_doubt: bool) -> tuple[Status, str]:
            raise next(errors)

        apply("a", act)
        assert apply.outcomes() == {"a": ("refused", "its keeper is gone")}

    def test_images_of_an_earlier_call_are_in_doubt_from_the_start(self, apply: Apply) -> None:
        doubts = {}

        def act(entry: Entry, is_in_doubt: bool) -> tuple[Status, str]:
            doubts[name_of(entry)] = is_in_doubt
            return "done", ""

        apply("abc", act, tried="bz")
        assert doubts == {"a": False, "b": True, "c": False}


class TestStoreThatFails:
    def test_stops_after_a_batch_in_which_nothing_worked(self, apply: Apply) -> None:
        acted = []

        def act(entry: Entry, _is_in_doubt: bool) -> tuple[Status, str]:
            acted.append(name_of(entry))
            if name_of(entry) in "cd":
                raise PermissionError(errno.EACCES, "not yours")
            return "done", ""

        with pytest.raises(ActionsFailedError) as failure:
            apply("abcdef", act, per_batch=2)
        assert str(failure.value) == (
            "stopped after 4 of 6 images, because none of the last 2 worked: "
            "PermissionError: [Errno 13] not yours. The same command goes on from here."
        )
        assert sorted(acted) == ["a", "b", "c", "d"]
        assert apply.kinds() == ["intents", "outcomes"] * 2
        assert [apply.outcomes()[name][0] for name in "abcd"] == ["done"] * 2 + ["failed"] * 2

    def test_goes_on_while_anything_works(self, apply: Apply) -> None:
        apply("abcdef", failing("acf", lambda: PermissionError("no")), per_batch=2)
        assert [status for status, _ in apply.outcomes().values()].count("failed") == 3

    def test_refusals_are_no_fault_of_the_store(self, apply: Apply) -> None:
        apply("abcd", failing("abcd", lambda: RefusedError("no")), per_batch=2)
        assert {status for status, _ in apply.outcomes().values()} == {"refused"}


def is_held(lock: SourceLock) -> bool:
    try:
        lock.check()
    except LockLostError:
        return False
    return True


class TestLostLock:
    @pytest.fixture
    def apply(self, local_source: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Apply]:
        monkeypatch.setattr(apply03_lock_source, "_HEARTBEATS_PER_EXPIRY", 600)
        yield from held(local_source)

    def lose(self, apply: Apply) -> None:
        """Take the lock away, and wait until its owner has seen it."""
        store, url = store_of(apply.source), storage.join(apply.source, LOCK_NAME)
        while (found := store.get(url)) is not None:
            store.discard(url, found.state)
        while is_held(apply.lock):
            time.sleep(0.02)

    def test_before_the_first_image_nothing_is_begun(self, apply: Apply) -> None:
        self.lose(apply)
        acted = []
        with pytest.raises(LockLostError, match=r"^lost the lock file:"):
            apply("ab", lambda entry, _: acted.append(entry) or ("done", ""))  # type: ignore[func-returns-value]
        assert acted == []
        assert apply.kinds() == []

    def test_at_the_end_of_a_batch_begins_no_other(self, apply: Apply) -> None:
        acted = []

        def act(entry: Entry, _is_in_doubt: bool) -> tuple[Status, str]:
            acted.append(name_of(entry))
            if name_of(entry) == "c":
                self.lose(apply)
            return "done", ""

        with pytest.raises(LockLostError):
            apply("abcdef", act, per_batch=3, workers=1)
        assert acted == ["a", "b", "c"]
        assert set(apply.outcomes()) == set("abc")

    def test_within_a_batch_writes_no_outcome(self, apply: Apply) -> None:
        def act(entry: Entry, _is_in_doubt: bool) -> tuple[Status, str]:
            if name_of(entry) == "a":
                self.lose(apply)
            return "done", ""

        with pytest.raises(LockLostError):
            apply("abc", act, workers=1)
        assert apply.kinds() == ["intents"]
        assert all(
            apply.written().is_in_doubt(entry(name).image.url, "quarantine") for name in "abc"
        )

    def test_that_an_action_notices_itself_is_no_outcome(self, apply: Apply) -> None:
        with pytest.raises(LockLostError, match="gone"):
            apply("ab", failing("a", lambda: LockLostError("gone")))
        assert apply.kinds() == ["intents"]

    def test_between_two_attempts_ends_the_retries(self, apply: Apply) -> None:
        attempts = []

        def act(_entry: Entry, _is_in_doubt: bool) -> tuple[Status, str]:
            attempts.append(1)
            self.lose(apply)
            raise OSError(errno.EIO, "a fault")

        with pytest.raises(LockLostError):
            apply("a", act)
        assert len(attempts) == 1
        assert apply.kinds() == ["intents"]


def test_images_are_acted_on_at_the_same_time(apply: Apply) -> None:
    together = threading.Barrier(3, timeout=30)

    def act(_entry: Entry, _is_in_doubt: bool) -> tuple[Status, str]:
        together.wait()
        return "done", ""

    apply("abc", act, workers=3)
    assert {status for status, _ in apply.outcomes().values()} == {"done"}
