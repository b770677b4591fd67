"""Your own images and masks: two folders, and the meaning of the values in the masks."""

from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, Self
from unicodedata import normalize

import numpy as np
from pydantic import model_validator

from data.files.list_files import read_names
from data.files.listing import folders_below, images_by_stem, named, similar, tell_skipped, tell_splits
from data.files.mask_colors import SameColors
from data.files.masks import ObjectOrUnknown, read_foreground, read_mask
from data.segmentation.label_map import LabelMap
from data.segmentation.segmented_images import SegmentedConfig, SegmentedImage, SegmentedImages
from data.types import MissingDataError
from mtsp.types import IGNORE


class MaskFolderConfig(SegmentedConfig):
    """Config of your own images and masks. For videos use `folder`."""

    title: ClassVar[str] = "images"
    name: Literal["mask_folder"]
    frames: Path
    """Folder of images, or of subfolders with images."""
    masks: Path
    """Folder of masks; the mask of <frames>/park/1.jpg is <masks>/park/1.png."""
    mask_suffix: str = ""
    """Suffix of mask names after the image name: `_L` if the mask of 1.png is 1_L.png."""
    classes: tuple[str, ...]
    """Class names, in the order of class ids 0, 1, ..."""
    values: tuple[int, ...] | None = None
    """Value in the masks for each of `classes`. Null: 0, 1, ... To ignore value 0, set 1, 2, ... and `unknown: [0]`."""
    foreground: bool = False
    """Read any value above 0 as the second of two classes, as in masks of 0 and 255."""
    unknown: tuple[int, ...] | None = None
    """Values in the masks where the class is unknown or ignored. Null: 255, unless all masks contain only 0 and 255."""
    exif: Literal["apply", "ignore"] | None = None
    """How to treat EXIF orientation: `apply` rotates the image to match its mask, `ignore` reads it as stored. Null:
    read it as stored, and name the file in a warning."""
    split: Path | None = None
    """Text file with one image per line, relative to `frames`, without suffix. Null: use all images."""

    @model_validator(mode="after")
    def _map_is_right(self) -> Self:
        self.label_map()
        if self.foreground and len(self.classes) != 2:
            raise ValueError(f"`foreground` needs 2 classes, background and object, got {len(self.classes)}")
        if self.foreground and (self.values is not None or self.unknown is not None):
            raise ValueError("`foreground` reads any value above 0 as the object; leave out `values` and `unknown`")
        return self

    def label_map(self) -> LabelMap:
        """Return the label map that the config describes."""
        values = tuple(range(len(self.classes))) if self.values is None else self.values
        return LabelMap("mask_folder", self.classes, values, (IGNORE,) if self.unknown is None else self.unknown)

    def build(self) -> SegmentedImages:
        """Return the data set after checking that its files exist. Raises DataError."""
        root, images = self.files()
        guessed = not self.foreground and self.unknown is None and len(self.classes) > 1
        doubt = ObjectOrUnknown([image.mask for image in images]) if guessed else None
        read = partial(_read, foreground=self.foreground, same=SameColors(), doubt=doubt)
        return SegmentedImages(self.title, root, images, self.label_map(), read=read, exif=self.exif or "warn")

    def files(self) -> tuple[Path, list[SegmentedImage]]:
        """Return the root folder and the files of each example. Raises DataError."""
        if not self.frames.is_dir():
            raise MissingDataError(f"no folder {self.frames}")
        found = {
            normalize("NFC", (folder.relative_to(self.frames) / stem).as_posix()): frame
            for folder in folders_below(self.frames)
            for stem, frame in images_by_stem(folder).items()
        }
        tell_skipped(self.frames, folders_below(self.frames))
        names = list(found)
        if self.split is None:
            tell_splits(self.frames)
        else:
            names = [normalize("NFC", name) for name in read_names(self.split)]
            if lacking := [name for name in names if name not in found]:
                raise MissingDataError(
                    f"{self.split}: {len(lacking)} names have no image in {self.frames}, for example "
                    f"{lacking[0]!r}{similar(lacking[0], found)}"
                )
        masks = [named(self.masks / f"{name}{self.mask_suffix}.png") for name in names]
        images = [SegmentedImage(name, found[name], mask) for name, mask in zip(names, masks, strict=True)]
        return self.frames, images


def _read(path: Path, *, foreground: bool, same: SameColors, doubt: ObjectOrUnknown | None) -> np.ndarray:
    if foreground:
        return read_foreground(path).astype(np.uint8)
    mask = read_mask(path, same=same)
    if doubt is not None:
        doubt.check(path, mask)
    return mask
