"""Checkpoints stay by their step, by a metric, or because the loss rose after them."""

import pytest

from mtsp.training.checkpoint.retention import BestConfig, is_kept

SCORES = {10: 0.5, 20: 0.9, 30: 0.7, 40: 0.9, 50: 0.2}


def kept(**settings: object) -> list[int]:
    defaults: dict[str, object] = {"every": None, "best": None, "scores": SCORES, "before_spikes": ()}
    keeps = is_kept(**{**defaults, **settings})  # pyright: ignore[reportArgumentType]
    return [step for step in SCORES if keeps(step)]


@pytest.mark.parametrize(("goal", "step"), [("max", 20), ("min", 50)])
def test_the_best_stays_and_of_equal_ones_the_first(goal: str, step: int) -> None:
    best = BestConfig.model_validate({"metric": "davis_val/J_mean", "goal": goal})
    assert kept(best=best) == [step]
    assert kept(best=best, scores={}) == []


def test_multiples_and_the_steps_before_spikes_stay() -> None:
    assert kept() == []
    assert kept(every=20) == [20, 40]
    assert kept(every=20, before_spikes=[30, 7]) == [20, 30, 40]
