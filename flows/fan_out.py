"""Runs one task over many references and waits for all of them, whatever becomes of each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from prefect import Task, unmapped
from prefect.futures import PrefectFuture, as_completed
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from config import ExecutionSettings
from tasks.errors import is_dead_worker

Reference = TypeVar("Reference")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Failure(Generic[Reference]):
    """One reference whose task failed for good."""

    reference: Reference
    error: BaseException


@dataclass(frozen=True)
class Outcome(Generic[Reference, Result]):
    """What became of a fan-out."""

    results: list[Result]
    failures: list[Failure[Reference]]


def fan_out(
    task: Task[..., Result],
    mapped: Mapping[str, Sequence[Reference]],
    fixed: Mapping[str, Any],
    execution: ExecutionSettings,
    on_done: Callable[[Reference], None] | None = None,
) -> Outcome[Reference, Result]:
    """Map a task over references and let every one finish.

    Args:
        task: The task of one reference.
        mapped: The name of its argument that takes the reference, and the references.
        fixed: Its other arguments, the same for all.
        execution: Runner and number of workers.
        on_done: Called with each reference as soon as its task has finished well.
    """
    ((name, references),) = mapped.items()
    outcome = _run_once(task, name, references, fixed, execution, on_done)
    for _ in range(execution.max_retries):
        orphaned = [failure for failure in outcome.failures if is_dead_worker(failure.error)]
        if not orphaned:
            break
        # One dead worker breaks the whole pool, whatever Prefect's retries say: a new pool does
        # what the old one left.
        again = _run_once(
            task, name, [failure.reference for failure in orphaned], fixed, execution, on_done
        )
        others = [failure for failure in outcome.failures if failure not in orphaned]
        outcome = Outcome(outcome.results + again.results, others + again.failures)
    return outcome


def _run_once(
    task: Task[..., Result],
    name: str,
    references: Sequence[Reference],
    fixed: Mapping[str, Any],
    execution: ExecutionSettings,
    on_done: Callable[[Reference], None] | None,
) -> Outcome[Reference, Result]:
    with task_runner(execution) as runner:
        everywhere = {name: unmapped(value) for name, value in fixed.items()}
        # Prefect types the task as one that might be a coroutine; ours never are.
        futures: list[PrefectFuture[Result]] = list(
            runner.map(task, {name: list(references), **everywhere})  # type: ignore[arg-type]
        )
        reference_of = dict(zip(futures, references, strict=True))
        errors = {}
        for future in as_completed(list(futures)):
            error = _error_of(future)
            if error is not None:
                errors[future] = error
            elif on_done is not None:
                on_done(reference_of[future])
        return Outcome(
            results=[future.result() for future in futures if future not in errors],
            failures=[
                Failure(reference_of[future], errors[future])
                for future in futures
                if future in errors
            ],
        )


def task_runner(execution: ExecutionSettings) -> TaskRunner[Any]:
    """The runner that the settings name."""
    if execution.task_runner == "processes":
        return ProcessPoolTaskRunner(max_workers=execution.workers)
    return ThreadPoolTaskRunner(max_workers=execution.workers)


def _error_of(future: PrefectFuture[Any]) -> BaseException | None:
    try:
        future.result()
    except BaseException as error:
        return error
    return None
