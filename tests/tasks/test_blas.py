"""One thread for each product while anybody asks for it, and as many as before afterwards."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from tasks.blas import one_thread


def num_threads() -> set[int]:
    np.ones((2, 2)) @ np.ones((2, 2))
    return {
        library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"
    }


def test_the_limit_ends_with_the_last_task_in_whatever_order() -> None:
    with threadpool_limits(2, "blas"):
        first, second = ExitStack(), ExitStack()
        first.enter_context(one_thread())
        second.enter_context(one_thread())
        assert num_threads() == {1}
        first.close()
        assert num_threads() == {1}
        second.close()
        assert num_threads() == {2}
        with one_thread():
            assert num_threads() == {1}
        assert num_threads() == {2}


def test_other_threads_may_ask_for_it_after_the_main_one_did() -> None:
    def seen_inside() -> set[int]:
        with one_thread():
            return num_threads()

    with threadpool_limits(2, "blas"):
        with one_thread():
            assert num_threads() == {1}
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(seen_inside).result() == {1}
        assert num_threads() == {2}
