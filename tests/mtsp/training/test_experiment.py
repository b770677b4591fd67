"""Experiments that are refused before anything is built."""

from typing import Any

import pytest

from mtsp.config import ConfigError, parse
from mtsp.distributed import processors
from mtsp.training.experiment import StageConfig, TrainConfig
from tools.build import AnyExperiment


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as error:
        parse(AnyExperiment, values)
    return str(error.value)


@pytest.mark.parametrize("key", ["alpha", "beta"])
def test_a_strength_without_a_regularizer_is_refused(values: dict[str, Any], key: str) -> None:
    values["branches"]["flow"][key] = 0.1
    assert parse(AnyExperiment, values).strengths()[key == "beta"]["flow"] == 0.1
    values["regularizer"] = {"name": "none"}
    assert f"branches.flow.{key}: ignored by regularizer none" in refusal(values)


def test_an_experiment_without_a_task_is_refused(values: dict[str, Any]) -> None:
    values["tasks"] = {}
    assert "tasks: there is nothing to learn; set one of segmentation, flow" in refusal(values)


def test_branches_that_are_all_frozen_are_refused_in_one_line(values: dict[str, Any]) -> None:
    values["train"]["stages"] = [{"steps": 1, "batch_size": {"davis": 1}}]
    values["branches"]["flow"]["freeze"] = True
    parse(AnyExperiment, values)  # the other one learns
    values["branches"]["segmentation"]["freeze"] = True
    said = refusal(values)
    assert "branches: all are frozen" in said
    assert len(said.splitlines()) == 1


def test_a_stage_in_which_no_branch_learns_is_refused(values: dict[str, Any]) -> None:
    values["train"]["stages"][1]["learn"] = []
    assert "train.stages.1.learn: names no branch" in refusal(values)


@pytest.mark.parametrize(
    ("available", "started", "expected"),
    [(2, "1", 1), (16, "1", 8), (16, "8", 1), (8, "2", 3), (1, "1", 0), (2, "4", 0)],  # 8 // 2 - 1 = 3; at most 8
)
def test_automatic_workers_leave_one_processor_for_training(
    monkeypatch: pytest.MonkeyPatch, available: int, started: str, expected: int
) -> None:
    monkeypatch.setattr(processors, "processors", lambda: available)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", started)
    train = TrainConfig(steps=1, stages=(StageConfig(steps=1, batch_size={"a": 1}),))
    assert train.workers == "auto"
    assert train.worker_count() == expected
    assert train.model_copy(update={"workers": 5}).worker_count() == 5
