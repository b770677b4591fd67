"""File formats: written bytes worked out by hand, damaged files, and real ones."""

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from data.files.flow_formats.flo import UNKNOWN_FLOW, read_flo, write_flo
from data.files.flow_formats.kitti import read_kitti_flow, write_kitti_flow
from data.files.flow_formats.pfm import read_pfm, write_pfm
from data.files.flow_formats.read import read_flow
from data.files.images import MAX_PIXELS, read_image, write_image
from data.files.masks import read_foreground, read_mask, write_mask
from data.types import DataError, MissingDataError

DATA = Path(os.environ.get("MTSP_DATA", ""))
real_data = pytest.mark.skipif("MTSP_DATA" not in os.environ, reason="MTSP_DATA names no folder of real data")

FLOW = np.arange(12, dtype=np.float32).reshape(2, 3, 2)  # (dx, dy) of pixel (y, x) is (6y + 2x, 6y + 2x + 1)
FINITE = st.floats(-(2.0**19), 2.0**19, width=32)


def smooth(height: int, width: int) -> np.ndarray:
    """An image that JPEG keeps nearly as it is."""
    y, x = np.mgrid[:height, :width]
    return np.stack([2 * x, 3 * y, x + y], axis=2).astype(np.uint8)


def jpeg(image: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=95, **options)
    return stream.getvalue()


def test_flo_is_the_tag_width_height_and_rows_of_pairs(tmp_path: Path) -> None:
    path = tmp_path / "a.flo"
    write_flo(path, FLOW)
    assert path.read_bytes() == b"PIEH" + struct.pack("<ii12f", 3, 2, *range(12))
    np.testing.assert_array_equal(read_flo(path), FLOW)
    assert read_flo(path).flags.writeable


def test_unknown_flow_in_flo_becomes_zero_and_not_valid(tmp_path: Path) -> None:
    valid = np.array([[True, True, False], [True, False, True]])
    write_flo(tmp_path / "a.flo", FLOW, valid)
    assert read_flo(tmp_path / "a.flo")[0, 2].tolist() == [UNKNOWN_FLOW] * 2
    flow, known = read_flow(tmp_path / "a.flo")
    assert known is not None
    np.testing.assert_array_equal(known, valid)
    np.testing.assert_array_equal(flow, FLOW * valid[..., None])


def test_large_flow_is_known_all_the_same(tmp_path: Path) -> None:
    # 12 values of 9e5 have a sum of squares above (1e6)^2, which must not be taken for an unknown pixel
    write_flo(tmp_path / "a.flo", np.full((2, 3, 2), -9e5, np.float32))
    flow, known = read_flow(tmp_path / "a.flo")
    assert known is None
    assert (flow == -9e5).all()


