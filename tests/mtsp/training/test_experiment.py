"""What an experiment refuses before anything is built, and what a resumed run may have otherwise."""

import copy
from typing import Any

import pytest

from mtsp.config import ConfigError, parse
from mtsp.training.experiment import check_resumable
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
    assert "tasks: there is nothing to learn; give one of segmentation, flow" in refusal(values)


def test_branches_that_are_all_frozen_are_refused_in_one_line(values: dict[str, Any]) -> None:
    values["train"]["stages"] = [{"steps": 1, "batch_size": {"davis": 1}}]
    values["branches"]["flow"]["freeze"] = True
    parse(AnyExperiment, values)  # the other one learns
    values["branches"]["segmentation"]["freeze"] = True
    said = refusal(values)
    assert "branches: all of them are frozen" in said
    assert len(said.splitlines()) == 1


def test_a_stage_in_which_no_branch_learns_is_refused(values: dict[str, Any]) -> None:
    values["train"]["stages"][1]["learn"] = []
    assert "train.stages.1.learn: names no branch" in refusal(values)


@pytest.fixture
def then(values: dict[str, Any]) -> dict[str, Any]:
    values["branches"]["segmentation"]["weights"] = "imagenet"
    values["data"]["own"] = {"dataset": {"name": "folder", "frames": "a/frames", "masks": "a/masks"}}
    return parse(AnyExperiment, values).model_dump(mode="json")


def changed(then: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    now = copy.deepcopy(then)
    *sections, last = key.split(".")
    section = now
    for name in sections:
        section = section[name]
    section[last] = value
    return now


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.steps", 8),
        ("train.workers", 1),
        ("tracking.log_every", 7),
        ("evaluation.data", ["davis_val"]),
        ("data.davis.dataset.root", "elsewhere/DAVIS"),
        ("data.own.dataset.frames", "b/frames"),
        ("data.own.dataset.masks", "b/masks"),
        ("branches.segmentation.weights", "elsewhere/weights.pth"),
    ],
)
def test_a_resumed_run_may_be_longer_or_read_its_files_elsewhere(then: dict[str, Any], key: str, value: Any) -> None:
    was = then
    for name in key.split("."):
        was = was[name]
    assert check_resumable(changed(then, key, value), then) == [f"{key}: now {value!r}, was {was!r}"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.stepsize", 8),  # begins as a key that may change
        ("tracking_more", {"log_every": 7}),
        ("train.clip", 1.0),
        ("data.davis.dataset.split", "val"),
        ("data.davis.dataset.rooted", "x"),
        ("data.davis.augment", None),
        ("data.own.dataset.masks", None),  # no labels is no other place
        ("data.own.dataset.masks", "a/masks_corrected"),  # another name may be other labels
        ("branches.segmentation.weights", None),
        ("branches.flow.weights", "weights.pth"),
        ("branches.flow.lr", 0.5),
        ("model.width", 16),
    ],
)
def test_a_resumed_run_with_anything_else_changed_is_another_run(then: dict[str, Any], key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"another experiment; .*\n  {key}: now "):
        check_resumable(changed(changed(then, key, value), "train.steps", 8), then)


def test_the_same_experiment_has_no_differences(then: dict[str, Any]) -> None:
    assert check_resumable(copy.deepcopy(then), then) == []
