"""A generated corpus of image files: each is read as an independent decoder reads it, or refused by name.

Expected pixels come from the stored samples themselves or from imagecodecs, which uses neither Pillow nor OpenCV; where
it is not installed, those cells are skipped.
"""

import io
import struct
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from data.files.flow_formats.pfm import read_pfm
from data.files.flow_formats.read import read_flow
from data.files.images import read_image
from data.files.masks import read_mask
from data.types import DataError
from tests.data.files.encoded import chunk, png, tiff

try:
    import imagecodecs
except ImportError:
    imagecodecs: Any = None

Y, X = np.mgrid[:21, :26]
RGB = np.stack([9 * X, 12 * Y, 5 * (X + Y)], axis=2).astype(np.uint8)
RNG = np.random.default_rng(0)


class Cell(NamedTuple):
    """A file, and what it holds as a frame and as a mask; None: it is to be refused."""

    name: str
    data: bytes
    frame: np.ndarray | None
    mask: np.ndarray | None = None
    tolerance: int = 0


def gray(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.astype(np.uint8)[..., None], 3, axis=2)


def saved(pixels: np.ndarray, form: str, mode: str | None = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(stream, form, **options)
    return stream.getvalue()


def pngs() -> list[Cell]:
    cells = []
    notes = {
        "": b"",
        " gAMA": chunk(b"gAMA", struct.pack(">I", 100000)),
        " odd gAMA": chunk(b"gAMA", struct.pack(">I", 45455)),
        " eXIf": chunk(b"eXIf", b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)),
    }
    clear = {0: struct.pack(">H", 1), 2: struct.pack(">HHH", 1, 2, 3), 3: b"\x80\0\xff"}
    for color, depth in [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (3, 1), (3, 2), (3, 4), (3, 8),
                         (2, 8), (2, 16), (4, 8), (4, 16), (6, 8), (6, 16)]:  # fmt: skip
        channels = {0: 1, 3: 1, 2: 3, 4: 2, 6: 4}[color]
        high = min(2**depth, 200 if color == 3 else 2**16)
        samples = RNG.integers(0, high, (21, 26, channels)).astype(np.uint16)
        colors = [(0, 0, 0), *((i, 255 - i, 7 * i % 256) for i in range(1, high))] if color == 3 else []
        values = samples.astype(np.int64)
        if color == 3:
            frame = np.array(colors, np.uint8)[values[..., 0]]
        else:
            scaled = values >> 8 if depth == 16 else values * 255 // (2**depth - 1)
            frame = gray(scaled[..., 0]) if color in (0, 4) else scaled[..., :3].astype(np.uint8)
        ids = values[..., 0].astype(np.uint16) if color in (0, 3) else None
        extra = {" tRNS": chunk(b"tRNS", clear[color])} if color in clear else {}
        for note, before in {**notes, **extra}.items():
            if color == 3 and note.strip() == "tRNS" and depth == 1:
                before = chunk(b"tRNS", b"\x80\0")
            for interlaced in (False, True):
                # Parts before PLTE and parts after it: gAMA comes first, tRNS last.
                data = png(samples, depth, color, palette=colors, interlaced=interlaced, before=before)
                name = f"{color} {depth} bit{note}{' interlaced' if interlaced else ''}.png"
                cells.append(Cell(name, data, frame, ids))
    cells.append(Cell("animated.png", png(RGB, 8, 2, before=chunk(b"acTL", struct.pack(">II", 2, 0))), None))
    return cells


def jpegs() -> list[Cell]:
    cells = []
    big = np.repeat(np.repeat(RGB, 4, 0), 4, 1)
    forms: dict[str, dict[str, Any]] = {
        "4:4:4": {"subsampling": 0}, "4:2:2": {"subsampling": 1}, "4:2:0": {"subsampling": 2},
        "progressive": {"progressive": True}, "progressive 4:4:4": {"progressive": True, "subsampling": 0},
        "optimized": {"optimize": True}, "restarts": {"restart_marker_blocks": 3}, "quality 30": {"quality": 30},
    }  # fmt: skip
    for name, options in forms.items():
        for mode in ("RGB", "L"):
            data = saved(big, "JPEG", mode, **{"quality": 90, **options})
            cells.append(Cell(f"{name} {mode}.jpg", data, decoded("jpeg8_decode", data, outcolorspace="RGB")))
    for tag in range(1, 9):
        note = Image.Exif()
        note[0x0112] = tag
        data = saved(big, "JPEG", exif=note, quality=90)
        cells.append(Cell(f"orientation {tag}.jpg", data, decoded("jpeg8_decode", data, outcolorspace="RGB")))
    if imagecodecs is not None:
        data = imagecodecs.jpeg8_encode(big, level=95, colorspace="RGB", outcolorspace="RGB")
        cells.append(Cell("RGB inside.jpg", data, decoded("jpeg8_decode", data, outcolorspace="RGB")))
        data = imagecodecs.jpeg8_encode(big.astype(np.uint16) << 4, level=95, bitspersample=12)
        cells.append(Cell("12 bit.jpg", data, None))
        # The inks of CMYK.jpg in transformed colors, as Photoshop stores them: luma, chroma and black.
        inks = np.dstack([big, np.full(big.shape[:2], 255, np.uint8)])
        stored = imagecodecs.jpeg8_encode(inks, level=95, colorspace="CMYK", outcolorspace="YCCK", subsampling="444")
        cells.append(Cell("YCCK.jpg", stored, big, tolerance=8))
        lossless = imagecodecs.jpeg8_encode(big, lossless=True)
        cells.append(Cell("lossless.jpg", lossless, big))
    # Cyan, magenta, yellow and black as Adobe's programs store them, inverted: what is shown is close to the source.
    cells.append(Cell("CMYK.jpg", saved(big, "JPEG", "CMYK", quality=95), big, tolerance=6))
    return cells


