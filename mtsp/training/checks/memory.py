"""Predict the memory that training takes, before the first step."""

import os
from pathlib import Path
from typing import NamedTuple

import torch

from mtsp.batches import first_sample, frame_shapes
from mtsp.cost.dry_run import optimizer_bytes, saved_bytes, size_of
from mtsp.distributed.sharding import has_shards
from mtsp.optim.groups import longest_prefix
from mtsp.training.experiment import StageConfig
from mtsp.training.state import TrainingRun


class MemoryEstimate(NamedTuple):
    """Bytes that one training process takes in its largest step."""

    now: int
    """Taken before the first step: weights, anchors and, without a GPU, the program and its libraries."""
    optimizer: int
    gradients: int
    activations: int
    """Tensors of the forward and backward pass of one micro-batch, see :func:`saved_bytes`."""

    @property
    def peak(self) -> int:
        """Return the sum: gradients of one data entry are kept while the activations of the next are computed."""
        return sum(self)


def predict_memory(run: TrainingRun) -> MemoryEstimate | None:
    """Return the memory of the largest step, or None if weights are sharded or the network is compiled.

    The forward pass runs on tensors without contents, so it takes no memory and little time. Every data entry is taken
    to have samples of one size, that of its first sample in training. Workspaces of libraries are not known before a
    step, and are not counted.
    """
    network, experiment = run.network, run.experiment
    if experiment.train.compile or has_shards(network):
        return None
    shares = run.state.accelerator.num_processes * experiment.train.accumulate
    activations, gradients = 0, 0
    for stage in experiment.train.stages:
        learning = _learning(run, stage)
        gradients = max(gradients, sum(size_of(network.get_parameter(name)) for name in learning))
        for name, size in stage.batch_size.items():
            shapes = frame_shapes(first_sample(run.data[name]), max(1, size // shares))
            bf16 = run.state.accelerator.mixed_precision in ("bf16", "fp16")
            activations = max(activations, saved_bytes(network, shapes, learning=learning, bf16=bf16))
    moved = {name for stage in experiment.train.stages for name in _learning(run, stage)}
    state = optimizer_bytes(experiment.optimizer.build) * sum(network.get_parameter(name).numel() for name in moved)
    return MemoryEstimate(_taken(), round(state), gradients, activations)


def _learning(run: TrainingRun, stage: StageConfig) -> list[str]:
    """Return the names of the weights that get a gradient in a stage: not those that the config freezes."""
    frozen = run.experiment.frozen
    names = [name for name, weight in run.network.named_parameters() if weight.requires_grad]
    learns = [name for name in names if stage.learn is None or name.partition(".")[0] in stage.learn]
    return [name for name in learns if not frozen[longest_prefix(name, frozen) or name]]


def _taken() -> int:
    """Return the bytes that this process takes: on its GPU, or else of main memory (0 where that is not known)."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
