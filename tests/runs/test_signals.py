"""Nothing that stops a run, from Ctrl-C to a kill in the middle of a save, changes where it ends."""

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mtsp import tasks
from mtsp.command_line import STOPPED
from mtsp.training.checkpoint import atomic_save
from mtsp.training.signals import STOP
from tests.runs.run_folders import ChildProcess, command, steps_saved
from tools.train import main

Outcome = Callable[[Path], Any]


def signals_at(monkeypatch: pytest.MonkeyPatch, batch: int, number: int) -> None:
    """Send this process a signal while it collates its `batch`th batch."""
    collate, count = tasks.collate, 0

    def collate_and_signal(samples: Any) -> Any:
        nonlocal count
        count += 1
        if count == batch:
            os.kill(os.getpid(), number)
        return collate(samples)

    monkeypatch.setattr(tasks, "collate", collate_and_signal)


@pytest.mark.parametrize("number", STOP)
def test_a_signal_saves_and_ends_the_run_which_then_goes_on(
    number: signal.Signals,
    whole: Path,
    config: Path,
    outcome: Outcome,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    run_dir = tmp_path / "run"
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("the tests run under nohup, which a run obeys")
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        signals_at(patch, 3, number)  # step 3 of 6: nothing would be saved here
        assert main(command(config, run_dir)) == STOPPED
    assert steps_saved(run_dir) == [2, 3]
    assert not (run_dir / "results.json").exists()
    assert f"{number.name}: saving and stopping after this step" in capsys.readouterr().err
    assert "stopped and saved at step 3 of 6; continue with --resume auto" in caplog.text
    assert signal.getsignal(number) == before
    assert main(command(config, run_dir, "--resume", "auto")) == 0
    assert outcome(run_dir) == outcome(whole)


class SignalRepeatedly:
    """All signals of `STOP` and Ctrl-C again, at once, as a launcher repeats them; then Ctrl-C `patience` s later."""

    def __init__(self, patience: float | None = None) -> None:
        self.patience = patience

    def __call__(self) -> None:
        collate = tasks.collate

        def collate_and_signal(samples: Any) -> Any:
            for number in (*STOP, signal.SIGINT):
                os.kill(os.getpid(), number)
            if self.patience is not None:
                time.monotonic = lambda real=time.monotonic: real() + (self.patience or 0)
                os.kill(os.getpid(), signal.SIGINT)
            return collate(samples)

        tasks.collate = collate_and_signal


def test_repeated_signals_are_one_request(config: Path, tmp_path: Path) -> None:
    run = ChildProcess(command(config, tmp_path / "run"), tmp_path / "log", prepare=SignalRepeatedly())
    assert run.ended() == STOPPED
    assert steps_saved(tmp_path / "run") == [1]


def test_ctrl_c_some_seconds_after_the_first_signal_ends_the_process_at_once(config: Path, tmp_path: Path) -> None:
    run = ChildProcess(command(config, tmp_path / "run"), tmp_path / "log", prepare=SignalRepeatedly(6.0))
    assert run.ended() == 128 + signal.SIGINT
    assert steps_saved(tmp_path / "run") == []


@pytest.mark.parametrize(("example", "step"), [(1, 0), (5, 3), (9, 6)])  # an evaluation has four examples
def test_a_signal_in_an_evaluation_is_heard_at_once(
    example: int,
    step: int,
    whole: Path,
    config: Path,
    outcome: Outcome,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mtsp.evaluation import evaluate as evaluation

    batches, count = evaluation._batches, 0

    def batches_and_signal(*arguments: Any) -> Any:
        nonlocal count
        for batch in batches(*arguments):
            assert count < example, "the evaluation went on"
            count += 1
            if count == example:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "_batches", batches_and_signal)
        assert main(command(config, tmp_path / "run")) == STOPPED
    assert steps_saved(tmp_path / "run")[-1] == step
    assert main(command(config, tmp_path / "run", "--resume", "must")) == 0
    assert outcome(tmp_path / "run")[:2] == outcome(whole)[:2]


def test_worker_processes_outlive_the_signals_that_a_terminal_sends_to_all(
    whole: Path, config: Path, outcome: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step that is under way, and the one after it, still need their samples."""
    from mtsp.training import loop as engine

    step = engine.optimizer_step

    def step_and_signal(*arguments: Any, **keywords: Any) -> Any:
        workers = multiprocessing.active_children()
        assert workers
        for worker in workers:
            for number in STOP:
                os.kill(worker.pid or 0, number)
        return step(*arguments, **keywords)

    monkeypatch.setattr(engine, "optimizer_step", step_and_signal)
    assert main(command(config, tmp_path / "run", "train.workers=1")) == 0
    assert outcome(tmp_path / "run") == outcome(whole)
    assert not multiprocessing.active_children()


class KillAt:
    """SIGKILL to itself before the n-th time it does one of the things that a save, or a line of the curves, is made
    of: writing, syncing, renaming, deleting.
    """

    def __init__(self, moment: int) -> None:
        self.moment = moment

    def __call__(self) -> None:
        from mtsp.tracking.tracker import Tracker

        for owner, name in (
            (atomic_save, "save_file"),
            (atomic_save, "hash_of"),
            (atomic_save, "sync"),
            (Path, "rename"),
            (Path, "write_text"),
            (shutil, "rmtree"),
            (torch, "save"),
            (Tracker, "log"),
        ):
            setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            self.moment -= 1
            if self.moment == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return call


def test_killed_at_every_kind_of_moment_a_run_ends_as_if_uninterrupted(
    whole: Path, config: Path, outcome: Outcome, tmp_path: Path
) -> None:
    """Each kill is some of these actions after the resume: before, in and after a save, while the run gets on."""
    run_dir, log, saved = tmp_path / "run", tmp_path / "log", []
    arguments = command(config, run_dir, "--resume", "auto", "train.save_every=1", "train.keep_last=1")
    for moment in (7, 14, 17, 20, 23, 25):
        assert ChildProcess(arguments, log, prepare=KillAt(moment)).ended() == -signal.SIGKILL
        saved.append(max(steps_saved(run_dir), default=0))
    assert saved == sorted(saved)
    assert saved[-1] > 2
    assert ChildProcess(arguments, log).ended() == 0
    assert outcome(run_dir) == outcome(whole)
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step-00000006"]
