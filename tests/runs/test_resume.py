"""Resumed runs end as if uninterrupted, and what would make another run is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtsp.config import ConfigError
from mtsp.training.checkpoint import storage
from mtsp.training.signals import StopSignals
from tests.runs.run_folders import command, rewound, rows, steps_saved
from tools.train import main

Train = Callable[..., dict[str, dict[str, float]]]
Outcome = Callable[[Path], Any]


def test_a_run_resumed_from_any_step_ends_as_if_uninterrupted(
    values: dict[str, Any], train: Train, outcome: Outcome, tmp_path: Path
) -> None:
    """Saved in the middle of a stage, at its end, and between two lines of the curves, whose averages span the stop."""
    values["train"] |= {"save_every": 1, "keep_last": 10}
    values["tracking"]["log_every"] = 2
    train(values, tmp_path / "whole")
    logged = [
        ("pull_to_gradient/segmentation" in row, "pull_to_gradient/flow" in row) for row in rows(tmp_path / "whole")
    ]
    assert [both for both in logged if any(both)] == [
        (True, False),
        (True, True),
        (True, False),
    ]  # who learns at 2, 4, 6
    for step in (1, 2, 3, 5):
        run_dir = rewound(tmp_path / "whole", step, tmp_path / f"from-{step}")
        train(values, run_dir, "auto")
        assert outcome(run_dir) == outcome(tmp_path / "whole"), step


def test_a_run_that_goes_back_and_is_stopped_goes_on_from_there_and_not_from_its_later_checkpoints(
    values: dict[str, Any], train: Train, outcome: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values["train"] |= {"save_every": 1, "keep_last": 10}
    run_dir = tmp_path / "run"
    train(values, run_dir)
    expected = outcome(run_dir)
    with monkeypatch.context() as patch:
        patch.setattr(StopSignals, "received", lambda signals: True)
        train(values, run_dir, str(run_dir / "checkpoints" / "step-00000002"))
    assert steps_saved(run_dir) == [1, 2, 3]
    aside = [path.name[-1] for path in (run_dir / "checkpoints").glob("before-going-back-step-*")]
    assert sorted(aside) == ["3", "4", "5", "6"]
    train(values, run_dir, "auto")
    assert outcome(run_dir) == expected  # the curves without a gap, too


def test_a_resumed_run_may_have_other_workers(
    whole: Path, config: Path, outcome: Outcome, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = rewound(whole, 4, tmp_path / "resumed")
    assert main(command(config, run_dir, "--resume", "auto", "train.workers=2")) == 0
    assert outcome(run_dir) == outcome(whole)
    assert "train.workers: now 2, was 0" in caplog.text


def test_a_finished_run_resumed_is_what_it_was(
    whole: Path, values: dict[str, Any], train: Train, outcome: Outcome
) -> None:
    before = outcome(whole)
    assert train(values, whole, "auto") == before[2]
    assert outcome(whole) == before


def test_resuming_where_nothing_is_saved_yet_begins_anew(
    whole: Path,
    values: dict[str, Any],
    train: Train,
    outcome: Outcome,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 0, "time": 1.0, "davis_val/J_mean": 0.5}\n')
    with pytest.raises(ValueError, match=r"there is no checkpoint in .*; use --resume auto to start a new run"):
        train(values, tmp_path / "run", "must")
    train(values, tmp_path / "run", "auto")
    assert "has curves but no checkpoint: THE RUN STARTS ANEW at step 1" in caplog.text
    assert outcome(tmp_path / "run") == outcome(whole)


def test_going_back_to_an_earlier_checkpoint_keeps_what_is_saved_then(
    values: dict[str, Any], train: Train, outcome: Outcome, tmp_path: Path
) -> None:
    values["train"] |= {"save_every": 1, "keep_last": 3}
    train(values, tmp_path / "run")
    before = outcome(tmp_path / "run")
    train(values, tmp_path / "run", str(tmp_path / "run" / "checkpoints" / "step-00000004"))
    assert outcome(tmp_path / "run") == before
    assert steps_saved(tmp_path / "run") == [4, 5, 6]


def test_a_truncated_newest_checkpoint_is_passed_over(
    whole: Path,
    values: dict[str, Any],
    train: Train,
    outcome: Outcome,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = outcome(whole)
    newest = whole / "checkpoints" / "step-00000006" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    train(values, whole, "auto")
    assert "step-00000006/model.safetensors is missing, truncated or changed" in caplog.text
    assert "trying the previous checkpoint" in caplog.text
    assert outcome(whole) == before


def test_when_no_checkpoint_is_whole_the_run_is_not_begun_anew(
    whole: Path, values: dict[str, Any], train: Train
) -> None:
    for path in storage.checkpoints(whole / "checkpoints"):
        (path / "state.json").unlink()
    with pytest.raises(ValueError, match=r"all checkpoints in .* are damaged"):
        train(values, whole, "auto")


def test_another_experiment_is_not_resumed(whole: Path, values: dict[str, Any], train: Train) -> None:
    values["optimizer"]["lr"] = 0.02
    values["train"]["clip"] = 1.0
    with pytest.raises(ConfigError) as error:
        train(values, whole, "auto")
    assert "belongs to another experiment" in str(error.value)
    assert "optimizer.lr: now 0.02, was 0.01" in str(error.value)
    assert "train.clip: now 1.0, was None" in str(error.value)


def test_a_folder_that_holds_a_run_takes_no_second_one(whole: Path, values: dict[str, Any], train: Train) -> None:
    with pytest.raises(ConfigError, match="contains a run; continue it with --resume auto"):
        train(values, whole)


def test_a_folder_in_use_is_refused(values: dict[str, Any], train: Train, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="is in use by another run; choose another --run-dir"):
            train(values, tmp_path / "run")


def test_a_resumed_run_continues_its_wandb_run(
    values: dict[str, Any], train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    values["train"] |= {"steps": 2, "save_every": 1}
    values["evaluation"] = {"data": [], "at_start": False}
    values["tracking"] |= {"trackers": ["wandb"], "mode": "offline"}
    train(values, tmp_path / "run")
    first = storage.load(tmp_path / "run" / "checkpoints" / "step-00000001").state["tracker"]["wandb_id"]
    resumed = rewound(tmp_path / "run", 1, tmp_path / "resumed")
    train(values, resumed, "auto")
    second = storage.load(resumed / "checkpoints" / "step-00000002").state["tracker"]["wandb_id"]
    assert first == second
    assert all(f"-{first}" in path.name for path in (resumed / "wandb").glob("offline-run-*"))
