"""Images with a mask each, in the layouts of the data sets, with tiny images; and their label maps."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data import DataConfig
from data.files.images import write_image
from data.files.masks import write_mask
from data.segmentation.ade20k import ADE20K
from data.segmentation.camvid import CAMVID
from data.segmentation.cityscapes import CITYSCAPES, CITYSCAPES_TRAIN
from data.segmentation.label_map import LabelMap, ranges
from data.segmentation.legend import colored, labeled_example, legend
from data.segmentation.pascal_voc import PASCAL_VOC
from data.segmentation.segmented_images import SegmentedImages
from data.types import DataError, MissingDataError
from mtsp.config import ConfigError, parse
from mtsp.types import IGNORE

DATA = Path(os.environ.get("MTSP_DATA", ""))
real_data = pytest.mark.skipif("MTSP_DATA" not in os.environ, reason="MTSP_DATA names no folder of real data")
SIZE = (4, 6)


def write_pair(frame: Path, mask: Path, *values: int, indexed: bool = False) -> None:
    """A gray image, and a mask whose first pixels have `values`, the others the first of them."""
    for path in (frame, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_image(frame, np.full((*SIZE, 3), 99, np.uint8))
    stored = np.full(SIZE, values[0], np.uint8)
    stored.flat[: len(values)] = values
    write_mask(mask, stored) if indexed else Image.fromarray(stored).save(mask)


def build(name: str, root: Path, **settings: Any) -> SegmentedImages:
    config = parse(DataConfig, {"dataset": {"name": name, "root": str(root), **settings}})
    dataset = config.build_dataset()
    assert isinstance(dataset, SegmentedImages)
    return dataset


def first_ids(dataset: SegmentedImages, count: int, index: int = 0) -> list[int]:
    return np.asarray(dataset[index].get("mask")).reshape(-1)[:count].tolist()


def camvid(root: Path) -> None:
    write_pair(root / "train" / "0001.png", root / "trainannot" / "0001.png", 0, 10, 11)
    (root / "train.txt").write_text("/SegNet/CamVid/train/0001.png /SegNet/CamVid/trainannot/0001.png\n")


def voc(root: Path) -> None:
    frame, mask = root / "JPEGImages" / "2007_01.jpg", root / "SegmentationClass" / "2007_01.png"
    write_pair(frame, mask, 0, 20, 255, indexed=True)
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("2007_01\n")


def ade(root: Path) -> None:
    write_pair(root / "images/training/a_1.jpg", root / "annotations/training/a_1.png", 0, 1, 150)


def cityscapes(root: Path) -> None:
    stem = "bonn/bonn_0_1"
    mask = root / f"gtFine/train/{stem}_gtFine_labelIds.png"
    write_pair(root / f"leftImg8bit/train/{stem}_leftImg8bit.png", mask, 0, 7, 33, 29)


@pytest.mark.parametrize(
    ("name", "write", "example", "ids", "classes"),
    [
        ("camvid", camvid, "0001", [0, 10, IGNORE], 11),
        ("pascal_voc", voc, "2007_01", [0, 20, IGNORE], 21),
        ("ade20k", ade, "a_1", [IGNORE, 0, 149], 150),
        ("cityscapes", cityscapes, "bonn/bonn_0_1", [IGNORE, 0, 18, IGNORE], 19),
    ],
)
def test_a_layout_is_read_with_its_own_label_map(
    tmp_path: Path, name: str, write: Callable[[Path], None], example: str, ids: list[int], classes: int
) -> None:
    write(tmp_path)
    dataset = build(name, tmp_path)
    assert dataset.ids == [example]
    assert first_ids(dataset, len(ids)) == ids
    assert dataset[0]["frame"].shape == (*SIZE, 3)
    assert dataset.labels(0).keys() == {"name", "mask"}
    assert len(dataset.classes) == classes


@pytest.mark.parametrize(
    ("name", "write", "inner"),
    [("pascal_voc", voc, "VOCdevkit/VOC2012"), ("ade20k", ade, "ADEChallengeData2016"), ("camvid", camvid, "CamVid")],
)
def test_the_folder_above_does_as_well(tmp_path: Path, name: str, write: Callable[[Path], None], inner: str) -> None:
    write(tmp_path / inner)
    assert len(build(name, tmp_path)) == 1
    with pytest.raises(MissingDataError, match=r"no .* at .*nowhere: there is no such folder"):
        build(name, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "write"), [("camvid", camvid), ("pascal_voc", voc), ("ade20k", ade), ("cityscapes", cityscapes)]
)
def test_what_programs_left_in_the_folders_is_no_example(
    tmp_path: Path, name: str, write: Callable[[Path], None], litter: Callable[[Path], None]
) -> None:
    write(tmp_path)
    names = build(name, tmp_path).ids
    litter(tmp_path)
    for path in tmp_path.rglob("train.txt"):  # as Windows' editor saves it
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b" \r\n") + b"\r\n\r\n")
    dataset = build(name, tmp_path)
    assert dataset.ids == names
    assert dataset[0].get("mask", np.zeros(0)).shape == SIZE


def test_the_lists_of_sbd_may_name_images_and_masks(tmp_path: Path) -> None:
    voc(tmp_path)
    lists = tmp_path / "ImageSets" / "Segmentation"
    (lists / "train_aug.txt").write_text("/JPEGImages/2007_01.jpg /SegmentationClassAug/2007_01.png\n")
    with pytest.raises(MissingDataError, match=r"1 file \(SegmentationClassAug/2007_01\.png\) missing"):
        build("pascal_voc", tmp_path, split="train_aug")
    (tmp_path / "SegmentationClass").rename(tmp_path / "SegmentationClassAug")
    assert len(build("pascal_voc", tmp_path, split="train_aug")) == 1
    assert len(build("pascal_voc", tmp_path, masks="SegmentationClassAug")) == 1
    with pytest.raises(MissingDataError, match=r"no list at .*; available lists: train, train_aug"):
        build("pascal_voc", tmp_path, split="val")


def test_cityscapes_train_ids_are_told_not_guessed(tmp_path: Path) -> None:
    cityscapes(tmp_path)
    place = "train/bonn/bonn_0_1"
    write_pair(
        tmp_path / f"leftImg8bit/{place}_leftImg8bit.png",
        tmp_path / f"gtFine/{place}_gtFine_labelTrainIds.png",
        0, 18, 255,
    )  # fmt: skip
    assert first_ids(build("cityscapes", tmp_path, masks="labelTrainIds"), 3) == [0, 18, IGNORE]


# Your own images


def own(root: Path, **settings: Any) -> SegmentedImages:
    values = {"name": "mask_folder", "frames": str(root / "images"), "masks": str(root / "labels"), **settings}
    dataset = parse(DataConfig, {"dataset": values}).build_dataset()
    assert isinstance(dataset, SegmentedImages)
    return dataset


def test_own_masks_mean_what_the_config_says(tmp_path: Path) -> None:
    write_pair(tmp_path / "images/park/1.jpg", tmp_path / "labels/park/1_L.png", 0, 50, 100)
    write_pair(tmp_path / "images/2.jpg", tmp_path / "labels/2_L.png", 100)
    settings = {"classes": ["grass", "path"], "values": [100, 50], "unknown": [0], "mask_suffix": "_L"}
    dataset = own(tmp_path, **settings)
    assert dataset.ids == ["2", "park/1"]
    assert first_ids(dataset, 3, index=1) == [IGNORE, 1, 0]
    assert dataset.classes == ("grass", "path")
    (tmp_path / "train.txt").write_text("park/1\n")
    assert own(tmp_path, **settings, split=str(tmp_path / "train.txt")).ids == ["park/1"]
    (tmp_path / "train.txt").write_text("park/1\npark/3\n")
    with pytest.raises(MissingDataError, match=r"1 of 2 lines name no example in .*, for example 'park/3'"):
        own(tmp_path, **settings, split=str(tmp_path / "train.txt"))


def test_own_images_are_found_behind_links_and_not_among_hidden_ones(
    tmp_path: Path, litter: Callable[[Path], None]
) -> None:
    write_pair(tmp_path / "disk/day/1.jpg", tmp_path / "labels/trip/day/1.png", 0, 1)
    write_pair(tmp_path / "images/2.JPG", tmp_path / "labels/2.png", 0, 1)
    (tmp_path / "images" / "trip").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "back").symlink_to(tmp_path / "images")  # a circle
    litter(tmp_path / "images")
    litter(tmp_path / "disk")
    assert own(tmp_path, classes=["road", "tree"]).ids == ["2", "trip/day/1"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"classes": ["a", "b"], "values": [1]}, "2 classes, but 1 values for them"),
        ({"classes": ["a", "a"]}, "two classes have the name 'a'"),
        ({"classes": ["a", "b"], "values": [3, 3]}, r"the values \[3\] have two meanings each"),
        ({"classes": ["a", "b"], "unknown": [1]}, r"the values \[1\] have two meanings each"),
        ({"classes": ["a"], "values": [65536]}, r"the values \[65536\] are not in 0 to 65535"),
        ({"classes": []}, "0 classes; the number of classes must be 1 to 65000"),
    ],
)
def test_a_wrong_label_map_is_a_mistake_in_the_config(settings: dict[str, Any], reason: str) -> None:
    values = {"name": "mask_folder", "frames": "x", "masks": "x", **settings}
    with pytest.raises(ConfigError, match=reason):
        parse(DataConfig, {"dataset": values})


# Faults of files


def test_a_value_out_of_range_names_the_file_the_values_and_the_classes(tmp_path: Path) -> None:
    camvid(tmp_path)
    write_pair(tmp_path / "train/0001.png", tmp_path / "trainannot/0001.png", 0, 12, 31, 255)
    with pytest.raises(DataError) as error:
        build("camvid", tmp_path)[0]
    assert str(error.value) == (
        f"{tmp_path}/trainannot/0001.png: the values [12, 31, 255] are not in the label map camvid (classes: 0 to 10, "
        "unknown: 11); check the encoding of the file and the label map"
    )


def test_a_mask_of_colors_or_of_another_size_is_refused(tmp_path: Path) -> None:
    camvid(tmp_path)
    path = tmp_path / "trainannot/0001.png"
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(path)
    with pytest.raises(DataError, match="colors and no class ids"):
        build("camvid", tmp_path)[0]
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(path)
    with pytest.raises(DataError, match=r"0001\.png has 4x5 pixels, but .* has 4x6"):
        build("camvid", tmp_path)[0]


def test_missing_files_and_lines_are_refused_before_anything_is_decoded(tmp_path: Path) -> None:
    camvid(tmp_path)
    (tmp_path / "trainannot/0001.png").unlink()
    with pytest.raises(MissingDataError, match=r"1 file \(trainannot/0001\.png\) missing"):
        build("camvid", tmp_path)
    (tmp_path / "train.txt").write_text("train/0001.png\n")
    with pytest.raises(DataError, match="must be the path of an image and the path of its mask"):
        build("camvid", tmp_path)
    (tmp_path / "train.txt").write_text("../train/../0001.png a\n")
    with pytest.raises(DataError, match="is not a path inside"):
        build("camvid", tmp_path)


def test_an_image_without_a_known_pixel_is_read_and_cropped(tmp_path: Path) -> None:
    camvid(tmp_path)
    write_pair(tmp_path / "train/0001.png", tmp_path / "trainannot/0001.png", 11)
    augment = {"preset": "encnet", "short_side": 8, "crop": [16, 16]}  # a crop larger than the image, too
    config = parse(DataConfig, {"dataset": {"name": "camvid", "root": str(tmp_path)}, "augment": augment})
    drawn = config.build().train_sample(0, np.random.default_rng(0))
    assert drawn["frame"].shape == (3, 16, 16)
    assert drawn.get("mask", np.zeros(1)).unique().tolist() == [IGNORE]  # pyright: ignore[reportAttributeAccessIssue]


# Label maps


def test_the_published_label_maps_have_the_known_classes() -> None:
    assert [len(m.classes) for m in (CAMVID, PASCAL_VOC, ADE20K, CITYSCAPES, CITYSCAPES_TRAIN)] == [11, 21, 150, 19, 19]
    assert (PASCAL_VOC.classes[0], PASCAL_VOC.classes[15], PASCAL_VOC.classes[20]) == (
        "background",
        "person",
        "tvmonitor",
    )
    # Values of the released files: 1 wall, 13 person, 21 car, 150 flag; 7 road, 24 person, 26 car, 33 bicycle.
    ade = dict(zip(ADE20K.classes, ADE20K.values, strict=True))
    assert [ade[name] for name in ("wall", "person", "car", "flag")] == [1, 13, 21, 150]
    city = dict(zip(CITYSCAPES.classes, CITYSCAPES.values, strict=True))
    assert [city[name] for name in ("road", "person", "car", "bicycle")] == [7, 24, 26, 33]
    assert {*CITYSCAPES.values, *CITYSCAPES.unknown} == {*range(34), 255}


def test_every_value_goes_where_the_map_says_and_nowhere_else() -> None:
    label_map = LabelMap("own", ("a", "b", "c"), values=(9, 0, 200), unknown=(7, 255))
    every = np.arange(256, dtype=np.uint8)[None]
    for value in range(256):
        stored = every[:, value : value + 1]
        if value in (9, 0, 200, 7, 255):
            expected = {9: 0, 0: 1, 200: 2, 7: IGNORE, 255: IGNORE}[value]
            assert label_map(stored, Path("m.png")).tolist() == [[expected]]
        else:
            with pytest.raises(DataError, match=rf"m\.png: the values \[{value}\] are not in the label map own"):
                label_map(stored, Path("m.png"))


def test_values_are_told_as_ranges() -> None:
    assert ranges((3, 1, 2, 7, 9, 10)) == "1 to 3, 7, 9 to 10"
    assert ranges(()) == ""


def test_colors_are_the_published_ones_and_all_different() -> None:
    assert CAMVID.palette()[3].tolist() == [128, 64, 128]
    assert PASCAL_VOC.palette()[:2].tolist() == [[0, 0, 0], [128, 0, 0]]
    assert ADE20K.palette()[0].tolist() == [128, 0, 0]  # wall is no background, and not black
    for label_map in (CAMVID, PASCAL_VOC, ADE20K, CITYSCAPES):
        assert len(np.unique(label_map.palette(), axis=0)) == len(label_map.classes)


def test_the_legend_of_a_label_map_shows_its_colors() -> None:
    image = legend(CAMVID)
    assert image.shape == (22 * (11 + 1 + 1), 230, 3)  # a title, eleven classes, unknown
    for row, color in enumerate(CAMVID.palette().tolist(), start=1):
        assert image[22 * row + 11, 20].tolist() == color
    assert legend(ADE20K).shape[1] == 230 * 6  # 151 rows, 30 in a column


def test_an_example_is_shown_with_what_is_in_it() -> None:
    mask = np.full((40, 30), 3, np.uint8)
    mask[:10], mask[10:20] = 8, IGNORE
    frame = np.full((40, 30, 3), 7, np.uint8)
    shown = colored(mask, CAMVID)
    assert [shown[row, 0].tolist() for row in (0, 10, 39)] == [[64, 0, 128], [255, 255, 255], [128, 64, 128]]
    image = labeled_example(frame, mask, CAMVID)
    np.testing.assert_array_equal(image[:40, :30], frame)
    np.testing.assert_array_equal(image[:40, 38:68], shown)
    assert image.shape[0] == 22 * (2 + 1 + 1)  # two classes of eleven are in it


@real_data
def test_the_real_camvid_is_read() -> None:
    train, val = (build("camvid", DATA / "CamVid", split=split) for split in ("train", "val"))
    assert (len(train), len(val)) == (64, 20)
    counts = np.zeros(256, np.int64)
    for index in range(20):
        counts += np.bincount(np.asarray(val.labels(index).get("mask")).reshape(-1), minlength=256)
    assert counts.sum() == 20 * 360 * 480
    assert counts[IGNORE] == 64042  # what holds 11 in the files
    assert counts[1] == 902331  # buildings
    assert np.flatnonzero(counts).tolist() == [*range(11), IGNORE]
