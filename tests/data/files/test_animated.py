"""Files of several images are refused by name: which of them is meant, nobody said."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.files.images import read_image
from data.files.masks import read_foreground, read_mask
from data.types import DataError
from tests.data.files.encoded import chunk, png

FIRST, SECOND = (Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (10, 200))


@pytest.mark.parametrize("suffix", ["png", "gif", "webp", "tif", "avif"])
def test_a_file_of_several_images_is_neither_frame_nor_mask(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    lossless: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    FIRST.convert("RGB").save(path, save_all=True, append_images=[SECOND.convert("RGB")], **lossless)
    for read in (read_image, read_mask, read_foreground):
        with pytest.raises(DataError, match=rf"a\.{suffix}: .*(2 images|animat|lossy|loss)"):
            read(path)
    with pytest.raises(DataError, match=r"2 images|animat"):
        read_image(path)


def test_a_hidden_default_image_is_refused(tmp_path: Path) -> None:
    # The part acTL says one image, and no fcTL comes before IDAT: the stored pixels are not among those shown.
    control = chunk(b"acTL", struct.pack(">II", 1, 0))
    (tmp_path / "a.png").write_bytes(png(np.zeros((4, 4), np.uint8), before=control))
    for read in (read_image, read_mask, read_foreground):
        with pytest.raises(DataError, match=r"a\.png: .*animat"):
            read(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["gif", "webp", "tif", "png"])
def test_a_file_of_one_image_is_read(tmp_path: Path, suffix: str) -> None:
    lossless: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    FIRST.save(tmp_path / f"a.{suffix}", **lossless)
    assert np.abs(read_image(tmp_path / f"a.{suffix}").astype(int) - 10).max() == 0
