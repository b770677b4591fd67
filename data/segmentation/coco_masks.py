"""Your own images with polygons in COCO's format, as annotation tools export them."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import model_validator

from data.files.images import Exif, read_image, shape_of
from data.files.list_files import read_json
from data.files.listing import in_split, require_files, require_unique
from data.segmentation.label_map import LabelMap
from data.types import DataError, Labels
from mtsp.config import Config
from mtsp.text import first_names
from mtsp.types import IGNORE, Kind, Sample

_LOG = logging.getLogger("mtsp")


class CocoMasksConfig(Config):
    """Config of images with objects as polygons or run lengths in a COCO file; needs `pip install mtsp[coco]`.

    Class 0 is background; the categories follow in the order of their ids. Where objects overlap, the smaller one is in
    front. Crowds (`iscrowd: 1`) are unknown where no object is.
    """

    kind: ClassVar[Kind] = "images"
    name: Literal["coco_masks"]
    frames: Path
    """Folder of the images, from which their `file_name` starts."""
    annotations: Path
    """JSON file with `images`, `annotations` and `categories`, such as instances_train2017.json."""
    categories: tuple[str, ...] | None = None
    """Names of the categories to use; objects of others are background. Null: all."""
    split: Path | None = None
    """Text file with one image per line, its `file_name` without suffix, or a folder of images. Null: use all."""
    exif: Literal["apply", "ignore"] | None = None
    """Use of the EXIF orientation, as in `mask_folder`."""

    @model_validator(mode="after")
    def _has_categories(self) -> Self:
        if self.categories == ():
            raise ValueError("`categories` is empty; null uses all of them")
        return self

    def label_map(self) -> LabelMap:
        """Return background and the categories. Raises DataError."""
        names = tuple(_categories(self.annotations, read_json(self.annotations), self.categories).values())
        return LabelMap("coco_masks", ("background", *names), tuple(range(len(names) + 1)))

    def build(self) -> "CocoMasks":
        """Return the data set after checking that its images exist. Raises DataError."""
        return CocoMasks(self)


class CocoMasks:
    """Images with the objects of a COCO file drawn into a mask, a :class:`data.types.SampleDataset`.

    An image is named by its `file_name` without suffix. Images without objects are all background.

    Raises:
        DataError: pycocotools is not installed, the file lacks a key or a category, or images are missing. Also when an
            example is read: its size is not that in the file, or a polygon cannot be drawn.
    """

    kind: Kind = "images"

    def __init__(self, config: CocoMasksConfig) -> None:
        try:
            import pycocotools.mask  # noqa: F401
        except ModuleNotFoundError as error:
            raise DataError("data sets in COCO's format need pycocotools: pip install mtsp[coco]") from error
        self._config = config
        file = config.annotations
        content = read_json(file)
        categories = _categories(file, content, config.categories)
        self.classes = ("background", *categories.values())
        self._number = {category: number for number, category in enumerate(categories, start=1)}
        entries = _entries(file, content, "images")
        names = [Path(image["file_name"]).with_suffix("").as_posix() for image in entries]
        require_unique("images", file, names)
        images = dict(zip(names, entries, strict=True))
        self.ids = in_split(config.split, images, config.frames)
        require_unique("images", config.frames, self.ids)
        self._images = [images[name] for name in self.ids]
        self._files = [config.frames / image["file_name"] for image in self._images]
        require_files("images", config.frames, self._files)
        self._objects = _objects(file, content)
        self._told: set[str] = set()
        self._exif: Exif = config.exif or "warn"

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        frame = read_image(self._files[index], exif=self._exif, any_format=True)
        self._require_size(index, frame.shape[:2])
        return Sample(frame=frame, **self._labels(index))

    def labels(self, index: int) -> Labels:
        """Return the mask of example `index`. Only the header of its image is read."""
        self._require_size(index, shape_of(self._files[index], exif=self._exif))
        return self._labels(index)

    def _require_size(self, index: int, shape: tuple[int, ...]) -> None:
        """Raise DataError unless the image has the height and width that the COCO file says."""
        stated = self._images[index]["height"], self._images[index]["width"]
        if shape != stated:
            sizes = " and ".join("x".join(map(str, size)) for size in (shape, stated))
            raise DataError(f"{self._files[index]}: its size and that in {self._config.annotations} differ: {sizes}")

    def _labels(self, index: int) -> Labels:
        from pycocotools import mask as coco

        image = self._images[index]
        size = image["height"], image["width"]
        drawn: list[tuple[bool, int, int, np.ndarray]] = []
        for found in self._objects.get(image["id"], []):
            if found["category_id"] not in self._number:
                continue
            shape, where = found["segmentation"], f"annotation {found.get('id')} of {image['file_name']}"
            try:
                if isinstance(shape, list):
                    if _leaves_image(shape, *size):
                        self._tell(where, "has points outside the image; only what is inside is drawn")
                    shape = coco.merge(coco.frPyObjects(shape, *size))
                elif isinstance(shape["counts"], list):
                    if (total := sum(shape["counts"])) != (expected := size[0] * size[1]):
                        raise ValueError(f"its run lengths add up to {total} pixels, not {expected}")
                    shape = coco.frPyObjects(shape, *size)
                if tuple(shape["size"]) != size:
                    raise ValueError(f"its run lengths are of {shape['size']} pixels, the image of {[*size]}")
                inside = coco.decode(shape).astype(bool)
            except Exception as error:  # pycocotools raises many types
                raise DataError(f"{self._config.annotations}: {where} cannot be drawn: {error}") from error
            if not inside.any():
                self._tell(where, "covers no pixel, and is background")
            number = IGNORE if found.get("iscrowd") else self._number[found["category_id"]]
            drawn.append((number != IGNORE, -int(inside.sum()), number, inside))
        mask = np.zeros(size, np.uint8)
        for _, _, number, inside in sorted(drawn, key=lambda one: one[:2]):  # crowds first, then from large to small
            mask[inside] = number
        return Labels(name=self.ids[index], mask=mask)

    def _tell(self, where: str, what: str) -> None:
        if what not in self._told:  # the first of its kind: thousands of lines would not be read
            self._told.add(what)
            _LOG.warning("%s: %s %s (others like it are not named)", self._config.annotations, where, what)


def _objects(file: Path, content: Any) -> dict[int, list[dict[str, Any]]]:
    """Return the annotations of each image that can be drawn, by its id; warn about others. Raises DataError."""
    images, categories = (_by_id(file, key, _entries(file, content, key)) for key in ("images", "categories"))
    objects: dict[int, list[dict[str, Any]]] = {}
    skipped: dict[str, list[str]] = {}
    for found in (annotations := _entries(file, content, "annotations")):
        if found["category_id"] not in categories:
            raise DataError(
                f"{file}: annotation {found.get('id')} has the category_id {found['category_id']!r}, which is none of "
                f"the file's categories ({first_names([repr(id_) for id_ in categories])})"
            )
        if found["image_id"] not in images:
            skipped.setdefault("an image_id that no image has", []).append(f"{found.get('id')}: {found['image_id']!r}")
        elif not found.get("segmentation"):
            name = images[found["image_id"]]["file_name"]
            skipped.setdefault("no segmentation, only a box or nothing", []).append(f"{found.get('id')} of {name}")
        else:
            objects.setdefault(found["image_id"], []).append(found)
    for why, which in skipped.items():
        text = f"{file}: {len(which)} of {len(annotations)} annotations have {why} ({first_names(which)})"
        if not objects:
            raise DataError(f"{text}; no object is left to draw")
        _LOG.warning("%s; these objects are not drawn", text)
    return objects


def _by_id(file: Path, key: str, entries: list[dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    """Return entries by their id. Raises DataError if two have the same."""
    found = {one["id"]: one for one in entries}
    if len(found) < len(entries):
        twice = next(id_ for id_, count in Counter(one["id"] for one in entries).items() if count > 1)
        names = [str(one.get("file_name", one.get("name"))) for one in entries if one["id"] == twice]
        raise DataError(f"{file}: in `{key}` {first_names(names)} have the same id, {twice!r}; number them anew")
    return found


def _leaves_image(polygons: list[list[float]], height: int, width: int) -> bool:
    """Return whether points lie more than a pixel outside the image. Raises ValueError: they are not in its pixels."""
    for polygon in polygons:
        if np.ndim(polygon) != 1 or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(
                f"a polygon is a list x, y, x, y, ... of 3 points or more, this one is {str(polygon)[:60]}"
            )
    x, y = np.concatenate([np.asarray(polygon, float).reshape(-1, 2) for polygon in polygons]).T
    place = f"its points lie in x {x.min():g} to {x.max():g}, y {y.min():g} to {y.max():g}"
    if x.max() <= 1 and y.max() <= 1:
        raise ValueError(f"{place}; points are in pixels: multiply x by the width and y by the height")
    left, top, right, bottom = x.min() / width, y.min() / height, x.max() / width, y.max() / height
    if not (-1 <= left < 1 and -1 <= top < 1 and 0 < right <= 2 and 0 < bottom <= 2):  # NaN fails, too
        raise ValueError(f"{place}, but the image has {width} x {height} pixels")
    return bool(min(x.min(), y.min()) < -1 or x.max() > width + 1 or y.max() > height + 1)


def _entries(file: Path, content: Any, key: str) -> list[dict[str, Any]]:
    needed = {
        "images": ("id", "file_name", "height", "width"),
        "annotations": ("image_id", "category_id"),
        "categories": ("id", "name"),
    }
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list) or not all(
        isinstance(one, dict) and set(needed[key]) <= one.keys() for one in found
    ):
        raise DataError(f"{file}: not in COCO's format: it needs a list `{key}`, each with {', '.join(needed[key])}")
    for field in (field for field in needed[key] if field.endswith("id")):
        if wrong := [one[field] for one in found if type(one[field]) not in (int, str)]:
            raise DataError(f"{file}: {field} in `{key}` is a number or a text everywhere, but {wrong[0]!r} once")
    for one, field in ((one, field) for one in found for field in ("height", "width") if field in needed[key]):
        if type(one[field]) is not int or one[field] < 1:
            raise DataError(f"{file}: the {field} of {one['file_name']} is {one[field]!r}, not a number of pixels")
    return found


def _categories(file: Path, content: Any, chosen: tuple[str, ...] | None) -> dict[int, str]:
    """Return the names of the categories by id: numbers ascending, then texts."""
    found = _by_id(file, "categories", _entries(file, content, "categories"))
    names = {id_: str(one["name"]) for id_, one in found.items()}
    if twice := [name for name, count in Counter(names.values()).items() if count > 1]:
        raise DataError(f"{file}: two categories are called {twice[0]!r}")
    if unknown := [name for name in chosen or () if name not in names.values()]:
        raise DataError(f"{file} has no category {unknown[0]!r}; it has {first_names(list(names.values()))}")
    ordered = sorted(names, key=lambda id_: (isinstance(id_, str), id_))
    return {id_: names[id_] for id_ in ordered if chosen is None or names[id_] in chosen}
