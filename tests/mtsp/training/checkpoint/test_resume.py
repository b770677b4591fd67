"""Settings that may change when a run is resumed, and those that may not."""

import copy
from typing import Any

import pytest

from mtsp.config import ConfigError, parse
from mtsp.training.checkpoint.resume import Difference, require_resumable
from tools.build import AnyExperiment


@pytest.fixture
def saved(values: dict[str, Any]) -> dict[str, Any]:
    values["branches"]["segmentation"]["weights"] = "imagenet"
    values["data"]["own"] = {"dataset": {"name": "folder", "frames": "a/frames", "masks": "a/masks"}}
    return parse(AnyExperiment, values).model_dump(mode="json")


def changed(saved: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    now = copy.deepcopy(saved)
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
        ("data.davis.cache", 1_000_000),
        ("tracking.log_every", 7),
        ("evaluation.data", ["davis_val"]),
        ("data.davis.dataset.root", "elsewhere/DAVIS"),
        ("data.own.dataset.frames", "b/frames"),
        ("data.own.dataset.masks", "b/masks"),
        ("branches.segmentation.weights", "elsewhere/weights.pth"),
    ],
)
def test_a_resumed_run_may_be_longer_or_read_its_files_elsewhere(saved: dict[str, Any], key: str, value: Any) -> None:
    was = saved
    for name in key.split("."):
        was = was[name]
    assert require_resumable(changed(saved, key, value), saved) == [Difference(tuple(key.split(".")), value, was)]


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
def test_a_resumed_run_with_anything_else_changed_is_another_run(saved: dict[str, Any], key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"another experiment; .*\n  {key}: now "):
        require_resumable(changed(changed(saved, key, value), "train.steps", 8), saved)


def test_the_same_experiment_has_no_differences(saved: dict[str, Any]) -> None:
    assert require_resumable(copy.deepcopy(saved), saved) == []