def others() -> list[Cell]:
    ids = ((X + Y) % 4).astype(np.uint8)
    colors = Image.fromarray(ids, mode="P")
    colors.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
    shown = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]], np.uint8)[ids]

    def indexed(form: str, **options: Any) -> bytes:
        stream = io.BytesIO()
        colors.save(stream, form, **options)
        return stream.getvalue()

    two = (ids > 1).astype(np.uint8)
    deep = (RGB.astype(np.uint16) << 8) + 7
    lossless = saved(RGB, "WEBP", lossless=True)
    cells = [
        Cell("RGB.tif", tiff(RGB, photometric=2), RGB),
        Cell("RGB planes turned.tif", tiff(RGB, photometric=2, orientation=6), RGB),
        Cell("gray.tif", tiff(ids * 60), gray(ids * 60), ids * 60),
        Cell("gray 4 bit.tif", tiff(ids, 4), gray(ids * 17), ids),
        Cell("gray 2 bit.tif", tiff(ids, 2), gray(ids * 85), ids),
        Cell("gray 1 bit.tif", tiff(two, 1), gray(two * 255), two),
        Cell("gray turned.tif", tiff(ids * 60, orientation=8), gray(ids * 60), ids * 60),
        *(
            Cell(f"{name} {way}.tif", tiff(pixels, depth, photometric=color, rows=rows, tile=tile), shown, stored)
            for way, rows, tile in (("strips", 4, None), ("tiles", None, 16))
            for name, pixels, depth, color, shown, stored in (
                ("RGB", RGB, 8, 2, RGB, None),
                ("gray", ids * 60, 8, 1, gray(ids * 60), ids * 60),
                ("gray 4 bit", ids, 4, 1, gray(ids * 17), ids),
                ("gray 1 bit", two, 1, 1, gray(two * 255), two),
            )
        ),
        Cell("white is zero.tif", tiff(ids * 60, photometric=0), gray(255 - ids * 60), None),
        Cell("indexed.tif", indexed("TIFF"), shown, ids),
        *(Cell(f"{c}.tif", saved(RGB, "TIFF", compression=c), RGB) for c in ("tiff_lzw", "tiff_deflate", "packbits")),
        *(Cell(f"gray {c}.tif", saved(ids, "TIFF", compression=c), gray(ids), ids) for c in ("tiff_lzw", "packbits")),
        Cell("group 4.tif", saved(two * 255, "TIFF", "1", compression="group4"), gray(two * 255), two),
        Cell("jpeg inside.tif", saved(ids * 60, "TIFF", compression="jpeg"), gray(ids * 60), None, tolerance=60),
        Cell("two pages.tif", saved(RGB, "TIFF", save_all=True, append_images=[Image.fromarray(RGB)]), None),
        Cell("lossless.webp", lossless, RGB),
        Cell("lossy.webp", lossy := saved(RGB, "WEBP", quality=80), decoded("webp_decode", lossy)),
        Cell("clear.webp", saved(np.dstack([RGB, RGB[..., 0]]), "WEBP", lossless=True, exact=True), RGB),
        Cell("a.avif", avif := saved(RGB, "AVIF", quality=80), decoded("avif_decode", avif), tolerance=2),
        Cell("24 bit.bmp", saved(RGB, "BMP"), RGB),
        Cell("gray.bmp", saved(ids * 60, "BMP"), gray(ids * 60), ids * 60),
        Cell("indexed.bmp", indexed("BMP"), shown, ids),
        Cell("1 bit.bmp", saved(two * 255, "BMP", "1"), gray(two * 255), two),
        Cell("indexed.gif", indexed("GIF", optimize=False), shown, ids),
        Cell("interlaced.gif", indexed("GIF", optimize=False, interlace=1), shown, ids),
        Cell("moving.gif", indexed("GIF", save_all=True, append_images=[Image.fromarray(two)]), None),
        Cell("P6.ppm", b"P6\n26 21\n255\n" + RGB.tobytes(), RGB),
        Cell("P6 deep.ppm", b"P6 26 21 65535 " + deep.astype(">u2").tobytes(), RGB, tolerance=1),  # rounded
        Cell("P3.ppm", b"P3\n26 21\n255\n" + " ".join(map(str, RGB.reshape(-1))).encode(), RGB),
        Cell("P5.pgm", b"P5\n# ids\n26 21\n255\n" + ids.tobytes(), gray(ids), ids),
        Cell("P5 of 3.pgm", b"P5 26 21 3\n" + ids.tobytes(), gray(ids * 85), ids),
        Cell("P2 of 3.pgm", b"P2 26 21 3\n" + " ".join(map(str, ids.reshape(-1))).encode(), gray(ids * 85), ids),
        Cell("P5 deep.pgm", b"P5 26 21 65535\n" + deep[..., 0].astype(">u2").tobytes(), gray(RGB[..., 0]), None),
    ]
    return cells