@pytest.mark.parametrize(("scale", "order"), [("-1.0", "<"), ("1.0", ">"), ("-0.00392", "<"), ("1", ">")])
def test_pfm_has_its_last_row_first_in_either_byte_order(tmp_path: Path, scale: str, order: str) -> None:
    path = tmp_path / "a.pfm"
    path.write_bytes(f"PF\n2 2\n{scale}\n".encode() + struct.pack(f"{order}12f", *range(12)))
    bottom, top = [[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]
    assert read_pfm(path).tolist() == [top, bottom]
    flow, known = read_flow(path)
    assert flow.tolist() == [[[6, 7], [9, 10]], [[0, 1], [3, 4]]]  # the third channel is no flow
    assert known is None


@pytest.mark.parametrize("order", ["<", ">"])
def test_gray_pfm_has_no_channel_axis(tmp_path: Path, order: str) -> None:
    path = tmp_path / "a.pfm"
    path.write_bytes(f"Pf\n3 2\n{-1 if order == '<' else 1}\n".encode() + struct.pack(f"{order}6f", *range(6)))
    assert read_pfm(path).tolist() == [[3, 4, 5], [0, 1, 2]]
    with pytest.raises(DataError, match=r"a\.pfm: a gray \.pfm holds no flow"):
        read_flow(path)


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=7).map(lambda s: (*s, 3)), elements=FINITE))
def test_pfm_gives_back_what_was_written(tmp_path_factory: pytest.TempPathFactory, values: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("pfm") / "a.pfm"
    for little_endian in (True, False):
        for written in (values, values[..., 0]):
            write_pfm(path, written, little_endian)
            np.testing.assert_array_equal(read_pfm(path), written)


def test_kitti_flow_is_64ths_of_a_pixel_from_32768(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    u, v, valid = 32768 + 64 * 3, 32768 - 32, 1
    cv2.imwrite(str(path), np.array([[[valid, v, u], [0, 5, 7]]], np.uint16))  # cv2 writes B, G, R
    flow, known = read_kitti_flow(path)
    assert flow.tolist() == [[[3.0, -0.5], [0.0, 0.0]]]
    assert known.tolist() == [[True, False]]
    assert flow.dtype == np.float32


def test_kitti_flow_comes_back_to_a_64th(tmp_path: Path) -> None:
    flow = np.random.default_rng(0).uniform(-511, 511, (5, 4, 2)).astype(np.float32)
    valid = np.random.default_rng(1).random((5, 4)) < 0.5
    write_kitti_flow(tmp_path / "a.png", flow, valid)
    read, known = read_kitti_flow(tmp_path / "a.png")
    np.testing.assert_array_equal(known, valid)
    np.testing.assert_allclose(read[valid], flow[valid], atol=1 / 128)


def test_kitti_flow_with_channels_reversed_is_refused(tmp_path: Path) -> None:
    write_kitti_flow(tmp_path / "a.png", np.array([[[1, 2], [3, 2]]], np.float32))
    stored = np.asarray(cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED))
    cv2.imwrite(str(tmp_path / "a.png"), stored[..., ::-1])  # its "valid" is 32768 + 64 u
    with pytest.raises(DataError, match=r"a\.png: the third channel must be 0 or 1.*reversed"):
        read_kitti_flow(tmp_path / "a.png")


def test_an_8_bit_png_is_not_kitti_flow(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", smooth(4, 5))
    with pytest.raises(DataError, match=r"a\.png: KITTI flow is HxWx3 uint16, this PNG is 4x5x3 uint8"):
        read_kitti_flow(tmp_path / "a.png")


def test_a_mask_keeps_its_ids_and_has_the_colors_of_davis(tmp_path: Path) -> None:
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    write_mask(tmp_path / "a.png", mask)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), mask)
    shown = np.array(Image.open(tmp_path / "a.png").convert("RGB")).reshape(256, 3)
    assert shown[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert shown[22].tolist() == [0, 192, 128]  # 22 = 10110: green and blue get 128, then green 64
    assert len(np.unique(shown, axis=0)) == 256


def test_foreground_is_what_is_not_zero_whatever_the_pixels_are(tmp_path: Path) -> None:
    gray = np.array([[0, 255], [1, 0]], np.uint8)
    expected = [[False, True], [True, False]]
    colors = np.dstack([np.zeros_like(gray), gray, np.zeros_like(gray)])
    opaque = np.dstack([colors, np.full_like(gray, 255)])  # alpha 255 everywhere is no object everywhere
    for name, pixels in {"L": gray, "RGB": colors, "RGBA": opaque}.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        assert read_foreground(tmp_path / f"{name}.png").tolist() == expected, name
    write_mask(tmp_path / "P.png", gray)
    assert read_foreground(tmp_path / "P.png").tolist() == expected
    write_mask(tmp_path / "bool.png", gray > 0)
    assert read_mask(tmp_path / "bool.png").tolist() == [[0, 1], [1, 0]]


def test_a_mask_of_colors_is_refused_with_the_way_out(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", smooth(4, 5))
    with pytest.raises(DataError, match=r"a\.png: .* RGB, .* indexed PNG .* palette"):
        read_mask(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".png", ".ppm", ".bmp"])
def test_an_image_comes_back_as_written_in_rgb(tmp_path: Path, suffix: str) -> None:
    image = smooth(20, 30)
    write_image(tmp_path / f"a{suffix}", image)
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}"), image)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / f"a{suffix}").convert("RGB")), image)


