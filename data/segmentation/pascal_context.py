"""PASCAL-Context: VOC 2010's images with every pixel labeled as one of 59 frequent classes or background.

After Mottaghi et al., "The Role of Context for Object Detection and Semantic Segmentation in the Wild", CVPR 2014, in
the version of "PASCAL in Detail" (2017). Most published numbers are based on its file trainval_merged.json, which has
4,996 training and 5,104 validation images; the lists of the paper have 4,998 and 5,105.

Two conventions are in use. With 59 classes, background is neither predicted nor scored. Scores "over 60 classes" either
count background as always wrong, which is a factor of 59 / 60 (EncNet's 51.7 is 52.6 * 59 / 60), or come from a network
that learns background as a class, as with `background: class`.
"""

import math
import os
import shutil
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from data.files.images import MAX_PIXELS
from data.files.list_files import read_json
from data.files.listing import find_root
from data.files.masks import write_mask
from data.segmentation.label_map import LabelMap
from data.segmentation.pascal_voc import read_voc_list
from data.segmentation.segmented_images import SegmentedConfig, SegmentedImage
from data.types import DataError, MissingDataError

_CATEGORIES = """
2 aeroplane 9 bag 18 bed 19 bedclothes 22 bench 23 bicycle 25 bird 31 boat 33 book 34 bottle 44 building 45 bus
46 cabinet 59 car 65 cat 68 ceiling 72 chair 80 cloth 85 computer 98 cow 104 cup 105 curtain 113 dog 115 door 144 fence
158 floor 159 flower 162 food 187 grass 189 ground 207 horse 220 keyboard 232 light 258 motorbike 259 mountain 260 mouse
284 person 295 plate 296 platform 308 pottedplant 324 road 326 rock 347 sheep 349 shelves 354 sidewalk 355 sign 360 sky
366 snow 368 sofa 397 table 415 track 416 train 420 tree 424 truck 427 tvmonitor 440 wall 445 water 454 window 458 wood
"""
CATEGORIES = {int(number): name for number, name in zip(*[iter(_CATEGORIES.split())] * 2, strict=True)}
"""The 59 classes by category_id. The order of the ids is also alphabetical."""

CLASSES = tuple(CATEGORIES.values())
PUBLISHED = {"train": 4996, "val": 5104}
MASKS, LISTS = "SegmentationClassContext", "ImageSets/SegmentationContext"

_LONGEST_SIDE = 65_535  # pixels; the limit of JPEG
_RANKS = {category: rank for rank, category in enumerate(CATEGORIES, start=1)}
_WHOLE, _TEXT = "a whole number", "text"
_FIELDS = {
    "categories": {"category_id": _WHOLE, "name": _TEXT},
    "images": {"image_id": _WHOLE, "file_name": _TEXT, "phase": _TEXT, "height": _WHOLE, "width": _WHOLE},
    "annos_segmentation": {"image_id": _WHOLE, "category_id": _WHOLE, "segmentation": ""},
}
"""Lists to read from the annotation file, with the keys of their entries and the types of the values."""


class PascalContextConfig(SegmentedConfig):
    """Config of PASCAL-Context.

    `tools/prepare_data.py convert pascal_context` renders the masks `SegmentationClassContext/<name>.png` and the lists
    `ImageSets/SegmentationContext/{train,val}.txt`; masks from other sources can be used too.
    """

    title: ClassVar[str] = "PASCAL-Context"
    name: Literal["pascal_context"]
    root: Path
    """The folder VOC2010, which has JPEGImages, or a folder above it."""
    split: Literal["train", "val"] = "train"
    masks: str = MASKS
    """Folder of masks."""
    first_class: Literal[0, 1] = 1
    """Value of the first class, aeroplane, in the masks. 1: background is 0 and the classes are 1 to 59, as in
    masks rendered by `tools/prepare_data.py` and by mmsegmentation. 0: the classes are 0 to 58 and background is 255,
    as in detectron2's masks."""
    background: Literal["unknown", "class"] = "unknown"
    """Treatment of pixels of none of the 59 classes. unknown: not learned and not scored. class: class 0 of 60."""

    def label_map(self) -> LabelMap:
        """Return the 59 classes, or 60 with background first."""
        values = tuple(range(self.first_class, self.first_class + len(CLASSES)))
        nothing = 0 if self.first_class else 255
        if self.background == "class":
            return LabelMap("pascal_context", ("background", *CLASSES), (nothing, *values), unknown=())
        return LabelMap("pascal_context", CLASSES, values, unknown=(nothing,))

    def files(self) -> tuple[Path, list[SegmentedImage]]:
        """Return the root folder and the files of each example. Raises DataError."""
        root = find_pascal_context(self.root)
        if not (root / LISTS).is_dir():
            raise MissingDataError(
                f"PASCAL-Context at {root}: no {LISTS}; render the masks once with `tools/prepare_data.py convert "
                "pascal_context`"
            )
        return root, read_voc_list(root, root / LISTS, self.split, self.masks)


