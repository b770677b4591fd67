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


def test_what_is_wrong_is_said(content: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no category 'cow'; it has dog, cat"):
        own(tmp_path, content, categories=("cow",)).build()
    wrong = own(tmp_path, content).build()
    write_image(tmp_path / "2.png", np.zeros((5, 5, 3), np.uint8))
    with pytest.raises(DataError, match=r"2.png: its size and that in .* differ: 5x5 and 20x30"):
        wrong[1]
    (tmp_path / "2.png").unlink()
    with pytest.raises(MissingDataError, match=r"1 file \(2.png\) missing"):
        CocoMasksConfig(name="coco_masks", frames=tmp_path, annotations=tmp_path / "instances.json").build()
    content["annotations"][0]["segmentation"] = [[1.0]]
    with pytest.raises(DataError, match=r"annotation 1 of park/1.jpg cannot be drawn"):
        own(tmp_path, content).build()[0]
    del content["categories"]
    with pytest.raises(DataError, match="it needs a list `categories`, each with id, name"):
        own(tmp_path, content).build()
