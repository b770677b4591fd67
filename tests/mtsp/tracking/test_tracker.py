import json
import math
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mtsp.config import ConfigError, parse
from mtsp.tracking.metrics_file import MetricsFile, read_metrics
from mtsp.tracking.tracker import Tracker, TrackingConfig

EXPERIMENT = {"name": "test", "seed": 0, "optim": {"lr": 0.1}}
FIGURE = np.zeros((4, 6, 3), np.uint8)


def opened(run_dir: Path, resume: Any = None, **config: Any) -> Tracker:
    return Tracker.open(TrackingConfig(**config), run_dir, EXPERIMENT, "test", resume)


def steps(run_dir: Path) -> list[float]:
    return [row["step"] for row in read_metrics(run_dir / "metrics.jsonl")]


def test_a_line_has_the_step_the_time_and_the_values(tmp_path: Path) -> None:
    tracker = opened(tmp_path)
    tracker.log(3, {"loss": 0.5, "val/davis/J_mean": 1})
    # Read before the file is closed: a kill after log() loses nothing.
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert row.pop("time") > 1.7e9
    assert row == {"step": 3, "loss": 0.5, "val/davis/J_mean": 1.0}
    tracker.close()


def test_what_json_cannot_hold_is_null_and_read_as_nan(tmp_path: Path) -> None:
    tracker = opened(tmp_path)
    tracker.log(1, {"a": math.nan, "b": math.inf, "c": 2.0})
    tracker.close()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert (row["a"], row["b"], row["c"]) == (None, None, 2.0)
    (read,) = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(read["a"])


def test_a_resumed_run_leaves_one_curve(tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.log(10, {"loss": 3})
    first.log(20, {"loss": 2})
    state = json.loads(json.dumps(first.state(20)))
    first.log(20, {"val/J": 0.5})  # of the checkpoint's own step: kept
    first.log(30, {"loss": 1})  # after it: done again by the resumed run
    second = opened(tmp_path, state)
    second.log(30, {"loss": 1.5})
    second.close()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row.get("loss")) for row in rows] == [(10, 3), (20, 2), (20, None), (30, 1.5)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_what_a_resumed_run_logs_again_for_the_step_of_its_checkpoint_is_dropped(tmp_path: Path) -> None:
    first = opened(tmp_path)
    for step, values in ((10, {"val/J": 0.4}), (20, {"loss": 2.0}), (20, {"val/J": 0.5})):
        first.log(step, values)
    Tracker.open(TrackingConfig(), tmp_path, EXPERIMENT, "test", first.state(20), ("val/", "other/")).close()
    assert [(row["step"], row.get("val/J")) for row in read_metrics(tmp_path / "metrics.jsonl")] == [
        (10, 0.4),
        (20, None),
    ]


@pytest.mark.parametrize("torn", [b'{"step": 20, "lo', b'{"step": 20}', b"\0\0\0\0\n"])
def test_a_line_that_a_kill_cut_in_half_is_mended(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 10}\n' + torn)
    opened(tmp_path, {"step": 10}).log(11, {})
    assert steps(tmp_path) == [10, 11]


def test_a_whole_last_line_that_lacks_only_its_end_is_kept(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 10}\n{"step": 20}')
    opened(tmp_path, {"step": 20}).log(21, {})
    assert steps(tmp_path) == [10, 20, 21]


def test_a_new_run_in_a_used_folder_keeps_the_old_curves_aside(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        opened(tmp_path).log(step, {})
    assert steps(tmp_path) == [3]
    assert [json.loads((tmp_path / f"metrics.{n}.jsonl").read_text())["step"] for n in (1, 2)] == [1, 2]


def test_a_run_resumed_without_its_old_curves_says_where_they_begin(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened(tmp_path, {"step": 40}).log(41, {})
    assert "begin at step 40" in caplog.text
    assert steps(tmp_path) == [41]


def test_a_full_disk_is_one_clear_error_and_loses_no_line(tmp_path: Path) -> None:
    tracker = opened(tmp_path)
    tracker.log(1, {"loss": 1.0})
    size = (tmp_path / "metrics.jsonl").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))  # room for ten bytes of the next line
    try:
        with pytest.raises(OSError, match=r"cannot write: File too large; .* kept: '.*metrics\.jsonl'"):
            tracker.log(2, {"loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert steps(tmp_path) == [1]
    opened(tmp_path, tracker.state(1)).log(2, {})
    assert steps(tmp_path) == [1, 2]


def test_curves_that_are_moved_under_a_run_are_an_error_and_not_written_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    file = MetricsFile(tmp_path / "run" / "metrics.jsonl", None)
    file.append(1, {"loss": 1.0})
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=r"moved or deleted while the run writes to it; .*run/metrics.jsonl"):
        file.append(2, {"loss": 1.0})
    assert [row["step"] for row in read_metrics(tmp_path / "moved" / "metrics.jsonl")] == [1]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(OSError, match=r"cannot write: Is a directory.*metrics\.jsonl"):
        opened(tmp_path)


def test_figures_are_files_that_sort_by_step(tmp_path: Path) -> None:
    tracker = opened(tmp_path)
    tracker.figures(100, {"val/davis/0": FIGURE})
    tracker.figures(20, {"val/davis/0": FIGURE})
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert names == ["0000020-val-davis-0.png", "0000100-val-davis-0.png"]
    assert Image.open(tmp_path / "figures" / names[0]).size == (6, 4)


def test_a_silent_tracker_takes_everything_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tracker = Tracker.silent()
    tracker.log(1, {"loss": 1.0})
    tracker.figures(1, {"a": FIGURE})
    tracker.close()
    assert not list(tmp_path.iterdir())


def test_lines_that_no_tracker_wrote_are_refused_by_number(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"loss": 1}\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: "):
        read_metrics(tmp_path / "metrics.jsonl")
    with pytest.raises(FileNotFoundError, match="run folder"):
        read_metrics(tmp_path / "nothing.jsonl")


def test_a_tracker_that_does_not_exist_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="did you mean wandb"):
        parse(TrackingConfig, {"trackers": ["wandbb"]})


def test_the_trackers_of_others_are_imported_only_when_used() -> None:
    code = (
        "import sys, mtsp.tracking.tracker, mtsp.figures.panels, mtsp.reports.runs;"
        "print({'wandb', 'matplotlib', 'tensorboard'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