def find_pascal_context(root: Path) -> Path:
    """Return the folder that has VOC 2010's JPEGImages. Raises MissingDataError."""
    return find_root("PASCAL-Context", root, "JPEGImages", below=("VOC2010", "VOCdevkit/VOC2010"))


class Rendered(NamedTuple):
    """Result of :func:`render_masks`."""

    counts: dict[str, int]  # number of images of each split
    notes: list[str]  # notes for the user


def render_masks(
    annotations: Path, root: Path, *, published: bool = True, progress: Callable[[int, int], None] | None = None
) -> Rendered:
    """Write the masks (0: background, 1 to 59: classes) and the lists that :class:`PascalContextConfig` reads.

    Segments, including crowds, are painted in the order of the file, later segments over earlier segments, as the
    authors of the annotations do. The masks appear when all of them are written, and the lists after the masks.

    Args:
        annotations: trainval_merged.json. If it is missing in a folder above `root`, the file of that name in `root` is
            read. Reading it takes several times its size in memory.
        root: the folder VOC2010. Only masks and lists are added to it.
        published: require the published numbers of images.
        progress: called with (number of masks written, total number of masks).

    Raises:
        DataError: the file is not trainval_merged.json, has other categories, or has a segment that cannot be decoded.
        FileExistsError: masks exist already.
    """
    target, lists = root / MASKS, root / LISTS
    if target.exists():
        raise FileExistsError(f"{target} already exists; delete it to render the masks again")
    annotations = _located(annotations, root)
    content = _read(annotations)
    notes = _check_categories(annotations, content["categories"])
    _check_images(annotations, content["images"])
    _check_segments(annotations, content)
    images = [image for image in content["images"] if image["phase"] in PUBLISHED]
    counts = {split: sum(image["phase"] == split for image in images) for split in PUBLISHED}
    if published and counts != PUBLISHED:
        raise DataError(f"{annotations}: {_counted(counts)}, published are {_counted(PUBLISHED)}")
    segments: dict[int, list[Mapping[str, Any]]] = {image["image_id"]: [] for image in images}
    for segment in content["annos_segmentation"]:
        if segment["image_id"] in segments:
            segments[segment["image_id"]].append(segment)
    if not any(segments.values()):
        raise DataError(f"{annotations}: no segment belongs to an image of train or val, so all masks would be empty")
    if bare := sum(not found for found in segments.values()):
        notes.append(f"{bare:,} of {len(images):,} images have no segment; their masks have only background")

    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for done, image in enumerate(images, start=1):
        mask = _painted(annotations, image, segments[image["image_id"]])
        write_mask(partial / f"{Path(image['file_name']).stem}.png", mask)
        if progress is not None:
            progress(done, len(images))
    os.replace(partial, target)
    lists.mkdir(parents=True, exist_ok=True)
    for split in PUBLISHED:
        names = sorted(Path(image["file_name"]).stem for image in images if image["phase"] == split)
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return Rendered(counts, notes)


def _located(annotations: Path, root: Path) -> Path:
    """Return the annotation file, or the file of the same name in `root` if only that file exists."""
    inside = root / annotations.name
    above = annotations.absolute().parent in root.absolute().parents
    return inside if above and not annotations.exists() and inside.exists() else annotations


def _painted(path: Path, image: Mapping[str, Any], segments: list[Mapping[str, Any]]) -> np.ndarray:
    """Return the mask of an image, HW uint8. Raises DataError, naming the segment that cannot be decoded."""
    size = (image["height"], image["width"])
    mask = np.zeros(size, np.uint8)
    for segment in segments:
        try:
            mask[_pixels(segment["segmentation"], size)] = _RANKS.get(segment["category_id"], 0)
        except ValueError as error:
            raise DataError(f"{path}: segment {segment.get('id', '?')} of {image['file_name']}: {error}") from error
    return mask


