"""Run programs in turn, each in its own process, so that the memory of each is measured separately."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

from tools.bench.timing import forget_peak, peak_memory

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Worker:
    """A process that builds a program, warms it up, and runs it on request.

    Attributes:
        problem: the reason why the program is not available; empty if it is available.
        seconds: times of all measured runs; empty if the program is not available.
    """

    def __init__(self, build: Callable[..., Callable[[], object]], *arguments: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, build, arguments), daemon=True)
        self.problem = ""
        self.seconds: list[float] = []
        self._peaks: list[int] = []  # bytes

    def warm_up(self, limit: float) -> None:
        """Build the program and run it once; give up after `limit` seconds."""
        self.process.start()
        self.problem = self._received(limit, f"not available: no step within {limit:.0f} s")
        if self.problem:
            self.end()

    def turn(self, steps: int, limit: float) -> None:
        """Run the program once unmeasured, then `steps` times; give up after `limit` seconds."""
        if self.problem:
            return
        self.pipe.send(steps)
        found = self._received(limit, "time ran out")
        if isinstance(found, str):
            self.problem = found
            self.end()
        else:
            self.seconds += found[0]
            self._peaks.append(found[1])

    def _received(self, limit: float, late: str) -> Any:
        try:
            return self.pipe.recv() if self.pipe.poll(max(0.0, limit)) else late
        except EOFError:
            return "not available: the process died, perhaps out of memory"

    @property
    def median(self) -> float:
        """Median of :attr:`seconds`; NaN if it is empty."""
        return statistics.median(self.seconds) if self.seconds else float("nan")

    @property
    def peak(self) -> float:
        """Largest peak memory of any turn in bytes; NaN if no turn was run."""
        return max(self._peaks, default=float("nan"))

    def end(self) -> None:
        """Stop the process, which may ignore SIGTERM: a fork server that training has started blocks it."""
        self.process.kill()
        self.process.join()


def take_turns(
    workers: Sequence[Worker], rounds: int, *, steps: int, limit: float, warm_up_fraction: float = 1.0
) -> None:
    """Start and warm up all workers, let each take `rounds` turns of `steps` runs, and end them.

    All workers together may take `limit` seconds. A worker that is not ready after the fraction `warm_up_fraction` of
    this time is not measured.
    """
    end = time.monotonic() + limit
    try:
        for worker in workers:
            worker.warm_up(end - time.monotonic() - (1 - warm_up_fraction) * limit)
        for _ in range(rounds):
            for worker in workers:
                worker.turn(steps, end - time.monotonic())
    finally:
        for worker in workers:
            if worker.process.is_alive():
                worker.end()


def wait_for_gpu() -> None:
    """Wait until the GPU, if there is one, has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _serve(pipe: Connection, build: Callable[..., Callable[[], object]], arguments: tuple[Any, ...]) -> None:
    """Build and warm up, send the problem (or ""), then measure one turn for each received number of steps."""
    try:
        program = build(*arguments)
        program()
        pipe.send("")
    except Exception as error:  # compilers and devices may raise any error; other programs are still measured
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
        pipe.send((seconds, peak_memory()))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # free memory for other workers
