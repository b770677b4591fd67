"""Whole runs on synthetic data: they learn, they repeat, and nothing that stops them changes where they end."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mtsp.config import ConfigError
from mtsp.files.tensors import write_tensors
from mtsp.training import checkpoint
from mtsp.training import run as training_run
from tools.build import run_or_say_why
from tools.train import main

Train = Callable[..., dict[str, dict[str, float]]]
Outcome = Callable[[Path], Any]
ROOT = Path(__file__).resolve().parents[2]


def rows(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def steps_saved(run_dir: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoint.checkpoints(run_dir / "checkpoints")]


def rewound(run_dir: Path, step: int, to: Path) -> Path:
    """A copy of a run as it was just after the checkpoint of `step`."""
    shutil.copytree(run_dir, to)
    for name in ("weights.safetensors", "results.json"):
        (to / name).unlink(missing_ok=True)
    for path in checkpoint.checkpoints(to / "checkpoints"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    return to


@pytest.fixture
def whole(values: dict[str, Any], train: Train, tmp_path: Path) -> Path:
    """An uninterrupted run of the experiment."""
    train(values, tmp_path / "whole")
    return tmp_path / "whole"


# In other processes: forked from one that has imported everything, so that a test may start ten of them.


def _child(arguments: list[str], log: Path, environment: dict[str, str], prepare: Callable[[], None] | None) -> None:
    with log.open("a") as file:
        os.dup2(file.fileno(), 2)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})  # as the fork server has them blocked
    os.environ.update(environment)
    torch.set_num_threads(1)
    if prepare is not None:
        prepare()
    sys.exit(run_or_say_why(partial(main, arguments)))


class Started:
    """A run in a process of its own; `log` is its stderr."""

    def __init__(
        self,
        arguments: list[str],
        log: Path,
        environment: dict[str, str] | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        self.log = log
        self.process = context.Process(target=_child, args=(arguments, log, environment or {}, prepare))
        self.process.start()

    def ended(self) -> int:
        """The exit code; of a signal, its negative number."""
        self.process.join(120)
        if self.process.exitcode is None:
            self.process.kill()
            pytest.fail(f"still running after two minutes: {self.log.read_text()}")
        return self.process.exitcode


def command(config: Path, run_dir: Path, *more: str) -> list[str]:
    return ["--config", str(config), "--run-dir", str(run_dir), *more]


# Learning


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
    last = checkpoint.load(whole / "checkpoints" / "step-00000006")
    assert last.state["batches"] == {"davis:2": 4, "davis:1": 1, "chairs:2": 2}
    assert all(torch.equal(value, last.model[name]) for name, value in load_file(whole / "weights.safetensors").items())
    # The written experiment is a config that gives the same run.
    arguments = command(whole / "experiment.yaml", tmp_path / "again")
    assert main(arguments) == 0
    assert outcome(tmp_path / "again") == outcome(whole)


# Resuming


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
    whole: Path, values: dict[str, Any], train: Train, outcome: Outcome, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 0, "time": 1.0, "davis_val/J_mean": 0.5}\n')
    train(values, tmp_path / "run", "auto")
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
    assert "trying the one before" in caplog.text
    assert outcome(whole) == before


def test_when_no_checkpoint_is_whole_the_run_is_not_begun_anew(
    whole: Path, values: dict[str, Any], train: Train
) -> None:
    for path in checkpoint.checkpoints(whole / "checkpoints"):
        (path / "state.json").unlink()
    with pytest.raises(ValueError, match=r"none of the checkpoints in .* is whole"):
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
    with pytest.raises(ConfigError, match="holds a run already; go on with --resume auto"):
        train(values, whole)


def test_a_folder_in_use_is_refused(values: dict[str, Any], train: Train, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="is in use by another run; choose another --run-dir"):
            train(values, tmp_path / "run")


# Signals


def signals_at(monkeypatch: pytest.MonkeyPatch, batch: int, number: int) -> None:
    """Send this process a signal while it collates its `batch`th batch."""
    collate, count = training_run.collate, 0

    def collate_and_signal(samples: Any) -> Any:
        nonlocal count
        count += 1
        if count == batch:
            os.kill(os.getpid(), number)
        return collate(samples)

    monkeypatch.setattr(training_run, "collate", collate_and_signal)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_the_run_which_then_goes_on(
    number: int,
    whole: Path,
    config: Path,
    outcome: Outcome,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    run_dir = tmp_path / "run"
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        signals_at(patch, 3, number)  # step 3 of 6: nothing would be saved here
        assert main(command(config, run_dir)) == 0
    assert steps_saved(run_dir) == [2, 3]
    assert not (run_dir / "results.json").exists()
    assert "stopping after this step; once more to stop at once" in capsys.readouterr().err
    assert "stopped and saved at step 3 of 6; go on with --resume auto" in caplog.text
    assert signal.getsignal(number) == before
    assert main(command(config, run_dir, "--resume", "auto")) == 0
    assert outcome(run_dir) == outcome(whole)


def signal_twice() -> None:
    collate = training_run.collate

    def collate_and_signal(samples: Any) -> Any:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        return collate(samples)

    training_run.collate = collate_and_signal


def test_a_second_signal_ends_the_process_at_once(config: Path, tmp_path: Path) -> None:
    run = Started(command(config, tmp_path / "run"), tmp_path / "log", prepare=signal_twice)
    assert run.ended() == 128 + signal.SIGTERM
    assert steps_saved(tmp_path / "run") == []


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
            for number in (signal.SIGINT, signal.SIGTERM):
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
            (checkpoint, "save_file"),
            (checkpoint, "_hash"),
            (checkpoint, "sync"),
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
        assert Started(arguments, log, prepare=KillAt(moment)).ended() == -signal.SIGKILL
        saved.append(max(steps_saved(run_dir), default=0))
    assert saved == sorted(saved)
    assert saved[-1] > 2
    assert Started(arguments, log).ended() == 0
    assert outcome(run_dir) == outcome(whole)
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step-00000006"]


# Several processes


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def same_but_for_rounding(run_dir: Path, whole: Path) -> None:
    """Float tolerance: sums over processes are taken in another order; SGD then carries the difference along."""
    weights, expected = (load_file(folder / "weights.safetensors") for folder in (run_dir, whole))
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: name + text)
    results, truth = (json.loads((folder / "results.json").read_text()) for folder in (run_dir, whole))
    for data, numbers in truth.items():
        assert results[data] == pytest.approx(numbers, rel=1e-3, abs=2e-3)


@pytest.fixture
def several(values: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The experiment with every kind of stage, and no batch statistics: these are of a process's share of a batch."""
    values["model"]["encoder"] = "tu-test_convnext"
    values["train"]["stages"] = [
        {"steps": 1, "batch_size": {"davis": 2}, "learn": ["segmentation"]},
        {"steps": 1, "batch_size": {"chairs": 2}},  # reaches no segmentation head, though that may learn
        {"steps": 1, "batch_size": {"davis": 2, "chairs": 2}},
    ]
    (tmp_path / "several.yaml").write_text(json.dumps(values))
    return values


