"""Networks and stored predictions measured by the program: numbers, files, and what it refuses."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from data import DataError, Labels
from data.files.flow_formats import read_flo, write_flo
from data.files.images import write_image
from data.files.masks import write_mask
from data.predictions.score import score
from data.synthetic.clips import SyntheticConfig
from data.synthetic.writers import write_scene_flow
from mtsp.config import parse
from mtsp.files.tensors import write_tensors
from mtsp.types import Kind, Sample
from tests import two_processes
from tools.build import AnyExperiment
from tools.evaluate import main

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("MTSP_DATA", ""))
real_data = pytest.mark.skipif("MTSP_DATA" not in os.environ, reason="MTSP_DATA names no folder of real data")

HEIGHT, WIDTH = 12, 20


def mask(columns: int) -> np.ndarray:
    """The object is the first columns."""
    result = np.zeros((HEIGHT, WIDTH), np.uint8)
    result[:, :columns] = 255
    return result


@pytest.fixture
def davis(tmp_path: Path) -> list[str]:
    """Sequence a of 4 frames and b of 3, objects of 10 columns; predicted with 5 columns, b/00001 with 10."""
    root, predictions = tmp_path / "DAVIS", tmp_path / "predictions"
    for sequence, frames in (("a", 4), ("b", 3)):
        for kind in ("JPEGImages", "Annotations"):
            (root / kind / "480p" / sequence).mkdir(parents=True)
        (predictions / sequence).mkdir(parents=True)
        for i in range(frames):
            write_image(root / f"JPEGImages/480p/{sequence}/{i:05d}.jpg", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
            write_mask(root / f"Annotations/480p/{sequence}/{i:05d}.png", mask(10))
            write_mask(predictions / f"{sequence}/{i:05d}.png", mask(10 if (sequence, i) == ("b", 1) else 5))
    (root / "ImageSets/2016").mkdir(parents=True)
    (root / "ImageSets/2016/val.txt").write_text("a\nb\n")
    return ["--data", "davis", "--root", str(root), "--predictions", str(predictions)]


@pytest.fixture
def middlebury(tmp_path: Path) -> list[str]:
    """Two pairs of true flow (3, 4), predicted as (3 + e, 4) with e = 2 and 6; one vector of the second is unknown."""
    root, predictions = tmp_path / "Middlebury", tmp_path / "flow"
    predictions.mkdir()
    for scene, error in (("Urban", 2), ("Venus", 6)):
        for kind in ("other-data", "other-gt-flow"):
            (root / kind / scene).mkdir(parents=True)
        for frame in ("frame10", "frame11"):
            write_image(root / f"other-data/{scene}/{frame}.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
        truth = np.full((HEIGHT, WIDTH, 2), (3, 4), np.float32)
        valid = np.ones((HEIGHT, WIDTH), bool)
        valid[0, 0] = scene != "Venus"
        write_flo(root / f"other-gt-flow/{scene}/flow10.flo", truth, valid)
        write_flo(predictions / f"{scene}.flo", truth + np.array([error, 0], np.float32))
    return ["--data", "middlebury", "--root", str(root), "--predictions", str(predictions)]


def scored(arguments: list[str], folder: Path) -> dict:
    assert main([*arguments, "--json", str(folder / "scores.json")]) == 0
    return json.loads((folder / "scores.json").read_text())


def test_masks_are_scored_by_sequence(davis: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = scored([*davis, "--csv", str(tmp_path / "scores.csv")], tmp_path)
    assert found["per_sequence"]["a"]["J"] == [0.5, 0.5]  # two of four frames count
    assert found["per_sequence"]["b"]["J"] == [1.0]
    assert found["per_sequence"]["b"]["F"] == [1.0]
    assert found["per_sequence"]["b"]["F_mean"] == 1
    assert found["J_mean"] == found["iou"] == 0.75
    assert found["J_recall"] == 0.5  # 0.5 is not above 0.5
    assert found["J_decay"] == 0
    assert found["pixel_accuracy"] == pytest.approx(1 - 6 / 7 * 5 / 20)  # six of all seven frames lack 5 of 20 columns
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert [(row["sequence"], float(row["J_mean"])) for row in rows] == [("a", 0.5), ("b", 1), ("all", 0.75)]
    assert "0.750" in capsys.readouterr().out


def test_flow_is_scored_by_pair_and_pooled(middlebury: list[str], tmp_path: Path) -> None:
    found = scored(middlebury, tmp_path)
    pixels = HEIGHT * WIDTH
    assert found["pixels"] == 2 * pixels - 1
    assert found["epe"] == pytest.approx((2 * pixels + 6 * (pixels - 1)) / (2 * pixels - 1))
    assert found["epe_per_image"] == pytest.approx(4)
    assert found["epe_0_10"] == found["epe"]  # the true length is 5
    assert found["epe_10_40"] is None
    assert found["per_sequence"]["Venus"]["epe"] == pytest.approx(6)
    assert found["per_sequence"]["Venus"]["out_5px"] == found["per_sequence"]["Venus"]["fl_all"] == 1
    assert found["per_sequence"]["Urban"]["out_1px"] == 1
    assert found["per_sequence"]["Urban"]["out_3px"] == 0


@pytest.fixture
def camvid(tmp_path: Path) -> list[str]:
    """One image of 1 x 4 pixels: sky, building, void, sky; predicted sky, sky, sky, building."""
    for folder in ("val", "valannot"):
        (tmp_path / "CamVid" / folder).mkdir(parents=True)
    write_image(tmp_path / "CamVid/val/a.png", np.zeros((1, 4, 3), np.uint8))
    write_mask(tmp_path / "CamVid/valannot/a.png", np.array([[0, 1, 11, 0]], np.uint8))
    (tmp_path / "CamVid/val.txt").write_text("/SegNet/CamVid/val/a.png /SegNet/CamVid/valannot/a.png\n")
    (tmp_path / "predictions").mkdir()
    write_mask(tmp_path / "predictions/a.png", np.array([[0, 0, 0, 1]], np.uint8))
    return [
        "--data", "camvid", "--root", str(tmp_path / "CamVid"), "--predictions", str(tmp_path / "predictions")
    ]  # fmt: skip


def test_masks_of_named_classes_are_scored_by_class(camvid: list[str], tmp_path: Path) -> None:
    found = scored(camvid, tmp_path)
    assert found["pixel_accuracy"] == pytest.approx(1 / 3)  # void does not count
    assert found["class_iou"]["sky"] == pytest.approx(1 / 3)  # one of the pixels 0, 1 and 3
    assert found["class_iou"]["building"] == 0
    assert found["miou"] == pytest.approx(1 / 6)
    assert found["class_iou"]["car"] is None
    assert len(found["absent_classes"]) == 9
    assert "car" in found["absent_classes"]
    assert found["worst_pairs"] == [
        {"truth": "building", "taken_for": "sky", "pixels": 1, "share": 1},
        {"truth": "sky", "taken_for": "building", "pixels": 1, "share": 0.5},
    ]


def test_a_predicted_class_that_the_data_set_does_not_have_is_refused(
    camvid: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mask(tmp_path / "predictions/a.png", np.array([[0, 30, 0, 0]], np.uint8))
    assert "a pixel of class 30; 11 classes have the ids 0 to 10" in refused(camvid, tmp_path, capsys)


def test_a_image_of_named_classes_without_a_mask_is_named(tmp_path: Path) -> None:
    class HalfLabeled:
        kind: Kind = "images"
        classes = ("sky", "building")
        ids = ("a", "b")

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Sample:
            raise AssertionError("no frame is needed")

        def labels(self, index: int) -> Labels:
            return {"name": "a", "mask": np.zeros((1, 2), np.uint8)} if index == 0 else {"name": "b"}

    for name in "ab":
        write_mask(tmp_path / f"{name}.png", np.zeros((1, 2), np.uint8))
    with pytest.raises(DataError, match="b has no mask: there is nothing to compare its prediction with"):
        score(HalfLabeled(), tmp_path)


def test_the_numbers_do_not_depend_on_the_workers(davis: list[str], tmp_path: Path) -> None:
    assert scored([*davis, "--workers", "1"], tmp_path) == scored([*davis, "--workers", "3"], tmp_path)


def test_a_setting_of_the_data_set_can_be_given(davis: list[str], tmp_path: Path) -> None:
    assert list(scored([*davis, "sequences=[b]"], tmp_path)["per_sequence"]) == ["b"]


def test_passes_and_directions_have_their_own_numbers() -> None:
    from mtsp.evaluation.scores import flow_scores
    from mtsp.metrics import FlowErrors

    errors = FlowErrors()
    for error, name in (
        (1, "clean/into_future/left/x/0001"),
        (2, "clean/into_past/left/x/0001"),
        (4, "final/into_past/left/x/0001"),
    ):
        errors.update(np.full((2, 1, 1), error, np.float32) * [[[1]], [[0]]], np.zeros((2, 1, 1)), names=name)
    found = flow_scores(errors).values
    assert {name: part["epe"] for name, part in found["per_pass"].items()} == {
        "clean/into_future": 1,
        "clean/into_past": 2,
        "final/into_past": 4,
    }
    assert found["per_sequence"]["clean/into_past/left/x"]["epe"] == 2


def test_a_table_shows_names_in_brackets_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """To rich, [/b] ends what never began, and [red] is a color."""
    from rich.console import Console

    from mtsp.evaluation.scores import flow_scores, table
    from mtsp.metrics import FlowErrors

    errors = FlowErrors()
    for name in ("[/b]/1", "[red] car/1"):
        errors.update(np.ones((2, 1, 1), np.float32), np.zeros((2, 1, 1)), names=name)
    Console(width=120).print(table(flow_scores(errors), "my[/x]"))
    said = capsys.readouterr().out
    assert all(name in said for name in ("[/b]", "[red] car", "my[/x]"))


def refused(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that the program says; it must leave an earlier result as it was."""
    earlier = folder / "earlier.json"
    earlier.write_text("earlier")
    before = sorted(folder.rglob("*"))
    assert main([*arguments, "--json", str(earlier)]) == 1
    assert (earlier.read_text(), sorted(folder.rglob("*"))) == ("earlier", before)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    return printed.err


