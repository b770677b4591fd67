"""Weights of tasks that are learned from the tasks' losses: uncertainty weighting."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field

from mtsp.config import Config
from mtsp.tasks import Tasks


class TaskWeightsConfig(Config):
    """Settings of the weights of tasks that are learned from their uncertainty."""

    lr: float = Field(default=0.01, gt=0)
    """Learning rate of the logarithms of the variances, constant; Adam's, so about the largest change in a step."""


class TaskWeights:
    """Weights exp(-s) of the losses of each task, with a log-variance s that is learned by Adam, from 0.

    Kendall et al., "Multi-Task Learning Using Uncertainty" (CVPR 2018), equation 10: minimize the sum of exp(-s) L +
    s / 2 over the tasks. L is the loss of a task over the whole step, on all processes, so that all of them learn the
    same weights. If L stays constant, its weight becomes 1 / (2 L). The log-variances are not part of the network: they
    are neither anchored nor decayed, clipped or averaged.
    """

    def __init__(self, tasks: Tasks, config: TaskWeightsConfig) -> None:
        self._losses = {name: task.names for name, task in tasks if task is not None}
        self._log_variances = {name: torch.zeros((), dtype=torch.float64) for name in self._losses}
        self._adam = torch.optim.Adam(self._log_variances.values(), lr=config.lr)

    def by_task(self) -> dict[str, float]:
        """Return the weight of each task, by its name."""
        return {task: math.exp(-s.item()) for task, s in self._log_variances.items()}

    def by_loss(self) -> dict[str, float]:
        """Return the weight of each loss, by its name."""
        return {loss: weight for task, weight in self.by_task().items() for loss in self._losses[task]}

    def step(self, losses: Mapping[str, float]) -> None:
        """Learn from the losses of one step, before they are weighted. Tasks without a loss in the step stay."""
        for task, s in self._log_variances.items():
            found = [losses[name] for name in self._losses[task] if name in losses]
            s.grad = torch.full_like(s, 0.5 - math.exp(-s.item()) * sum(found)) if found else None
        self._adam.step()

    def state_dict(self) -> dict[str, Any]:
        """Return log-variances and Adam's state as plain numbers."""
        return {
            task: {"s": s.item(), "adam": {key: value.item() for key, value in self._adam.state[s].items()}}
            for task, s in self._log_variances.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        for task, s in self._log_variances.items():
            s.fill_(state[task]["s"])
            numbers = state[task]["adam"].items()
            self._adam.state[s] = {key: torch.tensor(value, dtype=torch.float64) for key, value in numbers}
