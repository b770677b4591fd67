"""`python -m mtsp.training.checkpoint` lists, verifies and exports."""

import json
from pathlib import Path

import pytest
import torch

from mtsp.files.tensors import read_tensors
from mtsp.training.checkpoint import atomic_save
from mtsp.training.checkpoint.__main__ import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints of steps 5 and 10; its weights are their steps, and their averages 1 less."""
    for step in (5, 10):
        weights = {"weight": torch.full((2,), float(step)), "count": torch.tensor(step)}
        ema = {"updates": step, "averages": weights | {"weight": weights["weight"] - 1}}
        state = {"step": step, "classes": ["dog", "cat"]}
        atomic_save.save(tmp_path / "checkpoints", step, weights, {}, state, keep_last=2, ema=ema)
    rows = [{"step": 10, "time": 1.0, "train/loss": 0.25, "lr/a": 1.0}, {"step": 10, "time": 2.0, "val/miou": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_the_list_shows_size_loss_and_headlines(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", str(run)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["step-00000005", "0.0", "MiB"]
    assert second.endswith("MiB  train/loss 0.25  val/miou 0.5")


def test_verify_finds_the_damaged_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(run)]) == 0
    (run / "checkpoints/step-00000010/ema.pt").write_bytes(b"")
    assert main(["verify", str(run)]) == 1
    whole, damaged = capsys.readouterr().out.splitlines()[2:]
    assert (whole.split()[0], damaged.split()[0]) == ("whole", "DAMAGED")
    assert "step-00000010/ema.pt is missing, truncated or changed" in damaged


@pytest.mark.parametrize(("more", "value"), [((), 9.0), (("--step", "5"), 4.0)])
def test_the_averaged_weights_are_exported_with_the_classes(run: Path, more: tuple[str, ...], value: float) -> None:
    assert main(["export", str(run), "--out", str(run / "out.safetensors"), *more]) == 0
    weights, notes = read_tensors(run / "out.safetensors")
    assert weights["weight"].tolist() == [value, value]
    assert weights["count"].item() == value + 1
    assert json.loads(notes["classes"]) == ["dog", "cat"]


def test_what_is_not_there_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--step", "7", "--out", "x"]) == 1
    assert main(["list", str(run / "other")]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert "step-00000007 is not a complete checkpoint" in first
    assert "error: there is no checkpoint in" in second
