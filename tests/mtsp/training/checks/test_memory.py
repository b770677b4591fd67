"""Predicted memory of a run."""

from mtsp.training.checks.memory import MemoryEstimate


def test_the_peak_is_the_sum_of_its_parts() -> None:
    assert MemoryEstimate(now=1, optimizer=2, gradients=4, activations=8).peak == 15
