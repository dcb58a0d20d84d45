"""One task over many references, whatever becomes of each."""

import pytest
from prefect import flow, task

from config import ExecutionSettings
from flows.fan_out import Outcome, fan_out

pytestmark = pytest.mark.usefixtures("prefect_server")


@task
def half(number: int, divisor: int) -> int:
    if number % divisor:
        raise ValueError(f"{number} is odd")
    return number // divisor


@flow
def halves(numbers: list[int], done: list[int]) -> Outcome[int, int]:
    execution = ExecutionSettings(workers=2)
    return fan_out(half, {"number": numbers}, {"divisor": 2}, execution, on_done=done.append)


def test_failures_stop_nobody_and_name_their_reference() -> None:
    done: list[int] = []
    outcome = halves.fn([4, 3, 8, 5], done)
    assert outcome.results == [2, 4]
    assert sorted(done) == [4, 8]
    assert [(failure.reference, str(failure.error)) for failure in outcome.failures] == [
        (3, "3 is odd"),
        (5, "5 is odd"),
    ]


def test_nothing_to_do_is_done() -> None:
    assert halves.fn([], []) == Outcome(results=[], failures=[])
