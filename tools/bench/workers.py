"""Programs in processes of their own, so that the memory of each is its own, that take turns at being measured."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

from tools.bench.timing import forget_peak, peak_memory


class Turn(NamedTuple):
    """What a process measured in one turn."""

    seconds: list[float]
    peak: int  # bytes


class Worker:
    """A process that builds a program, warms it up, and then runs it when it is told to."""

    def __init__(self, build: Callable[..., Callable[[], object]], *arguments: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, build, arguments), daemon=True)
        self.problem = ""
        self.turns: list[Turn] = []

    def warm_up(self, limit: float) -> None:
        """Build and run the program once; give up after `limit` seconds, or where it fails, and say so in `problem`."""
        self.process.start()
        self.problem = self._received(limit, f"not available: no step within {limit:.0f} s")
        if self.problem:
            self.end()

    def turn(self, steps: int, limit: float) -> None:
        """Run the program `steps` times, once before that unmeasured; give up after `limit` seconds."""
        if self.problem:
            return
        self.pipe.send(steps)
        found = self._received(limit, "time ran out")
        if isinstance(found, Turn):
            self.turns.append(found)
        else:
            self.problem = found
            self.end()

    def _received(self, limit: float, late: str) -> Any:
        try:
            return self.pipe.recv() if self.pipe.poll(max(0.0, limit)) else late
        except EOFError:
            return "not available: the process died, as when memory runs out"

    @property
    def seconds(self) -> list[float]:
        """What each measured run took; none if it was not available."""
        return [seconds for turn in self.turns for seconds in turn.seconds]

    @property
    def median(self) -> float:
        """The median of :attr:`seconds`, NaN without any."""
        return statistics.median(self.seconds) if self.seconds else float("nan")

    @property
    def peak(self) -> float:
        """The most bytes that a turn took, NaN without any."""
        return max((turn.peak for turn in self.turns), default=float("nan"))

    def end(self) -> None:
        """Stop the process."""
        self.process.terminate()
        self.process.join()


def take_turns(workers: Sequence[Worker], rounds: int, *, steps: int, limit: float, share: float = 1.0) -> None:
    """Let each worker get ready, and then take its turns: `rounds` times `steps` runs. All are ended afterwards.

    Args:
        workers: not yet started.
        rounds: how often each has its turn.
        steps: how many runs a turn is.
        limit: seconds for all of it.
        share: the part of `limit` in which workers may get ready; one that is late then is not measured.
    """
    end = time.monotonic() + limit
    try:
        for worker in workers:
            worker.warm_up(end - time.monotonic() - (1 - share) * limit)
        for _ in range(rounds):
            for worker in workers:
                worker.turn(steps, end - time.monotonic())
    finally:
        for worker in workers:
            if worker.process.is_alive():
                worker.end()


def wait_for_gpu() -> None:
    """Let the work that was given to the GPU end, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _serve(pipe: Connection, build: Callable[..., Callable[[], object]], arguments: tuple[Any, ...]) -> None:
    """Build, warm up, say how that went (nothing: well), and then measure one turn for each number of steps."""
    try:
        program = build(*arguments)
        program()
        pipe.send("")
    except Exception as error:  # whatever a compiler or a device raises, the others are still to be measured
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        pipe.send(f"not available: {type(error).__name__}: {(lines or [''])[0][:80]}")
        return
    while True:
        try:
            steps = pipe.recv()
        except EOFError:
            return
        program()
        forget_peak()
        seconds = []
        for _ in range(steps):
            start = time.perf_counter()
            program()
            seconds.append(time.perf_counter() - start)
        pipe.send(Turn(seconds, peak_memory()))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the others need the room
