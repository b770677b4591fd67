"""PASCAL-Context: masks rendered from a small annotation file that is encoded here by hand, and ready masks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import DataConfig
from data.files.images import write_image
from data.files.masks import read_mask, write_mask
from data.segmentation.pascal_context import CATEGORIES, CLASSES, LISTS, MASKS, PUBLISHED, render_masks
from data.segmentation.segmented_images import SegmentedImages
from data.types import DataError, MissingDataError
from mtsp.config import parse
from mtsp.types import IGNORE
from tools.prepare_data import main


def rle(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed run lengths, written from their definition.

    Pixels are read column by column; runs of zeros and ones take turns, zeros first. From the fourth run on, a run is
    stored as the difference to the run two before it. A number is cut into groups of five bits, the lowest first; a
    group has 32 added if more follow, the last one's highest bit is the sign, and 48 makes a character of it.
    """
    runs, last, length = [], 0, 0
    for pixel in mask.T.reshape(-1).tolist():
        if pixel != last:
            runs.append(length)
            last, length = pixel, 0
        length += 1
    runs.append(length)
    text = ""
    for place, run in enumerate(runs):
        number = run - runs[place - 2] if place > 2 else run
        more = True
        while more:
            group, number = number & 31, number >> 5
            more = not (number == 0 and not group & 16) and not (number == -1 and group & 16)
            text += chr(48 + group + (32 if more else 0))
    return {"size": list(mask.shape), "counts": text}


