"""Programs that are measured in processes of their own."""

import math
from collections.abc import Callable

from tools.bench.workers import Worker, take_turns


def squares(count: int) -> Callable[[], object]:
    return lambda: [number**2 for number in range(count)]


def broken() -> Callable[[], object]:
    raise MemoryError("no room\nand more")


def test_workers_take_turns_and_one_that_cannot_says_why() -> None:
    able, unable = Worker(squares, 9), Worker(broken)
    take_turns([able, unable], 2, steps=3, limit=200)
    assert len(able.seconds) == 2 * 3
    assert min(able.seconds) <= able.median <= max(able.seconds)
    assert able.peak > 1 << 20  # bytes: Python alone takes more
    assert unable.problem == "not available: MemoryError: no room"
    assert math.isnan(unable.median)
    assert math.isnan(unable.peak)
    assert not able.process.is_alive()
    assert not unable.process.is_alive()