def test_missing_predictions_are_counted_and_the_first_ten_named(
    davis: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a/00001", "b/00002"):
        (tmp_path / f"predictions/{name}.png").unlink()
    assert "2 of 7 predictions are missing: a/00001.png, b/00002.png" in refused(davis, tmp_path, capsys)


def test_of_more_than_ten_missing_predictions_ten_are_named(
    davis: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(4, 12):
        for kind, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
            folder = tmp_path / f"DAVIS/{kind}/480p/a"
            (folder / f"{i:05d}.{suffix}").write_bytes((folder / f"00000.{suffix}").read_bytes())
    (tmp_path / "empty").mkdir()
    said = refused([*davis[:-1], str(tmp_path / "empty")], tmp_path, capsys)
    assert "15 of 15 predictions are missing: a/00000.png" in said
    assert "a/00009.png, ..." in said
    assert "a/00010.png" not in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: write_mask(p / "a/00002.png", mask(5)[:-1]), "a/00002.png: 11x20 pixels, but the truth has 12x20"),
        (lambda p: (p / "a/00002.png").write_bytes((p / "a/00002.png").read_bytes()[:-20]), "a/00002.png"),
        (lambda p: (p / "a/00002.png").write_text("no image"), "a/00002.png"),
    ],
)
def test_a_mask_that_cannot_be_scored_is_named(
    davis: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], change, message: str
) -> None:
    change(tmp_path / "predictions")
    assert message in refused(davis, tmp_path, capsys)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e9])
