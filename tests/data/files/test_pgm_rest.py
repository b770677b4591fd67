"""A PBM, PGM or PPM file holds one image: a second one behind it would be read by nobody."""

from pathlib import Path

import numpy as np
import pytest

from data.files.images import read_image
from data.files.masks import read_mask
from data.types import DataError

ONE = {  # images of 1 row and 3 columns
    "p1.pgm": b"P1\n3 1\n101\n",
    "p4.pgm": b"P4\n3 1\n\xa0",
    "p2.pgm": b"P2\n3 1\n255\n0 1 2\n",
    "p5.pgm": b"P5\n3 1\n255\n\x00\x01\x02",
    "deep.pgm": b"P5\n3 1\n65535\n\x00\x00\x01\x00\x02\x00",
    "p3.ppm": b"P3\n3 1\n255\n0 0 0 1 1 1 2 2 2\n",
    "p6.ppm": b"P6\n3 1\n255\n" + bytes([0, 0, 0, 1, 1, 1, 2, 2, 2]),
}


@pytest.mark.parametrize("name", ONE)
@pytest.mark.parametrize("behind", [b"", b"\n"])
def test_one_image_is_read_and_a_line_break_behind_it_is_none(tmp_path: Path, name: str, behind: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(ONE[name] + behind)
    assert read_image(path).shape == (1, 3, 3)


@pytest.mark.parametrize("name", ONE)
def test_a_second_image_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(ONE[name] * 2)
    with pytest.raises(DataError, match=rf"{name}: it goes on after the image"):
        read_image(path)


def test_a_header_of_a_smaller_size_than_its_mask_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5\n2 2\n255\n" + bytes([0, 1, 2, 0, 1, 2]))  # 3 columns: row 2 would begin with 2, not 0
    with pytest.raises(DataError, match=r"a\.pgm: it goes on"):
        read_mask(path)
    path.write_bytes(b"P5\n3 2\n255\n" + bytes([0, 1, 2, 0, 1, 2]))
    assert np.array_equal(read_mask(path), [[0, 1, 2], [0, 1, 2]])
