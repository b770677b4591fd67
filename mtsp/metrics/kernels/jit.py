"""Compile loops with numba at their first call, read arrays without a copy, and run loops in threads.

Compiled code is kept on disk, or in memory where no folder can be written; without numba every metric has a numpy form.
The threads are Python's, since compiled loops release the interpreter, and numba's own OpenMP threads kill a forked
child that uses them after its parent did.
"""

import functools
import os
import pickle
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Union

import numpy as np
from numpy.lib.stride_tricks import as_strided

if TYPE_CHECKING:
    import torch

Array: TypeAlias = Union[np.ndarray, "torch.Tensor"]
"""A numpy array, or a torch tensor on any device."""

Steps = tuple[int, ...]
"""Place of an array's first item in its memory, then the distance between items along each axis."""

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def on_host(array: Array) -> bool:
    """Return whether the memory of `array` can be read from here: numpy, or a torch tensor on the CPU."""
    return isinstance(array, np.ndarray) or array.device.type == "cpu"


def plain(array: Array) -> Array:
    """Return a numpy array without its subclass, which may have other rules for indices and sums; a tensor as it is."""
    return np.asarray(array) if isinstance(array, np.ndarray) else array


def as_numpy(array: Array) -> np.ndarray:
    """Return `array` as numpy: the same memory where it is on the CPU. float16 and bfloat16 become float32."""
    array = plain(array)
    if not isinstance(array, np.ndarray):
        array = array.detach()
        if array.is_floating_point() and array.element_size() == 2:
            array = array.float()
        array = array.cpu().numpy()
    return array.astype(np.float32) if array.dtype == np.float16 else array


def frozen(array: np.ndarray) -> np.ndarray:
    """Return a read-only view, so that a loop is compiled once and not again for arrays that were read-only before."""
    view = array.view()
    view.flags.writeable = False
    return view


def memory(array: np.ndarray) -> tuple[np.ndarray, Steps]:
    """Return the memory of `array` as one read-only run of items, and the steps between its items.

    So a loop is compiled once for all strides. Only an array whose steps are not whole items is copied.
    """
    size = array.itemsize
    if any(step % size for step in array.strides):
        array = np.ascontiguousarray(array)
    steps = [step // size for step in array.strides]
    if array.flags.c_contiguous:
        return frozen(array.reshape(-1)), (0, *steps)
    ends = [(length - 1) * step for length, step in zip(array.shape, steps, strict=True)]
    start = -sum(end for end in ends if end < 0)
    lowest = array[tuple(slice(None, None, -1 if step < 0 else None) for step in steps)]
    return as_strided(lowest, (1 + sum(map(abs, ends)),), (size,), writeable=False), (start, *steps)


def compiled(
    loop: Callable[..., Any], *, calls: Sequence[Callable[..., Any]] = (), fastmath: bool | set[str] = False
) -> Callable[..., Any] | None:
    """Return `loop`, a function of this package's top level, as machine code, or None where numba cannot be used.

    Args:
        loop: plain numpy indexing; compiled per type of its arguments when first called with them.
        calls: all functions that it calls, directly or not, from the same file: the cache would not notice a change of
            another one.
        fastmath: numba's relaxations of float arithmetic. Never `True` where NaN must be seen.
    """
    try:
        import numba
    except ImportError:
        return None
    if numba.config.DISABLE_JIT:  # pyright: ignore[reportAttributeAccessIssue]
        return None
    for function in calls:
        _callable_by_loops(function)
    try:
        code = numba.njit(loop, nogil=True, cache=True, fastmath=fastmath)
    except RuntimeError:  # numba found no folder that it may write its cache to
        return numba.njit(loop, nogil=True, fastmath=fastmath)

    @functools.wraps(loop)
    def call(*arguments: Any) -> Any:
        nonlocal code
        try:
            return code(*arguments)
        except OSError:  # compiled, but the disk refused the cache entry: the second call finds the code in memory
            return code(*arguments)
        except (EOFError, pickle.UnpicklingError):  # a damaged cache entry
            code = numba.njit(loop, nogil=True, fastmath=fastmath)
            return code(*arguments)

    return call


@functools.cache
def _callable_by_loops(function: Callable[..., Any]) -> None:
    from numba.extending import register_jitable

    register_jitable(function)


def threads() -> int:
    """Return how many threads to use: `OMP_NUM_THREADS` (torchrun sets it), or the processors we may run on."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_threads(function: Callable[[_Task], _Result], tasks: Sequence[_Task]) -> list[_Result]:
    """Return `function` of each task, in order, computed in as many threads as :func:`threads` says.

    The calling thread is one of them: if it only waited, the system would often wake the others on its one processor,
    and small arrays took twice the time.

    Raises:
        Exception: what a task raised, once no other is running.
    """
    others = min(threads(), len(tasks)) - 1
    if others < 1:
        return [function(task) for task in tasks]
    waiting = deque(range(len(tasks)))
    results: dict[int, _Result] = {}

    def work() -> None:
        while True:
            try:
                place = waiting.popleft()
            except IndexError:
                return
            results[place] = function(tasks[place])

    helpers = [_pool(threads() - 1).submit(work) for _ in range(others)]
    try:
        work()
    finally:
        waiting.clear()
        # Do not wait for a helper that has not begun: the pool may be busy with the tasks of another caller.
        failures = [helper.exception() for helper in helpers if not helper.cancel()]
    for failure in filter(None, failures):
        raise failure
    return [results[place] for place in range(len(tasks))]


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="mtsp-metrics")


if hasattr(os, "register_at_fork"):  # a forked child has the pool but not its threads, and would wait forever
    os.register_at_fork(after_in_child=_pool.cache_clear)
