"""PASCAL-Context: every pixel of VOC 2010's pictures labeled with one of 59 frequent classes, or background.

After Mottaghi et al., "The Role of Context for Object Detection and Semantic Segmentation in the Wild", CVPR 2014, in
the version of "PASCAL in Detail" (2017), whose file trainval_merged.json most published numbers rest on. It has 4,996
training and 5,104 validation pictures; the paper's own lists have 4,998 and 5,105.

Two conventions are in use. With 59 classes, background is neither predicted nor scored. Figures "over 60 classes" are
either those times 59 / 60, as background counted as always wrong (EncNet's 51.7 is 52.6 * 59 / 60), or of a network
that learns background as a class of its own, which `background: class` gives.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np

from data.io import DataError, MissingDataError, write_mask
from data.label_maps import LabelMap
from data.listing import find_root
from data.segmented import SegmentedConfig, SegmentedImages, read_voc_list

_CATEGORIES = """
2 aeroplane 9 bag 18 bed 19 bedclothes 22 bench 23 bicycle 25 bird 31 boat 33 book 34 bottle 44 building 45 bus
46 cabinet 59 car 65 cat 68 ceiling 72 chair 80 cloth 85 computer 98 cow 104 cup 105 curtain 113 dog 115 door 144 fence
158 floor 159 flower 162 food 187 grass 189 ground 207 horse 220 keyboard 232 light 258 motorbike 259 mountain 260 mouse
284 person 295 plate 296 platform 308 pottedplant 324 road 326 rock 347 sheep 349 shelves 354 sidewalk 355 sign 360 sky
366 snow 368 sofa 397 table 415 track 416 train 420 tree 424 truck 427 tvmonitor 440 wall 445 water 454 window 458 wood
"""
CATEGORIES = {int(number): name for number, name in zip(*[iter(_CATEGORIES.split())] * 2, strict=True)}
"""The 59 classes by their category_id. Their order is that of the ids, which is that of the names too."""

CLASSES = tuple(CATEGORIES.values())
PUBLISHED = {"train": 4996, "val": 5104}
MASKS, LISTS = "SegmentationClassContext", "ImageSets/SegmentationContext"


class PascalContextConfig(SegmentedConfig):
    """Which pictures of PASCAL-Context to read, and what their masks hold.

    The masks are those that `tools/prepare_data.py convert pascal_context` renders, or those of others in the same
    places: `SegmentationClassContext/<name>.png` and `ImageSets/SegmentationContext/{train,val}.txt`.
    """

    name: Literal["pascal_context"]
    root: Path
    """The folder VOC2010, which has JPEGImages, or one above it."""
    split: Literal["train", "val"] = "train"
    masks: str = MASKS
    """The folder of masks."""
    first_class: Literal[0, 1] = 1
    """What the masks hold for the first class, aeroplane. 1: they hold 0 for background and 1 to 59, as ours and those
    of mmsegmentation do. 0: they hold 0 to 58 and 255 for background, as detectron2's do. It cannot be told from a
    file, and is not guessed."""
    background: Literal["unknown", "class"] = "unknown"
    """What is none of the 59 classes: not learned and not scored, or class 0 of 60."""

    def label_map(self) -> LabelMap:
        """Return its 59 classes, or 60 with background first."""
        values = tuple(range(self.first_class, self.first_class + len(CLASSES)))
        nothing = 0 if self.first_class else 255
        if self.background == "class":
            return LabelMap("pascal_context", ("background", *CLASSES), (nothing, *values), unknown=())
        return LabelMap("pascal_context", CLASSES, values, unknown=(nothing,))

    def build(self) -> SegmentedImages:
        """Return the data set, its files checked to be there."""
        root = find_pascal_context(self.root)
        if not (root / LISTS).is_dir():
            raise MissingDataError(
                f"PASCAL-Context at {root}: no {LISTS}; render the masks once with `tools/prepare_data.py convert "
                "pascal_context`"
            )
        images = read_voc_list(root, root / LISTS, self.split, self.masks)
        return SegmentedImages("PASCAL-Context", root, images, self.label_map())


def find_pascal_context(root: Path) -> Path:
    """Return the folder that has VOC 2010's JPEGImages. Raises MissingDataError."""
    return find_root("PASCAL-Context", root, "JPEGImages", below=("VOC2010", "VOCdevkit/VOC2010"))


class Rendered(NamedTuple):
    """What was rendered."""

    counts: dict[str, int]  # pictures of each split
    notes: list[str]  # what a person should know


