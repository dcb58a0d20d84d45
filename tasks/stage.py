"""What all stages share as Prefect tasks: no cache, and another try after some faults."""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State, TaskRun

from tasks.errors import is_transient

P = ParamSpec("P")
R = TypeVar("R")


def stage(name: str, *, run_name: str | None = None) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a function a stage: a Prefect task that is tried again after faults that can pass.

    Prefect's result cache stays off: what is done is what is on storage, and nothing else.

    Args:
        name: Name of the task.
        run_name: Template for the name of its runs; may use the task's arguments.
    """

    def decorate(function: Callable[P, R]) -> Task[P, R]:
        return task(
            name=name,
            task_run_name=run_name,
            cache_policy=NO_CACHE,
            retries=2,
            retry_delay_seconds=[5, 30],
            retry_jitter_factor=0.5,
            retry_condition_fn=retry_later,
        )(function)

    return decorate


# A plain function, because Prefect 3.8 never retries with a callable object.
def retry_later(_task: Task[..., Any], _task_run: TaskRun, state: State[Any]) -> bool:
    """Tell Prefect to try again after faults that can pass by themselves."""
    try:
        state.result()
    except BaseException as error:
        return is_transient(error)
    return False
