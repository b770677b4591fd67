"""The demo, whole: two clips of each kind and two steps a run instead of hundreds."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from data.synthetic.clips import SyntheticConfig
from data.synthetic.writers import write_davis, write_flying_chairs
from models.pretrained.files import SHIPPED
from mtsp.config import ConfigError
from tools import train as training
from tools.demo import START, STILL, TITLES, DataSet, demo, main

_CLIPS = SyntheticConfig(clips=2, frames=3, height=64, width=96, objects=(1, 2), object_size=(0.2, 0.4))
_TARGET = _CLIPS.model_copy(update={"seed": 1, "domain": "target"})
DATA = {
    "source/DAVIS": DataSet(write_davis, _CLIPS, 0.5),
    "source/FlyingChairs_release": DataSet(write_flying_chairs, _CLIPS, 0.5),
    "target/DAVIS": DataSet(write_davis, _TARGET, 0.5),
    "target/FlyingChairs_release": DataSet(write_flying_chairs, _TARGET, 0.5),
}
ENTRIES = ("target_clips_val", "target_pairs_val", "source_clips", "source_pairs")
TINY = [
    "data.target_clips.augment={crop: [64, 96]}",
    "data.target_pairs.augment={crop: [64, 96]}",
    "train.steps=2",
    "train.stages=[{steps: 1, batch_size: {target_clips: 2, target_pairs: 2}}]",
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


def test_the_table_has_the_start_and_every_fine_tuning(finished: Path) -> None:
    header, _, *body = rows(finished)
    assert header == ["", "target J ↑", "target px ↓", "source J ↑", "source px ↓"]
    assert [row[0] for row in body] == [STILL, START, *TITLES.values()]
    assert body[0][1::2] == ["-", "-"]  # a still scene has a flow, zero, but no mask


def test_the_rows_are_what_the_runs_measured(finished: Path) -> None:
    for row, run in zip(rows(finished)[4:], TITLES, strict=True):
        measured = json.loads((finished / run / "results.json").read_text())
        for cell, entry in zip(row[1:], ENTRIES, strict=True):
            value = measured[entry]["J_mean" if entry.endswith(("clips", "clips_val")) else "epe"]
            assert float(cell) == pytest.approx(value, abs=6e-4)


def test_every_run_starts_from_the_shipped_network(finished: Path) -> None:
    """With the pull of L2-SP, which ends after two steps, no weight is far from it."""
    start = load_file(SHIPPED)
    for run in TITLES:
        weights = load_file(finished / run / "weights.safetensors")
        name = "flow.network.estimator.0.weight"
        assert (weights[name] - start[name].float()).abs().max() < 5e-3
        assert not torch.equal(weights[name], start[name].float())


def test_a_still_scene_has_the_mean_length_of_the_flow_as_its_error(finished: Path) -> None:
    flows = sorted((finished / "data/target/FlyingChairs_release/data").glob("*.flo"))[2:]  # the second clip's two
    truth = [np.fromfile(path, np.float32, offset=12).reshape(64, 96, 2) for path in flows]
    expected = np.mean([np.sqrt((flow**2).sum(-1)) for flow in truth])
    assert float(rows(finished)[2][2]) == pytest.approx(expected, abs=6e-4)


def test_the_figure_shows_both_frames_truth_and_three_predictions(finished: Path) -> None:
    with Image.open(finished / "figures.png") as figure:
        # Six columns of 320 with 8 between and around. Two masks and two flows of the target, one of each of the
        # source: 64 * 320 / 96 = 213, 24 for the title, 8 between. Below, 24 for the class, 140 for the flow.
        assert figure.size == (8 + 6 * 328, 8 + 6 * (213 + 24 + 8) + 32 + 148)


def test_the_page_compares_the_three_runs_and_films_a_clip(finished: Path) -> None:
    text = (finished / "report.html").read_text(encoding="utf-8")
    data = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    assert [run["label"] for run in data["runs"]] == list(TITLES)
    assert {table["title"] for table in data["tables"]} >= {f"{entry}, by sequence" for entry in ENTRIES[::2]}
    assert [layer["branch"] for layer in data["layers"]] == ["segmentation", "flow"]
    frames = {figure["name"]: {image["frame"] for image in figure["images"]} for figure in data["figures"]}
    assert {len(found) for name, found in frames.items() if "clips" in name} == {_CLIPS.frames}


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
    free = (folder / "free/weights.safetensors").stat().st_mtime_ns
    demo(folder, DATA, TINY)
    assert (folder / "table.md").read_text() == table
    assert (folder / "free/weights.safetensors").stat().st_mtime_ns == free


def test_fresh_starts_over(folder: Path) -> None:
    weights = folder / "free/weights.safetensors"
    before = weights.stat().st_mtime_ns
    demo(folder, DATA, TINY, fresh=True)
    assert weights.stat().st_mtime_ns > before


def test_results_of_other_settings_are_not_taken_for_these(finished: Path) -> None:
    with pytest.raises(ConfigError, match=r"free is finished, .*\(train\.steps: now 3, .* start over with --fresh"):
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
