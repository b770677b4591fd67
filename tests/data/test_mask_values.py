"""What 255 means in a folder of masks, and masks without a known pixel: said, or refused."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data import DataConfig
from data.files.images import write_image
from data.types import DataError
from mtsp.config import ConfigError, parse


def folder(root: Path, *masks: list[int]) -> None:
    for kind in ("frames", "masks"):
        (root / kind).mkdir()
    for i, values in enumerate(masks):
        write_image(root / f"frames/{i}.png", np.full((1, len(values), 3), 10 * i, np.uint8))
        Image.fromarray(np.array([values], np.uint8)).save(root / f"masks/{i}.png")


def read(root: Path, name: str, **settings: Any) -> list[list[int]]:
    values = {"name": name, "frames": str(root / "frames"), "masks": str(root / "masks"), **settings}
    dataset = parse(DataConfig, {"dataset": values}).build_dataset()
    return [np.asarray(dataset.labels(i).get("mask")).reshape(-1).tolist() for i in range(len(dataset))]


TWO = {"mask_folder": {"classes": ["background", "crack"]}, "folder": {}}


@pytest.mark.parametrize("name", TWO)
@pytest.mark.parametrize("masks", [[[0, 255, 0]], [[0, 0, 0], [255, 255, 255]], [[0, 0, 0], [0, 255, 255]]])
def test_two_classes_in_0_and_255_are_refused_with_both_ways_out(
    tmp_path: Path, name: str, masks: list[list[int]]
) -> None:
    folder(tmp_path, *masks)
    with pytest.raises(DataError, match=r"255.*foreground: true.*unknown: \[255\]"):
        read(tmp_path, name, **TWO[name])


@pytest.mark.parametrize("name", TWO)
def test_255_is_the_object_when_foreground_is_said(tmp_path: Path, name: str) -> None:
    folder(tmp_path, [0, 255, 0], [255, 255, 255])
    assert read(tmp_path, name, **TWO[name], foreground=True) == [[0, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize("name", TWO)
def test_255_is_unknown_when_that_is_said(tmp_path: Path, name: str) -> None:
    folder(tmp_path, [0, 255, 0], [0, 1, 255])
    assert read(tmp_path, name, **TWO[name], unknown=[255]) == [[0, 255, 0], [0, 1, 255]]


def test_foreground_has_two_classes_and_no_other_values(tmp_path: Path) -> None:
    folder(tmp_path, [0, 255])
    with pytest.raises(ConfigError, match=r"foreground.*2 classes"):
        read(tmp_path, "mask_folder", classes=["a", "b", "c"], foreground=True)
    with pytest.raises(ConfigError, match=r"foreground.*values"):
        read(tmp_path, "mask_folder", classes=["a", "b"], values=[0, 1], foreground=True)


def test_three_classes_may_leave_a_file_with_the_first_and_unknown_ones(tmp_path: Path) -> None:
    folder(tmp_path, [0, 255, 0], [0, 1, 2])
    assert read(tmp_path, "mask_folder", classes=["a", "b", "c"]) == [[0, 255, 0], [0, 1, 2]]


@pytest.mark.parametrize(
    "settings", [TWO["mask_folder"], TWO["mask_folder"] | {"foreground": True}, TWO["mask_folder"] | {"unknown": [255]}]
)
def test_worker_processes_can_be_given_a_folder_of_masks(tmp_path: Path, settings: dict[str, Any]) -> None:
    folder(tmp_path, [0, 1, 1])
    values = {"name": "mask_folder", "frames": str(tmp_path / "frames"), "masks": str(tmp_path / "masks"), **settings}
    dataset = pickle.loads(pickle.dumps(parse(DataConfig, {"dataset": values}).build_dataset()))
    assert dataset[0]["mask"].tolist() == [[0, 1, 1]]
