"""Learning-rate schedules, as pure functions of the step."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mtsp.config import Config

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


def set_learning_rates(optimizer: Any, factor: float) -> dict[str, float]:
    """Set each group's learning rate to `factor` times its full learning rate.

    Return the learning rates by the groups' names, the largest where layer decay makes several groups of one name.
    """
    rates: dict[str, float] = {}
    for group in optimizer.param_groups:
        group["lr"] = group["full_lr"] * factor
        rates[group["name"]] = max(group["lr"], rates.get(group["name"], 0.0))
    return rates
