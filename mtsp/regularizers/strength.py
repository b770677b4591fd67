"""Strengths of a pull: as numbers, as paces (how fast the pull alone closes the distance), by branch and by depth."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from mtsp.anchors import penalized


@dataclass(frozen=True)
class Pace:
    """A strength given as a speed: after `steps` steps of the pull alone, the fraction `remaining` of the distance
    remains.

    `Pace(1000)` is a time constant, `half_life(1000)` a half-life; `Pace(9000, remaining=0.05)` leaves 5 % of the
    distance after a run of 9000 steps. It is converted to a number when the regularizer is attached, with each
    parameter group's momentum and learning rate (before any schedule); a schedule that lowers the rate slows the pull.

    The conversion is to first order in the fraction that a step takes, as in :func:`time_constant`. The faster the
    pace, the more the result differs: coupled through momentum 0.9, `Pace(400, remaining=0.1)` leaves 0.092, and the
    shortest one allowed, of 88 steps, leaves 0.055; at 1/e the difference is 0.03 at most. Attaching refuses a faster
    pace, which would swing past the anchor.

    Raises:
        ValueError: `steps` is below 1, or `remaining` is not between 0 and 1.
    """

    steps: float
    remaining: float = math.exp(-1)

    def __post_init__(self) -> None:
        if not 1 <= self.steps < float("inf"):
            raise ValueError(f"a pace needs at least 1 step at the full learning rate, got {self.steps:g}")
        if not 0 < self.remaining < 1:
            raise ValueError(f"the remaining fraction of the distance must lie between 0 and 1, got {self.remaining}")

    @property
    def rate(self) -> float:
        """Fraction of the distance that a step takes, to first order."""
        return -math.log(self.remaining) / self.steps


def half_life(steps: float) -> Pace:
    """Return the pace of a pull that alone halves the distance in `steps` steps."""
    return Pace(steps, remaining=0.5)


Strength = float | Pace | Mapping[str, float] | Mapping[str, Pace] | Mapping[str, float | Pace]
"""One strength for all weights, or one by prefix of their names; the longest prefix wins."""


def time_constant(strength: float, lr: float, *, coupled: bool, momentum: float = 0.0) -> float:
    """Return the number of steps in which a pull alone brings a weight to 1/e of its distance; inf for no pull.

    (1 - momentum) / (lr * strength) for SGD with a coupled or proximal pull, 1 / (lr * strength) for a decoupled one.
    To first order in lr * strength: the pull is a little faster than this (89 steps for 100 at momentum 0.9). A coupled
    pull through Adam has no such constant: it depends on the size of the gradients.
    """
    rate = lr * strength / ((1 - momentum) if coupled else 1)
    return 1 / rate if rate > 0 else float("inf")


def by_depth(model: nn.Module, alpha: float, *, shared: Mapping[str, object]) -> dict[str, float]:
    """Return the strengths of L2-SP-k: the earlier a layer, the stronger its pull.

    Layer i (from 0) of the n layers that have an anchor gets alpha * (n - i) / n, in the order of
    `model.named_parameters()`. Give the result to any regularizer as `alpha`.

    After the authors' code (mode 2), with two departures: there the factor is n - i, and shortcut convolutions get 3
    more. Dividing by n keeps `alpha` comparable with L2-SP; shortcuts are treated like other layers.

    Args:
        model: the network.
        alpha: strength on the first layer.
        shared: the anchors; only their names are used.
    """
    names = [name for name in penalized(model) if name in shared]
    return {name: alpha * (len(names) - i) / len(names) for i, name in enumerate(names)}
