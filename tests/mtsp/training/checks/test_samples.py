"""Samples that are suspicious together."""

from types import SimpleNamespace
from typing import Any

import pytest

from mtsp.config import ConfigError
from mtsp.training.checks.classes import align_classes
from mtsp.training.checks.samples import same_samples

ONE = {"samples": 2, "ids": "aa", "sizes and labels": "bb"}


def experiment(*evaluated: str) -> Any:
    return SimpleNamespace(
        evaluation=SimpleNamespace(data=evaluated),
        train=SimpleNamespace(entries=["train"]),
        model=SimpleNamespace(classes=1),
    )


def test_validation_on_the_training_samples_is_told() -> None:
    found = {"train": ONE, "val": dict(ONE), "other": ONE | {"ids": "cc"}}
    assert same_samples(experiment("val", "other", "train"), found) == [
        "data.val has the same samples as data.train, which the run trains on: its values are of training data"
    ]


def test_a_single_class_is_refused() -> None:
    data: Any = {"train": SimpleNamespace(classes=("cat",), kind="labels")}
    with pytest.raises(ConfigError, match=r"data\.train has one class, cat: every prediction is right"):
        align_classes(experiment(), data)
