"""Read files in threads, ahead of their use."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

ReadT = TypeVar("ReadT")


def read_ahead(
    read: Callable[[int], ReadT], indices: Iterable[int], *, threads: int, ahead: int
) -> Generator[ReadT, None, None]:
    """Yield `read(index)` of each index, in order, while threads read the next ones: decoders release the interpreter.

    Args:
        read: called with each index; its error is raised at that index's turn.
        indices: in the order in which they are yielded.
        threads: how many read at a time; 0 reads each index when it is needed.
        ahead: how many are read, or wait to be read, beyond the one that is yielded.
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