def render_masks(
    annotations: Path,
    root: Path,
    *,
    published: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Rendered:
    """Write the masks and lists that :class:`PascalContextConfig` reads, 0 for background and 1 to 59.

    Segments are painted in the order of the file, crowds too, a later one over an earlier one: as the authors of the
    annotations do. The masks appear when all are written, the lists after them.

    Args:
        annotations: trainval_merged.json. All of it is held in memory, several times its size.
        root: the folder VOC2010, in which nothing else is changed.
        published: refuse a file that has not the published numbers of pictures.
        progress: called with (masks written, masks in all).

    Raises:
        DataError: not such a file, or one whose categories are others; or pycocotools is not installed.
        FileExistsError: there are masks already.
    """
    paint = _painter()
    target, lists = root / MASKS, root / LISTS
    if target.exists():
        raise FileExistsError(f"{target} is there; remove it to render it again")
    content = _read_json(annotations)
    notes = _check_categories(annotations, content["categories"])
    images = [image for image in content["images"] if image["phase"] in PUBLISHED]
    counts = {split: sum(image["phase"] == split for image in images) for split in PUBLISHED}
    if published and counts != PUBLISHED:
        raise DataError(f"{annotations}: {_counted(counts)}, published are {_counted(PUBLISHED)}")
    segments: dict[int, list[Mapping[str, Any]]] = {image["image_id"]: [] for image in images}
    for segment in content["annos_segmentation"]:
        if segment["image_id"] in segments:
            segments[segment["image_id"]].append(segment)

    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for done, image in enumerate(images, start=1):
        mask = paint(annotations, image, segments[image["image_id"]])
        write_mask(partial / f"{Path(image['file_name']).stem}.png", mask)
        if progress is not None:
            progress(done, len(images))
    os.replace(partial, target)
    lists.mkdir(parents=True, exist_ok=True)
    for split in PUBLISHED:
        names = sorted(Path(image["file_name"]).stem for image in images if image["phase"] == split)
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return Rendered(counts, notes)


def _painter() -> Callable[[Path, Mapping[str, Any], list[Mapping[str, Any]]], np.ndarray]:
    """Return a function of (file, image, segments) that paints a mask."""
    try:
        from pycocotools import mask as coco
    except ImportError as error:
        raise DataError("rendering PASCAL-Context needs pycocotools: pip install mtsp[coco]") from error
    rank = {category: index for index, category in enumerate(CATEGORIES, start=1)}

    def paint(path: Path, image: Mapping[str, Any], segments: list[Mapping[str, Any]]) -> np.ndarray:
        size = (image["height"], image["width"])
        mask = np.zeros(size, np.uint8)
        for segment in segments:
            encoded = segment["segmentation"]
            if not isinstance(encoded, dict) or tuple(encoded.get("size", ())) != size:
                raise DataError(f"{path}: segment {segment.get('id')} of {image['file_name']} is no RLE of its size")
            mask[coco.decode(cast(Any, encoded)).astype(bool)] = rank.get(segment["category_id"], 0)
        return mask

    return paint


def _read_json(path: Path) -> dict[str, Any]:
    """Return what the file holds, checked to have what is needed of it."""
    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError as error:
        raise MissingDataError(f"{path}: no such file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    needed = {
        "categories": ("category_id", "name"),
        "images": ("image_id", "file_name", "phase", "height", "width"),
        "annos_segmentation": ("image_id", "category_id", "segmentation"),
    }
    for section, keys in needed.items():
        entries = content.get(section) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(f"{path}: no list {section!r} in it; expected trainval_merged.json of PASCAL in Detail")
        for entry in entries:
            if lacking := [key for key in keys if key not in entry]:
                raise DataError(f"{path}: an entry of {section!r} has no {lacking[0]!r}")
    return content


def _check_categories(path: Path, categories: list[Mapping[str, Any]]) -> list[str]:
    """Return the classes that the file calls otherwise. Raises DataError if its ids are of another list."""
    names = {category["category_id"]: str(category["name"]) for category in categories}
    if missing := [f"{number} {name}" for number, name in CATEGORIES.items() if number not in names]:
        raise DataError(f"{path}: {len(missing)} of the 59 categories are not in it, the first {missing[0]}")
    others = [
        f"category {number} is called {names[number]!r}, here {name!r}"
        for number, name in CATEGORIES.items()
        if names[number].replace(" ", "").lower() != name
    ]
    if len(others) > len(CATEGORIES) // 2:  # a few may be spelled otherwise; so many are another list
        raise DataError(f"{path}: its ids are of another list of classes: {len(others)} names differ; {others[0]}")
    return others


def _counted(counts: Mapping[str, int]) -> str:
    return " and ".join(f"{count:,} {split}" for split, count in counts.items())
