"""Class names travel with the weights: data of another order, of fewer or of other classes never get a wrong number."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from data.files.images import write_image
from data.files.masks import write_mask
from mtsp.config import ConfigError
from mtsp.files.tensors import read_tensors, write_tensors
from tools.evaluate import main as evaluate
from tools.predict import main as predict
from tools.score import main as score

Train = Callable[..., dict[str, dict[str, float]]]
COLORS = {"blue": 2, "green": 1, "red": 0}  # the channel that is bright
NAMES = tuple(COLORS)


def labeled(root: Path, *names: str, count: int = 3) -> Path:
    """`count` images of each class, all of one color."""
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.zeros((32, 32, 3), np.uint8)
            pixels[..., COLORS.get(name, 0)] = 200 + i
            write_image(root / name / f"{i}.png", pixels)
    return root


def of(root: Path) -> dict[str, Any]:
    return {"dataset": {"name": "image_folder", "root": str(root)}}


@pytest.fixture
def colors(tmp_path: Path) -> dict[str, Any]:
    return {
        "name": "colors",
        "model": {"name": "classifier", "backbone": "test_efficientnet", "classes": 3},
        "branches": {"backbone": {}, "head": {}},
        "data": {"train": of(labeled(tmp_path / "train", *NAMES)), "val": of(tmp_path / "train")},
        "tasks": {"classification": {}},
        "regularizer": {"name": "l2", "alpha": 0.0, "beta": 0.0},
        "optimizer": {"name": "sgd", "lr": 0.01},
        "train": {"steps": 1, "stages": [{"steps": 1, "batch_size": {"train": 3}}], "workers": 0, "save_every": 1},
        "evaluation": {"data": ["val"], "at_start": False},
        "tracking": {"log_every": 1, "images": 0},
    }


def always(weights: Path, label: int) -> None:
    """Change the weights so that the network says class `label` of every image."""
    tensors, notes = read_tensors(weights)
    for name, value in tensors.items():
        if name.startswith("head.") and value.shape[:1] == (3,):
            value.zero_()
            if value.ndim == 1:
                value[label] = 1
    write_tensors(weights, tensors, notes)


def measured(run: Path, folder: Path, entry: Path, *extra: str) -> dict[str, Any]:
    arguments = ["--config", f"{run}/experiment.yaml", "--checkpoint", f"{run}/weights.safetensors"]
    assert evaluate([*arguments, "--json", f"{folder}/a.json", *extra, f"data.val.dataset.root={entry}"]) == 0
    return json.loads((folder / "a.json").read_text())["entries"]["val"]


@pytest.fixture
def run(colors: dict[str, Any], train: Train, tmp_path: Path) -> Path:
    """A network that says "green", class 1 of blue, green, red, of every image."""
    train(colors, tmp_path / "run")
    always(tmp_path / "run/weights.safetensors", 1)
    return tmp_path / "run"


def test_weights_and_checkpoints_carry_the_names_of_their_classes(run: Path) -> None:
    with safe_open(run / "weights.safetensors", "pt") as file:
        assert json.loads(file.metadata()["classes"]) == list(NAMES)
    state = json.loads((run / "checkpoints/step-00000001/state.json").read_text())
    assert state["classes"] == list(NAMES)


def test_a_folder_that_lacks_a_class_is_measured_by_name(run: Path, tmp_path: Path) -> None:
    # 2 green and 1 red: "green" is right of 2 of 3 images. By number, class 1 would be red: 1 of 3.
    labeled(tmp_path / "some", "green", count=2)
    labeled(tmp_path / "some", "red", count=1)
    found = measured(run, tmp_path, tmp_path / "some")
    assert found["top1"] == pytest.approx(2 / 3)
    assert found["accuracy_of_class"]["green"] == 1
    assert found["accuracy_of_class"]["red"] == 0


def test_stored_predictions_of_classes_that_a_folder_lacks_have_the_numbers_of_the_network(
    run: Path, tmp_path: Path
) -> None:
    labeled(tmp_path / "some", "blue", "red", count=1)  # "green", which is not there, is said of both
    found = measured(run, tmp_path, tmp_path / "some", "--save-predictions", f"{tmp_path}/saved")
    assert found["top1"] == 0
    again = tmp_path / "again.json"
    stored = ["--dataset", "image_folder", "--root", f"{tmp_path}/some", "--predictions", f"{tmp_path}/saved/val"]
    assert score([*stored, "--json", str(again)]) == 0
    assert json.loads(again.read_text())["accuracy_of_class"] == found["accuracy_of_class"]


def test_classes_that_the_network_does_not_know_are_refused_by_name(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labeled(tmp_path / "others", "cat", "dog", "green")
    arguments = ["--config", f"{run}/experiment.yaml", "--checkpoint", f"{run}/weights.safetensors"]
    assert evaluate([*arguments, f"data.val.dataset.root={tmp_path}/others"]) == 1
    said = capsys.readouterr().err
    assert "data.val: 2 of its 3 classes (cat, dog) are not among the 3 of" in said
    assert "blue, green, red" in said


@pytest.mark.parametrize("weights", ["weights.safetensors", "checkpoints/step-00000001"])
def test_predictions_are_named_as_trained_without_the_data(run: Path, tmp_path: Path, weights: str) -> None:
    shutil.move(tmp_path / "train", tmp_path / "gone")
    arguments = ["--config", f"{run}/experiment.yaml", "--checkpoint", f"{run}/{weights}"]
    assert predict([*arguments, "--frames", f"{tmp_path}/gone/red", "--out", f"{tmp_path}/out"]) == 0
    text = next((tmp_path / "out").rglob("labels.csv")).read_text()
    assert all(name in text for name in NAMES)
    assert list(csv.DictReader(text.splitlines()))


def test_training_measures_a_folder_that_lacks_a_class_by_name(
    colors: dict[str, Any], train: Train, tmp_path: Path
) -> None:
    colors["data"]["val"] = of(labeled(tmp_path / "val", "blue", "red"))
    colors["train"]["steps"] = 30
    colors["optimizer"]["lr"] = 0.05
    colors["train"]["save_every"] = 30
    results = train(colors, tmp_path / "run")
    assert results["val"]["images"] == 6
    again = measured(tmp_path / "run", tmp_path, tmp_path / "val")
    assert again["accuracy_of_class"]["green"] is None
    assert again["top1"] == results["val"]["top1"]


def test_training_refuses_to_measure_on_classes_that_it_does_not_learn(
    colors: dict[str, Any], train: Train, tmp_path: Path
) -> None:
    colors["data"]["val"] = of(labeled(tmp_path / "val", "blue", "violet"))
    with pytest.raises(ConfigError, match=r"data\.val: 1 of its 2 classes \(violet\) .*data\.train"):
        train(colors, tmp_path / "run")


def test_a_wrong_number_of_classes_is_told_with_the_folder_and_the_names(
    colors: dict[str, Any], train: Train, tmp_path: Path
) -> None:
    colors["model"]["classes"] = 4
    with pytest.raises(ConfigError, match=r"model\.classes is 4, but data\.train has 3 classes: blue, green, red"):
        train(colors, tmp_path / "run")


def test_masks_with_classes_in_another_order_are_measured_by_name(train: Train, tmp_path: Path) -> None:
    for folder in ("frames", "masks", "masks2"):
        (tmp_path / folder).mkdir()
    for i in range(2):
        write_image(tmp_path / f"frames/{i}.png", np.full((64, 64, 3), 100 + 50 * i, np.uint8))
        mask = np.zeros((64, 64), np.uint8)
        mask[:16] = 1  # a quarter is road
        write_mask(tmp_path / f"masks/{i}.png", mask)
        write_mask(tmp_path / f"masks2/{i}.png", 1 - mask)

    def entry(masks: str, classes: list[str]) -> dict[str, Any]:
        frames = {"frames": f"{tmp_path}/frames", "masks": f"{tmp_path}/{masks}"}
        return {"dataset": {"name": "mask_folder", **frames, "classes": classes}}

    values = {
        "name": "two",
        "model": {
            "name": "encnet", "encoder": "tu-test_efficientnet", "classes": 2, "width": 16, "codewords": 4,
            "output_stride": 8, "dropout_rate": 0.0,
        },
        "branches": {"backbone": {}, "head": {}},
        "data": {
            "train": entry("masks", ["sky", "road"]),
            "same": entry("masks", ["sky", "road"]),
            "swapped": entry("masks2", ["road", "sky"]),
        },
        "tasks": {"segmentation": {}},
        "regularizer": {"name": "l2", "alpha": 0.0, "beta": 0.0},
        "optimizer": {"name": "sgd", "lr": 0.01},
        "train": {"steps": 1, "stages": [{"steps": 1, "batch_size": {"train": 2}}], "workers": 0, "save_every": 1},
        "evaluation": {"data": ["same", "swapped"], "at_start": False},
        "tracking": {"log_every": 1, "images": 0},
    }  # fmt: skip
    torch.manual_seed(0)
    results = train(values, tmp_path / "run")
    assert results["same"] == results["swapped"]
    arguments = ["--config", f"{tmp_path}/run/experiment.yaml", "--checkpoint", f"{tmp_path}/run/weights.safetensors"]
    saved, own = f"{tmp_path}/saved", [f"frames={tmp_path}/frames", f"masks={tmp_path}/masks2", "classes=[road, sky]"]
    assert evaluate([*arguments, "--json", f"{tmp_path}/a.json", "--save-predictions", saved]) == 0
    stored = ["--dataset", "mask_folder", *own, "--predictions", f"{saved}/swapped", "--json", f"{tmp_path}/b.json"]
    assert score(stored) == 0
    found = json.loads((tmp_path / "a.json").read_text())["entries"]["swapped"]
    again = json.loads((tmp_path / "b.json").read_text())
    assert {key: again[key] for key in ("miou", "class_iou", "per_image")} == {
        key: found[key] for key in ("miou", "class_iou", "per_image")
    }