def test_flow_that_is_not_known_everywhere_is_refused(
    middlebury: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: float
) -> None:
    file = tmp_path / "flow/Urban.flo"
    content = bytearray(file.read_bytes())
    content[12:16] = np.float32(bad).tobytes()
    file.write_bytes(content)
    assert "Urban.flo: 1 " in refused(middlebury, tmp_path, capsys)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--predictions", "nowhere"], "nowhere: there is no such folder of predictions"),
        (["--root", "nowhere"], "nowhere"),
        (["--split", "vall"], "split: 'vall' is not one of train, val, trainval"),
        (["--resolution", "1080p"], "1080p"),
        (["--csv", "no/such/folder/x.csv"], "no/such/folder"),
        (["passes=[clean]"], "passes: unknown key"),
        (["passes"], "'passes' is not key=value"),
    ],
)
def test_arguments_that_cannot_be_followed_are_named(
    davis: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], message: str
) -> None:
    assert message in refused([*davis, *extra], tmp_path, capsys)


@real_data
def test_the_official_numbers_of_real_masks(tmp_path: Path) -> None:
    arguments = ["--data", "davis", "--root", str(DATA / "DAVIS"), "--split", "val"]
    found = scored([*arguments, "--predictions", str(DATA / "davis_evaluation/predictions")], tmp_path)
    official = json.loads((DATA / "davis_evaluation/official.json").read_text())
    for sequence, expected in official["sequences"].items():
        assert found["per_sequence"][sequence]["J"] == pytest.approx(expected["J"], abs=1e-12)
        assert found["per_sequence"][sequence]["F"] == pytest.approx(expected["F"], abs=1e-12)
    for key in "JF":
        numbers = [found[f"{key}_{name}"] for name in ("mean", "recall", "decay")]
        assert numbers == pytest.approx(official["mean_over_sequences"][f"{key}_stats"], abs=1e-12)


