"""Saved predictions scored by the program: numbers, files, and what it refuses."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from data import DataError, Labels
from data.files.flow_formats.flo import write_flo
from data.files.images import write_image
from data.files.masks import write_mask
from data.predictions.score import score
from mtsp.evaluation.metrics_by_kind import FlowFields
from mtsp.evaluation.scores import scores_of, table
from mtsp.types import Kind, Sample
from tools.score import main as run

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
    return ["--dataset", "davis", "--root", str(root), "--predictions", str(predictions)]


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
    return ["--dataset", "middlebury", "--root", str(root), "--predictions", str(predictions)]


def scored(arguments: list[str], folder: Path) -> dict:
    assert run([*arguments, "--json", str(folder / "scores.json")]) == 0
    return json.loads((folder / "scores.json").read_text())


def test_stored_predictions_are_scored_without_the_libraries_of_networks(davis: list[str]) -> None:
    slow = {
        "torch",
        "torchvision",
        "timm",
        "segmentation_models_pytorch",
        "accelerate",
        "wandb",
        "matplotlib",
        "pandas",
    }
    code = f"import sys; from tools.score import main; main({davis}); print({slow} & set(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.strip().endswith("set()")
    assert "mean over sequences" in done.stdout


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
        "--dataset", "camvid", "--root", str(tmp_path / "CamVid"), "--predictions", str(tmp_path / "predictions")
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
    metric = FlowFields()
    for error, name in (
        (1, "clean/into_future/left/x/0001"),
        (2, "clean/into_past/left/x/0001"),
        (4, "final/into_past/left/x/0001"),
    ):
        flow = np.full((1, 2, 1, 1), error, np.float32) * [[[1]], [[0]]]
        metric.update([name], flow, {"flow": np.zeros((1, 2, 1, 1))})
    found = scores_of([metric])[0].values
    assert {name: part["epe"] for name, part in found["per_pass"].items()} == {
        "clean/into_future": 1,
        "clean/into_past": 2,
        "final/into_past": 4,
    }
    assert found["per_sequence"]["clean/into_past/left/x"]["epe"] == 2


def test_a_table_shows_names_in_brackets_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """To rich, [/b] ends what never began, and [red] is a color."""
    metric = FlowFields()
    for name in ("[/b]/1", "[red] car/1"):
        metric.update([name], np.ones((1, 2, 1, 1), np.float32), {"flow": np.zeros((1, 2, 1, 1))})
    Console(width=120).print(table(scores_of([metric])[0], "my[/x]"))
    said = capsys.readouterr().out
    assert all(name in said for name in ("[/b]", "[red] car", "my[/x]"))


def refused(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that the program says; it must leave an earlier result as it was."""
    earlier = folder / "earlier.json"
    earlier.write_text("earlier")
    before = sorted(folder.rglob("*"))
    assert run([*arguments, "--json", str(earlier)]) == 1
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
    arguments = ["--dataset", "davis", "--root", str(DATA / "DAVIS"), "--split", "val"]
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
        ["--dataset", "middlebury", "--root", str(DATA / "Middlebury"), "--predictions", str(tmp_path)], tmp_path
    )
    assert found["epe"] == pytest.approx(np.concatenate(list(lengths.values())).mean() / 2, rel=1e-6)
    assert found["fl_all"] == pytest.approx((np.concatenate(list(lengths.values())) / 2 > 3).mean(), abs=1e-5)
    for name, values in lengths.items():
        assert found["per_sequence"][name]["epe"] == pytest.approx(values.mean() / 2, rel=1e-6)
