"""Costs of a run, from FLOP and bytes to hours and numbers of GPUs."""

import pytest

from tools.bench import scale
from tools.bench.scale import Row, hours, largest_group
from tools.build import read_experiment

ROW = Row("net", "480x480", steps=1000, batch=16, flop=1000 * 989e12, parameters=10**8, activations=0)
"""A step of 989 TFLOP: 1 s at the peak of an H100."""


@pytest.mark.parametrize(
    ("gpus", "utilization", "seconds"), [(1, 1.0, 1.0), (1, 0.5, 2.0), (8, 0.5, 0.25), (8, 0.2, 0.625)]
)
def test_hours_follow_from_flop_and_utilization(gpus: int, utilization: float, seconds: float) -> None:
    assert hours(ROW, gpus, utilization) == pytest.approx(1000 * seconds / 3600)


def test_a_step_takes_at_least_the_launches_of_its_kernels() -> None:
    assert hours(ROW._replace(flop=1.0), 8, 0.4) == pytest.approx(1000 * 0.02 / 3600)


def test_gradients_must_arrive_while_the_gpus_compute() -> None:
    # Of 4e8 bytes of gradients each of n GPUs sends 2 (n - 1) / n times as much: 0.4 GB of 2, 0.6 of 4, 0.7 of 8.
    # At 1e9 bytes/s that is 0.4, 0.6 and 0.7 s, and computing takes 1 / n s: 0.5, 0.25 and 0.125.
    assert largest_group(ROW, link=1e9, utilization=1.0) == 2
    assert largest_group(ROW, link=7e9, utilization=1.0) == 8  # 0.1 s of 0.125; 16 would need 0.107 of 0.0625
    assert largest_group(ROW, link=1e12, utilization=1.0) == 16  # the batch has no more samples


def test_the_flop_of_a_classifier_are_those_of_its_layers() -> None:
    experiment = read_experiment(
        "cub_small.yaml", ["model.backbone=resnet18", "branches.backbone.weights=null", "regularizer={name: none}"]
    )
    row = scale.cost(experiment, {})
    # ResNet-18 has 1.814e9 multiply-adds at 224x224; 128x128 is 0.327 of that, a step three times a forward pass, less
    # the gradient of the image in the first layer (0.118e9 at 224x224).
    forward = 2 * 1.814e9 * (128 / 224) ** 2
    expected = 3 * forward - 2 * 0.118e9 * (128 / 224) ** 2
    assert row.flop / (row.steps * row.batch) == pytest.approx(expected, rel=0.01)
