"""Strengths of a pull: as numbers or as paces (how fast the pull alone closes the distance), by branch or by depth."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from mtsp.anchors import penalized


@dataclass(frozen=True)
class Pace:
    """Strength set by its speed: after `steps` steps of the pull alone, a fraction `remaining` of the distance is left.

    `Pace(1000)` is a time constant, `half_life(1000)` a half-life; `Pace(9000, remaining=0.05)` leaves 5 % of the
    distance after a run of 9000 steps. The pace is converted to a number when the regularizer is attached,
    using the momentum and the learning rate (before any schedule) of each parameter group. A schedule that lowers the
    learning rate slows the pull.

    The conversion is to first order in the fraction of the distance that a step closes, as in :func:`time_constant`.
    The error grows with the pace: coupled through momentum 0.9, `Pace(400, remaining=0.1)` leaves 0.092, and
    `Pace(88, remaining=0.1)`, the fastest one allowed, leaves 0.055. At the default of 1/e, the error is at most 0.03.
    `attach` refuses faster paces, because the weights would overshoot their anchors.

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
        """Fraction of the distance that one step closes, to first order."""
        return -math.log(self.remaining) / self.steps


def half_life(steps: float) -> Pace:
    """Return the pace at which the pull alone halves the distance in `steps` steps."""
    return Pace(steps, remaining=0.5)


Strength = float | Pace | Mapping[str, float] | Mapping[str, Pace] | Mapping[str, float | Pace]
"""One strength for all weights, or strengths by prefix of the weight name; the longest matching prefix is used."""


def time_constant(strength: float, lr: float, *, coupled: bool, momentum: float = 0.0) -> float:
    """Return the number of steps after which the pull alone leaves 1/e of a weight's distance; inf if there is no pull.

    It is (1 - momentum) / (lr * strength) for SGD with a coupled or proximal pull, and 1 / (lr * strength) for a
    decoupled pull. This is to first order in lr * strength; the pull is really a little faster (89 steps instead of 100
    at momentum 0.9). A pull coupled through Adam has no time constant, because it depends on the size of the gradients.
    """
    rate = lr * strength / ((1 - momentum) if coupled else 1)
    return 1 / rate if rate > 0 else float("inf")


def by_depth(model: nn.Module, alpha: float, *, shared: Mapping[str, object]) -> dict[str, float]:
    """Return the strengths of L2-SP-k by weight name: earlier layers are pulled more strongly.

    Of the n layers that have an anchor, in the order of `model.named_parameters()`, layer i (from 0) gets the strength
    alpha * (n - i) / n. Pass the result to any regularizer as `alpha`.

    After the authors' code (mode 2), with two departures: their factor is n - i, and shortcut convolutions get
    n - i + 3. Here, dividing by n keeps `alpha` comparable with L2-SP, and shortcuts are treated like other layers.

    Args:
        model: the network.
        alpha: strength for the first layer.
        shared: anchors by weight name; the values are not used.
    """
    names = [name for name in penalized(model) if name in shared]
    return {name: alpha * (len(names) - i) / len(names) for i, name in enumerate(names)}
