"""Tells whoever watches how far the embedding is. Nobody watches unless the command line does."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class Watcher(Protocol):
    """Somebody who shows progress."""

    def start(self, num_images: int) -> None:
        """The embedding begins, with this many images to go."""

    def advance(self, num_images: int) -> None:
        """So many more are done."""


class _Nobody:
    def start(self, num_images: int) -> None:
        pass

    def advance(self, num_images: int) -> None:
        pass


_NOBODY = _Nobody()
_watcher: ContextVar[Watcher] = ContextVar("watcher")


def watcher() -> Watcher:
    """Whoever watches this run."""
    return _watcher.get(_NOBODY)


@contextmanager
def watched_by(someone: Watcher) -> Iterator[None]:
    """Let someone watch the runs started inside."""
    token = _watcher.set(someone)
    try:
        yield
    finally:
        _watcher.reset(token)
