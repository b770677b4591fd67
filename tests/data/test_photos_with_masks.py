"""Photos whose EXIF orientation turns them, beside masks: said by name, never a silent misalignment."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data import DataConfig
from data.types import DataError
from mtsp.config import parse


def folder(root: Path, tag: int, mask: np.ndarray, size: tuple[int, int] = (16, 24)) -> None:
    """A photo that is white in the first 8 rows as stored, its tag, and a mask."""
    for kind in ("frames", "masks"):
        (root / kind).mkdir()
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[:8] = 255
    note = Image.Exif()
    note[0x0112] = tag
    Image.fromarray(pixels).save(root / "frames/a.jpg", exif=note, quality=100)
    Image.fromarray(mask).save(root / "masks/a.png")


def build(root: Path, name: str, **settings: Any) -> Any:
    classes = {"classes": ["background", "white"]} if name == "mask_folder" else {"next_frame": False}
    values = {"name": name, "frames": str(root / "frames"), "masks": str(root / "masks"), **classes, **settings}
    return parse(DataConfig, {"dataset": values}).build_dataset()


FOLDERS = ["mask_folder", "folder"]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_turn_by_180_degrees_is_said_with_the_file_and_the_tag(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    mask = np.zeros((16, 24), np.uint8)
    mask[8:] = 1  # drawn on what a viewer shows: white below
    folder(tmp_path, 3, mask)
    dataset = build(tmp_path, name)
    with caplog.at_level(logging.WARNING, logger="mtsp"):
        raw = [dataset[0] for _ in range(3)][-1]
    assert raw["frame"][:8].min() > 250  # as stored
    told = [record.message for record in caplog.records]
    assert len(told) == 1
    assert "a.jpg" in told[0]
    assert "orientation 3" in told[0]
    assert "exif: apply" in told[0]
    caplog.clear()
    applied, ignored = build(tmp_path, name, exif="apply")[0], build(tmp_path, name, exif="ignore")[0]
    assert caplog.records == []
    overlap = [((raw["frame"][..., 0] > 128) == (raw["mask"] == 1)).mean() for raw in (applied, ignored)]
    assert overlap == [1, 0]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_turn_by_90_degrees_is_refused_with_the_tag_or_applied(tmp_path: Path, name: str) -> None:
    mask = np.zeros((24, 16), np.uint8)
    mask[:, 8:] = 1  # turned clockwise, the first rows are the last columns
    folder(tmp_path, 6, mask)
    with pytest.raises(DataError, match=r"24x16.*16x24.*EXIF.*orientation 6.*exif: apply"):
        build(tmp_path, name)[0]
    raw = build(tmp_path, name, exif="apply")[0]
    assert ((raw["frame"][..., 0] > 128) == (raw["mask"] == 1)).all()


def test_frames_without_masks_are_warned_about_once_per_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder(tmp_path, 6, np.zeros((16, 24), np.uint8))
    (tmp_path / "frames/b.jpg").write_bytes((tmp_path / "frames/a.jpg").read_bytes())
    values = {"name": "folder", "frames": str(tmp_path / "frames"), "next_frame": False}
    dataset = parse(DataConfig, {"dataset": values}).build_dataset()
    assert [dataset[i]["frame"].shape[:2] for i in range(2)] == [(16, 24)] * 2  # as stored
    assert ["a.jpg: its EXIF has orientation 6" in message for message in caplog.messages] == [True]
