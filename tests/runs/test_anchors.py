"""Fine-tuning with L2-SP: anchors come from their files, and the pull is the one of the formula."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from mtsp.files.tensors import write_tensors
from tests.runs.run_folders import rewound, rows

Train = Callable[..., dict[str, dict[str, float]]]
Outcome = Callable[[Path], Any]


@pytest.fixture
def anchored(whole: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Fine-tuning of the weights that the whole run left, with L2-SP."""
    for branch in values["branches"].values():
        branch["weights"] = str(whole / "weights.safetensors")
    values["branches"]["segmentation"]["alpha"] = 0.5
    values["regularizer"] = {"name": "l2sp", "alpha": 0.1, "beta": 0.01}
    values["train"] |= {"steps": 2, "save_every": 1, "stages": [{"steps": 1, "batch_size": {"davis": 1, "chairs": 1}}]}
    values["evaluation"] = {"data": [], "at_start": False}
    return values


def test_anchors_are_the_files_weights_and_the_pull_is_the_formulas(
    anchored: dict[str, Any],
    whole: Path,
    train: Train,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "mtsp")
    train(anchored, tmp_path / "run")
    start, end = (load_file(folder / "weights.safetensors") for folder in (whole, tmp_path / "run"))
    pulled = [name for name, value in start.items() if name.endswith("weight") and value.ndim == 4]
    penalty, distance = 0.0, {}
    for branch, alpha in (("segmentation", 0.5), ("flow", 0.1)):
        names = [name for name in pulled if name.startswith(branch)]
        moved = sum(float((end[name].double() - start[name].double()).square().sum()) for name in names)
        length = sum(float(start[name].double().square().sum()) for name in names)
        penalty += alpha / 2 * moved  # every weight has an anchor: beta plays no part
        distance[branch] = (moved / length) ** 0.5
    last = rows(tmp_path / "run")[-1]
    assert last["penalty"] == pytest.approx(penalty, rel=1e-9)
    assert last["penalty"] > 0
    for branch, expected in distance.items():
        assert last[f"distance/{branch}"] == pytest.approx(expected, rel=1e-9)
    # the rate of this step, not the full one: 0.1 / (lr * alpha)
    assert last["time_constant/segmentation"] == pytest.approx(0.1 / (last["lr/segmentation"] * 0.5))
    assert last["time_constant/flow"] == pytest.approx(0.1 / (last["lr/flow"] * 0.1))
    assert all(last[f"pull_to_gradient/{branch}"] > 0 for branch in distance)
    # steps to 1/e: (1 - momentum) / (lr * alpha) = 0.1 / (0.01 * 0.5) = 20 and 0.1 / (0.01 * 0.1) = 100
    printed = capsys.readouterr().err
    assert re.search(r"segmentation .* 20 *\n", printed)
    assert re.search(r"flow .* 100 *\n", printed)
    assert "weights in this network's own names" in caplog.text


def test_a_strong_anchor_holds_what_a_weak_one_lets_go(anchored: dict[str, Any], train: Train, tmp_path: Path) -> None:
    anchored["branches"]["segmentation"]["alpha"] = 20.0
    anchored["branches"]["flow"]["alpha"] = 0.0
    anchored["train"]["steps"] = 6
    train(anchored, tmp_path / "strong")
    anchored["branches"]["segmentation"]["alpha"] = 0.0
    train(anchored, tmp_path / "weak")
    strong, weak = (rows(tmp_path / name)[-1] for name in ("strong", "weak"))
    assert strong["distance/segmentation"] < 0.7 * weak["distance/segmentation"]


def test_anchors_are_taken_from_their_file_also_on_resume(
    anchored: dict[str, Any], whole: Path, train: Train, outcome: Outcome, tmp_path: Path
) -> None:
    train(anchored, tmp_path / "run")
    resumed = rewound(tmp_path / "run", 1, tmp_path / "resumed")
    train(anchored, resumed, "auto")
    assert outcome(resumed) == outcome(tmp_path / "run")
    weights = load_file(whole / "weights.safetensors")
    weights["flow.network.conv1.0.weight"][0, 0, 0, 0] += 1e-3
    write_tensors(whole / "weights.safetensors", weights)
    changed = rewound(tmp_path / "run", 1, tmp_path / "changed")
    with pytest.raises(ValueError, match="trained with anchors that differ from the branches' `weights`"):
        train(anchored, changed, "auto")
