"""Whole runs on synthetic data: they learn, they repeat, and they leave what they should."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mtsp.training.checkpoint import storage
from tests.runs.run_folders import command, rows, same_but_for_rounding, steps_saved
from tools.train import main

Train = Callable[..., dict[str, dict[str, float]]]
Outcome = Callable[[Path], Any]


def test_both_losses_fall(values: dict[str, Any], train: Train, tmp_path: Path) -> None:
    values["train"] |= {
        "steps": 16,
        "stages": [{"steps": 1, "batch_size": {"davis": 3, "chairs": 2}}],
        "save_every": 100,
    }
    values["data"]["davis"] |= {"augment": None}
    values["train"]["stages"][0]["batch_size"]["davis"] = 9  # every step sees every frame: the losses compare
    values["optimizer"] = {"name": "adam", "lr": 0.003}
    results = train(values, tmp_path / "run")
    curve = [row for row in rows(tmp_path / "run") if "train/loss" in row]
    for name in ("train/segmentation", "train/flow_multiscale"):
        first, last = (sum(row[name] for row in part) / 3 for part in (curve[:3], curve[-3:]))
        assert last < 0.8 * first, name
    before = next(row["chairs_val/epe"] for row in rows(tmp_path / "run") if "chairs_val/epe" in row)
    assert results["chairs_val"]["epe"] < before


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    whole: Path, values: dict[str, Any], train: Train, outcome: Outcome, tmp_path: Path
) -> None:
    train(values, tmp_path / "again")
    assert outcome(tmp_path / "again") == outcome(whole)
    train(values | {"seed": 4}, tmp_path / "other")
    assert outcome(tmp_path / "other")[0] != outcome(whole)[0]


def test_a_run_leaves_its_experiment_curves_weights_and_results(
    whole: Path, values: dict[str, Any], train: Train, outcome: Outcome, tmp_path: Path
) -> None:
    found = rows(whole)
    assert [row["step"] for row in found if "train/loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in found if "davis_val/J_mean" in row] == [0, 3, 6]
    assert found[-1].keys() >= {"chairs_val/epe"}
    assert steps_saved(whole) == [4, 6]
    last = storage.load(whole / "checkpoints" / "step-00000006")
    assert last.state["batches"] == {"davis:2": 4, "davis:1": 1, "chairs:2": 2}
    assert all(torch.equal(value, last.model[name]) for name, value in load_file(whole / "weights.safetensors").items())
    # The written experiment is a config that gives the same run.
    arguments = command(whole / "experiment.yaml", tmp_path / "again")
    assert main(arguments) == 0
    assert outcome(tmp_path / "again") == outcome(whole)


def test_accumulation_changes_the_memory_and_not_the_result(
    several: dict[str, Any], train: Train, tmp_path: Path
) -> None:
    train(several, tmp_path / "one")
    several["train"]["accumulate"] = 2
    train(several, tmp_path / "two")
    same_but_for_rounding(tmp_path / "two", tmp_path / "one")


def test_bf16_trains_weights_that_stay_float32(values: dict[str, Any], train: Train, tmp_path: Path) -> None:
    values["train"] |= {"precision": "bf16", "steps": 3}
    values["evaluation"]["every"] = None
    train(values, tmp_path / "bf16")
    train(values | {"train": values["train"] | {"precision": "fp32"}}, tmp_path / "fp32")
    found, expected = (load_file(tmp_path / name / "weights.safetensors") for name in ("bf16", "fp32"))
    assert {value.dtype for value in found.values()} <= {torch.float32, torch.int64, torch.bool}
    differences = [float((found[name] - expected[name]).abs().max()) for name in found if name.endswith("weight")]
    assert 0 < max(differences) < 0.1


def test_segflow_without_a_flow_branch_trains(values: dict[str, Any], train: Train, tmp_path: Path) -> None:
    values["model"] |= {"flow": None}
    values["branches"] = {"segmentation": {"freeze_norm": True}}
    values["data"] = {name: values["data"][name] for name in ("davis", "davis_val")}
    values["tasks"] = {"segmentation": {}}
    values["train"] |= {"steps": 2, "stages": [{"steps": 1, "batch_size": {"davis": 2}}]}
    values["evaluation"] = {"data": ["davis_val"]}
    results = train(values, tmp_path / "run")
    assert results.keys() == {"davis_val"}
    assert not any(name.startswith("flow.") for name in load_file(tmp_path / "run" / "weights.safetensors"))
