"""Decide which checkpoints stay besides the newest."""

from collections.abc import Callable, Collection, Mapping
from typing import Literal

from pydantic import Field

from mtsp.config import Config


class IntervalConfig(Config):
    """An interval in seconds."""

    seconds: float = Field(gt=0)


class BestConfig(Config):
    """A metric by which one checkpoint is the best."""

    metric: str = Field(pattern="^[^/]+/.+$")
    """Data entry and metric as in the curves, such as `davis_val/J_mean`."""
    goal: Literal["max", "min"]


def is_kept(
    every: int | None, best: BestConfig | None, scores: Mapping[int, float], before_spikes: Collection[int]
) -> Callable[[int], bool]:
    """Return a function that tells whether the checkpoint of a step stays though it is not among the newest.

    Args:
        every: interval in steps of checkpoints that stay; None: none.
        best: the metric whose best checkpoint stays; of equal ones, the first.
        scores: value of that metric by step.
        before_spikes: steps of the last checkpoints before loss spikes.
    """
    kept = set(before_spikes)
    if best is not None and scores:
        sign = 1 if best.goal == "max" else -1
        kept.add(max(sorted(scores), key=lambda step: sign * scores[step]))
    return lambda step: step in kept or (every is not None and step % every == 0)
