"""TensorBoard's files, read back with its own reader."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtsp.config import ConfigError
from mtsp.tracking import tracker as tracking
from mtsp.tracking.metrics_file import read_metrics
from mtsp.tracking.tracker import Tracker, TrackingConfig

EXPERIMENT = {"name": "test", "seed": 0, "optim": {"lr": 0.1}}
FIGURE = np.zeros((4, 6, 3), np.uint8)


def opened(run_dir: Path, resume: Any = None, **config: Any) -> Tracker:
    return Tracker.open(TrackingConfig(**config), run_dir, EXPERIMENT, "test", resume)


def scalars(run_dir: Path) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("loss")]


def test_tensorboard_gets_numbers_and_figures_and_a_resumed_run_replaces_what_is_done_again(tmp_path: Path) -> None:
    first = opened(tmp_path, trackers=("tensorboard",))
    first.log(10, {"loss": 3})
    state = first.state(10)
    first.log(20, {"loss": 2})
    first.figures(20, {"val": FIGURE})
    first.close()
    second = opened(tmp_path, state, trackers=("tensorboard",))
    second.log(20, {"loss": 1})
    second.close()
    assert scalars(tmp_path) == [(10, 3), (20, 1)]


def test_tensorboard_that_is_not_installed_is_named_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install mtsp\[tensorboard\]"):
        opened(tmp_path, trackers=("tensorboard",))


def test_tensorboard_that_cannot_write_does_not_stop_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tensorboard").write_text("a file where the folder would be")
    tracker = opened(tmp_path, trackers=("tensorboard",))
    tracker.log(1, {"loss": 1})
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1]
    assert "tensorboard (files) FAILED" in caplog.text
