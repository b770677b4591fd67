"""Look at a person's files: sizes of images, values in masks, names of classes, and which examples to hold out."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple, TypeVar

import numpy as np

from data.files.images import open_image, read_file
from data.files.list_files import read_classes
from data.files.listing import image_tree, subfolders
from data.files.masks import read_foreground, read_mask
from data.flow.flow_folder import flow_tree
from data.types import DataError
from mtsp.files.progress import bar
from mtsp.indices import evenly_spaced

MOST = 2000
"""Number of files to read at most, evenly spaced."""

_SUFFIXES = ("", "_mask", "_masks", "_gt", "_label", "_labels", "_L", "_seg", "_annotation", "-mask", "_labelIds")
_NAME_FILES = ("classes.txt", "labels.txt", "names.txt", "class_names.txt", "codes.txt")
_T = TypeVar("_T")


class Sizes(NamedTuple):
    """Heights and widths of images."""

    height: int
    """Median height in pixels."""
    width: int
    """Median width in pixels."""
    several: bool
    """Whether there are images of several sizes."""


class Values(NamedTuple):
    """What the masks of a folder hold."""

    values: tuple[int, ...]
    """All values, ascending; empty if masks have colors other than black."""
    read: int
    """Number of masks that were read."""


def spread(items: Sequence[_T], most: int = MOST) -> list[_T]:
    """Return at most `most` items, evenly spaced."""
    return [items[index] for index in evenly_spaced(len(items), most)]


def image_sizes(paths: Iterable[Path]) -> Sizes:
    """Return the sizes in the headers of images. Raises DataError if one cannot be read."""
    found = Counter(_each("reading sizes", spread(list(paths), 200), _size))
    heights, widths = zip(*found.elements(), strict=True)
    return Sizes(round(median(heights)), round(median(widths)), len(found) > 1)


def _size(path: Path) -> tuple[int, int]:
    image = open_image(path, read_file(path), any_format=True).image
    return image.height, image.width


def mask_suffix(images: Path, masks: Path, suffixes: Sequence[str] = _SUFFIXES) -> str:
    """Return what the names of masks have after the names of their images: "" or "_mask", ... Raises DataError."""
    frames, others = image_tree(images), image_tree(masks)
    if not frames:
        raise DataError(f"no images in {images.absolute()}")
    if images == masks:
        suffixes = [suffix for suffix in suffixes if suffix] or suffixes
    best = max(suffixes, key=lambda suffix: sum(name + suffix in others for name in frames))
    if images == masks and best:
        frames = {name: path for name, path in frames.items() if not name.endswith(best)}
    if lacking := [name for name in frames if name + best not in others]:
        example = next(iter(others), "nothing")
        raise DataError(
            f"{len(lacking)} of {len(frames)} images in {images} have no mask in {masks}, the first {lacking[0]!r}; "
            f"masks are named like {example!r}, and must have the names of their images"
        )
    return best


def mask_values(masks: Sequence[Path]) -> Values:
    """Return the values in masks. Raises DataError if a mask cannot be read, or holds more than two colors."""
    read = spread(masks)
    try:
        read_mask(read[0])
    except DataError:
        read_foreground(read[0])  # raises its own error for what is no mask at all
        if any(_each("reading masks", read, _several_colors)):
            raise
        return Values((), len(read))
    found = np.zeros(1 << 16, bool)
    for values in _each("reading masks", read, lambda path: np.unique(read_mask(path))):
        found[values] = True
    return Values(tuple(np.flatnonzero(found).tolist()), len(read))


def _several_colors(path: Path) -> bool:
    image = open_image(path, read_file(path)).image.convert("RGB")
    colors = {color for _, color in image.getcolors(3) or [(0, "many"), (0, "more"), (0, "most")]}
    return len(colors - {(0, 0, 0)}) > 1


def object_only(values: Values) -> bool:
    """Return whether masks show a single object: colors instead of ids, or only 0 and one value from 128 to 255."""
    bright = [value for value in values.values if value]
    alone = len(bright) == 1 and 127 < bright[0] <= 255
    return not values.values or (alone and (0 in values.values or bright == [255]))


def class_names(folders: Iterable[Path], values: Sequence[int]) -> list[str] | Path:
    """Return the file of class names in or beside the folders that fits the values, or names made of the values."""
    for folder in folders:
        for path in (place / name for place in (folder, folder.parent) for name in _NAME_FILES):
            if path.is_file() and len(read_classes(path)) == len(values):
                return path
    if list(values) == [0, 1]:
        return ["background", "object"]
    return [f"class_{value}" for value in values]


def flow_folders(folder: Path) -> tuple[Path, Path]:
    """Return the folders of frames and of flow in `folder`: those called so, or `folder` for both. Raises DataError."""
    inner = {place.name.lower(): place for place in subfolders(folder)}
    flow = next((inner[name] for name in inner if "flow" in name and flow_tree(inner[name])), folder)
    known = ("frames", "images", "image", "clean", "final", "data", "rgb")
    named = next((inner[name] for name in known if name in inner), None)
    others = [place for place in inner.values() if place != flow and image_tree(place)]
    if flow == folder:
        return folder, folder
    if named is None and len(others) != 1:
        raise DataError(
            f"{folder} has flow in {flow.name}, but no folder called frames; rename the folder of images to frames"
        )
    return named or others[0], flow


def held_out(names: Sequence[str], percent: int = 20) -> list[str]:
    """Return `percent` of the names, at least one, drawn at random with seed 0, in their order."""
    count = max(1, len(names) * percent // 100)
    chosen = set(np.random.default_rng(0).permutation(len(names))[:count].tolist())
    return [name for i, name in enumerate(names) if i in chosen]


def write_lists(config: Path, names: Sequence[str], held: Sequence[str]) -> tuple[Path, Path]:
    """Write the names to train on and to validate on beside the config; return both files."""
    out = set(held)
    parts = {"train": [name for name in names if name not in out], "val": list(held)}
    paths = [config.with_name(f"{config.stem}_{part}.txt") for part in parts]
    for path, lines in zip(paths, parts.values(), strict=True):
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return paths[0], paths[1]


def _each(title: str, paths: Sequence[Path], read: Callable[[Path], _T]) -> list[_T]:
    found = []
    with bar(title, len(paths)) as advance:
        for path in paths:
            found.append(read(path))
            advance()
    return found