def box(size: tuple[int, int], rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    mask[rows, columns] = 1
    return mask


SIZE = (40, 50)
EVERYTHING = box(SIZE, slice(None), slice(None))


def annotations() -> dict[str, Any]:
    """Two training images, one for validation, one for testing. In the first a dog (113) is painted over grass (187),
    a crowd of persons (284) over both, and what has no class of the 59 (500) over all of them."""

    def image(number: int, phase: str) -> dict[str, Any]:
        name = f"2008_{number:06d}.jpg"
        return {"image_id": 2008000000 + number, "file_name": name, "phase": phase, "height": 40, "width": 50}

    def segment(number: int, category: int, mask: np.ndarray, crowd: int = 0) -> dict[str, Any]:
        return {
            "id": 7, "image_id": 2008000000 + number, "category_id": category, "iscrowd": crowd, "area": 1,
            "bbox": [0, 0, 1, 1], "segmentation": rle(mask),
        }  # fmt: skip

    return {
        "info": {},
        "categories": [{"category_id": i, "name": name, "onlysemantic": 0} for i, name in CATEGORIES.items()]
        + [{"category_id": 500, "name": "unicycle", "onlysemantic": 0}],
        "images": [image(2, "train"), image(1, "train"), image(3, "val"), image(4, "test")],
        "annos_segmentation": [
            segment(1, 187, EVERYTHING),
            segment(2, 59, box(SIZE, slice(0, 20), slice(0, 50))),
            segment(1, 113, box(SIZE, slice(10, 30), slice(10, 30))),
            segment(3, 458, EVERYTHING),
            segment(1, 284, box(SIZE, slice(20, 35), slice(20, 45)), crowd=1),
            segment(1, 500, box(SIZE, slice(39, 40), slice(49, 50))),
            segment(4, 2, EVERYTHING),
        ],
        "annos_occlusion": [],
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder that a download leaves: VOC2010 with images, and the annotations beside it."""
    (tmp_path / "VOC2010" / "JPEGImages").mkdir(parents=True)
    for number in (1, 2, 3):
        write_image(tmp_path / "VOC2010" / "JPEGImages" / f"2008_{number:06d}.jpg", np.zeros((*SIZE, 3), np.uint8))
    (tmp_path / "trainval_merged.json").write_text(json.dumps(annotations()))
    return tmp_path


def build(root: Path, **settings: Any) -> SegmentedImages:
    values = {"name": "pascal_context", "root": str(root), **settings}
    dataset = parse(DataConfig, {"dataset": values}).build_dataset()
    assert isinstance(dataset, SegmentedImages)
    return dataset


def test_segments_are_painted_in_the_order_of_the_file(root: Path) -> None:
    rendered = render_masks(root / "trainval_merged.json", root / "VOC2010", published=False)
    assert rendered.counts == {"train": 2, "val": 1}
    assert rendered.notes == []
    expected = np.full(SIZE, 29)  # grass is the 29th class of the 59
    expected[10:30, 10:30] = 23  # dog
    expected[20:35, 20:45] = 37  # person, a crowd
    expected[39, 49] = 0  # none of the 59
    np.testing.assert_array_equal(read_mask(root / "VOC2010" / MASKS / "2008_000001.png"), expected)
    lists = {split: (root / "VOC2010" / LISTS / f"{split}.txt").read_text() for split in ("train", "val")}
    assert lists == {"train": "2008_000001\n2008_000002\n", "val": "2008_000003\n"}  # nothing of the test image
    assert sorted(path.name for path in (root / "VOC2010" / MASKS).iterdir()) == [
        f"2008_00000{i}.png" for i in (1, 2, 3)
    ]


def test_rendered_masks_are_read_as_59_or_60_classes(root: Path) -> None:
    render_masks(root / "trainval_merged.json", root / "VOC2010", published=False)
    mask = np.asarray(build(root)[1].get("mask"))  # a car in the upper half, and nothing below
    assert (mask[0, 0], mask[39, 0]) == (13, IGNORE)  # class 13 of 0 to 58
    assert build(root).classes[13] == "car"
    mask = np.asarray(build(root, background="class")[1].get("mask"))
    assert (mask[0, 0], mask[39, 0]) == (14, 0)
    assert (build(root, background="class").classes[14], build(root, background="class").classes[0]) == (
        "car",
        "background",
    )
    assert build(root, split="val").ids == ["2008_000003"]


def test_masks_that_begin_with_zero_are_read_when_told(root: Path) -> None:
    folder = root / "VOC2010"
    render_masks(root / "trainval_merged.json", folder, published=False)
    for path in (folder / MASKS).iterdir():
        write_mask(path, read_mask(path) - 1)  # 0 becomes 255, as in detectron2's files
    with pytest.raises(
        DataError, match=r"the values \[255\] are not in the label map pascal_context \(classes: 1 to 59"
    ):
        build(root)[1]
    mask = np.asarray(build(root, first_class=0)[1].get("mask"))
    assert (mask[0, 0], mask[39, 0]) == (13, IGNORE)
    mask = np.asarray(build(root, first_class=0, background="class")[1].get("mask"))
    assert (mask[0, 0], mask[39, 0]) == (14, 0)


def test_the_classes_are_the_known_59_in_the_order_of_their_ids_and_names() -> None:
    assert len(CLASSES) == 59
    assert list(CATEGORIES) == sorted(CATEGORIES)
    assert list(CLASSES) == sorted(CLASSES)
    # Some of the 60 ranks by hand, background being rank 0: 1 aeroplane, 14 car, 37 person, 57 water, 59 wood.
    assert [CLASSES.index(name) + 1 for name in ("aeroplane", "car", "person", "water", "wood")] == [1, 14, 37, 57, 59]
    assert {CATEGORIES[number] for number in (2, 59, 284, 458)} == {"aeroplane", "car", "person", "wood"}
    assert PUBLISHED == {"train": 4996, "val": 5104}


def test_another_number_of_images_is_refused_unless_told(root: Path) -> None:
    with pytest.raises(DataError, match="2 train and 1 val, published are 4,996 train and 5,104 val"):
        render_masks(root / "trainval_merged.json", root / "VOC2010")
    assert not (root / "VOC2010" / MASKS).exists()


def test_another_list_of_classes_is_refused_and_another_spelling_is_told(root: Path) -> None:
    path, folder = root / "trainval_merged.json", root / "VOC2010"
    content = annotations()
    content["categories"][57]["name"] = "windows"
    path.write_text(json.dumps(content))
    assert render_masks(path, folder, published=False).notes == [
        "category 454 is named 'windows' in the file, but 'window' here"
    ]
    (folder / MASKS).rename(folder / "first")
    names = [category["name"] for category in content["categories"]]
    for place, category in enumerate(content["categories"]):
        category["name"] = names[place - 1]  # the same names in another order
    path.write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=r"the ids are of another list of classes: 59 names differ; category 2 is named"
    ):
        render_masks(path, folder, published=False)
    content["categories"] = annotations()["categories"][1:]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="1 of the 59 categories are missing, for example 2 aeroplane"):
        render_masks(path, folder, published=False)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "there is no list 'categories'; expected trainval_merged.json"),
        ('{"categories": [{"name": "dog"}]}', "an entry of 'categories' has no 'category_id'"),
    ],
)
def test_a_file_that_is_something_else_is_refused(root: Path, text: str, reason: str) -> None:
    (root / "trainval_merged.json").write_text(text)
    with pytest.raises(DataError, match=reason):
        render_masks(root / "trainval_merged.json", root / "VOC2010", published=False)


def test_a_segment_of_another_size_is_refused_and_nothing_is_published(root: Path) -> None:
    content = annotations()
    content["annos_segmentation"][0]["segmentation"] = rle(np.ones((50, 40), np.uint8))
    (root / "trainval_merged.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"segment 7 of 2008_000001\.jpg: it is not an RLE of size 40x50"):
        render_masks(root / "trainval_merged.json", root / "VOC2010", published=False)
    with pytest.raises(MissingDataError, match=r"no ImageSets/SegmentationContext; render the masks once"):
        build(root)


def render(root: Path, content: dict[str, Any]) -> list[str]:
    (root / "trainval_merged.json").write_text(json.dumps(content))
    return render_masks(root / "trainval_merged.json", root / "VOC2010", published=False).notes


def test_run_lengths_that_are_not_compressed_are_read_too(root: Path) -> None:
    content = annotations()
    content["annos_segmentation"][3]["segmentation"]["counts"] = [40, 80, 1880]  # column by column of 40: 1 and 2
    render(root, content)
    expected = np.zeros(SIZE)
    expected[:, 1:3] = 59  # wood
    np.testing.assert_array_equal(read_mask(root / "VOC2010" / MASKS / "2008_000003.png"), expected)


@pytest.mark.parametrize("density", [0.02, 0.5, 0.98])
def test_compressed_run_lengths_of_any_pattern_are_read(root: Path, density: float) -> None:
    pixels = (np.random.default_rng(0).random(SIZE) < density).astype(np.uint8)
    content = annotations()
    content["annos_segmentation"][3]["segmentation"] = rle(pixels)
    render(root, content)
    np.testing.assert_array_equal(read_mask(root / "VOC2010" / MASKS / "2008_000003.png"), 59 * pixels)


WHOLE = rle(EVERYTHING)["counts"]  # no zeros, then 2000 ones: "0" and three characters


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ({"size": [40, 50], "counts": WHOLE[:-1]}, "truncated"),
        ({"size": [40, 50], "counts": WHOLE[:1]}, "the runs of its RLE have 0 pixels, but the image has 2,000"),
        ({"size": [40, 50], "counts": WHOLE + "5"}, "have 2,005 pixels"),
        ({"size": [40, 50], "counts": ""}, "are empty or contain"),
        ({"size": [40, 50], "counts": "\n \u00e9"}, "invalid characters"),
        ({"size": [40, 50], "counts": "oooooooo0"}, "a number too large"),
        ({"size": [40, 50], "counts": "O"}, "are not run lengths"),  # -1
        ({"size": [40, 50], "counts": [-1, 2001]}, "are not run lengths"),
        ({"size": [40, 50], "counts": [0.0, 2000.0]}, "are not run lengths"),
        ({"size": [40, 50], "counts": None}, "are not run lengths"),
        ({"size": [40, 50]}, "are not run lengths"),
        ({"size": 2000, "counts": WHOLE}, "it is not an RLE of size"),
        ([[0, 0, 0, 9, 9, 9]], "it is not an RLE of size"),
        (None, "it is not an RLE of size"),
    ],
)
def test_a_segment_that_cannot_be_decoded_is_named_in_one_line(root: Path, segmentation: Any, reason: str) -> None:
    content = annotations()
    content["annos_segmentation"][0]["segmentation"] = segmentation
    with pytest.raises(DataError, match=r"trainval_merged\.json: segment 7 of 2008_000001\.jpg: .*" + reason) as caught:
        render(root, content)
    assert "\n" not in str(caught.value)
    assert not (root / "VOC2010" / MASKS).exists()


@pytest.mark.parametrize(
    ("section", "key", "value", "reason"),
    [
        ("images", "image_id", "2008000002", "an entry of 'images' has image_id '2008000002', expected a whole number"),
        ("images", "image_id", True, "image_id 'True', expected a whole number"),
        ("images", "height", 40.0, "height '40.0', expected a whole number"),
        ("images", "width", 0, "2008_000002.jpg has an invalid size of 40x0 pixels"),
        ("images", "file_name", None, "file_name 'None', expected text"),
        ("images", "phase", [], "phase '\\[\\]', expected text"),
        ("images", "image_id", 2008000001, "2008_000002.jpg and 2008_000001.jpg both have image_id 2008000001"),
        ("images", "file_name", "b/2008_000001.png", "images 2008000002 and 2008000001 are both named 2008_000001"),
        ("annos_segmentation", "image_id", "2008000001", "image_id '2008000001', expected a whole number"),
        ("annos_segmentation", "category_id", "187", "category_id '187', expected a whole number"),
        ("annos_segmentation", "category_id", 188, "segment 7 of 2008_000001.jpg: category 188 is not in the file"),
    ],
)
def test_ids_and_sizes_of_another_kind_are_refused(root: Path, section: str, key: str, value: Any, reason: str) -> None:
    """An id that is compared as text with a number finds nothing: its masks would be empty, without a word."""
    content = annotations()
    content[section][0][key] = value
    with pytest.raises(DataError, match=reason):
        render(root, content)
    assert not (root / "VOC2010" / MASKS).exists()


def test_images_without_segments_are_counted_and_refused_if_all_are(root: Path) -> None:
    content = annotations()
    content["annos_segmentation"] = [
        s for s in content["annos_segmentation"] if s["image_id"] in (2008000001, 2008000004)
    ]
    assert render(root, content) == ["2 of 3 images have no segment; their masks have only background"]
    (root / "VOC2010" / MASKS).rename(root / "VOC2010" / "first")
    content["annos_segmentation"] = content["annos_segmentation"][-1:]  # of the test image
    with pytest.raises(DataError, match="no segment belongs to an image of train or val"):
        render(root, content)


def test_the_annotations_may_lie_beside_the_images(root: Path) -> None:
    (root / "trainval_merged.json").rename(root / "VOC2010" / "trainval_merged.json")
    assert main(["convert", "pascal_context", "--root", str(root), "--partial"]) == 0
    assert build(root).ids == ["2008_000001", "2008_000002"]


def test_annotations_that_were_named_and_are_not_there_are_not_replaced_by_others(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "trainval_merged.json").rename(root / "VOC2010" / "trainval_merged.json")
    elsewhere = tmp_path / "elsewhere" / "trainval_merged.json"
    command = ["convert", "pascal_context", "--root", str(root), "--partial", "--annotations", str(elsewhere)]
    assert main(command) == 1
    assert f"{elsewhere}: no such file" in capsys.readouterr().err


def test_the_command_renders_once_and_verifies(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["convert", "pascal_context", "--root", str(root), "--partial"]
    assert main(command) == 0
    assert capsys.readouterr().out == f"{root}/VOC2010: masks of 2 train, 1 val\n"
    assert main(command) == 1
    assert "already exists; delete it to render the masks again" in capsys.readouterr().err
    assert main(["verify", "pascal_context", "--root", str(root), "--partial", "--workers", "1"]) == 0
    assert "3 examples read (train 2, val 1): no problems" in capsys.readouterr().out
    assert main(["verify", "pascal_context", "--root", str(root), "--workers", "1"]) == 1
    assert "train: 2 examples, published are 4,996" in capsys.readouterr().out
    image = root / "labels.png"
    assert main(["labels", "pascal_context", "--root", str(root), "--example", "1", "--out", str(image)]) == 0
    assert image.exists()
    assert main(["labels", "pascal_context", "--root", str(root), "--example", "2", "--out", str(image)]) == 1
    assert "has no example 2; choose 0 to 1" in capsys.readouterr().err
