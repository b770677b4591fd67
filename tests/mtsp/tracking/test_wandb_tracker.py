"""wandb: one run over resumes, offline when it cannot go online, and never in a run's way."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtsp.tracking import wandb_tracker
from mtsp.tracking.metrics_file import read_metrics
from mtsp.tracking.tracker import Tracker, TrackingConfig

EXPERIMENT = {"name": "test", "seed": 0, "optim": {"lr": 0.1}}
FIGURE = np.zeros((4, 6, 3), np.uint8)


def opened(run_dir: Path, resume: Any = None, **config: Any) -> Tracker:
    return Tracker.open(TrackingConfig(**config), run_dir, EXPERIMENT, "test", resume)


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import wandb

    home = tmp_path_factory.mktemp("home")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(home))
    monkeypatch.setattr(wandb_tracker, "_require_answer", lambda url: None)  # no test asks a server
    wandb.teardown()  # the client reads the environment once
    yield
    wandb.teardown()


def inspect(run_dir: Path, *options: str) -> list[Any]:
    """Return what wandb's own reader finds in each offline run, oldest first."""
    files = sorted(run_dir.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options]
    outputs = [subprocess.run([*command, str(file)], capture_output=True, text=True, check=True) for file in files]
    if options:
        return [json.loads(output.stdout) for output in outputs]
    return [[json.loads(line) for line in output.stdout.splitlines()] for output in outputs]


def test_wandb_offline_and_resumed_is_one_run_with_our_own_step(tmp_path: Path) -> None:
    first = opened(tmp_path, trackers=("wandb",), mode="offline", project="proof")
    first.log(50, {"loss": 3})
    first.figures(50, {"val": FIGURE})
    state = json.loads(json.dumps(first.state(50)))
    first.close()
    second = opened(tmp_path, state, trackers=("wandb",), mode="offline", project="proof")
    second.log(100, {"loss": 2})
    second.close()
    before, after = inspect(tmp_path, "--summary")
    assert before["run_id"] == after["run_id"] == state["wandb_id"]
    assert before["project"] == "proof"
    assert before["config"]["optim"] == {"lr": 0.1}
    assert (before["summary"]["global_step"], before["summary"]["loss"]) == (50, 3)
    assert before["summary"]["val"]["width"] == 6
    assert (after["summary"]["global_step"], after["summary"]["loss"]) == (100, 2)


def test_a_run_that_the_caller_has_open_is_left_open(tmp_path: Path) -> None:
    import wandb

    with wandb.init(mode="offline", dir=tmp_path) as theirs:
        ours = opened(tmp_path / "ours", trackers=("wandb",), mode="offline")
        ours.log(1, {"loss": 3})
        ours.close()
        theirs.log({"mine": 7})
        assert theirs.summary["mine"] == 7  # asks the service, which would have ended


def test_wandb_without_a_login_asks_nothing_and_goes_on_offline_after_one_line(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ask(url: str) -> None:
        raise AssertionError(f"{url} was asked")

    monkeypatch.setattr(wandb_tracker, "_require_answer", ask)
    caplog.set_level(logging.WARNING, "mtsp")
    tracker = opened(tmp_path, trackers=("wandb",))
    tracker.log(1, {"loss": 1})
    tracker.close()
    (summary,) = inspect(tmp_path, "--summary")
    assert summary["summary"]["loss"] == 1
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "mtsp"]
    assert warning.startswith("wandb: no login (`wandb login` stores one); the run is recorded offline in ")
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""  # wandb itself says nothing


def test_wandb_whose_server_does_not_answer_goes_on_offline_as_the_same_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What init does on a closed port, less its 12 s: it raises, and its service still holds the run's id, which a
    # second init in the process is then refused ("run ID abcd1234 is in use").
    import wandb

    init = wandb.init

    def unreachable(**options: Any) -> Any:
        if options["mode"] == "online":
            init(**options | {"mode": "offline", "dir": tmp_path / "held"})
            raise wandb.Error("connection refused")
        return init(**options)

    (tmp_path / "held").mkdir()
    monkeypatch.setattr(wandb, "login", lambda **options: True)
    monkeypatch.setattr(wandb, "init", unreachable)
    tracker = opened(tmp_path, {"step": 0, "wandb_id": "abcd1234"}, trackers=("wandb",))
    tracker.log(1, {"loss": 1})
    tracker.close()
    (summary,) = inspect(tmp_path, "--summary")
    assert (summary["run_id"], summary["summary"]["loss"]) == ("abcd1234", 1)
    assert "wandb (online) FAILED: connection refused" in caplog.text


def test_wandb_that_fails_in_the_middle_goes_on_offline_and_then_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    class Broken:
        """A run whose connection ends at its second line."""

        def __init__(self, mode: str) -> None:
            self.mode = mode
            self.lines = 0

        def define_metric(self, *names: str, **options: str) -> None:
            pass

        def log(self, values: dict[str, float]) -> None:
            self.lines += 1
            if self.lines > 1:
                raise BrokenPipeError(f"{self.mode} went away")

    monkeypatch.setattr(wandb, "login", lambda **options: True)
    monkeypatch.setattr(wandb, "init", lambda **options: Broken(options["mode"]))
    tracker = opened(tmp_path, trackers=("wandb",))
    for step in range(5):
        tracker.log(step, {"loss": 1})
    tracker.close()
    failures = [r.getMessage() for r in caplog.records if "FAILED" in r.getMessage()]
    assert len(failures) == 2
    assert "online went away; the run continues offline" in failures[0]
    assert "offline went away; the run continues without it" in failures[1]
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("config", "environment"), [("disabled", None), ("online", "disabled")])
def test_disabled_wandb_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str, environment: str | None
) -> None:
    if environment:
        monkeypatch.setenv("WANDB_MODE", environment)
    tracker = opened(tmp_path, trackers=("wandb",), mode=config)
    tracker.log(1, {"loss": 1})
    tracker.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