PFM = {
    "little.pfm": (b"PF\n4 3\n-1.0\n", "<"),
    "big.pfm": (b"PF\n4 3\n1.0\n", ">"),
    "scaled.pfm": (b"PF\n4 3\n-0.003922\n", "<"),
    "exponent.pfm": (b"PF\n4 3\n-1e0\n", "<"),
    "lines of Windows.pfm": (b"PF\r\n4 3\r\n-1\r\n", "<"),
    "sizes on two lines.pfm": (b"PF\n4\n3\n-1.0\n", "<"),
    "blanks.pfm": (b"PF \n4  3 \n-1.0 \n", "<"),
    "gray.pfm": (b"Pf\n4 3\n-1.0\n", "<"),
    "gray big.pfm": (b"Pf\n4 3\n+1\n", ">"),
    "half floats.pfm": (b"PF\n4 3\n0\n", None),
    "with alpha.pfm": (b"PF4\n4 3\n-1.0\n", None),
    "comment.pfm": (b"PF\n# by a program\n4 3\n-1.0\n", None),
    "one line.pfm": (b"PF 4 3 -1.0\n", None),
    "other size.pfm": (b"PF\n4 2\n-1.0\n", None),
    "swapped size.pfm": (b"PF\n5 3\n-1.0\n", None),
    "a photo.pfm": (b"P6\n4 3\n255\n", None),
}
"""Header of each file, and the byte order of its values; None: it is to be refused."""


@pytest.mark.parametrize("name", PFM)
def test_a_pfm_file_is_read_bottom_row_last_or_refused(tmp_path: Path, name: str) -> None:
    header, order = PFM[name]
    values = RNG.normal(0, 9, (3, 4, 1 if header.startswith(b"Pf") else 3)).astype(np.float32)
    path = tmp_path / name
    path.write_bytes(header + b"".join(struct.pack(f"{order or '<'}f", value) for value in values[::-1].reshape(-1)))
    if order is None:
        with pytest.raises(DataError, match=name):
            read_pfm(path)
        return
    np.testing.assert_array_equal(read_pfm(path), values.squeeze())
    if values.shape[2] == 3:
        np.testing.assert_array_equal(read_flow(path)[0], values[..., :2])
    else:
        with pytest.raises(DataError, match=r"a gray \.pfm holds no flow"):
            read_flow(path)


def decoded(codec: str, data: bytes, **options: Any) -> np.ndarray | None:
    """What imagecodecs makes of a file; None if it is not there, which skips the cell."""
    if imagecodecs is None:
        return None
    pixels = np.asarray(getattr(imagecodecs, codec)(data, **options))
    return gray(pixels) if pixels.ndim == 2 else pixels[..., :3]


CELLS = [*pngs(), *jpegs(), *others()]
REFUSED = {"animated.png", "12 bit.jpg", "two pages.tif", "moving.gif"}


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_a_file_is_read_as_an_independent_decoder_reads_it_or_refused(tmp_path: Path, cell: Cell) -> None:
    path = tmp_path / cell.name
    path.write_bytes(cell.data)
    if cell.mask is None:
        with pytest.raises(DataError, match=r"\.(png|jpg|tif|webp|avif|bmp|gif|ppm|pgm)"):
            read_mask(path)
    else:
        np.testing.assert_array_equal(read_mask(path), cell.mask)
    if cell.name in REFUSED:
        with pytest.raises(DataError):
            read_image(path)
    elif cell.frame is None:
        pytest.skip("imagecodecs is not installed")
    else:
        found = read_image(path)
        assert found.shape == cell.frame.shape
        assert np.abs(found.astype(int) - cell.frame).max() <= cell.tolerance


def test_the_corpus_has_every_format() -> None:
    counts = Counter(cell.name.rpartition(".")[2] for cell in CELLS)
    assert counts["png"] == 15 * 2 * 4 + 11 * 2 + 1  # 15 kinds; 11 of them may have tRNS
    assert counts["jpg"] >= 2 * 8 + 8 + 1
    assert {"tif", "webp", "avif", "bmp", "gif", "ppm", "pgm"} <= counts.keys()