def test_a_jpeg_is_decoded_as_pil_does_and_not_rotated(tmp_path: Path) -> None:
    rotate = Image.Exif()
    rotate[0x0112] = 6  # orientation: turn by 90 degrees
    (tmp_path / "a.jpg").write_bytes(jpeg(smooth(20, 30), exif=rotate))
    read = read_image(tmp_path / "a.jpg")
    assert read.shape == (20, 30, 3)
    np.testing.assert_array_equal(read, np.array(Image.open(tmp_path / "a.jpg")))
    assert np.abs(read.astype(int) - smooth(20, 30)).mean() < 3


def test_gray_and_indexed_images_become_rgb(tmp_path: Path) -> None:
    Image.fromarray(np.array([[7, 200]], np.uint8)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").tolist() == [[[7] * 3, [200] * 3]]
    write_mask(tmp_path / "b.png", np.array([[0, 1]], np.uint8))
    assert read_image(tmp_path / "b.png").tolist() == [[[0, 0, 0], [128, 0, 0]]]


def test_cmyk_and_16_bits_become_rgb_of_8(tmp_path: Path) -> None:
    image = smooth(20, 30)
    Image.fromarray(image).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "cmyk.jpg").astype(int) - image).max() <= 4
    deep = image.astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / "deep.png"), deep[..., ::-1])
    (tmp_path / "deep.ppm").write_bytes(b"P6\n30 20\n65535\n" + deep.astype(">u2").tobytes())
    for name, expected in {"deep.png": image, "deep.ppm": image}.items():
        np.testing.assert_array_equal(read_image(tmp_path / name), expected, name)
    (tmp_path / "gray.pgm").write_bytes(b"P5\n30 20\n65535\n" + deep[..., 0].astype(">u2").tobytes())
    for name in ("gray.tif", "gray.png"):
        Image.fromarray(deep[..., 0]).save(tmp_path / name)
    for name in ("gray.pgm", "gray.tif", "gray.png"):
        np.testing.assert_array_equal(read_image(tmp_path / name), image[..., :1].repeat(3, axis=2), name)
    Image.fromarray(image[..., 0].astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(DataError, match=r"float\.tif: pixels of kind F, whose range is not known"):
        read_image(tmp_path / "float.tif")


def test_a_jpeg_with_bytes_behind_its_end_is_whole(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(smooth(20, 30)) + b"\0\0")
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), np.array(Image.open(tmp_path / "a.jpg")))


def attempt(read: Callable[[Path], Any], path: Path) -> np.ndarray | None:
    """What `read` gives, of KITTI's pair the flow; None for an error that names the file. Nothing else may happen."""
    try:
        values = read(path)
    except DataError as error:
        if str(path) not in str(error):
            raise
        return None
    return values[0] if isinstance(values, tuple) else values


def test_a_truncated_jpeg_is_an_error_also_where_opencv_fills_it_with_gray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(smooth(20, 30))[:-2])
    monkeypatch.setattr(cv2, "imdecode", lambda data, flags: np.full((20, 30, 3), 128, np.uint8))
    with pytest.raises(DataError, match=r"a\.jpg: truncated"):
        read_image(tmp_path / "a.jpg")


READERS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "a.flo": (lambda path: write_flo(path, FLOW), read_flo),
    "a.pfm": (lambda path: write_pfm(path, smooth(2, 3).astype(np.float32)), read_pfm),
    "kitti.png": (lambda path: write_kitti_flow(path, FLOW), read_kitti_flow),
    "mask.png": (lambda path: write_mask(path, np.eye(9, dtype=np.uint8)), read_mask),
    "a.png": (lambda path: write_image(path, smooth(20, 30)), read_image),
    "a.jpg": (lambda path: path.write_bytes(jpeg(smooth(20, 30))), read_image),
    "progressive.jpg": (lambda path: path.write_bytes(jpeg(smooth(20, 30), progressive=True)), read_image),
    "a.ppm": (lambda path: write_image(path, smooth(20, 30)), read_image),
}


