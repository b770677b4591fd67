"""Hold the state of a training run: network, optimizer, position, averages since the last log, last validation."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mtsp.evaluation.classes import class_names
from mtsp.evaluation.evaluate import Evaluation
from mtsp.evaluation.forgetting import SourceTask
from mtsp.regularizers import Regularizer
from mtsp.task_weights import TaskWeights
from mtsp.tasks import Tasks
from mtsp.tracking.tracker import Tracker
from mtsp.training.ema import Ema
from mtsp.training.experiment import AnyExperiment
from mtsp.training.spikes import Spikes
from mtsp.types import Examples


class LoadedWeights(Protocol):
    """Report on the pretrained weights that were loaded into a branch."""

    @property
    def description(self) -> str:
        """Text with the source of the weights and the number of loaded tensors."""
        ...

    @property
    def left_out(self) -> Sequence[str]:
        """Names of tensors in the source that the branch does not have."""
        ...


class PretrainedNetwork(NamedTuple):
    """A network with its pretrained weights, before training."""

    model: nn.Module
    anchors: dict[str, Tensor]
    loaded: Mapping[str, LoadedWeights]


@dataclass
class Position:
    """Position of a run in its schedule and its data."""

    step: int = 0
    """Number of optimizer steps done."""
    batches: dict[str, int] = field(default_factory=dict)
    """Number of global batches taken so far from each stream. A stream is a data entry and a batch size: `davis:4`."""


class Requests(NamedTuple):
    """Requests of a process to all processes, which follow them after the step."""

    stop: bool = False
    save: bool = False


class StepResult(NamedTuple):
    """Losses of one optimizer step, over all processes."""

    losses: dict[str, float]  # terms by the weights of the config, and their sum as "loss"
    gradient_norm: float | None  # before clipping; None if the run does not clip
    samples: int
    names: tuple[str, ...]  # of the samples of this process
    requests: Requests = Requests()  # of all processes together


@dataclass
class TrainState:
    """Network, optimizer and tasks, prepared by Accelerate and ready to train."""

    accelerator: Accelerator
    model: nn.Module
    optimizer: Any
    tasks: Tasks
    branches: tuple[str, ...]
    frozen: tuple[str, ...] = ()
    """Branches, and modules inside branches, that never learn."""
    modules: tuple[str, ...] = ()
    """Modules inside branches with settings of their own: those that are not frozen learn in a frozen branch."""
    frozen_norm: tuple[str, ...] = ()
    """Branches that learn, but keep their batch-norm statistics."""
    channels_last: bool = True
    """Memory format of the images; it should match the network's."""
    task_weights: TaskWeights | None = None
    """Factors of the losses that are learned; None: the losses add up as they are."""


class Meter:
    """Running averages of losses and speed since the last log."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}
        """Values of each step by name. Checkpoints keep them, so that a resumed run logs the same averages."""
        self.restart()

    def add(self, result: StepResult) -> None:
        """Add the losses of one step."""
        self.samples += result.samples
        for name, value in {**result.losses, "gradient_norm": result.gradient_norm}.items():
            if value is not None:
                self.values.setdefault(name, []).append(value)

    def take(self) -> dict[str, float]:
        """Return the averages, samples per second and, on a GPU, the peak memory; then reset all of them."""
        values = {name: sum(found) / len(found) for name, found in self.values.items()}
        seconds = time.perf_counter() - self.since
        values["samples_per_second"] = self.samples / max(seconds, 1e-9)
        if torch.cuda.is_available():
            values["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self.values.clear()
        self.restart()
        return values

    def restart(self) -> None:
        """Restart the clock, so that time spent on validation does not count as training time."""
        self.since = time.perf_counter()
        self.samples = 0


@dataclass
class TrainingRun:
    """A run in progress."""

    experiment: AnyExperiment
    folder: Path
    state: TrainState
    pretrained: PretrainedNetwork
    data: Mapping[str, Examples]
    regularizer: Regularizer | None = None
    source: SourceTask | None = None
    ema: Ema | None = None
    tracker: Tracker = field(default_factory=Tracker.silent)
    fingerprints: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Fingerprint of each data entry, see :func:`mtsp.training.checks.samples.fingerprint`."""
    position: Position = field(default_factory=Position)
    meter: Meter = field(default_factory=Meter)
    validation: dict[str, Evaluation] | None = None
    """The last validation by data entry; None if there was none since the start or the resume."""
    validated_at: int = -1
    """Step of the last validation, which may have been before a resume."""
    scores: dict[int, float] = field(default_factory=dict)
    """Value of the metric of `train.keep_best` by step."""
    spikes: Spikes = field(default_factory=Spikes)
    stop: Callable[[], bool] = lambda: False
    """Returns whether a signal has asked this process to stop."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that the network learns; empty if the data do not name classes."""
        return learned_classes(self.data)

    @property
    def network(self) -> nn.Module:
        """The network without Accelerate's wrapper."""
        return self.state.accelerator.unwrap_model(self.state.model)

    def ema_weights(self) -> AbstractContextManager[None]:
        """Return a context in which the network has its averaged weights, if the run keeps an average."""
        return nullcontext() if self.ema is None else self.ema.swapped(self.network)


def learned_classes(data: Mapping[str, Examples]) -> tuple[str, ...]:
    """Return the names of the classes that a network learns from data entries that are aligned; empty without names."""
    return next(filter(None, map(class_names, data.values())), ())
