"""A mask's values are the ones that its file stores, whatever number of bits and whatever format; or it is refused."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.files.masks import read_foreground, read_mask
from data.types import DataError
from tests.data.files.encoded import png, tiff


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("color", [0, 3], ids=["gray", "indexed"])
@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_png_of_few_bits_keeps_its_ids(tmp_path: Path, depth: int, color: int, interlaced: bool) -> None:
    ids = (np.arange(9 * 11) % min(2**depth, 200)).reshape(9, 11).astype(np.uint8)  # rows do not end at a byte
    palette = [(0, 0, 0), *((10 * i % 256, i, 7) for i in range(1, min(2**depth, 256)))] if color == 3 else []
    path = written(tmp_path / "a.png", png(ids, depth, color, palette=palette, interlaced=interlaced))
    np.testing.assert_array_equal(read_mask(path), ids)
    np.testing.assert_array_equal(read_foreground(path), ids > 0)


@pytest.mark.parametrize("maxval", [1, 2, 3, 20, 100, 254, 255])
@pytest.mark.parametrize("form", ["P2", "P5"])
def test_a_pgm_keeps_its_ids_below_any_maxval(tmp_path: Path, form: str, maxval: int) -> None:
    ids = np.array([[0, 1, maxval], [maxval, 0, 1]], np.uint8)
    body = ids.tobytes() if form == "P5" else b"0 1 %d\n# in between\n%d 0\n1\n" % (maxval, maxval)
    path = written(tmp_path / "a.pgm", b"%s # made by hand\n3 2\n%d\n" % (form.encode(), maxval) + body)
    np.testing.assert_array_equal(read_mask(path), ids)
    np.testing.assert_array_equal(read_foreground(path), ids > 0)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"P2 2 2 3\n0 1 2", "truncated"),
        (b"P2 2 2 3\n0 1 2 4", "above its maxval 3"),
        (b"P2 2 2 3\n0 1 x 3", "no number"),
        (b"P5 2 2 3\n\0\1\2", "truncated"),
        (b"P5 2 2 3\n\0\1\2\4", "above its maxval 3"),
        (b"P5 2 2 300\n\0\0\0\1\0\2\0\3", "16 bits"),
        (b"P5 2 2 0\n\0\0\0\0", "PPM"),
        (b"P1 2 2\n0 1 1 0", "P1"),
    ],
)
def test_a_pgm_that_is_not_whole_or_no_mask_is_refused(tmp_path: Path, text: bytes, what: str) -> None:
    with pytest.raises(DataError, match=rf"a\.pgm.*{what}"):
        read_mask(written(tmp_path / "a.pgm", text))


@pytest.mark.parametrize("depth", [2, 4, 8])
def test_a_tiff_of_few_bits_keeps_its_ids(tmp_path: Path, depth: int) -> None:
    ids = (np.arange(9 * 11) % min(2**depth, 200)).reshape(9, 11).astype(np.uint8)
    np.testing.assert_array_equal(read_mask(written(tmp_path / "a.tif", tiff(ids, depth))), ids)


@pytest.mark.parametrize("depth", [2, 4, 8])
def test_a_tiff_in_which_zero_is_white_holds_no_ids(tmp_path: Path, depth: int) -> None:
    path = written(tmp_path / "a.tif", tiff(np.array([[0, 1, 2]], np.uint8), depth, photometric=0))
    with pytest.raises(DataError, match=r"a\.tif: .*white"):
        read_mask(path)


def test_masks_that_were_packed_with_loss_are_refused(tmp_path: Path) -> None:
    mask = Image.fromarray(np.tile(np.array([[0, 1], [3, 2]], np.uint8), (16, 16)))
    for name, options in {
        "a.tif": {"compression": "jpeg"},
        "b.webp": {"quality": 90},
        "c.avif": {"quality": 90},
        "d.jpg": {"quality": 100},
        "e.jfif": {"quality": 100, "format": "JPEG"},
    }.items():
        (mask.convert("RGB") if name[0] in "bc" else mask).save(tmp_path / name, **options)
        for read in (read_mask, read_foreground):
            with pytest.raises(DataError, match=rf"{name}.*(JPEG|lossy|WebP|AVIF)"):
                read(tmp_path / name)


def test_a_webp_without_loss_is_a_mask_of_an_object(tmp_path: Path) -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[2:4, 3:6] = 255
    Image.fromarray(mask).convert("RGB").save(tmp_path / "a.webp", lossless=True)
    np.testing.assert_array_equal(read_foreground(tmp_path / "a.webp"), mask > 0)


@pytest.mark.parametrize("highest", [2, 256, 65535])
def test_a_mask_of_16_bits_holds_its_values(highest: int, tmp_path: Path) -> None:
    deep = np.array([[0, 1, highest]], np.uint16)
    read = read_mask(written(tmp_path / "a.png", png(deep, 16)))
    np.testing.assert_array_equal(read, deep)
    assert read.dtype == (np.uint16 if highest > 255 else np.uint8)


def test_a_gamma_note_changes_no_id(tmp_path: Path) -> None:
    from tests.data.files.encoded import chunk

    ids = np.array([[0, 1, 2, 3]], np.uint8)
    note = chunk(b"gAMA", struct.pack(">I", 45455))
    np.testing.assert_array_equal(read_mask(written(tmp_path / "a.png", png(ids, 2, before=note))), ids)


def test_a_gif_is_a_mask_by_its_indices(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    image = Image.fromarray(ids, mode="P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    stream = io.BytesIO()
    image.save(stream, "GIF", optimize=False)
    np.testing.assert_array_equal(read_mask(written(tmp_path / "a.gif", stream.getvalue())), ids)