@pytest.mark.parametrize("name", READERS)
def test_a_file_cut_off_anywhere_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    write, read = READERS[name]
    path = tmp_path / name
    write(path)
    whole = path.read_bytes()
    read(path)
    for length in {*range(min(len(whole), 60)), *range(60, len(whole), 7), len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=name):
            read(path)


@pytest.mark.parametrize("name", ["a.flo", "a.pfm", "kitti.png", "mask.png", "a.png"])
def test_a_flipped_bit_in_a_header_or_a_png_is_an_error_or_harmless(tmp_path: Path, name: str) -> None:
    write, read = READERS[name]
    path = tmp_path / name
    write(path)
    whole = path.read_bytes()
    expected, noticed = attempt(read, path), 0
    for position in range(len(whole) if name.endswith(".png") else {"a.flo": 12, "a.pfm": 12}[name]):
        for bit in range(8):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :])
            values = attempt(read, path)
            if values is None:
                noticed += 1
            else:
                np.testing.assert_array_equal(values, expected, f"bit {bit} of byte {position} changed the values")
    assert noticed > 80


@pytest.mark.parametrize("name", ["a.jpg", "progressive.jpg", "a.ppm"])
def test_a_flipped_bit_in_an_image_without_checksums_is_an_error_or_an_image(tmp_path: Path, name: str) -> None:
    write, read = READERS[name]
    path = tmp_path / name
    write(path)
    whole = path.read_bytes()
    for position in range(min(len(whole), 400)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :])
        image = attempt(read, path)
        assert image is None or (image.ndim, image.dtype) == (3, np.uint8)


@given(st.binary(max_size=200))
def test_any_bytes_under_any_name_are_data_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("any")
    starts = {"a.flo": b"PIEH", "a.pfm": b"PF\n2 2\n-1\n", "a.png": b"\x89PNG\r\n\x1a\n", "a.jpg": b"\xff\xd8\xff"}
    for name, start in starts.items():
        (folder / name).write_bytes(start + content)
        for read in (read_flow, read_image, read_mask):
            attempt(read, folder / name)  # 48 zeros are flow of 2x2 pixels in a.pfm


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused_in_both_ways(tmp_path: Path, value: float) -> None:
    for name, header, values in [
        ("a.flo", b"PIEH" + struct.pack("<ii", 3, 2), FLOW.copy()),
        ("a.pfm", b"PF\n2 2\n-1\n", np.zeros((2, 2, 3), np.float32)),
    ]:
        values[1, 1, 1] = value
        (tmp_path / name).write_bytes(header + values.astype("<f4").tobytes())
        with pytest.raises(DataError, match=rf"{name}: 1 values are NaN or infinite"):
            read_flow(tmp_path / name)
    with pytest.raises(DataError, match=r"b\.flo: 1 values"):
        write_flo(tmp_path / "b.flo", np.where(FLOW == 3, value, FLOW).astype(np.float32))
    assert not (tmp_path / "b.flo").exists()


