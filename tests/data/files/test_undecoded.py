"""JPEG files decoded at a reduced size: which pixels a pixel covers, by hand, and masks that stay on their objects."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from data import DataConfig
from data.augment.augment import AugmentConfig
from data.files.images import read_image, write_image
from data.files.masks import write_mask
from data.files.undecoded import UndecodedJpeg, UndecodedSample, read_undecoded
from data.types import DataError
from mtsp.config import parse
from mtsp.types import Sample
from tests.data.files.test_orientation import written


def undecoded(path: Path) -> UndecodedJpeg:
    found = read_undecoded(path, exif="apply")
    assert isinstance(found, UndecodedJpeg)
    return found


def photo(height: int, width: int) -> np.ndarray:
    """Smooth noise, about as rough as a photo."""
    rng = np.random.default_rng(0)
    layers = [cv2.resize(rng.normal(size=(height // s, width // s, 3)), (width, height)) * s**0.5 for s in (2, 8, 32)]
    return np.clip(110 + 8 * np.sum(layers, axis=0), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("wanted", "scale", "values"),
    [
        # Column x has 2x. A pixel at 1/8 covers the columns 8i to 8i + 7, whose mean is 2 (8i + 3.5).
        (0.125, 1 / 8, [7, 23, 39, 55]),
        (0.2, 2 / 8, [3, 11, 19, 27]),  # columns 4i to 4i + 3: 2 (4i + 1.5)
        (0.3, 3 / 8, [1.7, 7, 12.3, 17.7]),  # 8/3 columns, centered on 8/3 (i + 0.5) - 0.5
        (0.5, 4 / 8, [1, 5, 9, 13]),  # columns 2i and 2i + 1: 2 (2i + 0.5)
        (0.51, 1.0, [0, 2, 4, 6]),  # decoded in full
    ],
)
def test_a_reduced_pixel_is_the_mean_of_those_that_it_covers(
    tmp_path: Path, wanted: float, scale: float, values: list[float]
) -> None:
    ramp = np.broadcast_to(np.arange(0, 256, 2, dtype=np.uint8)[:, None], (32, 128, 3))
    write_image(tmp_path / "a.jpg", np.ascontiguousarray(ramp))
    pixels, found = undecoded(tmp_path / "a.jpg").decode(wanted)
    assert found == scale
    assert pixels.shape == (32 * scale, 128 * scale, 3)
    np.testing.assert_allclose(pixels[2, :4, 1], values, atol=2)


def test_sides_that_do_not_divide_are_rounded_up(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg", photo(33, 50))
    assert undecoded(tmp_path / "a.jpg").shape == (33, 50, 3)
    # 33 * 3/8 = 12.4 and 50 * 3/8 = 18.75; 33 / 2 = 16.5
    assert undecoded(tmp_path / "a.jpg").decode(0.375)[0].shape == (13, 19, 3)
    assert undecoded(tmp_path / "a.jpg").decode(0.5)[0].shape == (17, 25, 3)
    write_image(tmp_path / "tiny.jpg", photo(32, 50)[:4, :5])
    assert undecoded(tmp_path / "tiny.jpg").decode(0.1)[1] == 1.0


@pytest.mark.parametrize("tag", range(1, 9))
def test_a_turned_image_is_reduced_and_then_turned(tmp_path: Path, tag: int) -> None:
    path = written(tmp_path, "jpg", tag)  # 32x48, in squares of 16 pixels
    pixels, scale = undecoded(path).decode(0.5)
    assert (scale, undecoded(path).shape) == (0.5, read_image(path, exif="apply").shape)
    squares = read_image(path, exif="apply")[8::16, 8::16].astype(int)
    np.testing.assert_allclose(pixels[4::8, 4::8], squares, atol=3)


def test_damage_is_found_at_a_reduced_size_and_other_formats_are_decoded(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", photo(64, 64))
    np.testing.assert_array_equal(read_undecoded(tmp_path / "a.png"), photo(64, 64))
    write_image(tmp_path / "a.jpg", photo(64, 64))
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"a\.jpg: truncated or damaged"):
        undecoded(tmp_path / "a.jpg").decode(0.25)


@pytest.mark.parametrize("scale", [0.13, 0.22, 0.35, 0.5, 0.9])
def test_a_mask_stays_on_its_object(tmp_path: Path, scale: float) -> None:
    mask = np.zeros((403, 605), np.uint8)  # sides that do not divide by 8
    cv2.ellipse(mask, (290, 180), (170, 90), 30, 0, 360, 1, -1)
    write_image(tmp_path / "a.jpg", np.repeat(mask[..., None] * np.uint8(255), 3, axis=2))
    config = AugmentConfig(scale=(scale, scale), rotate=20, flip=0.5, frame_border=(0, 0, 0), mask_border=0)
    sample = UndecodedSample(name="a", frame=read_undecoded(tmp_path / "a.jpg"), mask=mask)
    out = config.build()(sample, np.random.default_rng(1))
    assert "mask" in out
    shown, outline = out["frame"][..., 1] > 127, cv2.morphologyEx(out["mask"], cv2.MORPH_GRADIENT, np.ones((3, 3)))
    # They differ on the outline only, and there on both sides alike: a shift by a quarter pixel would move the mean.
    assert not (shown != out["mask"])[outline == 0].any()
    middles = [np.argwhere(kind).mean(0) for kind in (shown, out["mask"])]
    np.testing.assert_allclose(middles[0], middles[1], atol=0.1)


def test_reduced_photos_differ_from_full_ones_by_two_gray_levels(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg", photo(600, 800))
    augmentation = AugmentConfig(crop=(96, 96), area=(0.3, 1.0), flip=0.5).build()
    reduced = UndecodedSample(name="a", frame=read_undecoded(tmp_path / "a.jpg"))
    for seed in range(5):  # rectangles of 328 pixels and more are shrunk to 96: at 2/8 and 3/8
        rngs = np.random.default_rng(seed), np.random.default_rng(seed)
        small = augmentation(reduced, rngs[0])["frame"].astype(int)
        full = augmentation(Sample(name="a", frame=read_image(tmp_path / "a.jpg")), rngs[1])["frame"]
        assert 0 < np.abs(small - full).mean() < 3
        assert abs((small - full).mean()) < 0.2
        assert np.abs(small[:, 1:] - full[:, :-1]).mean() > 5  # one pixel off


def images(folder: Path) -> dict[str, Any]:
    (folder / "images" / "bird").mkdir(parents=True)
    write_image(folder / "images" / "bird" / "a.jpg", photo(200, 300))
    return {"name": "image_folder", "root": str(folder / "images")}


def masks(folder: Path) -> dict[str, Any]:
    for kind in ("frames", "masks"):
        (folder / kind).mkdir()
    for name in "ab":
        write_image(folder / "frames" / f"{name}.jpg", photo(200, 300))
        write_mask(folder / "masks" / f"{name}.png", np.ones((200, 300), np.uint8))
    return {
        "name": "mask_folder",
        "frames": str(folder / "frames"),
        "masks": str(folder / "masks"),
        "classes": ["a", "b"],
    }


@pytest.mark.parametrize("write", [images, masks])
@pytest.mark.parametrize(("changes", "reduced"), [({}, True), ({"decode": "full"}, False), ({"cache": "1MB"}, False)])
def test_a_config_reduces_unless_it_asks_for_all_pixels_or_a_cache(
    tmp_path: Path, write: Any, changes: dict[str, str], reduced: bool
) -> None:
    values = {"dataset": write(tmp_path), "augment": {"resize": [50, 75]}}
    limit = {"limit": 1} if write is masks else {}
    found = parse(DataConfig, values | changes | limit).build().train_sample(0, np.random.default_rng(0))
    full = parse(DataConfig, values | {"decode": "full"}).build().train_sample(0, np.random.default_rng(0))
    assert bool((found["frame"] != full["frame"]).any()) == reduced
    whole = parse(DataConfig, values).build()[0]
    assert whole["frame"].shape == (3, 200, 300)  # evaluation
