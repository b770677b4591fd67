"""Compile loops with numba at their first call, read arrays without a copy, and run loops in threads.

Compiled code is cached on disk, or in memory if no folder is writable. Without numba, metrics use numpy instead.
Loops run in Python threads, since compiled code releases the GIL. numba's own OpenMP threads are not used: they kill a
forked process that uses them after its parent did.
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

from mtsp.distributed.processors import processors

if TYPE_CHECKING:
    import torch

Array: TypeAlias = Union[np.ndarray, "torch.Tensor"]
"""A numpy array, or a torch tensor on any device."""

Steps = tuple[int, ...]
"""Position of an array's first item in its memory, then the distance between items along each axis."""

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def on_host(array: Array) -> bool:
    """Return whether `array` is in CPU memory: a numpy array, or a torch tensor on the CPU."""
    return isinstance(array, np.ndarray) or array.device.type == "cpu"


def plain(array: Array) -> Array:
    """Return a numpy subclass, which may index or sum differently, as a plain numpy array; a tensor unchanged."""
    return np.asarray(array) if isinstance(array, np.ndarray) else array


def as_numpy(array: Array) -> np.ndarray:
    """Return `array` as a numpy array, without a copy if it is on the CPU. float16 and bfloat16 become float32."""
    array = plain(array)
    if not isinstance(array, np.ndarray):
        array = array.detach()
        if array.is_floating_point() and array.element_size() == 2:
            array = array.float()
        array = array.cpu().numpy()
    return array.astype(np.float32) if array.dtype == np.float16 else array


def frozen(array: np.ndarray) -> np.ndarray:
    """Return a read-only view, so that a loop is not compiled twice, for writable and for read-only arrays."""
    view = array.view()
    view.flags.writeable = False
    return view


def memory(array: np.ndarray) -> tuple[np.ndarray, Steps]:
    """Return the memory of `array` as a one-dimensional read-only array, and the steps between its items.

    With these, a loop is compiled once for all strides. Only an array with steps of fractional items is copied.
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
    """Return the function `loop` compiled to machine code, or None if numba cannot be used.

    Args:
        loop: module-level function with plain numpy indexing; compiled at the first call with each type of arguments.
        calls: all functions that `loop` calls, directly or not. They must be in the same file, since the cache does not
            notice changes in other files.
        fastmath: numba's relaxations of float arithmetic. Never `True` in a loop that must detect NaN.
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
    except RuntimeError:  # numba found no writable folder for its cache
        return numba.njit(loop, nogil=True, fastmath=fastmath)

    @functools.wraps(loop)
    def call(*arguments: Any) -> Any:
        nonlocal code
        try:
            return code(*arguments)
        except OSError:  # compiled, but the cache could not be written; a second call uses the code in memory
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
    """Return the number of threads to use: `OMP_NUM_THREADS` (set by torchrun), or else the available processors."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return processors()


def in_threads(function: Callable[[_Task], _Result], tasks: Sequence[_Task]) -> list[_Result]:
    """Return the result of `function` for each task, in order, computed in :func:`threads` threads.

    The calling thread works, too. When it only waited, the system often woke the other threads on the same processor,
    and small arrays took twice the time.

    Raises:
        Exception: the exception of a task, once no other task is running.
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
        # Do not wait for a helper that has not started: the pool may be busy with the tasks of another caller.
        failures = [helper.exception() for helper in helpers if not helper.cancel()]
    for failure in filter(None, failures):
        raise failure
    return [results[place] for place in range(len(tasks))]


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="mtsp-metrics")


if hasattr(os, "register_at_fork"):  # a forked child has the pool but not its threads, and would wait forever
    os.register_at_fork(after_in_child=_pool.cache_clear)
