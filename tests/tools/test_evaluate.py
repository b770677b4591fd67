"""Networks measured by the program: numbers, files, and what it refuses."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from data.files.flow_formats.flo import read_flo
from data.files.masks import write_mask
from data.synthetic.clips import SyntheticConfig
from data.synthetic.writers import write_scene_flow
from mtsp.config import parse
from mtsp.files.tensors import write_tensors
from tests import two_processes
from tools.build import AnyExperiment
from tools.evaluate import main
from tools.score import main as score

ROOT = Path(__file__).resolve().parents[2]


def scored(arguments: list[str], folder: Path) -> dict:
    assert main([*arguments, "--json", str(folder / "scores.json")]) == 0
    return json.loads((folder / "scores.json").read_text())


@pytest.fixture
def network(values: dict[str, Any], synthetic: Path, tmp_path: Path) -> list[str]:
    """Arguments for a network with random weights on 9 frames, 5 pairs and 3 pairs of Monkaa: two divides none."""
    scene = SyntheticConfig(clips=1, frames=3, height=64, width=96, objects=(1, 1))
    write_scene_flow(scene, tmp_path / "Monkaa")
    chairs = {"name": "flying_chairs", "root": str(synthetic / "chairs")}
    monkaa = {"name": "monkaa", "root": str(tmp_path / "Monkaa"), "split": "all", "passes": ["clean"]}
    values["data"]["chairs_five"] = {"dataset": chairs, "limit": 5}
    values["data"]["monkaa"] = {"dataset": monkaa, "limit": 3}
    values["evaluation"]["data"] = ["davis", "chairs_five", "monkaa"]
    values["branches"]["flow"]["weights"] = "nowhere.pth"  # what a trained network started from is not looked at
    (tmp_path / "small.yaml").write_text(json.dumps(values))
    torch.manual_seed(1)
    model = parse(AnyExperiment, values).model.build()
    write_tensors(tmp_path / "weights.safetensors", model.state_dict())
    return ["--config", str(tmp_path / "small.yaml"), "--checkpoint", str(tmp_path / "weights.safetensors")]


def test_saved_predictions_have_the_scores_of_the_network(network: list[str], synthetic: Path, tmp_path: Path) -> None:
    files = ["--save-predictions", str(tmp_path / "saved"), "--csv", str(tmp_path / "scores.csv")]
    found = scored([*network, *files], tmp_path)["entries"]
    AcceleratorState._reset_state(reset_partial_state=True)
    assert {name: (entry["dataset"], entry["split"]) for name, entry in found.items()} == {
        "davis": ("davis", "train"),
        "chairs_five": ("flying_chairs", "train"),
        "monkaa": ("monkaa", "all"),
    }
    assert len(found["davis"]["per_sequence"]) == 3
    assert len(found["chairs_five"]["per_image"]) == 5
    assert {name: part["images"] for name, part in found["monkaa"]["per_pass"].items()} == {
        "clean/into_future": 2,
        "clean/into_past": 1,
    }
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    totals = {row["data"]: row for row in rows if row["sequence"] == "all"}
    assert float(totals["davis"]["J_mean"]) == found["davis"]["J_mean"]
    assert totals["davis"]["epe"] == totals["monkaa"]["J_mean"] == ""
    assert float(totals["monkaa"]["epe"]) == found["monkaa"]["epe"]

    stored = ["--dataset", "davis", "--root", str(synthetic / "DAVIS"), "--split", "train"]
    file = tmp_path / "again.json"
    assert score([*stored, "--predictions", str(tmp_path / "saved/davis"), "--json", str(file)]) == 0
    again = json.loads(file.read_text())
    how = {"size": None, "tta": {"name": "none"}}
    assert {key: again[key] for key in again if key != "predictions"} | how == found["davis"]
    for pair, numbers in found["chairs_five"]["per_image"].items():
        flow = read_flo(tmp_path / f"saved/chairs_five/{pair}.flo")
        truth = read_flo(synthetic / f"chairs/data/{pair}_flow.flo")
        assert numbers["epe"] == pytest.approx(np.hypot(*np.moveaxis(flow - truth, -1, 0)).mean(), rel=1e-5)


def test_two_processes_write_what_one_writes(
    network: list[str], in_two_processes: Callable[..., None], tmp_path: Path
) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    assert main([*network, "--json", str(one)]) == 0
    saved = ["--save-predictions", str(tmp_path / "saved"), "--json", str(two)]
    in_two_processes(two_processes.program, main, [*network, *saved])
    assert one.read_text() == two.read_text()
    assert [len(list((tmp_path / "saved").rglob(f"*.{suffix}"))) for suffix in ("png", "flo")] == [9, 8]


def test_a_run_is_measured_as_it_measured_itself(
    values: dict[str, Any], train: Callable[..., dict[str, dict[str, float]]], tmp_path: Path
) -> None:
    results = train(values, tmp_path / "run")
    config = ["--config", str(tmp_path / "run/experiment.yaml")]
    for checkpoint in ("weights.safetensors", "checkpoints/step-00000006"):
        AcceleratorState._reset_state(reset_partial_state=True)
        found = scored([*config, "--checkpoint", str(tmp_path / "run" / checkpoint)], tmp_path)["entries"]
        for entry, numbers in results.items():
            assert {key: found[entry][key] for key in numbers} == pytest.approx(numbers, rel=1e-12)


def test_an_entry_and_its_split_can_be_chosen(network: list[str], tmp_path: Path) -> None:
    chosen = ["--entry", "davis", "--split", "val"]
    found = scored([*network, *chosen], tmp_path)["entries"]
    assert list(found) == ["davis"]
    assert found["davis"]["split"] == "val"
    assert len(found["davis"]["per_sequence"]) == 1  # train has three


def test_masks_without_a_known_pixel_are_counted_aloud_and_refused_if_there_are_no_others(
    network: list[str], synthetic: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "own"
    shutil.copytree(synthetic / "DAVIS/JPEGImages/480p", root / "frames")
    masks = [
        root / "masks" / path.relative_to(root / "frames").with_suffix(".png")
        for path in (root / "frames").rglob("*.jpg")
    ]
    for place, path in enumerate(sorted(masks)):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_mask(path, np.full((64, 96), 255 if place in (1, 4) else place % 2, np.uint8))
    own = f"data.davis.dataset={{name: folder, frames: {root / 'frames'}, masks: {root / 'masks'}}}"
    found = scored([*network, own, "--entry", "davis"], tmp_path)["entries"]["davis"]
    assert "2 of 12 examples have no known pixel in their true mask of data.davis" in caplog.text
    # Of three frames a sequence only the middle one counts: the second and the fifth mask are middle ones.
    assert [len(part["frames"]) for part in found["per_sequence"].values()] == [0, 0, 1, 1]
    for path in masks:
        write_mask(path, np.full((64, 96), 255, np.uint8))
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main([*network, own.replace("}", ", unknown: [255]}"), "--entry", "davis"]) == 1


def of_another_network(folder: Path) -> None:
    tensors = load_file(folder / "weights.safetensors")
    tensors["segmentation.new"] = torch.zeros(1)
    del tensors["segmentation.mean"]
    write_tensors(folder / "weights.safetensors", tensors)


def truncated(folder: Path) -> None:
    whole = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(whole[:-100])


@pytest.mark.parametrize(
    ("change", "extra", "message"),
    [
        (of_another_network, [], "tensors are missing, as segmentation.mean; 1 have no place, as segmentation.new"),
        (truncated, [], "weights.safetensors is damaged: it does not have the SHA-256"),
        (None, ["model.width=16"], "holds another network than the config's segflow"),
        (None, ["model.widht=16"], "model.widht: unknown key; did you mean model.width?"),
        (None, ["--checkpoint", "nowhere"], "no weights at nowhere"),
        (None, ["--checkpoint", "."], ". is a folder without a checkpoint"),
        (None, ["--entry", "davos"], "there is no data entry 'davos'; the config has davis"),
        (None, ["evaluation.data=[]"], "evaluation.data is empty; name entries with --entry: davis"),
        (
            None,
            ["--entry", "davis", "--split", "vall"],
            "data.davis: split: 'vall' is not one of train, val",
        ),
        (None, ["--save-predictions", "tests"], "tests is not an empty folder"),
    ],
)
def test_a_network_that_cannot_be_measured_says_why(
    network: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None] | None,
    extra: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(ROOT)
    if change is not None:
        change(tmp_path)
    assert main([*network, *extra, "--json", str(tmp_path / "scores.json")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert not (tmp_path / "scores.json").exists()
