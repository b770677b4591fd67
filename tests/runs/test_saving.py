"""A run saves and keeps the checkpoints that its config asks for, in a thread or not, and says when that fails."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtsp.training import loop as engine
from mtsp.training.checkpoint import atomic_save, storage
from tests.runs.run_folders import command, rows, steps_saved
from tools.train import main

Train = Callable[..., dict[str, dict[str, float]]]
Outcome = Callable[[Path], Any]


def test_a_run_that_waits_for_its_saves_ends_as_one_that_does_not(
    whole: Path, values: dict[str, Any], train: Train, outcome: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that saves by the clock, here after every step."""
    values["train"]["async_save"] = False
    train(values, tmp_path / "blocking")
    assert outcome(tmp_path / "blocking") == outcome(whole)
    values["train"] |= {"async_save": True, "save_every": {"seconds": 1e-9}, "keep_last": 9}
    train(values, tmp_path / "clock")
    assert steps_saved(tmp_path / "clock") == [1, 2, 3, 4, 5, 6]
    assert outcome(tmp_path / "clock") == outcome(whole)


def test_a_checkpoint_is_a_copy_of_its_step_however_late_it_is_written(
    values: dict[str, Any], train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that writes step 2 waits here until the training has done step 4."""
    values["train"] |= {"keep_last": 9}
    train(values, tmp_path / "whole")
    step, save, done = engine.optimizer_step, atomic_save.save, threading.Event()

    def counted(*arguments: Any, **keywords: Any) -> Any:
        result = step(*arguments, **keywords)
        if keywords["step"] == 4:
            done.set()
        return result

    def late(folder: Path, step: int, *arguments: Any, **keywords: Any) -> Path:
        assert step != 2 or done.wait(60)
        return save(folder, step, *arguments, **keywords)

    monkeypatch.setattr(engine, "optimizer_step", counted)
    monkeypatch.setattr(atomic_save, "save", late)
    train(values, tmp_path / "late")
    for number in (2, 4, 6):
        first, second = (
            storage.load(tmp_path / name / "checkpoints" / storage.name_of(number)) for name in ("whole", "late")
        )
        assert all((second.model[name] == tensor).all() for name, tensor in first.model.items())
        assert first.state["batches"] == second.state["batches"]


def test_a_save_that_fails_in_the_thread_ends_the_run_with_one_error(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic_save, "save_file", full)
    assert main(command(config, tmp_path / "run")) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "the checkpoint of step 2 was not written to" in line
    assert "No space left on device; it needs" in line


def test_the_best_checkpoint_and_the_one_before_a_spike_stay(
    values: dict[str, Any],
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The loss of step 6 is a million times larger: the weights after step 5 may be the cause, not those after 4."""
    step = engine.optimizer_step

    def spiking(*arguments: Any, **keywords: Any) -> Any:
        result = step(*arguments, **keywords)
        return result._replace(losses={"loss": result.losses["loss"] * (1e6 if keywords["step"] == 6 else 1)})

    monkeypatch.setattr(engine, "optimizer_step", spiking)
    values["train"] |= {"steps": 8, "save_every": 2, "keep_last": 1, "keep_every": 100}
    values["train"]["keep_best"] = {"metric": "chairs_val/epe", "goal": "max"}
    train(values, tmp_path / "run")
    validated = {row["step"]: row["chairs_val/epe"] for row in rows(tmp_path / "run") if "chairs_val/epe" in row}
    best = max(step for step in (3, 6) if validated[step] == max(validated[3], validated[6]))
    assert steps_saved(tmp_path / "run") == sorted({best, 4, 8})
    assert "LOSS SPIKE at step 6" in caplog.text
    assert "the checkpoint of step 4 is kept" in caplog.text
    assert storage.load(tmp_path / "run/checkpoints/step-00000008").state["before_spikes"] == [4]


def test_a_metric_that_no_validation_has_is_named(values: dict[str, Any], train: Train, tmp_path: Path) -> None:
    values["train"]["keep_best"] = {"metric": "davis_val/epe", "goal": "min"}
    with pytest.raises(ValueError, match=r"no davis_val/epe in this validation; it has davis_val/J_mean, "):
        train(values, tmp_path / "run")
    values["train"]["keep_best"]["metric"] = "other/epe"
    with pytest.raises(ValueError, match=r"other/epe is not of an entry of evaluation.data \(davis_val, chairs_val\)"):
        train(values, tmp_path / "run")
