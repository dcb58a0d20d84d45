"""Keeps BLAS from starting threads of its own.

Where tasks run side by side these threads only get in each other's way; and on a busy machine every
small product waits until the last of them has had its turn.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


class _Limit:
    """One limit for all tasks of a process: the setting of a BLAS library is global."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_users = 0

    @contextmanager
    def one_thread(self) -> Iterator[None]:
        """Give each matrix product one thread until the last who asked for it is done."""
        with self._lock:
            if self._num_users == 0:
                self._limits = threadpool_limits(1, "blas")
            self._num_users += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_users -= 1
                if self._num_users == 0:
                    self._limits.restore_original_limits()


one_thread = _Limit().one_thread
