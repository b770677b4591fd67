"""Read files in threads, ahead of their use, and process results in a thread, behind their making."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

ReadT = TypeVar("ReadT")
Arguments = ParamSpec("Arguments")


def read_ahead(
    read: Callable[[int], ReadT], indices: Iterable[int], *, threads: int, ahead: int
) -> Generator[ReadT, None, None]:
    """Yield `read(index)` for each index, in order, while `threads` threads read up to `ahead` further indices.

    Decoders release the GIL, so the threads run in parallel. If `read` raises, the error is raised when its index is
    due. With 0 threads, each index is read when it is needed.
    """
    if not threads:
        yield from map(read, indices)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="mtsp-decode")
    waiting: deque[Future[ReadT]] = deque()
    try:
        for index in indices:
            waiting.append(pool.submit(read, index))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def one_behind(process: Callable[Arguments, None], *, threaded: bool) -> Iterator[Callable[Arguments, None]]:
    """Give a function that starts `process` in a thread, after its last call is done, and does not wait for this one.

    An error in `process` is raised by the next call, or at the end of the context, which waits for the last call. If
    not `threaded`, `process` itself is given.
    """
    if not threaded:
        yield process
        return
    last: Future[None] | None = None

    def start(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        nonlocal last
        if last is not None:
            last.result()
        last = pool.submit(process, *args, **kwargs)

    with ThreadPoolExecutor(1, thread_name_prefix="mtsp-measure") as pool:
        yield start
        if last is not None:
            last.result()