@real_data
def test_half_of_the_true_flow_is_wrong_by_half_its_length(tmp_path: Path) -> None:
    from data.flow.middlebury import MiddleburyConfig

    truth = MiddleburyConfig(name="middlebury", root=DATA / "Middlebury").build()
    lengths = {}
    for i, name in enumerate(truth.ids):
        labels = truth.labels(i)
        assert "flow" in labels
        write_flo(tmp_path / f"{name}.flo", labels["flow"] / 2)
        valid = labels.get("flow_valid", np.ones(labels["flow"].shape[:2], bool))
        lengths[name] = np.hypot(*labels["flow"][valid].astype(np.float64).T)
    found = scored(
        ["--data", "middlebury", "--root", str(DATA / "Middlebury"), "--predictions", str(tmp_path)], tmp_path
    )
    assert found["epe"] == pytest.approx(np.concatenate(list(lengths.values())).mean() / 2, rel=1e-6)
    assert found["fl_all"] == pytest.approx((np.concatenate(list(lengths.values())) / 2 > 3).mean(), abs=1e-5)
    for name, values in lengths.items():
        assert found["per_sequence"][name]["epe"] == pytest.approx(values.mean() / 2, rel=1e-6)


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


def test_stored_predictions_have_the_scores_of_the_network(network: list[str], synthetic: Path, tmp_path: Path) -> None:
    files = ["--save-predictions", str(tmp_path / "saved"), "--csv", str(tmp_path / "scores.csv")]
    found = scored([*network, *files], tmp_path)["entries"]
    AcceleratorState._reset_state(reset_partial_state=True)
    assert {name: (entry["data"], entry["split"]) for name, entry in found.items()} == {
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

    stored = ["--data", "davis", "--root", str(synthetic / "DAVIS"), "--split", "train"]
    again = scored([*stored, "--predictions", str(tmp_path / "saved/davis")], tmp_path)
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
            same = {
                key: value for key, value in numbers.items() if key != "miou"
            }  # of the pixels, as mean of J it is iou
            assert {key: found[entry][key] for key in same} == pytest.approx(same, rel=1e-12)


def test_an_entry_and_its_split_can_be_chosen(network: list[str], tmp_path: Path) -> None:
    chosen = ["--data-entry", "davis", "--split", "val"]
    found = scored([*network, *chosen], tmp_path)["entries"]
    assert list(found) == ["davis"]
    assert found["davis"]["split"] == "val"
    assert len(found["davis"]["per_sequence"]) == 1  # train has three


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
        (truncated, [], "weights.safetensors cannot be read as weights"),
        (None, ["model.width=16"], "is of another network than the config's segflow"),
        (None, ["model.widht=16"], "model.widht: unknown key; did you mean model.width?"),
        (None, ["--checkpoint", "nowhere"], "no weights at nowhere"),
        (None, ["--checkpoint", "."], ". is a folder, but no checkpoint"),
        (None, ["--data-entry", "davos"], "there is no data entry 'davos'; the config has davis"),
        (None, ["evaluation.data=[]"], "evaluation.data is empty; name entries with --data-entry: davis"),
        (
            None,
            ["--data-entry", "davis", "--split", "vall"],
            "data.davis: split: 'vall' is not one of train, val",
        ),
        (None, ["--save-predictions", "tests"], "tests holds something already"),
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
