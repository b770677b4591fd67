"""Read files in threads, ahead of their use."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

ReadT = TypeVar("ReadT")


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
