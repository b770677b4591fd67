"""Optimizers, rates and frozen modules as a config names them, in whole runs from pretrained weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mtsp.config import ConfigError, parse
from mtsp.files.tensors import write_tensors
from mtsp.optim.groups import longest_prefix
from tests.runs.run_folders import rewound, rows
from tools.build import AnyExperiment, build_network

Train = Callable[..., dict[str, dict[str, float]]]
Outcome = Callable[[Path], Any]


@pytest.fixture
def pretrained(values: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """SegFlow from a file of weights, two steps on both data sets, nothing measured."""
    torch.manual_seed(0)
    weights = parse(AnyExperiment, values).model.build().state_dict()
    write_tensors(tmp_path / "start.safetensors", dict(weights))
    for branch in values["branches"].values():
        branch["weights"] = str(tmp_path / "start.safetensors")
    values["regularizer"] = {"name": "l2sp", "alpha": 0.1, "beta": 0.01}
    values["train"] |= {"steps": 2, "save_every": 1, "stages": [{"steps": 1, "batch_size": {"davis": 1, "chairs": 1}}]}
    values["evaluation"] = {"data": [], "at_start": False}
    return values


@pytest.mark.parametrize("name", ["adamw", "muon", "lion", "lamb"])
def test_each_optimizer_trains_anchored_and_resumes(
    name: str, pretrained: dict[str, Any], train: Train, outcome: Outcome, tmp_path: Path
) -> None:
    """Decoupled, so the steps to 1/e are 1 / (lr * alpha), at the rate of the step."""
    pretrained["optimizer"] = {"name": name, "lr": 1e-3}
    train(pretrained, tmp_path / "run")
    last = rows(tmp_path / "run")[-1]
    assert last["time_constant/flow"] == pytest.approx(1 / (last["lr/flow"] * 0.1))
    resumed = rewound(tmp_path / "run", 1, tmp_path / "resumed")
    train(pretrained, resumed, "auto")
    assert outcome(resumed) == outcome(tmp_path / "run")


def test_a_module_is_frozen_in_a_branch_that_learns_and_learns_in_one_that_is_frozen(
    pretrained: dict[str, Any], train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrained["branches"]["flow"]["modules"] = {"network.conv1": {"freeze": True}, "network.conv2": {"lr": 2e-3}}
    pretrained["branches"]["segmentation"] |= {
        "freeze": True,
        "modules": {"encoder.model.conv_stem": {"freeze": False}},
    }
    train(pretrained, tmp_path / "run")
    start, end = load_file(tmp_path / "start.safetensors"), load_file(tmp_path / "run" / "weights.safetensors")
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    assert {name for name in moved if name.startswith("segmentation.")} == {
        "segmentation.encoder.model.conv_stem.weight"
    }
    assert not any(name.startswith("flow.network.conv1.") for name in moved)
    assert {"flow.network.conv2.0.weight", "flow.network.conv3.0.weight"} <= moved
    printed = capsys.readouterr().err
    assert "flow.network.conv1 (frozen)" in printed
    assert "segmentation (frozen)" in printed
    last = rows(tmp_path / "run")[-1]
    assert last["lr/flow.network.conv2"] == pytest.approx(0.2 * last["lr/flow"])


def test_layer_decay_gives_every_depth_the_pace_that_was_set(pretrained: dict[str, Any]) -> None:
    """Coupled SGD: fraction = lr * alpha / (1 - momentum) = 1 / 40 of the distance, whatever the depth's rate."""
    pretrained["branches"]["flow"]["layer_decay"] = 0.8
    pretrained["regularizer"]["alpha"] = {"time_constant": 40}
    experiment = parse(AnyExperiment, pretrained)
    network = build_network(experiment)
    scales = experiment.lr_scales(network.model, network.anchors)
    alpha, _ = experiment.strengths(scales)
    assert len(set(scales.values())) > 5
    assert {name.partition(".")[0] for name in scales} == {"flow"}
    for name in network.anchors:
        prefix = longest_prefix(name, alpha)
        assert prefix is not None
        assert 0.01 * scales.get(name, 1.0) * alpha[prefix] / 0.1 == pytest.approx(1 / 40)


def test_a_frozen_branch_shows_no_pull(pretrained: dict[str, Any], train: Train, tmp_path: Path) -> None:
    pretrained["branches"]["flow"]["freeze"] = True
    train(pretrained, tmp_path / "run")
    last = rows(tmp_path / "run")[-1]
    assert last["distance/flow"] == 0
    assert not {"time_constant/flow", "pull_to_gradient/flow"} & last.keys()
    assert last["time_constant/segmentation"] > 0


def test_weights_of_tasks_are_learned_from_each_step_and_resumed(
    values: dict[str, Any], train: Train, outcome: Outcome, tmp_path: Path
) -> None:
    """Stages of masks (2 steps), of flow (1) and of both, so that step 4 is the first in which both are learned."""
    values["train"]["task_weights"] = {"lr": 0.1}
    train(values, tmp_path / "run")
    curves = {task: [row[f"task_weight/{task}"] for row in rows(tmp_path / "run") if f"task_weight/{task}" in row]
              for task in ("segmentation", "flow")}  # fmt: skip
    assert curves["flow"][:2] == [1.0, 1.0]
    assert curves["flow"][2] != 1.0
    assert curves["segmentation"][1] == curves["segmentation"][2] != curves["segmentation"][3]
    resumed = rewound(tmp_path / "run", 4, tmp_path / "resumed")
    train(values, resumed, "auto")
    assert outcome(resumed) == outcome(tmp_path / "run")


def test_weights_of_a_single_task_are_refused(values: dict[str, Any]) -> None:
    del values["tasks"]["flow"]
    values["train"]["task_weights"] = {}
    with pytest.raises(ConfigError, match=r"train\.task_weights: weighs tasks against each other, and there is one"):
        parse(AnyExperiment, values)
