"""Damage that decoders pass over without a word is refused by name; what is whole loads."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.files.images import read_image
from data.files.masks import read_foreground, read_mask
from data.types import DataError
from tests.data.files.encoded import png

FORMS = {
    "baseline": {},
    "half the colors": {"subsampling": 2},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_blocks": 4},
    "gray": {"mode": "L"},
    "cmyk": {"mode": "CMYK"},
}


def jpeg(mode: str = "RGB", **options: object) -> bytes:
    y, x = np.mgrid[:128, :160]
    noise = np.random.default_rng(0).integers(0, 40, (128, 160, 3))
    pixels = np.clip(np.stack([x, y, (x + y) // 2], axis=2) + noise, 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


def scan_of(data: bytes) -> int:
    """Where the pixels of the first scan begin."""
    start = data.index(b"\xff\xda")
    return start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")


@pytest.mark.parametrize("form", FORMS)
def test_a_whole_jpeg_loads(tmp_path: Path, form: str) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(**FORMS[form]))
    assert read_image(tmp_path / "a.jpg").shape == (128, 160, 3)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("form", FORMS)
def test_a_jpeg_that_lost_its_end_but_has_an_end_marker_is_refused(tmp_path: Path, form: str, kept: float) -> None:
    data = jpeg(**FORMS[form])
    start = scan_of(data)
    (tmp_path / "a.jpg").write_bytes(data[: start + int(kept * (len(data) - start))] + b"\xff\xd9")
    with pytest.raises(DataError, match=r"a\.jpg: truncated or damaged"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("form", FORMS)
def test_a_jpeg_with_a_hole_is_refused(tmp_path: Path, form: str) -> None:
    data = jpeg(**FORMS[form])
    middle = scan_of(data) + (len(data) - scan_of(data)) // 2
    (tmp_path / "a.jpg").write_bytes(data[:middle] + data[middle + 600 :])
    with pytest.raises(DataError, match=r"a\.jpg: truncated or damaged"):
        read_image(tmp_path / "a.jpg")


def test_a_jpeg_overwritten_with_zeros_is_refused(tmp_path: Path) -> None:
    data = jpeg()
    middle = (scan_of(data) + len(data)) // 2
    (tmp_path / "a.jpg").write_bytes(data[:middle] + bytes(2000) + data[middle + 2000 :])
    with pytest.raises(DataError, match=r"a\.jpg: truncated or damaged"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("depth", "color", "channels"), [(8, 0, 1), (1, 0, 1), (4, 3, 1), (8, 2, 3), (8, 6, 4)])
def test_a_png_of_10_of_64_rows_and_right_checksums_is_refused(
    tmp_path: Path, depth: int, color: int, channels: int, interlaced: bool
) -> None:
    pixels = np.ones((64, 48, channels), np.uint8)
    palette = [(0, 0, 0), (128, 0, 0)] if color == 3 else []
    whole = png(pixels, depth, color, palette=palette, interlaced=interlaced)
    (tmp_path / "whole.png").write_bytes(whole)
    assert read_foreground(tmp_path / "whole.png").all()
    assert read_image(tmp_path / "whole.png").shape == (64, 48, 3)
    # The header of 64 rows before the pixels of 10: taken from the image of 10 rows, whose own header is cut off.
    small = png(pixels[:10], depth, color, palette=palette, interlaced=interlaced)
    end_of_header = 8 + 25
    (tmp_path / "a.png").write_bytes(whole[:end_of_header] + small[end_of_header:])
    for read in (read_foreground, read_image, *((read_mask,) if channels == 1 else ())):
        with pytest.raises(DataError, match=r"a\.png: truncated or damaged"):
            read(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.webp", {"lossless": True}), ("b.bmp", {}), ("c.tif", {}), ("d.tif", {"compression": "tiff_lzw"}),
     ("e.ppm", {}), ("f.gif", {}), ("g.avif", {})],
)  # fmt: skip
def test_other_formats_that_lost_their_second_half_are_refused(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / name, **options)
    assert read_image(tmp_path / name).shape == (64, 64, 3)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=name):
        read_image(tmp_path / name)
