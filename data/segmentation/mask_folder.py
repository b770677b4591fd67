"""Your own images and masks: two folders, and what the values in the masks mean."""

from pathlib import Path
from typing import ClassVar, Literal, Self
from unicodedata import normalize

import numpy as np
from pydantic import model_validator

from data.files.listing import folders_below, images_by_stem, named, similar, tell_skipped
from data.files.lists import read_names
from data.files.mask_colors import SameColors
from data.files.masks import ObjectOrUnknown, read_foreground, read_mask
from data.segmentation.label_map import LabelMap
from data.segmentation.segmented_images import SegmentedConfig, SegmentedImage, SegmentedImages
from data.types import MissingDataError
from mtsp.types import IGNORE


class MaskFolderConfig(SegmentedConfig):
    """Your own images and masks. For videos use `folder`."""

    title: ClassVar[str] = "images"
    name: Literal["mask_folder"]
    frames: Path
    """A folder of images, or of subfolders of images."""
    masks: Path
    """The folder of masks: the mask of <frames>/park/1.jpg is <masks>/park/1.png."""
    mask_suffix: str = ""
    """Suffix that a mask's name adds to its image's: `_L` where 1.png has 1_L.png."""
    classes: tuple[str, ...]
    """Names, in the order of class ids 0, 1, ..."""
    values: tuple[int, ...] | None = None
    """What the masks hold for each of `classes`. Null: 0, 1, ... Give 1, 2, ... and `unknown: [0]` to leave 0 out."""
    foreground: bool = False
    """Any value above 0 is the second of two classes, as in masks of 0 and 255."""
    unknown: tuple[int, ...] | None = None
    """What the masks hold where the class is not known, or does not count. Null: 255, unless no mask has anything
    but 0 and 255."""
    exif: Literal["apply", "ignore"] | None = None
    """What an EXIF note to turn an image does: `apply` turns the image to its mask, `ignore` leaves it as stored.
    Null: as stored, and the file is named in a warning."""
    split: Path | None = None
    """A text file with an image per line, relative to `frames`, without suffix. Null: all images."""

    @model_validator(mode="after")
    def _map_is_right(self) -> Self:
        self.label_map()
        if self.foreground and len(self.classes) != 2:
            raise ValueError(f"`foreground` needs 2 classes, background and object, got {len(self.classes)}")
        if self.foreground and (self.values is not None or self.unknown is not None):
            raise ValueError("`foreground` takes any value above 0; leave out `values` and `unknown`")
        return self

    def label_map(self) -> LabelMap:
        """Return the classes of the config."""
        values = tuple(range(len(self.classes))) if self.values is None else self.values
        return LabelMap("mask_folder", self.classes, values, (IGNORE,) if self.unknown is None else self.unknown)

    def build(self) -> SegmentedImages:
        """Return the data set, its files checked to be there. Raises DataError."""
        root, images = self.files()
        same, doubt = SameColors(), ObjectOrUnknown([image.mask for image in images])

        def read(path: Path) -> np.ndarray:
            if self.foreground:
                return read_foreground(path).astype(np.uint8)
            mask = read_mask(path, same=same)
            if self.unknown is None and len(self.classes) > 1:
                doubt.check(path, mask)
            return mask

        return SegmentedImages(self.title, root, images, self.label_map(), read=read, exif=self.exif or "warn")

    def files(self) -> tuple[Path, list[SegmentedImage]]:
        """Return the root folder and the files of each example."""
        if not self.frames.is_dir():
            raise MissingDataError(f"no folder {self.frames}")
        found = {
            normalize("NFC", (folder.relative_to(self.frames) / stem).as_posix()): frame
            for folder in folders_below(self.frames)
            for stem, frame in images_by_stem(folder).items()
        }
        tell_skipped(self.frames, folders_below(self.frames))
        names = list(found)
        if self.split is not None:
            names = [normalize("NFC", name) for name in read_names(self.split)]
            if lacking := [name for name in names if name not in found]:
                raise MissingDataError(
                    f"{self.split}: {len(lacking)} names have no image in {self.frames}, the first "
                    f"{lacking[0]!r}{similar(lacking[0], found)}"
                )
        masks = [named(self.masks / f"{name}{self.mask_suffix}.png") for name in names]
        images = [SegmentedImage(name, found[name], mask) for name, mask in zip(names, masks, strict=True)]
        return self.frames, images