def test_two_processes_end_as_one(several: dict[str, Any], train: Train, tmp_path: Path) -> None:
    train(several, tmp_path / "one")
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"ACCELERATE_USE_CPU": "true"}  # what torchrun sets, and what the user must
    arguments = command(tmp_path / "several.yaml", tmp_path / "two")
    ranks = [
        Started(arguments, tmp_path / f"log-{rank}", shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    assert [rank.ended() for rank in ranks] == [0, 0], "\n".join(rank.log.read_text() for rank in ranks)
    same_but_for_rounding(tmp_path / "two", tmp_path / "one")
    found, expected = rows(tmp_path / "two"), rows(tmp_path / "one")
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for row, truth in zip(found, expected, strict=True):
        assert row.keys() == truth.keys()
        for name in ("train/loss", "train/flow", "train/segmentation"):
            assert row.get(name, 0.0) == pytest.approx(truth.get(name, 0.0), rel=1e-3)
    state = checkpoint.load(tmp_path / "two" / "checkpoints" / "step-00000006").state
    assert state["processes"] == 2


def test_two_nodes_of_one_process_end_as_one_process(several: dict[str, Any], train: Train, tmp_path: Path) -> None:
    several["train"] |= {"steps": 3}
    several["evaluation"]["every"] = None
    (tmp_path / "several.yaml").write_text(json.dumps(several))
    train(several, tmp_path / "one")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    launcher += ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    program = [str(ROOT / "tools" / "train.py"), *command(tmp_path / "several.yaml", tmp_path / "two")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    logs = [tmp_path / f"node-{rank}" for rank in range(2)]
    nodes = [
        subprocess.Popen(
            [*launcher, "--node-rank", str(rank), *program], env=environment, cwd=ROOT, stderr=log.open("w")
        )
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [node.wait(200) for node in nodes]  # of the launcher, which hands on what became of its process
    finally:
        for node in nodes:  # one that still waits for the other; a launcher that is terminated ends its process, too
            node.terminate()
        for node in nodes:
            node.wait(60)
    assert codes == [0, 0], "\n".join(log.read_text() for log in logs)
    same_but_for_rounding(tmp_path / "two", tmp_path / "one")


def test_processes_that_did_not_find_each_other_are_refused(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `torchrun --nproc_per_node 2` starts them, without ACCELERATE_USE_CPU on a machine without GPU."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run_or_say_why(partial(main, command(config, tmp_path / "run"))) == 1
    assert "error: 2 processes were started, but this one is 1 of 1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# Ways to compute a step


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


# Anchors


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
    assert "weights that mtsp saved" in caplog.text


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
    with pytest.raises(ValueError, match="trained towards other anchors than the branches' `weights` give now"):
        train(anchored, changed, "auto")


# Tracking


def test_a_resumed_run_continues_its_wandb_run(
    values: dict[str, Any], train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    values["train"] |= {"steps": 2, "save_every": 1}
    values["evaluation"] = {"data": [], "at_start": False}
    values["tracking"] |= {"trackers": ["wandb"], "mode": "offline"}
    train(values, tmp_path / "run")
    first = checkpoint.load(tmp_path / "run" / "checkpoints" / "step-00000001").state["tracker"]["wandb_id"]
    resumed = rewound(tmp_path / "run", 1, tmp_path / "resumed")
    train(values, resumed, "auto")
    second = checkpoint.load(resumed / "checkpoints" / "step-00000002").state["tracker"]["wandb_id"]
    assert first == second
    assert all(f"-{first}" in path.name for path in (resumed / "wandb").glob("offline-run-*"))
