"""One rule in every format for a camera's note that an image is to be turned: as stored, unless asked otherwise."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data import DataConfig
from data.files.images import orientation, read_image
from data.files.orientation import turned
from mtsp.config import parse
from tests.data.files.encoded import tiff
from tests.data.flow.files import made

STORED = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
SHOWN = {  # what a viewer shows of STORED, rows 0 40 80 / 120 160 200, by the standard's table of row and column 0
    1: [[0, 40, 80], [120, 160, 200]],
    2: [[80, 40, 0], [200, 160, 120]],  # right to left
    3: [[200, 160, 120], [80, 40, 0]],  # by 180 degrees
    4: [[120, 160, 200], [0, 40, 80]],  # bottom to top
    5: [[0, 120], [40, 160], [80, 200]],  # rows become columns
    6: [[120, 0], [160, 40], [200, 80]],  # by 90 degrees clockwise
    7: [[200, 80], [160, 40], [120, 0]],
    8: [[80, 200], [40, 160], [0, 120]],  # by 90 degrees counterclockwise
}


def written(folder: Path, form: str, tag: int) -> Path:
    pixels = np.repeat(np.repeat(np.repeat(STORED[..., None], 3, axis=2), 16, axis=0), 16, axis=1)
    path = folder / f"a.{form}"
    note = Image.Exif()
    note[0x0112] = tag
    options = {"jpg": {"quality": 100}, "webp": {"lossless": True}, "avif": {"quality": 100}}.get(form, {})
    if form == "tif":
        path.write_bytes(tiff(pixels, photometric=2, orientation=tag))
    else:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, {"jpg": "JPEG"}.get(form, form), exif=note, **options)
        path.write_bytes(stream.getvalue())
    return path


def blocks(pixels: np.ndarray) -> np.ndarray:
    return pixels[8::16, 8::16, 0].astype(int)


@pytest.mark.parametrize("tag", SHOWN)
@pytest.mark.parametrize("form", ["jpg", "png", "webp", "tif", "avif"])
def test_images_are_read_as_stored_or_turned_when_asked(tmp_path: Path, form: str, tag: int) -> None:
    path = written(tmp_path, form, tag)
    as_stored = read_image(path)
    assert np.abs(blocks(as_stored) - STORED).max() <= 3
    assert orientation(path) == tag
    applied = read_image(path, exif="apply")
    assert blocks(applied).shape == np.shape(SHOWN[tag])
    assert np.abs(blocks(applied) - SHOWN[tag]).max() <= 3


@pytest.mark.parametrize("tag", SHOWN)
def test_the_turns_are_those_of_the_table(tag: int) -> None:
    assert turned(STORED, tag).tolist() == SHOWN[tag]


def test_a_tag_that_means_nothing_turns_nothing(tmp_path: Path) -> None:
    assert orientation(written(tmp_path, "jpg", 0)) == 1
    assert orientation(written(tmp_path, "jpg", 9)) == 1


@pytest.mark.parametrize("tag", SHOWN)
@pytest.mark.parametrize("foreground", [False, True])
def test_a_mask_with_a_tag_of_its_own_is_turned_with_its_image(tmp_path: Path, tag: int, foreground: bool) -> None:
    mask = np.array([[0, 1, 2], [3, 4, 5]], np.uint8)
    note = Image.Exif()
    note[0x0112] = tag
    Image.fromarray(mask).save(made(tmp_path / "masks/a.png"), exif=note)
    shown = np.array(SHOWN[tag]) // 40
    image = np.repeat(mask[..., None], 3, axis=2)
    for image_tag, pixels in ((tag, image), (1, turned(image, tag))):  # both with the tag, or the mask alone
        note[0x0112] = image_tag
        Image.fromarray(pixels).save(made(tmp_path / "frames/a.png"), exif=note)
        classes = ["a", "b"] if foreground else list("abcdef")
        values = {"name": "mask_folder", "frames": str(tmp_path / "frames"), "masks": str(tmp_path / "masks")}
        values |= {"exif": "apply", "foreground": foreground, "classes": classes}
        sample: Any = parse(DataConfig, {"dataset": values}).build_dataset()[0]
        assert np.array_equal(sample["frame"][..., 0], shown)
        assert np.array_equal(sample["mask"], shown > 0 if foreground else shown)
