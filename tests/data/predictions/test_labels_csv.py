"""Predicted labels in a table, scored by the program: numbers, and tables that it refuses."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from data.files.images import write_image
from data.predictions.labels_csv import LabelPrediction, label_prediction, save_predictions
from data.predictions.score import held_out
from mtsp.metrics import ClassificationScores
from tests.data.flow.files import made
from tools.score import main as run

DATA = Path(os.environ.get("MTSP_DATA", ""))
real_data = pytest.mark.skipif("MTSP_DATA" not in os.environ, reason="MTSP_DATA names no folder of real data")

IMAGES = ("auk/1", "auk/2", "auk/3", "bunting/1", "emu/1", "emu/2")


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Six images of three classes; the predictions are to be in tmp_path/saved."""
    for name in IMAGES:
        (tmp_path / "birds" / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(tmp_path / f"birds/{name}.png", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "saved").mkdir()
    return ["--dataset", "image_folder", "--root", str(tmp_path / "birds"), "--predictions", str(tmp_path / "saved")]


ROWS = [
    "name,truth,prediction,probability",
    "auk/1,auk,auk,0.9",
    "auk/2,auk,auk,0.7",
    "auk/3,auk,emu,0.9",
    "bunting/1,bunting,auk,0.5",
    "emu/1,emu,emu,0.7",
    "emu/2,emu,emu,0.7",
]


def write(folder: Path, rows: list[str]) -> None:
    (folder / "saved/labels.csv").write_text("\n".join(rows) + "\n")


def scored(arguments: list[str], folder: Path) -> dict:
    assert run([*arguments, "--json", str(folder / "scores.json")]) == 0
    return json.loads((folder / "scores.json").read_text())


def test_accuracies_of_a_table_are_told_and_what_it_lacks_is_null(arguments: list[str], tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    found = scored([*arguments, "--csv", str(tmp_path / "scores.csv")], tmp_path)
    assert (found["images"], found["nan_predictions"]) == (6, 0)
    assert found["top1"] == 4 / 6
    assert found["class_accuracy"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert found["accuracy_of_class"] == {"auk": 2 / 3, "bunting": 0, "emu": 1}
    # bins of 1/15: two at 0.9, one right; three at 0.7, all right; one at 0.5, wrong
    assert found["ece"] == pytest.approx((2 * 0.4 + 3 * 0.3 + 0.5) / 6)
    assert found["mce"] == pytest.approx(0.5)
    assert found["nll"] is None
    assert "top5" not in found  # of three classes every image is right
    confused = [(pair["truth"], pair["taken_for"], pair["images"]) for pair in found["worst_pairs"]]
    assert sorted(confused) == [("auk", "emu", 1), ("bunting", "auk", 1)]
    row = next(csv.DictReader((tmp_path / "scores.csv").open()))
    assert (row["sequence"], float(row["top1"]), row["top5"], row["nll"]) == ("all", 4 / 6, "", "")


def test_a_name_and_a_prediction_are_enough(arguments: list[str], tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    table.write_text(
        "\ufeffprediction,name\n" + "".join(f"{row.split(',')[2]},{row.split(',')[0]}\r\n" for row in ROWS[1:])
    )
    found = scored([*arguments[:-1], str(table)], tmp_path)
    assert found["top1"] == 4 / 6
    assert found["ece"] is found["mce"] is None


def test_classes_may_be_numbers_and_other_images_have_rows_too(arguments: list[str], tmp_path: Path) -> None:
    numbers = {"auk": "class 0", "bunting": "class 1", "emu": "class 2"}
    rows = [row.split(",") for row in ROWS[1:]]
    write(tmp_path, ["name,prediction", *(f"{row[0]},{numbers[row[2]]}" for row in rows), "train/7,dodo"])
    assert scored(arguments, tmp_path)["top1"] == 4 / 6


def test_a_number_is_a_place_among_the_classes_unless_a_class_is_called_so(tmp_path: Path) -> None:
    names = sorted(map(str, range(12)))  # 0, 1, 10, 11, 2, ...
    for name in names:
        (tmp_path / "birds" / name).mkdir(parents=True)
        write_image(tmp_path / f"birds/{name}/1.png", np.zeros((4, 4, 3), np.uint8))
    where = ["--dataset", "image_folder", "--root", str(tmp_path / "birds"), "--predictions", str(tmp_path / "saved")]
    by_place = [LabelPrediction(i, f"{name}/1", None, i, 0.5) for i, name in enumerate(names)]
    for classes in (names, ()):  # written with the names, and where they are not known
        save_predictions(tmp_path / "saved/labels.csv", classes, by_place)
        assert scored(where, tmp_path)["top1"] == 1


def test_a_number_that_a_spreadsheet_made_of_a_class_name_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Classes 001 to 008, all but the last predicted right: 0.875. As numbers, 1 would be the class at place 1: 002."""
    names = [f"{i:03d}" for i in range(1, 9)]
    for name in names:
        (tmp_path / "birds" / name).mkdir(parents=True)
        write_image(tmp_path / f"birds/{name}/a.png", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "saved").mkdir()
    where = ["--dataset", "image_folder", "--root", str(tmp_path / "birds"), "--predictions", str(tmp_path / "saved")]
    rows = [f"{name}/a,{name},{name if name != '008' else '001'}" for name in names]
    write(tmp_path, ["name,truth,prediction", *rows])
    assert scored(where, tmp_path)["top1"] == 0.875
    saved_again = [",".join([row.split(",")[0], *(str(int(name)) for name in row.split(",")[1:])]) for row in rows]
    assert saved_again[0] == "001/a,1,1"
    write(tmp_path, ["name,truth,prediction", *saved_again])
    assert run(where) == 1
    assert "line 2: no class is called '1'; a spreadsheet may have made it of '001'" in capsys.readouterr().err
    write(tmp_path, ["name,truth,prediction", *rows[:3], "004/a,004,4", *rows[4:]])
    assert run(where) == 1
    assert "line 5: no class is called '4'; a spreadsheet may have made it of '004'" in capsys.readouterr().err


SEVEN = ("auk", "bunting", "crow", "dove", "emu", "finch", "gull")


@pytest.fixture
def of_seven(tmp_path: Path) -> list[str]:
    """An image of each of seven classes, so that not everything is in the top 5."""
    for name in SEVEN:
        (tmp_path / "seven" / name).mkdir(parents=True)
        write_image(tmp_path / f"seven/{name}/1.png", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "saved").mkdir()
    return ["--dataset", "image_folder", "--root", str(tmp_path / "seven"), "--predictions", str(tmp_path / "saved")]


def test_a_table_with_the_five_best_classes_has_a_top_5(of_seven: list[str], tmp_path: Path) -> None:
    """Alphabetical order is predicted for every image: the first is right, the first five are among the five best."""
    five = [f"{name}/1,{name},auk,0.5,bunting,crow,dove,emu" for name in SEVEN]
    write(tmp_path, ["name,truth,prediction,probability,prediction_2,prediction_3,prediction_4,prediction_5", *five])
    found = scored(of_seven, tmp_path)
    assert (found["top1"], found["top5"], found["nll"]) == (1 / 7, 5 / 7, None)
    five[2] = "crow/1,crow,auk,nan,bunting,crow,dove,emu"  # its logits were not finite
    write(tmp_path, ["name,truth,prediction,probability,prediction_2,prediction_3,prediction_4,prediction_5", *five])
    found = scored(of_seven, tmp_path)
    assert (found["top5"], found["nan_predictions"]) == (4 / 7, 1)
    five[6] = "gull/1,gull,auk,0.5,bunting,crow,dove,"  # of one image only four are known
    write(tmp_path, ["name,truth,prediction,probability,prediction_2,prediction_3,prediction_4,prediction_5", *five])
    found = scored(of_seven, tmp_path)
    assert (found["top1"], found["top5"]) == (1 / 7, None)


def test_what_the_measuring_program_says_of_logits_is_stored_as_it_is_measured(
    of_seven: list[str], tmp_path: Path
) -> None:
    logits = torch.tensor([[0.0, 3, 1, 1, 2, 1, 0]]).expand(7, 7)  # crow, dove and finch alike: the first first
    predictions = [label_prediction(i, f"{SEVEN[i]}/1", i, row) for i, row in enumerate(logits)]
    save_predictions(tmp_path / "saved/labels.csv", SEVEN, predictions)
    row = (tmp_path / "saved/labels.csv").read_text().splitlines()[1]
    assert row == "auk/1,auk,bunting,0.533772,emu,crow,dove,finch"  # e^3 / (2 + 3 e + e^2 + e^3)
    found, measured = scored(of_seven, tmp_path), ClassificationScores(7)
    measured.update(logits, torch.arange(7))
    assert (found["top1"], found["top5"]) == (1 / 7, 5 / 7)
    assert (found["top1"], found["top5"]) == (measured.compute()["top1"], measured.compute()["top5"])


def test_a_prediction_that_is_not_finite_is_wrong_and_counted(arguments: list[str], tmp_path: Path) -> None:
    write(tmp_path, [*ROWS[:-1], "emu/2,emu,emu,nan"])
    found = scored(arguments, tmp_path)
    assert (found["top1"], found["nan_predictions"]) == (3 / 6, 1)
    assert found["mce"] == pytest.approx(0.5)  # of the five others


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[:-2], "labels.csv: 2 of 6 images have no prediction: emu/1, emu/2"),
        ([*ROWS, "auk/1,auk,emu,0.4"], "labels.csv, line 8: a second row for auk/1; each image has one"),
        ([*ROWS[:-1], "emu/2,emu,emus,0.7"], "line 7: no class is called 'emus'; did you mean emu?"),
        ([*ROWS[:-1], "emu/2,emu,3,0.7"], "line 7: no class is called '3'"),
        (
            [*ROWS[:-1], "emu/2,auk,emu,0.7"],
            "line 7: the truth of emu/2 is auk here, but emu in the data set; are these its classes?",
        ),
        ([*ROWS[:-1], "emu/2,emu,emu,70%"], "line 7: the probability is '70%', expected a number in [0, 1]"),
        ([*ROWS[:-1], "emu/2,emu,emu,7"], "line 7: the probability is '7', expected a number in [0, 1]"),
        ([*ROWS[:-1], "emu/2,emu,emu,-1"], "line 7: the probability is '-1', expected a number in [0, 1]"),
        ([*ROWS[:-1], "emu/2,emu"], "line 7: 2 cells, expected 4"),
        (["name,prediction,prediction_2", "auk/1,auk,auk"], "line 2: auk is predicted twice for auk/1"),
        (["name,prediction,prediction_3", "auk/1,auk,emus"], "line 2: no class is called 'emus'; did you mean emu?"),
        (
            ["name,prediction,prediction", "auk/1,auk,emu"],
            "two columns are called 'prediction'; expected each once",
        ),
        (["image,class"], "labels.csv: the columns are image, class; expected at least name and prediction"),
        ([""], "labels.csv: the columns are none; expected at least name and prediction"),
        (["name,prediction", "\0"], "labels.csv"),
    ],
)
def test_a_table_that_cannot_be_scored_says_why(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[str], message: str
) -> None:
    write(tmp_path, rows)
    assert run([*arguments, "--json", str(tmp_path / "scores.json")]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert not (tmp_path / "scores.json").exists()


def test_columns_that_are_not_read_are_said(
    arguments: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, [f"{row},{'note' if i == 0 else 7}" for i, row in enumerate(ROWS)])
    assert scored(arguments, tmp_path)["top1"] == 4 / 6
    assert "labels.csv: the columns 'note' are not read" in caplog.text


@pytest.mark.parametrize(("predicted", "doubtful"), [(("1", "1", "2"), True), (("1", "01", "2"), False)])
def test_classes_that_a_spreadsheet_makes_equal_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, predicted: tuple[str, ...], doubtful: bool
) -> None:
    for name in ("1", "01", "2"):
        (tmp_path / "birds" / name).mkdir(parents=True)
        write_image(tmp_path / f"birds/{name}/x.png", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "saved").mkdir()
    write(tmp_path, ["name,prediction", *(f"{a}/x,{b}" for a, b in zip(("1", "01", "2"), predicted, strict=True))])
    given = ["--dataset", "image_folder", "--root", str(tmp_path / "birds"), "--predictions", str(tmp_path / "saved")]
    assert scored(given, tmp_path)["top1"] == (2 / 3 if doubtful else 1)
    assert ("classes '01', '1' are equal as numbers, and the table has only 1" in caplog.text) == doubtful


def test_a_single_class_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_image(made(tmp_path / "birds/auk/1.png"), np.zeros((4, 4, 3), np.uint8))
    made(tmp_path / "saved/labels.csv").write_text("name,prediction\nauk/1,auk\n")
    given = ["--dataset", "image_folder", "--root", str(tmp_path / "birds"), "--predictions", str(tmp_path / "saved")]
    assert scored(given, tmp_path)["top1"] == 1
    assert caplog.messages == ["the data set has the single class 'auk', which any prediction gets right"]


def test_names_of_classes_and_images_match_composed_or_not(tmp_path: Path) -> None:
    for name in ("caf\u00e9", "the"):
        (tmp_path / "birds" / name).mkdir(parents=True)
        write_image(tmp_path / f"birds/{name}/x.png", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "saved").mkdir()
    write(tmp_path, ["name,prediction", "cafe\u0301/x,cafe\u0301", "the/x,cafe\u0301"])
    given = ["--dataset", "image_folder", "--root", str(tmp_path / "birds"), "--predictions", str(tmp_path / "saved")]
    assert scored(given, tmp_path)["top1"] == 1 / 2


def test_a_table_that_is_missing_or_no_text_says_why(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 1
    assert "saved/labels.csv: there is no such table" in capsys.readouterr().err
    (tmp_path / "saved/labels.csv").write_bytes(b"\xff\xfe\x00")
    assert run(arguments) == 1
    assert "saved/labels.csv: cannot be read as text" in capsys.readouterr().err
    assert run([*arguments, "--split", "test"]) == 1
    assert "error: test: no such file" in capsys.readouterr().err


def test_a_data_set_is_measured_on_val_or_else_on_test() -> None:
    names = ("davis", "pascal_voc", "flowers102", "cub", "image_folder", "mask_folder")
    assert [held_out(name) for name in names] == ["val", "val", "val", "test", None, None]


@real_data
def test_predictions_of_real_images_are_of_the_test_split_unless_said(tmp_path: Path) -> None:
    from data.classification.birds import CubConfig

    truth = CubConfig(name="cub", root=DATA / "CUB_200_2011", split="test").build()
    rng = np.random.default_rng(0)
    predictions = np.where(rng.random(len(truth)) < 0.3, rng.integers(0, len(truth.classes), len(truth)), truth.targets)
    rows = zip(truth.ids, predictions.tolist(), strict=True)
    (tmp_path / "labels.csv").write_text(
        "name,prediction\n" + "".join(f"{name},{truth.classes[i]}\n" for name, i in rows)
    )
    found = scored(["--dataset", "cub", "--root", str(DATA / "CUB_200_2011"), "--predictions", str(tmp_path)], tmp_path)
    assert (found["split"], found["images"]) == ("test", len(truth))
    assert found["top1"] == np.mean(predictions == truth.targets)
    assert found["top5"] is None
    of_class = [np.mean(predictions[np.equal(truth.targets, i)] == i) for i in range(len(truth.classes))]
    assert list(found["accuracy_of_class"].values()) == pytest.approx(of_class)