def test_finite_values_whose_squares_overflow_are_read(tmp_path: Path) -> None:
    write_flo(tmp_path / "a.flo", np.full((2, 3, 2), 1e30, np.float32))
    flow, known = read_flow(tmp_path / "a.flo")
    assert known is not None
    assert not known.any()
    assert not flow.any()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.flo", b"PIEH" + struct.pack("<ii", -3, 2) + bytes(48), "says 2x-3 pixels"),
        ("a.flo", b"PIEH" + struct.pack("<ii", 1 << 20, 1 << 20), "says 1048576x1048576 pixels"),
        ("a.flo", b"PIEH" + struct.pack("<ii", 3, 2) + bytes(49), "too long, 61 bytes where 2x3 of .flo takes 60"),
        ("a.flo", b"HEIP" + struct.pack(">ii", 3, 2) + bytes(48), "starts with b'HEIP'"),
        ("a.pfm", b"PF\n2 2\n0\n" + bytes(48), "the scale is 0"),
        ("a.pfm", b"PF\n999999 999999\n-1\n", "says 999999x999999 pixels"),
        ("a.pfm", b"P6\n2 2\n255\n" + bytes(12), "not a .pfm file"),
        ("a.pfm", b"PF\n-2 2\n-1\n" + bytes(48), "not a .pfm file"),
        ("a.png", b"<html>not found</html>", "not a PNG image, it starts with b'<html>no'"),
        ("a.png", b"", "not a PNG image, it is empty"),
        ("a.png", jpeg(smooth(4, 4)), "not a PNG image"),
        ("a.jpg", b"BM" + bytes(60), "not a JPEG image"),
        ("a.ppm", b"P6\n20000 20000\n255\n", "400000000 pixels"),
        ("a.ppm", b"P6\n9000 9000\n255\n", "says 9000x9000 pixels"),
        ("a.doc", b"", "an image's name ends with one of"),
    ],
)
def test_a_mislabeled_or_impossible_file_is_named_with_the_reason(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    read = read_flow if name.endswith((".flo", ".pfm")) else read_image
    with pytest.raises(DataError) as error:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert reason in str(error.value)


def test_a_png_named_as_a_jpeg_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", smooth(4, 5))
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg: named as a JPEG image, but it is a PNG"):
        read_image(tmp_path / "a.jpg")


def test_a_small_file_that_claims_a_huge_image_is_not_decoded(tmp_path: Path) -> None:
    side = 16384
    assert side * side > MAX_PIXELS
    Image.new("1", (side, side)).save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size < 1 << 20
    for read in (read_image, read_mask, read_kitti_flow):
        with pytest.raises(DataError, match=r"a\.png: the header says 16384x16384 pixels"):
            read(tmp_path / "a.png")


def test_a_missing_file_is_a_missing_file_too(tmp_path: Path) -> None:
    for read, name in [(read_flo, "a.flo"), (read_image, "a.png"), (read_mask, "a.png"), (read_pfm, "a.pfm")]:
        with pytest.raises(MissingDataError, match=name):
            read(tmp_path / name)
        with pytest.raises(FileNotFoundError, match=name):
            read(tmp_path / name)
    with pytest.raises(DataError, match="cannot be opened"):
        read_flo(tmp_path)


@pytest.mark.parametrize(
    ("write", "name", "value"),
    [
        (write_flo, "a.flo", np.zeros((2, 3))),
        (write_pfm, "a.pfm", np.zeros((2, 3, 2), np.float32)),
        (write_kitti_flow, "a.png", np.full((2, 3, 2), 512.0)),
        (write_mask, "a.png", np.zeros((2, 3), np.int64)),
        (write_image, "a.png", np.zeros((2, 3), np.uint8)),
        (write_image, "a.xyz", np.zeros((2, 3, 3), np.uint8)),
    ],
)
def test_what_a_format_cannot_hold_is_not_written(
    tmp_path: Path, write: Callable[[Path, np.ndarray], None], name: str, value: np.ndarray
) -> None:
    with pytest.raises(DataError, match=name):
        write(tmp_path / name, value)
    assert not (tmp_path / name).exists()


@real_data
def test_real_flow_reads_as_opencv_reads_it() -> None:
    for path in sorted((DATA / "Middlebury" / "other-gt-flow").glob("*/flow10.flo")):
        np.testing.assert_array_equal(read_flo(path), cv2.readOpticalFlow(str(path)))


@real_data
def test_the_real_kitti_pair_has_flow_at_16_percent_of_its_pixels() -> None:
    flow, valid = read_kitti_flow(DATA / "KITTI" / "flow_gt.png")
    assert valid.mean() == pytest.approx(0.162, abs=5e-4)
    assert np.abs(flow).max() < 512
