"""Small inputs that could cost much, and names and numbers that break programs: refused by name, before any work."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import DataConfig
from data.files.flow_formats.read import read_flow
from data.files.images import MAX_PIXELS, read_image
from data.files.list_files import read_classes, read_json, read_lines, read_mat, read_names
from data.files.masks import read_mask
from data.predictions.labels_csv import score_predictions
from data.segmentation.pascal_context import CATEGORIES, render_masks
from data.types import DataError
from mtsp.config import MAX_BYTES, Config, ConfigError, load, parse
from tests.data.flow.files import made

READERS: dict[str, Callable[[Path], Any]] = {
    "a.png": read_image, "a.jpg": read_image, "a.tif": read_mask, "a.flo": read_flow, "a.pfm": read_flow,
    "list.txt": read_lines, "names.txt": read_names, "classes.txt": read_classes, "a.json": read_json,
    "labels.csv": lambda path: score_predictions(path, nothing()),
    "a.mat": lambda path: read_mat(path, "labels"),
}  # fmt: skip


def nothing() -> Any:
    """A data set without examples."""
    return type("Nothing", (), {"kind": "labeled", "ids": [], "classes": (), "__len__": lambda self: 0})()


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_a_device_and_a_huge_file_are_refused_without_reading_them(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(DataError, match=rf"{name}: cannot be opened: it is a folder, a pipe or a device"):
        READERS[name](path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(DataError, match=rf"{name}: cannot be opened"):
        READERS[name](path)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(3 << 30)  # a hole: it takes no room on the disk
    with pytest.raises(DataError, match=rf"{name}: (3,221,225,472 bytes, too large|not a)"):
        READERS[name](path)


def test_a_huge_config_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.yaml").open("wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(ConfigError, match=rf"a\.yaml cannot be read: the config has more than {MAX_BYTES:,}"):
        load(Config, tmp_path / "a.yaml")


@pytest.mark.parametrize("kind", ["P6", "P3", "P5", "P2"])
@pytest.mark.parametrize("comment", [b"#" + b"a" * (1 << 20) + b"\n", b"# a\n" * (1 << 17)])
def test_mebibytes_of_comments_cost_nothing(tmp_path: Path, kind: str, comment: bytes) -> None:
    """Pillow takes 2 s for the first, 17 s for the second."""
    channels = 3 if kind in ("P6", "P3") else 1
    values = np.arange(2 * 3 * channels, dtype=np.uint8).reshape(2, 3, channels)
    body = (
        values.tobytes()
        if kind in ("P6", "P5")
        else b"0 " + comment + " ".join(map(str, range(1, values.size))).encode()
    )
    path = tmp_path / ("a.ppm" if channels == 3 else "a.pgm")
    path.write_bytes(f"{kind}\n".encode() + comment + b"3 2\n" + comment + b"255\n" + body)
    np.testing.assert_array_equal(read_image(path), np.broadcast_to(values, (2, 3, 3)))
    if channels == 1:
        np.testing.assert_array_equal(read_mask(path), values[..., 0])


def test_a_merged_annotation_of_40000_pixels_squared_is_refused(tmp_path: Path) -> None:
    made(tmp_path / "VOC2010/JPEGImages/a").touch()
    image = {"image_id": 1, "file_name": "1.jpg", "phase": "train", "height": 40_000, "width": 40_000}
    categories = [{"category_id": number, "name": name} for number, name in CATEGORIES.items()]
    found = {"images": [image], "annos_segmentation": [], "categories": categories}
    assert MAX_PIXELS < 40_000**2
    (tmp_path / "trainval_merged.json").write_text(json.dumps(found))
    with pytest.raises(DataError, match=r"trainval_merged\.json: 1\.jpg has an invalid size of 40000x40000 pixels"):
        render_masks(tmp_path / "trainval_merged.json", tmp_path / "VOC2010", published=False)


@pytest.mark.parametrize(
    "text", ['{"name": "\\ud800"}', "9" * 10_000, "[" * 200_000, '{"a": 1,}', "\x00", '"\udcff"'], ids=range(6)
)
def test_json_that_breaks_programs_later_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"a\.json: cannot be read as"):
        read_json(tmp_path / "a.json")


def build(**values: Any) -> Any:
    return parse(DataConfig, {"dataset": values}).build_dataset()


def test_links_that_lead_to_themselves_are_refused_by_name(tmp_path: Path) -> None:
    for root in ("DAVIS", "VOC", "own/cat"):
        made(tmp_path / root / "x").touch()
    frame = made(tmp_path / "DAVIS/JPEGImages/480p/bear/00000.jpg")
    frame.symlink_to(frame.name)
    made(tmp_path / "DAVIS/Annotations/480p/bear/00000.png").symlink_to("00000.png")
    made(tmp_path / "DAVIS/ImageSets/2016/train.txt").write_text("bear\n")
    with pytest.raises(DataError, match=r"DAVIS at .*bear/00000"):
        build(name="davis", root=str(tmp_path / "DAVIS"))
    for kind, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        made(tmp_path / f"VOC/{kind}/a.{suffix}").symlink_to(f"a.{suffix}")
    made(tmp_path / "VOC/ImageSets/Segmentation/train.txt").write_text("a\n")
    with pytest.raises(DataError, match=r"train\.txt: 'JPEGImages/a\.jpg' cannot be followed"):
        build(name="pascal_voc", root=str(tmp_path / "VOC"))
    (tmp_path / "own/cat/a.png").symlink_to("a.png")
    with pytest.raises(DataError, match=r"own: expected 1 file \(cat/a\.png\), found links to none"):
        build(name="image_folder", root=str(tmp_path / "own"))
    with pytest.raises(DataError, match=r"a\.png: cannot be opened"):
        read_image(tmp_path / "own/cat/a.png")
