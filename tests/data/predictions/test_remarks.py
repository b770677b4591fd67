"""Remarks beside scores, and the file that is named where truth and prediction do not fit."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.files.flow_formats.flo import write_flo
from data.files.images import write_image
from tests.data.flow.files import made
from tools.score import main

GRAY = np.full((4, 5, 3), 90, np.uint8)


def stored(path: Path, *rows: list[int]) -> None:
    Image.fromarray(np.array(rows, np.uint8)).save(made(path))


def arguments(root: Path, name: str, *settings: str) -> list[str]:
    places = [f"frames={root}/frames", f"masks={root}/masks"]
    return ["--dataset", name, "--predictions", str(root / "found"), *places, *settings]


def scored(root: Path, given: list[str], caplog: pytest.LogCaptureFixture) -> tuple[dict[str, Any], str]:
    caplog.clear()
    assert main([*given, "--json", str(root / "scores.json")]) == 0
    return json.loads((root / "scores.json").read_text()), "\n".join(caplog.messages)


def test_unknown_pixels_are_counted_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, values in (("0", [0, 1, 255, 255]), ("1", [0, 0, 1, 1])):
        write_image(made(tmp_path / f"frames/{name}.png"), GRAY[:1, :4])
        stored(tmp_path / f"masks/{name}.png", values)
        stored(tmp_path / f"found/{name}.png", [0, 0, 0, 1])
    given = arguments(tmp_path, "folder", "kind=images", "classes=2", "unknown=[255]")
    found, said = scored(tmp_path, given, caplog)
    # 6 known pixels: of class 0 3 true, 5 predicted, 3 both; of class 1 3 true, 1 predicted, 1 both
    assert found["class_iou"] == pytest.approx({"0": 3 / 5, "1": 1 / 3})
    assert said == "2 of 8 true pixels (25.0 %) are unknown (255) and not counted, in 1 masks: 0"


def test_flow_beyond_any_frame_is_told_of_truth_and_of_predictions(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for frame in ("frame10", "frame11"):
        write_image(made(tmp_path / f"other-data/Urban/{frame}.png"), GRAY)
    truth = np.full((4, 5, 2), (3, 4), np.float32)
    write_flo(made(tmp_path / "other-gt-flow/Urban/flow10.flo"), truth)
    write_flo(made(tmp_path / "found/Urban.flo"), truth + np.float32(1e5))
    given = ["--dataset", "middlebury", "--root", str(tmp_path), "--predictions", str(tmp_path / "found")]
    found, said = scored(tmp_path, given, caplog)
    assert found["epe"] == pytest.approx(1e5 * 2**0.5)
    assert said.startswith(f"flow in {tmp_path}/found is longer than 10 diagonals of the frame in 1 files: Urban;")
    shutil.copy(tmp_path / "found/Urban.flo", tmp_path / "other-gt-flow/Urban/flow10.flo")
    found, said = scored(tmp_path, given, caplog)
    assert found["epe"] == 0
    assert said.startswith("true flow is longer than 10 diagonals")


def test_truth_of_another_size_than_its_image_is_named_and_not_the_prediction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(made(tmp_path / "frames/0.png"), GRAY)
    stored(tmp_path / "masks/0.png", *[[0, 1, 1]] * 4)
    stored(tmp_path / "found/0.png", *[[0, 1, 1, 0, 0]] * 4)
    given = arguments(tmp_path, "mask_folder", "classes=[ground,road]")
    assert main(given) == 1
    assert "masks/0.png has 4x3 pixels, but" in (said := capsys.readouterr().err)
    assert "found" not in said
    stored(tmp_path / "masks/0.png", *[[0, 1, 1, 0, 0]] * 4)
    stored(tmp_path / "found/0.png", *[[0, 1, 1]] * 4)
    assert main(given) == 1
    assert "found/0.png: 4x3 pixels, but the truth has 4x5" in capsys.readouterr().err


@pytest.mark.parametrize("indexed", [False, True])
def test_255_beside_ids_in_masks_of_foreground_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, indexed: bool
) -> None:
    for i in range(3):
        write_image(made(tmp_path / f"JPEGImages/480p/{tmp_path.name}/{i}.jpg"), GRAY)
        mask = Image.fromarray(np.array([[0, 1, 255, 255, 0]] * 4, np.uint8))
        if indexed:
            mask = mask.convert("P")
            mask.putpalette([value for i in range(256) for value in (i, i, i)])
        mask.save(made(tmp_path / f"Annotations/480p/{tmp_path.name}/{i}.png"))
        stored(tmp_path / f"found/{tmp_path.name}/{i}.png", *[[0, 1, 1, 1, 0]] * 4)
    made(tmp_path / "ImageSets/2016/val.txt").write_text(f"{tmp_path.name}\n")
    given = ["--dataset", "davis", "--root", str(tmp_path), "--predictions", str(tmp_path / "found")]
    found, said = scored(tmp_path, given, caplog)
    assert found["J_mean"] == 1  # 255 is the object, as in the masks of 2016
    assert "0.png: it has 255, which often means unknown, beside 1; each value above 0 is the object" in said


def test_which_values_predictions_hold_is_said_where_the_truth_has_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_image(made(tmp_path / "frames/0.png"), GRAY[:1, :4])
    stored(tmp_path / "masks/0.png", [1, 1, 0, 0])
    stored(tmp_path / "found/0.png", [0, 0, 1, 1])
    found, said = scored(tmp_path, arguments(tmp_path, "mask_folder", "classes=[sky,road]", "values=[1,0]"), caplog)
    assert found["miou"] == 1  # value 1 of the truth is sky, class 0
    assert said == "predictions hold class ids, 0 for sky to 1 for road; true masks have other values: 1, 0"
