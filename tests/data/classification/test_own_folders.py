"""Folders of labeled images that are not what they seem: the parent of train and val, files that are passed over."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data import DataConfig
from data.files.images import write_image
from data.files.masks import write_mask
from data.types import DataError
from mtsp.config import parse

GRAY = np.zeros((4, 4, 3), np.uint8)


def build(root: Path, **settings: Any) -> Any:
    return parse(DataConfig, {"dataset": {"name": "image_folder", "root": str(root), **settings}}).build_dataset()


@pytest.mark.parametrize("splits", [("train", "val"), ("train", "test"), ("Training", "Validation"), ("train",)])
def test_the_folder_above_the_splits_is_refused(tmp_path: Path, splits: tuple[str, ...]) -> None:
    for split in splits:
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            write_image(tmp_path / split / name / f"{split}.png", GRAY)
    with pytest.raises(DataError, match=rf"root.*{splits[0]}"):
        build(tmp_path)
    assert build(tmp_path / splits[0]).classes == ("cat", "dog")


def test_splits_without_class_folders_are_no_two_classes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        write_image(tmp_path / split / f"{split}.png", GRAY)
    with pytest.raises(DataError, match="train, val are splits"):
        build(tmp_path)


@pytest.mark.parametrize("name", ["folder", "mask_folder"])
def test_images_with_masks_of_several_splits_are_all_read_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (tmp_path / kind / split).mkdir(parents=True)
        write_image(tmp_path / f"images/{split}/{split}1.png", GRAY)
        write_mask(tmp_path / f"masks/{split}/{split}1.png", np.ones((4, 4), np.uint8))

    def own(*below: str) -> Any:
        places = {kind: str(tmp_path.joinpath(kind, *below)) for kind in ("images", "masks")}
        classes = {"classes": ["no", "yes"]} if name == "mask_folder" else {}
        values = {"name": name, "frames": places["images"], "masks": places["masks"], **classes}
        return parse(DataConfig, {"dataset": values}).build_dataset()

    assert list(own("train").ids) == ["train1"]
    assert not caplog.records
    assert list(own().ids) == ["train/train1", "val/val1"]
    assert f"{tmp_path}/images: the folders train, val look like splits" in caplog.text


@pytest.mark.parametrize("splits", [("seg_train", "seg_test"), ("fold1", "fold2"), ("2019", "2020")])
def test_splits_of_other_names_are_read_as_classes_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, splits: tuple[str, str]
) -> None:
    for split, name in ((splits[0], "ant"), (splits[0], "bee"), (splits[1], "ant"), (splits[1], "bee")):
        (tmp_path / split / name).mkdir(parents=True)
        write_image(tmp_path / split / name / f"{split}{name}.png", GRAY)
    assert build(tmp_path).classes == tuple(sorted(splits))
    assert (
        f"the folders {', '.join(sorted(splits))} are read as classes, but each holds the folders ant, bee"
        in caplog.text
    )


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("bus", "train"):
        (tmp_path / name).mkdir()
        write_image(tmp_path / name / "1.png", GRAY)
    assert build(tmp_path).classes == ("bus", "train")


def test_all_that_the_libraries_can_read_is_read(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    forms = {"a.jfif": "JPEG", "b.jpe": "JPEG", "c.avif": "AVIF", "d.gif": "GIF", "e.webp": "WEBP", "f.JPG": "JPEG"}
    for name, form in forms.items():
        Image.fromarray(GRAY).save(tmp_path / "cat" / name, form)
    dataset = build(tmp_path)
    assert len(dataset) == len(forms)
    assert all(dataset[i]["frame"].shape == (4, 4, 3) for i in range(len(forms)))


def test_what_is_passed_over_is_counted_and_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cat").mkdir()
    write_image(tmp_path / "cat" / "1.png", GRAY)
    for name in ("2.heic", "3.tga", ".DS_Store", "Thumbs.db"):
        (tmp_path / "cat" / name).write_bytes(b"0")
    with caplog.at_level(logging.WARNING, logger="mtsp"):
        build(tmp_path)
    told = [record.message for record in caplog.records]
    assert len(told) == 1
    assert "2 files" in told[0]
    assert "cat/2.heic, cat/3.tga" in told[0]
    assert str(tmp_path) in told[0]


def test_turned_photos_are_counted_once_and_read_as_stored_unless_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cat").mkdir()
    for i, tag in enumerate((1, 6, 3)):
        note = Image.Exif()
        note[0x0112] = tag
        Image.fromarray(np.zeros((16, 24, 3), np.uint8)).save(tmp_path / "cat" / f"{i}.jpg", exif=note)
    with caplog.at_level(logging.WARNING, logger="mtsp"):
        stored = build(tmp_path)
    assert [stored[i]["frame"].shape for i in range(3)] == [(16, 24, 3)] * 3
    told = [record.message for record in caplog.records]
    assert len(told) == 1
    assert "2 of 3" in told[0]
    assert "exif" in told[0]
    asked = build(tmp_path, exif="apply")
    assert [asked[i]["frame"].shape for i in range(3)] == [(16, 24, 3), (24, 16, 3), (16, 24, 3)]
