"""A run under way, and what surrounds its loop: its folder's lock, signals, a progress bar, averages for the curves."""

import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtsp.config import ConfigError
from mtsp.evaluation.evaluate import Evaluation
from mtsp.regularizers import Anchored
from mtsp.training.ema import Average
from mtsp.training.loop import Parts, Position, StepResult
from mtsp.training.tracking import Tracker
from mtsp.types import Examples
from tools.build import AnyExperiment, Started


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Make the run's folder and refuse a second run in it. The lock goes with the process, however it ends."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = (run_dir / ".lock").open("a+")
    except OSError as error:
        raise OSError(f"{run_dir} cannot be written: {error.strerror}; choose another --run-dir") from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"{run_dir} is in use by another run; choose another --run-dir") from error
        yield


class Interruption:
    """SIGTERM and Ctrl-C ask the run to save and stop at the next step; a second one ends the process at once."""

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._handle)
        _follow_launcher()
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self._asked:
            os._exit(128 + number)
        self._asked = True
        print("stopping after this step; once more to stop at once", file=sys.stderr, flush=True)

    def asked(self) -> bool:
        """Return whether a signal came."""
        return self._asked


def _follow_launcher() -> None:
    """Get SIGTERM when `accelerate launch` ends: it does not pass it on to a single process, which would go on alone.

    Not under other parents: a shell that closes must not stop what `nohup` started.
    """
    if sys.platform != "linux":
        return
    import ctypes

    command = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().split(b"\0")
    if any(Path(word.decode(errors="replace")).name in ("accelerate", "accelerate-launch") for word in command[:3]):
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


class Meter:
    """Averages of the losses and the speed since they were last taken."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}
        """Values of each step by name: a checkpoint keeps them, so that a resumed run logs the same averages."""
        self.restart()

    def add(self, result: StepResult) -> None:
        """Add what one step measured."""
        self.samples += result.samples
        measured = dict(result.losses)
        if result.gradient_norm is not None:
            measured["gradient_norm"] = result.gradient_norm
        for name, value in measured.items():
            self.values.setdefault(name, []).append(value)

    def take(self) -> dict[str, float]:
        """Return the averages, samples per second, and on a GPU the peak of its memory; begin anew."""
        values = {name: sum(found) / len(found) for name, found in self.values.items()}
        seconds = time.perf_counter() - self.since
        values["samples_per_second"] = self.samples / max(seconds, 1e-9)
        if torch.cuda.is_available():
            values["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self.values.clear()
        self.restart()
        return values

    def restart(self) -> None:
        """Measure the speed from now on: what came in between was not training."""
        self.since = time.perf_counter()
        self.samples = 0


@dataclass
class Run:
    """A run under way."""

    experiment: AnyExperiment
    folder: Path
    parts: Parts
    started: Started
    data: Mapping[str, Examples]
    regularizer: Anchored | None = None
    average: Average | None = None
    tracker: Tracker = field(default_factory=Tracker.silent)
    position: Position = field(default_factory=Position)
    meter: Meter = field(default_factory=Meter)
    measured: dict[str, Evaluation] | None = None
    """What was measured last."""
    measured_at: int = -1
    """The step of that."""

    @property
    def network(self) -> nn.Module:
        """The network as it was built, not as Accelerate wraps it."""
        return self.parts.accelerator.unwrap_model(self.parts.model)

    def averaged(self) -> AbstractContextManager[None]:
        """Return a context in which the network has its averaged weights, if there are any."""
        return nullcontext() if self.average is None else self.average.swapped(self.network)
