"""How strong a pull is, in words people can reason about: how fast it would close the distance on its own."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from mtsp.anchors import penalized


@dataclass(frozen=True)
class Pace:
    """A strength, said as a speed: after `steps` steps of the pull alone, the share `remaining` of the distance is
    left.

    `Pace(1000)` is a time constant, `half_life(1000)` a half-life, `Pace(9000, remaining=0.05)` the ratio of the
    distance that a whole run of the pull leaves. It becomes a number when the regularizer is attached, from each
    parameter group's learning rate (before any schedule) and momentum; a schedule that lowers the rate slows the pull.

    To first order in the share that a step takes away, as :func:`time_constant`: what is really left differs a little,
    the more the shorter the pace. Coupled through momentum 0.9, `Pace(400, remaining=0.1)` leaves 0.092 and the
    shortest that is allowed, of 88 steps, 0.055; at 1/e the difference is 0.03 at most. Shorter ones would swing past
    the anchor, and attaching refuses them.

    Raises:
        ValueError: `steps` is below 1, or `remaining` is not between 0 and 1.
    """

    steps: float
    remaining: float = math.exp(-1)

    def __post_init__(self) -> None:
        if not 1 <= self.steps < float("inf"):
            raise ValueError(f"a pace needs at least 1 step, got {self.steps}")
        if not 0 < self.remaining < 1:
            raise ValueError(f"the share of the distance that is left must lie between 0 and 1, got {self.remaining}")

    @property
    def rate(self) -> float:
        """The share of the distance that a step takes away, to first order."""
        return -math.log(self.remaining) / self.steps

    def strength(self, lr: float) -> float:
        """Return the alpha of this pace at a learning rate, for SGD divided by 1 - momentum unless decoupled.

        Raises:
            ValueError: the learning rate is 0, so no strength gives this pace.
        """
        if lr <= 0:
            raise ValueError(
                f"{self} has no strength at a learning rate of {lr}; attach before a schedule lowers it, or give alpha"
            )
        return self.rate / lr


def fastest(momentum: float, *, nesterov: bool) -> float:
    """Return the largest rate of a pace at which a pull coupled through momentum does not swing past its anchor.

    With k = rate * (1 - m), the distance goes as powers of the roots of z^2 - (1 + m - k) z + m, for Nesterov's
    momentum of z^2 - (1 + m) (1 - k) z + m (1 - k). They are real up to k = (1 - sqrt(m))^2 and ((1 - m) / (1 + m))^2.
    """
    return (1 - momentum) / (1 + (momentum if nesterov else math.sqrt(momentum))) ** 2


def half_life(steps: float) -> Pace:
    """Return the strength whose pull alone halves the distance in `steps` steps."""
    return Pace(steps, remaining=0.5)


Strength = float | Pace | Mapping[str, float] | Mapping[str, Pace] | Mapping[str, float | Pace]
"""One strength for all weights, or one by prefix of their names; the longest prefix wins."""


def time_constant(strength: float, lr: float, *, coupled: bool, momentum: float = 0.0) -> float:
    """Return after how many steps a pull alone has brought a weight to 1/e of its distance; inf for no pull.

    (1 - momentum) / (lr * strength) for SGD with a coupled or proximal pull, 1 / (lr * strength) for a decoupled one.
    To first order in lr * strength: the pull is a little faster than this (89 steps for 100 at momentum 0.9). A coupled
    pull through Adam has no such constant: it depends on the gradients' size.
    """
    rate = lr * strength / ((1 - momentum) if coupled else 1)
    return 1 / rate if rate > 0 else float("inf")


def by_depth(model: nn.Module, alpha: float, *, shared: Mapping[str, object]) -> dict[str, float]:
    """Return the strengths of L2-SP-k: the earlier a layer, the stronger its pull.

    Layer i (from 0) of the n layers that have an anchor gets alpha * (n - i) / n, in the order of
    `model.named_parameters()`; give the result as `alpha` of any regularizer here.

    After the authors' code (mode 2), where the factor is n - i, not divided by n, and shortcut convolutions get 3 more:
    dividing keeps `alpha` comparable with L2-SP, and shortcuts get what their place gives them.

    Args:
        model: the network.
        alpha: strength on the first layer.
        shared: the anchors; only their names count.
    """
    names = [name for name in penalized(model) if name in shared]
    return {name: alpha * (len(names) - i) / len(names) for i, name in enumerate(names)}
