"""Threads for the metrics' loops: the caller works too, nothing waits for ever, and errors arrive."""

import threading
from collections.abc import Iterator

import pytest

from mtsp.metrics.kernels import jit
from mtsp.metrics.kernels.jit import in_threads

CALLER = threading.main_thread().name


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    jit._pool.cache_clear()
    yield
    jit._pool.cache_clear()


def test_results_come_in_the_order_of_the_tasks() -> None:
    assert in_threads(lambda n: n * n, range(100)) == [n * n for n in range(100)]


def test_the_caller_is_one_of_two_threads_that_work_at_once() -> None:
    both = threading.Barrier(2, timeout=60)

    def work(_: int) -> str:
        both.wait()  # passes only if two threads are here
        return threading.current_thread().name

    names = in_threads(work, range(2))
    assert CALLER in names
    assert len(set(names)) == 2


def test_with_one_thread_only_the_caller_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert in_threads(lambda _: threading.current_thread().name, range(3)) == [CALLER] * 3


@pytest.mark.parametrize("error", [ValueError, IndexError])
@pytest.mark.parametrize("task", range(4))
def test_an_error_in_any_task_reaches_the_caller(error: type[Exception], task: int) -> None:
    def work(n: int) -> int:
        if n == task:
            raise error(f"task {n}")
        return n

    with pytest.raises(error, match=f"task {task}"):
        in_threads(work, range(4))


def test_the_error_of_a_helper_reaches_the_caller_whose_own_task_ended_well() -> None:
    both = threading.Barrier(2, timeout=60)

    def work(_: int) -> None:
        both.wait()  # one task in each thread
        if threading.current_thread().name != CALLER:
            raise ValueError("in the helper")

    with pytest.raises(ValueError, match="in the helper"):
        in_threads(work, range(2))


def test_a_task_may_use_threads_itself() -> None:
    assert in_threads(lambda n: sum(in_threads(lambda k: n * k, range(4))), range(4)) == [0, 6, 12, 18]  # n (0+1+2+3)


def test_a_caller_whose_pool_is_busy_does_all_of_it_alone() -> None:
    release, busy = threading.Event(), threading.Event()

    def occupy() -> None:
        busy.set()
        release.wait(timeout=60)

    occupied = jit._pool(1).submit(occupy)
    try:
        assert busy.wait(timeout=60)
        assert in_threads(lambda _: threading.current_thread().name, range(3)) == [CALLER] * 3
    finally:
        release.set()
    occupied.result()
