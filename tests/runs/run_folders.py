"""Read, rewind and compare the folders of runs; start a run in another process."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mtsp.training.checkpoint import storage
from mtsp.training.signals import STOP
from tools.train import main


def rows(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def steps_saved(run_dir: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in storage.checkpoints(run_dir / "checkpoints")]


def rewound(run_dir: Path, step: int, to: Path) -> Path:
    """A copy of a run as it was just after the checkpoint of `step`."""
    shutil.copytree(run_dir, to)
    for name in ("weights.safetensors", "results.json"):
        (to / name).unlink(missing_ok=True)
    for path in storage.checkpoints(to / "checkpoints"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    return to


def same_but_for_rounding(run_dir: Path, whole: Path) -> None:
    """Float tolerance: sums over processes are taken in another order; SGD then carries the difference along."""
    weights, expected = (load_file(folder / "weights.safetensors") for folder in (run_dir, whole))
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: name + text)
    results, truth = (json.loads((folder / "results.json").read_text()) for folder in (run_dir, whole))
    for data, numbers in truth.items():
        assert results[data] == pytest.approx(numbers, rel=1e-3, abs=2e-3)


def command(config: Path, run_dir: Path, *more: str) -> list[str]:
    return ["--config", str(config), "--run-dir", str(run_dir), *more]


# Forked from a process that has imported everything, so that a test can start ten of them.


def _child(arguments: list[str], log: Path, environment: dict[str, str], prepare: Callable[[], None] | None) -> None:
    with log.open("a") as file:
        os.dup2(file.fileno(), 2)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)  # as the fork server has them blocked
    os.environ.update(environment)
    torch.set_num_threads(1)
    if prepare is not None:
        prepare()
    sys.exit(main(arguments))


class ChildProcess:
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
