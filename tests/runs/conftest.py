"""Runs that several files test."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Train = Callable[..., dict[str, dict[str, float]]]


@pytest.fixture
def whole(values: dict[str, Any], train: Train, tmp_path: Path) -> Path:
    """An uninterrupted run of the experiment."""
    train(values, tmp_path / "whole")
    return tmp_path / "whole"


@pytest.fixture
def several(values: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The experiment with every kind of stage, weights of tasks that are learned, and no batch statistics: these are of
    a process's share of a batch.
    """
    values["model"]["encoder"] = "tu-test_convnext"
    values["train"]["stages"] = [
        {"steps": 1, "batch_size": {"davis": 2}, "learn": ["segmentation"]},
        {"steps": 1, "batch_size": {"chairs": 2}},  # reaches no segmentation head, though that may learn
        {"steps": 1, "batch_size": {"davis": 2, "chairs": 2}},
    ]
    values["train"]["task_weights"] = {"lr": 0.1}
    (tmp_path / "several.yaml").write_text(json.dumps(values))
    return values
