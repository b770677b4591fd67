"""State of a training run: what Accelerate prepared, how far it is, and what was measured."""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mtsp.evaluation.evaluate import Evaluation
from mtsp.regularizers import Anchored
from mtsp.tasks import Tasks
from mtsp.tracking.tracker import Tracker
from mtsp.training.ema import Ema
from mtsp.training.experiment import Experiment
from mtsp.types import Examples


class Loaded(Protocol):
    """Which pretrained weights a branch starts from."""

    @property
    def description(self) -> str:
        """Where the weights come from, and how many tensors were loaded."""
        ...

    @property
    def left_out(self) -> Sequence[str]:
        """Tensors of the source that the branch has no place for."""
        ...


class Started(NamedTuple):
    """A network with its pretrained weights, before training."""

    model: nn.Module
    anchors: dict[str, Tensor]
    loaded: Mapping[str, Loaded]


@dataclass
class Position:
    """How far a run is: all that a resumed run needs to know besides tensors."""

    step: int = 0
    """Optimizer steps done."""
    batches: dict[str, int] = field(default_factory=dict)
    """Global batches taken from each stream, `davis:4`: a data entry in batches of one size."""


class StepResult(NamedTuple):
    """What one optimizer step measured, over all processes."""

    losses: dict[str, float]  # weighted terms, and their sum as "loss"
    gradient_norm: float | None  # before clipping; None where nothing is clipped
    samples: int
    stop: bool  # some process was asked to stop


@dataclass
class TrainState:
    """What a run is made of, prepared by Accelerate and ready to train."""

    accelerator: Accelerator
    model: nn.Module
    optimizer: Any
    tasks: Tasks
    branches: tuple[str, ...]
    frozen: tuple[str, ...] = ()
    """Branches that never learn."""
    frozen_norm: tuple[str, ...] = ()
    """Branches that learn, but keep the statistics of their batch normalization."""
    channels_last: bool = True
    """Memory format of the images, which should be the network's."""


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
class TrainingRun:
    """A run under way."""

    experiment: Experiment[Any, Any]
    folder: Path
    state: TrainState
    started: Started
    data: Mapping[str, Examples]
    regularizer: Anchored | None = None
    ema: Ema | None = None
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
        return self.state.accelerator.unwrap_model(self.state.model)

    def averaged(self) -> AbstractContextManager[None]:
        """Return a context in which the network has its averaged weights, if there are any."""
        return nullcontext() if self.ema is None else self.ema.swapped(self.network)
