"""Runs one task over many references and waits for all of them, whatever becomes of each."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from queue import SimpleQueue
from types import ModuleType
from typing import Any, Generic, TypeVar

from prefect import Task
from prefect.exceptions import TerminationSignal
from prefect.futures import PrefectFuture
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from config import ExecutionSettings
from tasks.errors import ClusterError, StorageError, is_dead_worker, is_transient

Reference = TypeVar("Reference")
Result = TypeVar("Result")

FEWEST_FAILURES_OF_AN_OUTAGE = 3
"""So many tasks in a row, and at least as many as there are workers, must fail because of the
store, after all their retries, before the rest is not tried any more."""


@dataclass(frozen=True)
class Failure(Generic[Reference]):
    """One reference whose task failed for good."""

    reference: Reference
    error: BaseException


@dataclass(frozen=True)
class Outcome(Generic[Reference, Result]):
    """What became of a fan-out."""

    results: list[Result]
    """In the order of the references."""
    failures: list[Failure[Reference]]
    untried: list[Reference]
    """What was left when one task after the other failed: the store or the network is down."""


def fan_out(
    task: Task[..., Result],
    mapped: Mapping[str, Sequence[Reference]],
    fixed: Mapping[str, Any],
    execution: ExecutionSettings,
    on_done: Callable[[Reference], None] | None = None,
) -> Outcome[Reference, Result]:
    """Run a task for each reference and let every one finish.

    Args:
        task: The task of one reference.
        mapped: The name of its argument that takes the reference, and the references.
        fixed: Its other arguments, the same for all.
        execution: Runner and number of workers.
        on_done: Called with each reference as soon as its task has finished well.

    Raises:
        ClusterError: The package of the runner is not installed, its cluster does not answer, or
            its workers take no task.
    """
    ((name, references),) = mapped.items()
    states = _States[Reference, Result](references)
    num_pending = len(references) + 1
    while not states.is_outage(execution.workers) and 0 < len(states.pending) < num_pending:
        num_pending = len(states.pending)
        _run_pending(task, name, states, fixed, execution, on_done)
    if states.pending and not states.is_outage(execution.workers):
        raise ClusterError(
            f"expected {execution.task_runner} to take {len(states.pending)} tasks, but a new pool "
            "of workers refused each of them"
        )
    # A dead worker takes its whole pool along. Which of those that ran then killed it shows when
    # each runs alone.
    alone = execution.model_copy(update={"workers": 1})
    for number in states.take_suspects():
        states.pending.append(number)
        _run_pending(task, name, states, fixed, alone, on_done)
        states.convict()
    return states.outcome()


class _States(Generic[Reference, Result]):
    """What is pending and what has become of the others."""

    def __init__(self, references: Sequence[Reference]) -> None:
        self._references = references
        self._results: dict[int, Result] = {}
        self._errors: dict[int, BaseException] = {}
        self._suspects: dict[int, BaseException] = {}
        self._num_failed_in_a_row = 0
        self.pending = deque(range(len(references)))

    def reference(self, number: int) -> Reference:
        return self._references[number]

    def next_pending(self) -> int:
        # After a failure from the other end: bad sectors and forbidden folders lie side by side,
        # and must not look like a store that is down.
        is_turn = self._num_failed_in_a_row % 2
        return self.pending.pop() if is_turn else self.pending.popleft()

    def succeed(self, number: int, result: Result) -> None:
        self._results[number] = result
        self._num_failed_in_a_row = 0

    def fail(self, number: int, error: BaseException) -> None:
        if is_dead_worker(error):
            self._suspects[number] = error
            return
        self._errors[number] = error
        # Other errors are of this one reference.
        if is_transient(error) or isinstance(error, StorageError):
            self._num_failed_in_a_row += 1

    def is_outage(self, workers: int) -> bool:
        return self._num_failed_in_a_row >= max(workers, FEWEST_FAILURES_OF_AN_OUTAGE)

    def take_suspects(self) -> list[int]:
        """Those that ran when their pool died; they are forgotten here."""
        suspects = sorted(self._suspects)
        self._suspects = {}
        return suspects

    def convict(self) -> None:
        """Make what is suspected a failure for good."""
        self._errors |= self._suspects
        self._suspects = {}

    def outcome(self) -> Outcome[Reference, Result]:
        return Outcome(
            results=[self._results[number] for number in sorted(self._results)],
            failures=[
                Failure(self._references[number], self._errors[number])
                for number in sorted(self._errors)
            ],
            untried=[self._references[number] for number in sorted(self.pending)],
        )


def _run_pending(
    task: Task[..., Result],
    name: str,
    states: _States[Reference, Result],
    fixed: Mapping[str, Any],
    execution: ExecutionSettings,
    on_done: Callable[[Reference], None] | None,
) -> None:
    """Keep every worker busy until nothing is pending, everything fails, or the pool is dead."""
    finished: SimpleQueue[PrefectFuture[Result]] = SimpleQueue()
    running: dict[PrefectFuture[Result], int] = {}
    is_alive = True

    def submit(number: int) -> bool:
        parameters = {name: states.reference(number), **fixed}
        try:
            future = runner.submit(task, parameters)
        except BrokenExecutor:
            states.pending.appendleft(number)
            return False
        running[future] = number
        future.add_done_callback(finished.put)
        return True

    def note_next() -> None:
        future = finished.get()
        number = running.pop(future)
        try:
            states.succeed(number, future.result())
        except (KeyboardInterrupt, TerminationSignal):
            raise  # somebody wants the run to end, whatever became of this task
        except BaseException as error:
            states.fail(number, error)
        else:
            if on_done is not None:
                on_done(states.reference(number))

    with _started(execution) as runner:
        while running or (is_alive and states.pending and not states.is_outage(execution.workers)):
            # No more than can run at once: what has been submitted cannot be called back.
            while (
                is_alive
                and states.pending
                and len(running) < execution.workers
                and not states.is_outage(execution.workers)
            ):
                is_alive = submit(states.next_pending())
            if running:
                note_next()


@contextmanager
def _started(execution: ExecutionSettings) -> Iterator[TaskRunner[Any]]:
    runner = task_runner(execution)
    with ExitStack() as stack:
        try:
            started = stack.enter_context(runner)
        except OSError as error:
            where = execution.cluster_address or "this machine"
            raise ClusterError(
                f"no {execution.task_runner} cluster answers at {where}: {error}"
            ) from error
        yield started


def task_runner(execution: ExecutionSettings) -> TaskRunner[Any]:
    """The runner that the settings name.

    Without a `cluster_address`, Dask and Ray start a cluster on this machine that ends with the
    fan-out.

    Raises:
        ClusterError: Its package is not installed.
    """
    workers, address = execution.workers, execution.cluster_address
    if execution.task_runner == "threads":
        return ThreadPoolTaskRunner(max_workers=workers)
    if execution.task_runner == "processes":
        return ProcessPoolTaskRunner(max_workers=workers)
    if execution.task_runner == "dask":
        dask = _runner_package("dask")
        if address is not None:
            return dask.DaskTaskRunner(address=address)  # type: ignore[no-any-return]
        # One thread each: the forward pass of one image uses every core of its process anyway.
        shape = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
        return dask.DaskTaskRunner(cluster_kwargs=shape)  # type: ignore[no-any-return]
    ray = _runner_package("ray")
    # Ray prints what its workers say on standard output, where the summary goes.
    quiet = {"log_to_driver": False}
    if address is not None:
        return ray.RayTaskRunner(address=address, init_kwargs=quiet)  # type: ignore[no-any-return]
    shape = {"num_cpus": workers, "include_dashboard": False}
    return ray.RayTaskRunner(init_kwargs=quiet | shape)  # type: ignore[no-any-return]


def _runner_package(name: str) -> ModuleType:
    try:
        return import_module(f"prefect_{name}")
    except ImportError as error:
        raise ClusterError(
            f"task_runner {name} needs the extra of that name: pip install image-dedup[{name}] "
            f"({error})"
        ) from None
