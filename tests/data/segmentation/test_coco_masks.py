"""Polygons and run lengths of COCO's format, drawn into masks; areas are counted by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.files.images import write_image
from data.segmentation.coco_masks import CocoMasksConfig
from data.types import DataError, MissingDataError

HEIGHT, WIDTH = 20, 30


def square(left: int, top: int, side: int) -> list[float]:
    return [left, top, left + side, top, left + side, top + side, left, top + side]


def annotation(number: int, image: int, category: int, *polygons: list[float], **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category, "segmentation": list(polygons), **more}


@pytest.fixture
def content() -> dict[str, Any]:
    runs = {"size": [HEIGHT, WIDTH], "counts": [0, 2 * HEIGHT, (WIDTH - 2) * HEIGHT]}  # the first two columns
    return {
        "images": [
            {"id": 7, "file_name": "park/1.jpg", "height": HEIGHT, "width": WIDTH},
            {"id": 9, "file_name": "2.png", "height": HEIGHT, "width": WIDTH},
        ],
        "categories": [{"id": 44, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [
            annotation(1, 7, 44, square(5, 5, 4)),
            annotation(2, 7, 3, square(4, 4, 10)),  # larger and listed later, but behind
            annotation(3, 7, 3, square(20, 0, 3), square(25, 0, 3)),
            {"id": 4, "image_id": 7, "category_id": 3, "segmentation": runs, "iscrowd": 1},
            annotation(5, 9, 44),  # a box without a polygon
        ],
    }


def own(root: Path, content: dict[str, Any], **settings: Any) -> CocoMasksConfig:
    for image in content["images"]:
        (root / image["file_name"]).parent.mkdir(parents=True, exist_ok=True)
        write_image(root / image["file_name"], np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    (root / "instances.json").write_text(json.dumps(content))
    return CocoMasksConfig(name="coco_masks", frames=root, annotations=root / "instances.json", **settings)


def pixels(mask: np.ndarray) -> dict[int, int]:
    values, counts = np.unique(mask, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def test_objects_are_drawn_small_before_large_and_crowds_are_unknown(content: dict[str, Any], tmp_path: Path) -> None:
    dataset = own(tmp_path, content).build()
    assert dataset.classes == ("background", "cat", "dog")  # in the order of ids, 3 and 44
    assert dataset.ids == ["park/1", "2"]
    sample = dataset[0]
    assert sample["frame"].shape == (HEIGHT, WIDTH, 3)
    cat = 10 * 10 - 4 * 4 + 2 * 3 * 3  # without the dog in front of it, with two pieces
    crowd = 2 * HEIGHT
    assert pixels(dataset.labels(0).get("mask", np.zeros(1))) == {
        0: HEIGHT * WIDTH - cat - 16 - crowd,
        1: cat,
        2: 16,
        255: crowd,
    }
    assert pixels(dataset.labels(1).get("mask", np.zeros(1))) == {0: HEIGHT * WIDTH}


def test_chosen_categories_are_numbered_from_one(content: dict[str, Any], tmp_path: Path) -> None:
    config = own(tmp_path, content, categories=("dog",))
    assert config.label_map().classes == ("background", "dog")
    assert pixels(config.build().labels(0).get("mask", np.zeros(1))) == {0: HEIGHT * WIDTH - 16, 1: 16}
    (tmp_path / "val.txt").write_text("park\n")
    assert own(tmp_path, content, split=tmp_path / "val.txt").build().ids == ["park/1"]


def square_at(*place: float) -> dict[str, Any]:
    """One image and a cat, whose polygon is a rectangle: left, top, right, bottom."""
    left, top, right, bottom = place
    return one_cat([[left, top, right, top, right, bottom, left, bottom]])


def one_cat(segmentation: Any, **change: Any) -> dict[str, Any]:
    image = {"id": 7, "file_name": "1.png", "height": HEIGHT, "width": WIDTH}
    cat = {"id": 1, "image_id": 7, "category_id": 3, "segmentation": segmentation}
    return {"images": [image], "categories": [{"id": 3, "name": "cat"}], "annotations": [cat], **change}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (one_cat([]), r"1 of 1 annotations have no segmentation.*\(1 of 1.png\); no object is left to draw"),
        (one_cat([], annotations=[{"id": 1, "image_id": 7, "category_id": 4}]), r"category_id 4, .* categories \(3\)"),
        (one_cat([], annotations=[{"id": 1, "image_id": 7, "category_id": "3"}]), r"category_id '3', .*\(3\)"),
        (one_cat([], annotations=[annotation(1, 8, 3, square(1, 1, 2))]), r"image_id that no image has \(1: 8\)"),
        (
            one_cat([], categories=[{"id": 3, "name": "cat"}, {"id": 3, "name": "dog"}]),
            r"`categories` cat, dog .*id, 3",
        ),
    ],
)
def test_annotations_without_an_object_image_or_category_are_refused(
    tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        own(tmp_path, content).build()


def test_images_with_one_id_or_listed_twice_are_refused(content: dict[str, Any], tmp_path: Path) -> None:
    content["images"][1]["id"] = 7
    with pytest.raises(DataError, match=r"in `images` park/1.jpg, 2.png have the same id, 7"):
        own(tmp_path, content).build()
    content["images"][1] |= {"id": 9, "file_name": "park/1.jpg"}
    with pytest.raises(DataError, match=r"1 examples are listed twice, the first park/1"):
        own(tmp_path, content).build()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (square_at(0.1, 0.1, 0.5, 0.5), r"in x 0.1 to 0.5, y 0.1 to 0.5; points are in pixels"),
        (square_at(40, 5, 50, 9), r"in x 40 to 50, y 5 to 9, but the image has 30 x 20 pixels"),
        (square_at(5, 5, 4000, 9), r"in x 5 to 4000"),
        (square_at(5, 5, float("nan"), 9), r"in x nan to nan"),
        (square_at(5, 5, float("inf"), 9), r"in x 5 to inf"),
        (one_cat([[1, 1, 5, 5]]), r"3 points or more, this one is \[1, 1, 5, 5\]"),
        (
            one_cat({"size": [WIDTH, HEIGHT], "counts": [0, 40, 560]}),
            r"run lengths are of \[30, 20\] pixels.*\[20, 30\]",
        ),
        (one_cat({"size": [HEIGHT, WIDTH], "counts": [0, 40, 100]}), r"run lengths add up to 140 pixels, not 600"),
    ],
)
def test_shapes_that_cannot_be_in_the_pixels_of_the_image_are_refused(
    tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=rf"annotation 1 of 1.png cannot be drawn: .*{message}"):
        own(tmp_path, content).build().labels(0)


def test_objects_that_are_not_drawn_whole_are_warned_about(
    content: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content["annotations"] = [
        annotation(1, 7, 3, square(26, 16, 8)),  # 4 x 4 pixels of it are inside
        annotation(2, 7, 3, square(5, 5, 0)),
        annotation(3, 7, 3),
        annotation(4, 8, 3, square(0, 0, 2)),
    ]
    dataset = own(tmp_path, content).build()
    assert pixels(dataset.labels(0).get("mask", np.zeros(1))) == {0: HEIGHT * WIDTH - 16, 1: 16}
    for text in (
        "1 of 4 annotations have no segmentation, only a box or nothing (3 of park/1.jpg)",
        "1 of 4 annotations have an image_id that no image has (4: 8)",
        "annotation 1 of park/1.jpg has points outside the image",
        "annotation 2 of park/1.jpg covers no pixel",
    ):
        assert text in caplog.text


@pytest.mark.parametrize(
    ("key", "field", "value", "said"),
    [
        ("categories", "id", 3.0, "id in `categories` is a number or a text everywhere, but 3.0 once"),
        ("images", "id", None, "id in `images` is a number or a text"),
        ("annotations", "image_id", [9], "image_id in `annotations` is a number or a text"),
        ("annotations", "category_id", None, "category_id in `annotations` is a number or a text"),
        ("images", "height", "20", "the height of 2.png is '20', not a number of pixels"),
    ],
)
def test_ids_and_sizes_of_other_types_are_refused(
    content: dict[str, Any], tmp_path: Path, key: str, field: str, value: Any, said: str
) -> None:
    content[key][-1][field] = value
    with pytest.raises(DataError, match=rf"instances.json: {said}"):
        own(tmp_path, content).build()


def test_what_is_wrong_is_said(content: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no category 'cow'; it has dog, cat"):
        own(tmp_path, content, categories=("cow",)).build()
    wrong = own(tmp_path, content).build()
    write_image(tmp_path / "2.png", np.zeros((5, 5, 3), np.uint8))
    with pytest.raises(DataError, match=r"2.png: its size and that in .* differ: 5x5 and 20x30"):
        wrong[1]
    with pytest.raises(DataError, match=r"2.png: its size and that in .* differ: 5x5 and 20x30"):
        wrong.labels(1)  # as scoring asks for it
    (tmp_path / "2.png").unlink()
    with pytest.raises(MissingDataError, match=r"1 file \(2.png\) missing"):
        CocoMasksConfig(name="coco_masks", frames=tmp_path, annotations=tmp_path / "instances.json").build()
    content["annotations"][0]["segmentation"] = [[1.0]]
    with pytest.raises(DataError, match=r"annotation 1 of park/1.jpg cannot be drawn"):
        own(tmp_path, content).build()[0]
    del content["categories"]
    with pytest.raises(DataError, match="it needs a list `categories`, each with id, name"):
        own(tmp_path, content).build()
