"""Keeps BLAS from starting threads of its own.

Where tasks run side by side these threads only get in each other's way; and on a busy machine every
small product waits until the last of them has had its turn.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import OpenBLASController, threadpool_limits


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
                _take_control()
                self._limits = threadpool_limits(1, "blas")
            self._num_users += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_users -= 1
                if self._num_users == 0:
                    _take_control()
                    self._limits.restore_original_limits()


def _take_control() -> None:
    # Only the first thread that ever set a limit may set another one, and all others are silently
    # ignored; the lock above makes sure that there is one at a time.
    OpenBLASController.clear_controlling_thread(force=True)


one_thread = _Limit().one_thread