def _pixels(encoded: Any, size: tuple[int, int]) -> np.ndarray:
    """Return the pixels of a segment, HW bool, from COCO's run lengths. Raises ValueError if they do not fit `size`.

    pycocotools is not used, because it returns uninitialized memory if the runs end before the image does.
    """
    if not isinstance(encoded, dict) or encoded.get("size") != list(size):
        raise ValueError(f"it is not an RLE of size {size[0]}x{size[1]}")
    counts = encoded.get("counts")
    if isinstance(counts, str):
        counts = _decompressed(counts)
    if not isinstance(counts, list) or not all(type(run) is int and run >= 0 for run in counts):
        raise ValueError("the counts of its RLE are not run lengths")
    if sum(counts) != size[0] * size[1]:
        raise ValueError(f"the runs of its RLE have {sum(counts):,} pixels, but the image has {size[0] * size[1]:,}")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size[1], size[0]).T


def _decompressed(text: str) -> list[int]:
    """Decode run lengths from COCO's compressed text. Raises ValueError for other text.

    Each character, minus 48, holds five bits of a number, lowest bits first, plus 32 if more bits follow. The highest
    of the last five bits is the sign. From the fourth number on, each value is stored as its difference to the value
    two before it.
    """
    groups = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    if not groups.size or groups.min() < 0 or groups.max() > 63:
        raise ValueError("the counts of its RLE are empty or contain invalid characters")
    last = groups & 32 == 0
    starts = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    lengths = np.diff(starts, append=len(groups))
    if not last[-1] or lengths.max() > 7:  # 35 bits
        raise ValueError("the counts of its RLE are truncated or contain a number too large for an image")
    places = np.arange(len(groups)) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((groups & 31) << 5 * places, starts)
    numbers -= (groups[last] & 16 != 0).astype(np.int64) << 5 * lengths
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers.tolist()


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the content of the annotation file after checking that all needed entries are present."""
    content = read_json(path)
    for section, fields in _FIELDS.items():
        entries = content.get(section) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(f"{path}: there is no list {section!r}; expected trainval_merged.json of PASCAL in Detail")
        for entry, (key, kind) in product(entries, fields.items()):
            if key not in entry:
                raise DataError(f"{path}: an entry of {section!r} has no {key!r}")
            value = entry[key]
            fits = type(value) is int if kind == _WHOLE else kind != _TEXT or (isinstance(value, str) and value)
            if not fits:
                raise DataError(f"{path}: an entry of {section!r} has {key} {str(value)[:40]!r}, expected {kind}")
    return content


def _check_images(path: Path, images: list[dict[str, Any]]) -> None:
    """Raise DataError unless each image has a valid size, a unique id, and a unique mask name."""
    files: dict[int, str] = {}
    ids: dict[str, int] = {}
    for image in images:
        number, file = image["image_id"], image["file_name"]
        sides = image["height"], image["width"]
        if not all(1 <= side <= _LONGEST_SIDE for side in sides) or math.prod(sides) > MAX_PIXELS:
            raise DataError(f"{path}: {file} has an invalid size of {image['height']}x{image['width']} pixels")
        if number in files:
            raise DataError(f"{path}: {files[number]} and {file} both have image_id {number}")
        if (stem := Path(file).stem) in ids:
            raise DataError(f"{path}: images {ids[stem]} and {number} are both named {stem} and would share a mask")
        files[number], ids[stem] = file, number


def _check_segments(path: Path, content: Mapping[str, list[dict[str, Any]]]) -> None:
    """Raise DataError unless the category of each segment is listed in the file."""
    files = {image["image_id"]: image["file_name"] for image in content["images"]}
    known = {category["category_id"] for category in content["categories"]}
    for segment in content["annos_segmentation"]:
        if (category := segment["category_id"]) not in known:
            file = files.get(segment["image_id"], f"image {segment['image_id']}")
            raise DataError(
                f"{path}: segment {segment.get('id', '?')} of {file}: category {category} is not in the file"
            )


def _check_categories(path: Path, categories: list[dict[str, Any]]) -> list[str]:
    """Return notes on classes with other names in the file. Raises DataError if the ids are of another class list."""
    names = {category["category_id"]: category["name"] for category in categories}
    if missing := [f"{number} {name}" for number, name in CATEGORIES.items() if number not in names]:
        raise DataError(f"{path}: {len(missing)} of the 59 categories are missing, for example {missing[0]}")
    others = [
        f"category {number} is named {names[number]!r} in the file, but {name!r} here"
        for number, name in CATEGORIES.items()
        if names[number].replace(" ", "").lower() != name
    ]
    if len(others) > len(CATEGORIES) // 2:  # a few names may be spelled differently; many differences mean another list
        raise DataError(f"{path}: the ids are of another list of classes: {len(others)} names differ; {others[0]}")
    return others


def _counted(counts: Mapping[str, int]) -> str:
    return " and ".join(f"{count:,} {split}" for split, count in counts.items())
