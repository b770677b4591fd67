"""The demo, whole: two clips of each kind and two steps a run instead of hundreds."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.synthetic.clips import SyntheticConfig
from data.synthetic.writers import write_davis, write_flying_chairs
from mtsp.config import ConfigError
from tools import train as training
from tools.demo import DataSet, demo, main

_CLIPS = SyntheticConfig(clips=2, frames=3, height=64, width=96, objects=(1, 2), object_size=(0.2, 0.4))
_TARGET = _CLIPS.model_copy(update={"seed": 1, "domain": "target"})
DATA = {
    "source/DAVIS": DataSet(write_davis, _CLIPS, 0.5),
    "source/FlyingChairs_release": DataSet(write_flying_chairs, _CLIPS, 0.5),
    "target/DAVIS": DataSet(write_davis, _TARGET, 0.5),
    "target/FlyingChairs_release": DataSet(write_flying_chairs, _TARGET, 0.5),
}
TINY = [
    "model.width=8",
    "model.flow_width=8",
    "model.flow.width=0.05",
    "train.steps=2",
    "train.stages=[{steps: 1, batch_size: {davis: 2, chairs: 2}}]",
    "train.save_every=1",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the demo has run."""
    folder = tmp_path_factory.mktemp("demo")
    assert demo(folder, DATA, TINY) is not None
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """It, to be changed: restored afterwards."""
    shutil.copytree(finished, tmp_path / "kept")
    yield finished
    shutil.rmtree(finished)
    shutil.copytree(tmp_path / "kept", finished)


def rows(folder: Path) -> list[list[str]]:
    lines = (folder / "table.md").read_text().splitlines()
    return [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_has_the_start_and_both_fine_tunings(finished: Path) -> None:
    header, _, *body = rows(finished)
    assert header == ["", "J ↑", "F ↑", "IoU ↑", "EPE ↓"]
    assert [row[0] for row in body] == ["zero flow", "start", "L2", "L2-SP"]
    assert body[0][1:4] == ["-", "-", "-"]  # a still scene has a flow, zero, but no mask


def test_the_rows_are_what_the_runs_measured(finished: Path) -> None:
    for row, run in zip(rows(finished)[4:], ("l2", "l2sp"), strict=True):
        measured = json.loads((finished / run / "results.json").read_text())
        assert float(row[1]) == pytest.approx(measured["davis_val"]["J_mean"], abs=6e-4)
        assert float(row[4]) == pytest.approx(measured["chairs_val"]["epe"], abs=6e-4)


def test_both_fine_tunings_start_from_the_source(finished: Path) -> None:
    curves = [(finished / run / "metrics.jsonl").read_text().splitlines() for run in ("l2", "l2sp")]
    first = [[json.loads(line) for line in curve if json.loads(line)["step"] == 0] for curve in curves]
    for one, other in zip(*first, strict=True):
        assert {**one, "time": 0} == {**other, "time": 0}


def test_a_still_scene_has_the_mean_length_of_the_flow_as_its_error(finished: Path) -> None:
    flows = sorted((finished / "data/target/FlyingChairs_release/data").glob("*.flo"))[2:]  # the second clip's two
    truth = [np.fromfile(path, np.float32, offset=12).reshape(64, 96, 2) for path in flows]
    expected = np.mean([np.sqrt((flow**2).sum(-1)) for flow in truth])
    assert float(rows(finished)[2][4]) == pytest.approx(expected, abs=6e-4)


def test_the_sheet_shows_frame_truth_and_three_predictions(finished: Path) -> None:
    with Image.open(finished / "figures.png") as sheet:
        # Five columns of 320 with 8 between and around. The validation clips give 3 masks and 2 flows, one row each,
        # and the wheel takes a sixth row: 64 * 320 / 96 = 213, 20 for the title, 8 between.
        assert sheet.size == (8 + 5 * 328, 8 + 6 * (213 + 20 + 8))


def test_a_second_call_repeats_nothing(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [path for path in finished.rglob("*") if path.suffix in (".safetensors", ".flo", ".jpg", ".jsonl")]
    before = {path: path.stat().st_mtime_ns for path in files}
    table = (finished / "table.md").read_text()
    assert demo(finished, DATA, TINY) is not None
    assert {path: path.stat().st_mtime_ns for path in files} == before
    assert (finished / "table.md").read_text() == table
    assert capsys.readouterr().err.count("done already") == 3


def test_an_interrupted_run_goes_on_and_ends_with_the_same_numbers(folder: Path) -> None:
    table = (folder / "table.md").read_text()
    for name in ("results.json", "weights.safetensors"):
        (folder / "l2sp" / name).unlink()
    *_, last = sorted((folder / "l2sp/checkpoints").iterdir())
    shutil.rmtree(last)  # as if step 2 had not been reached
    source = (folder / "source/weights.safetensors").stat().st_mtime_ns
    demo(folder, DATA, TINY)
    assert (folder / "table.md").read_text() == table
    assert (folder / "source/weights.safetensors").stat().st_mtime_ns == source


def test_fresh_starts_over(folder: Path) -> None:
    weights = folder / "source/weights.safetensors"
    before = weights.stat().st_mtime_ns
    demo(folder, DATA, TINY, fresh=True)
    assert weights.stat().st_mtime_ns > before


def test_results_of_other_settings_are_not_taken_for_these(finished: Path) -> None:
    with pytest.raises(ConfigError, match=r"source is finished, .*\(train\.steps: now 3, .* start over with --fresh"):
        demo(finished, DATA, [*TINY, "train.steps=3"])
    more = {name: one._replace(validation=0.4) for name, one in DATA.items()}
    with pytest.raises(ConfigError, match="data was made with other settings; start over with --fresh"):
        demo(finished, more, TINY)


def test_a_stopped_run_stops_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "train", lambda *_, **__: None)  # as tools.train.run ends after Ctrl-C
    assert main([], folder=tmp_path, data=DATA, overrides=TINY) == 75
    assert "continues from here" in capsys.readouterr().err
    assert not (tmp_path / "table.md").exists()
