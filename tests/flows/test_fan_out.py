"""One task over many references, whatever becomes of each."""

import errno
import os
import signal
import sys
from concurrent.futures import BrokenExecutor
from typing import Any

import pytest
from prefect import flow, task
from prefect.task_runners import ThreadPoolTaskRunner

from config import ExecutionSettings
from flows import fan_out as module
from flows.fan_out import Outcome, fan_out, task_runner
from tasks.errors import ClusterError, StorageError

pytestmark = pytest.mark.usefixtures("prefect_server")


@task
def half(number: int, divisor: int) -> int:
    if number < 0:
        raise OSError(errno.EIO, f"no answer for {number}")
    if number % divisor:
        raise ValueError(f"{number} is odd")
    return number // divisor


@flow
def halves(numbers: list[int], done: list[int], execution: ExecutionSettings) -> Outcome[int, int]:
    return fan_out(half, {"number": numbers}, {"divisor": 2}, execution, on_done=done.append)


def test_failures_stop_nobody_and_name_their_reference() -> None:
    done: list[int] = []
    outcome = halves.fn([4, 3, 8, 5, 7, 9, 6], done, ExecutionSettings(workers=2))
    assert outcome.results == [2, 4, 3]
    assert sorted(done) == [4, 6, 8]
    assert [(failure.reference, str(failure.error)) for failure in outcome.failures] == [
        (3, "3 is odd"),
        (5, "5 is odd"),
        (7, "7 is odd"),
        (9, "9 is odd"),
    ]
    assert outcome.untried == []


def test_nothing_to_do_is_done() -> None:
    assert halves.fn([], [], ExecutionSettings()) == Outcome(results=[], failures=[], untried=[])


def test_rest_is_not_tried_while_the_store_is_down() -> None:
    numbers = [2, -1, -2, 4, 6, -3, -4]
    outcome = halves.fn(numbers, [], ExecutionSettings(workers=1))
    assert outcome.results == [1]
    assert [failure.reference for failure in outcome.failures] == [-1, -2, -4]
    assert outcome.untried == [4, 6, -3]


def test_faults_side_by_side_are_no_outage() -> None:
    numbers = [-1, -2, -3, -4, -5, 2, 4]
    outcome = halves.fn(numbers, [], ExecutionSettings(workers=1))
    assert outcome.results == [1, 2]
    assert [failure.reference for failure in outcome.failures] == [-1, -2, -3, -4, -5]


@task
def store(number: int) -> None:
    raise StorageError("cannot write: No space left on device")


@flow
def full_disk() -> Outcome[int, None]:
    return fan_out(store, {"number": list(range(9))}, {}, ExecutionSettings(workers=1))


def test_full_disk_is_an_outage() -> None:
    outcome = full_disk.fn()
    assert (len(outcome.failures), len(outcome.untried)) == (3, 6)


def test_faults_with_successes_between_them_are_no_outage() -> None:
    numbers = [-1, -2, 2, -3, -4, 4]
    outcome = halves.fn(numbers, [], ExecutionSettings(workers=1))
    assert outcome.results == [1, 2]
    assert [failure.reference for failure in outcome.failures] == [-1, -2, -3, -4]
    assert outcome.untried == []


def test_outage_takes_as_many_failures_as_there_are_workers() -> None:
    outcome = halves.fn([-n for n in range(1, 9)], [], ExecutionSettings(workers=5))
    # Those that run when the fifth one fails still end.
    assert len(outcome.failures) + len(outcome.untried) == 8
    assert len(outcome.failures) >= 5


@task
def half_or_die(number: int, place: str) -> int:
    """Kill the worker the first time that the number 13 is met."""
    if number == 13 and not os.path.exists(place):
        with open(place, "w"):
            os.kill(os.getpid(), signal.SIGKILL)
    return number * 2


@flow
def doubles(place: str, execution: ExecutionSettings) -> Outcome[int, int]:
    numbers = [11, 12, 13, 14, 15, 16]
    return fan_out(half_or_die, {"number": numbers}, {"place": place}, execution)


def test_new_pool_does_what_a_dead_worker_left(tmp_path: os.PathLike[str]) -> None:
    execution = ExecutionSettings(workers=2, task_runner="processes")
    outcome = doubles.fn(os.path.join(tmp_path, "died"), execution)
    assert outcome == Outcome(results=[22, 24, 26, 28, 30, 32], failures=[], untried=[])


@task
def die_of_13(number: int) -> int:
    if number == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@flow
def poisoned(execution: ExecutionSettings) -> Outcome[int, int]:
    return fan_out(die_of_13, {"number": [13, 1, 2, 3, 4, 5]}, {}, execution)


def test_only_what_kills_its_worker_fails() -> None:
    outcome = poisoned.fn(ExecutionSettings(workers=2, task_runner="processes"))
    assert outcome.results == [1, 2, 3, 4, 5]
    assert [failure.reference for failure in outcome.failures] == [13]
    assert outcome.untried == []


def test_pool_that_always_dies_ends() -> None:
    execution = ExecutionSettings(workers=2, task_runner="processes", max_retries=1)
    outcome = always_dying.fn(execution)
    assert outcome.results == []
    assert [failure.reference for failure in outcome.failures] == [1, 2, 3]


class RefusingRunner(ThreadPoolTaskRunner[Any]):
    def submit(self, *args: Any, **kwargs: Any) -> Any:
        raise BrokenExecutor("no worker")


def test_pool_that_takes_no_task_is_an_error_and_not_an_empty_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "task_runner", lambda execution: RefusingRunner())
    with pytest.raises(ClusterError, match="expected threads to take 2 tasks, but a new pool"):
        halves.fn([2, 4], [], ExecutionSettings(workers=1))


@task
def die(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@flow
def always_dying(execution: ExecutionSettings) -> Outcome[int, None]:
    return fan_out(die, {"number": [1, 2, 3]}, {}, execution)


@pytest.mark.parametrize("name", ["dask", "ray"])
def test_runner_without_its_package_names_the_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, f"prefect_{name}", None)
    execution = ExecutionSettings.model_validate({"task_runner": name})
    with pytest.raises(ClusterError, match=rf"image-dedup\[{name}\]"):
        task_runner(execution)
