"""Build optimizers with one learning rate per branch, and learning-rate schedules as pure functions of the step."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from mtsp.config import Config


class SGDConfig(Config):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"]
    lr: float = Field(gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimizer of these parameter groups, without weight decay: the regularizer does that."""
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)


class AdamConfig(Config):
    """Adam. With a decoupled regularizer it is AdamW."""

    name: Literal["adam"]
    lr: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimizer of these parameter groups, without weight decay: the regularizer does that."""
        return torch.optim.Adam(groups, lr=self.lr, betas=self.betas, eps=self.eps)


class RMSPropConfig(Config):
    """RMSProp with momentum, as Inception-V3 was trained (Szegedy et al., CVPR 2016, section 8)."""

    name: Literal["rmsprop"]
    lr: float = Field(gt=0)
    decay: float = Field(default=0.9, gt=0, lt=1)
    """Decay of the running mean of squared gradients."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    eps: float = Field(default=1.0, gt=0)
    """Constant added to the root of the mean square (TensorFlow adds it under the root); Inception uses 1."""

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimizer of these parameter groups, without weight decay: the regularizer does that."""
        return torch.optim.RMSprop(groups, lr=self.lr, alpha=self.decay, momentum=self.momentum, eps=self.eps)


OptimizerConfig = Annotated[SGDConfig | AdamConfig | RMSPropConfig, Field(discriminator="name")]

_USERS = {"power": ["poly"], "every": ["step"], "milestones": ["step"], "factor": ["step"], "final": ["poly", "cosine"]}
"""Schedules that use each field; all schedules use `warmup`."""


class ScheduleConfig(Config):
    """Learning-rate schedule: a factor at each step, by which the full learning rate of each branch is multiplied."""

    name: Literal["constant", "poly", "step", "cosine"] = "constant"
    warmup: int = Field(default=0, ge=0)
    """Number of steps over which the learning rate rises linearly to its full value."""
    power: float = Field(default=0.9, gt=0)
    """poly: exponent in (1 - done) ** power, where `done` is the fraction of the run that is done."""
    every: int | None = Field(default=None, gt=0)
    """step: interval in steps; the learning rate is multiplied by `factor` after each interval."""
    milestones: tuple[Annotated[int, Field(gt=0)], ...] = ()
    """step: steps at which the learning rate is multiplied by `factor`, instead of `every`."""
    factor: float = Field(default=0.5, gt=0, lt=1)
    final: float = Field(default=0.0, ge=0, lt=1)
    """poly, cosine: factor of the learning rate at the end of the run."""

    @model_validator(mode="after")
    def _check_fields(self) -> "ScheduleConfig":
        """Refuse fields that the schedule ignores, except defaults: resolved configs contain all fields."""
        for key, users in _USERS.items():
            if self.name not in users and getattr(self, key) != type(self).model_fields[key].default:
                names = " or ".join(f"`name: {user}`" for user in users)
                raise ValueError(f"`{key}` does nothing in a {self.name} schedule; leave it out, or set {names}")
        if self.name == "step" and (self.every is None) == (not self.milestones):
            raise ValueError("a step schedule needs exactly one of `every` and `milestones`")
        return self

    def lr_factor(self, step: int, steps: int) -> float:
        """Return the factor of the learning rate at step `step` (from 0) of a run of `steps`."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        done = min(1.0, step / max(1, steps))
        match self.name:
            case "constant":
                fall = 1.0
            case "poly":
                fall = self.final + (1 - self.final) * (1 - done) ** self.power
            case "cosine":
                fall = self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done))
            case "step":
                times = step // self.every if self.every else sum(step >= milestone for milestone in self.milestones)
                fall = self.factor**times
        return rise * fall


def parameter_groups(model: nn.Module, branches: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return one parameter group per branch, with name, parameters, and learning rate (as `lr` and `full_lr`).

    `branches` maps branch names to learning rates; the name of each parameter begins with its branch and a dot.

    Raises:
        ValueError: a parameter belongs to no branch and would never be trained.
    """
    groups = {branch: {"name": branch, "params": [], "lr": lr, "full_lr": lr} for branch, lr in branches.items()}
    for name, parameter in model.named_parameters():
        branch = name.partition(".")[0]
        if branch not in groups:
            raise ValueError(f"weight {name} belongs to none of the branches {', '.join(branches)}")
        groups[branch]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def set_learning_rates(optimizer: Any, factor: float) -> dict[str, float]:
    """Set each group's learning rate to `factor` times its full learning rate; return the learning rates by branch."""
    for group in optimizer.param_groups:
        group["lr"] = group["full_lr"] * factor
    return {group["name"]: group["lr"] for group in optimizer.param_groups}
