"""Weights of tasks against numbers worked out by hand."""

import json
import math

import pytest

from mtsp.task_weights import TaskWeights, TaskWeightsConfig
from mtsp.tasks import FlowConfig, SegmentationConfig, Tasks

TASKS = Tasks(segmentation=SegmentationConfig(aux_loss=0.2), flow=FlowConfig())


def _weights(lr: float = 0.01) -> TaskWeights:
    return TaskWeights(TASKS, TaskWeightsConfig(lr=lr))


def test_the_first_step_of_adam_is_the_learning_rate_by_the_sign_of_the_gradient() -> None:
    weights = _weights()
    assert weights.by_loss() == {"segmentation": 1.0, "segmentation_aux": 1.0, "flow": 1.0}
    # exp(0) L + 0 / 2 has the gradient 1/2 - L: of segmentation 1/2 - (0.4 + 0.3), of flow 1/2 - 0.25
    weights.step({"segmentation": 0.4, "segmentation_aux": 0.3, "flow": 0.25})
    assert weights.by_task() == pytest.approx({"segmentation": math.exp(-0.01), "flow": math.exp(0.01)})
    assert weights.by_loss()["segmentation_aux"] == weights.by_task()["segmentation"]


def test_a_constant_loss_comes_to_a_weight_of_half_its_inverse() -> None:
    weights = _weights(lr=0.05)
    for _ in range(2000):
        weights.step({"segmentation": 0.1, "flow": 3.0})
    assert weights.by_task() == pytest.approx({"segmentation": 1 / 0.2, "flow": 1 / 6}, rel=1e-3)


def test_a_task_without_a_loss_in_a_step_keeps_its_weight() -> None:
    weights = _weights()
    weights.step({"segmentation": 2.0, "flow": 2.0})
    before = weights.by_task()["flow"]
    weights.step({"segmentation": 2.0})
    assert weights.by_task()["flow"] == before
    assert weights.by_task()["segmentation"] < before


def test_weights_restored_from_json_go_on_to_the_last_bit() -> None:
    ours, restored = _weights(), _weights()
    for loss in (2.0, 0.3, 0.7):
        ours.step({"segmentation": loss})  # flow has no state yet
    restored.load_state_dict(json.loads(json.dumps(ours.state_dict())))
    for weights in (ours, restored):
        weights.step({"segmentation": 0.1, "flow": 3.0})
    assert restored.state_dict() == ours.state_dict()
