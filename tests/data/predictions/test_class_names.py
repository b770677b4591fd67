"""Predictions of a network whose classes are in another order than those of the data, or more."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.files.images import write_image
from data.files.masks import write_mask
from data.predictions.class_names import write_class_names
from tools.score import main

BLANK = np.zeros((2, 6, 3), np.uint8)


def mask(*ids: int) -> np.ndarray:
    return np.array([ids, ids], np.uint8)


def scored(folder: Path, *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--predictions", f"{folder}/saved", "--json", f"{folder}/scores.json"]) == 0
    return json.loads((folder / "scores.json").read_text())


@pytest.fixture
def roads(tmp_path: Path) -> list[str]:
    """Truth: car car road road unknown road, of the classes road (0) and car (1)."""
    for name in ("images", "masks", "saved"):
        (tmp_path / name).mkdir()
    write_image(tmp_path / "images/a.png", BLANK)
    write_mask(tmp_path / "masks/a.png", mask(1, 1, 0, 0, 255, 0))
    own = [f"frames={tmp_path}/images", f"masks={tmp_path}/masks", "classes=[road, car]"]
    return ["--dataset", "mask_folder", *own]


def test_masks_are_of_the_classes_that_lie_beside_them(roads: list[str], tmp_path: Path) -> None:
    """Network: car 0, sky 1, road 2. Predicted: car road road road car sky; the fifth column counts nowhere."""
    write_mask(tmp_path / "saved/a.png", mask(0, 2, 2, 2, 0, 1))
    write_class_names(tmp_path / "saved", ("car", "sky", "road"))
    found = scored(tmp_path, *roads)
    assert found["class_iou"] == {"car": 1 / 2, "sky": 0, "road": 2 / 4}
    assert found["miou"] == pytest.approx(1 / 3)
    assert found["pixel_accuracy"] == 3 / 5


def test_without_class_names_masks_have_the_classes_of_the_data(roads: list[str], tmp_path: Path) -> None:
    write_mask(tmp_path / "saved/a.png", mask(1, 0, 0, 0, 1, 1))
    assert scored(tmp_path, *roads)["class_iou"] == {"road": 2 / 4, "car": 1 / 3}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("car", "sky"), r"1 of its 2 classes (road) are not among the 2 of "),
        (("car", "car", "road"), "the class 'car' is listed twice"),
    ],
)
def test_class_names_that_do_not_fit_are_refused(
    roads: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, ...], message: str
) -> None:
    write_mask(tmp_path / "saved/a.png", mask(0, 0, 0, 0, 0, 0))
    write_class_names(tmp_path / "saved", names)
    assert main([*roads, "--predictions", f"{tmp_path}/saved"]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert "saved/classes.txt" in said


def test_a_class_that_only_the_network_has_is_a_wrong_prediction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of four images are right: one bee is taken for an ant, which the data set does not have, one for a wasp."""
    for name in ("bee/1", "bee/2", "bee/3", "wasp/1"):
        (tmp_path / "insects" / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(tmp_path / f"insects/{name}.png", BLANK)
    (tmp_path / "saved").mkdir()
    rows = ["name,truth,prediction", "bee/1,bee,bee", "bee/2,bee,ant", "bee/3,bee,wasp", "wasp/1,wasp,wasp"]
    (tmp_path / "saved/labels.csv").write_text("\n".join(rows))
    insects = ["--dataset", "image_folder", "--root", f"{tmp_path}/insects"]
    assert main([*insects, "--predictions", f"{tmp_path}/saved"]) == 1
    assert "line 3: no class is called 'ant'; if the network has it, list the network's classes in classes.txt" in (
        capsys.readouterr().err
    )
    write_class_names(tmp_path / "saved", ("wasp", "ant", "bee"))
    found = scored(tmp_path, *insects)
    assert found["top1"] == 2 / 4
    assert {name: value for name, value in found["accuracy_of_class"].items() if value is not None} == {
        "bee": pytest.approx(1 / 3), "wasp": 1,
    }  # fmt: skip
    assert found["class_accuracy"] == pytest.approx(2 / 3)
