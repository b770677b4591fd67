"""Your own frames, with or without masks: images in a folder, or in one subfolder per video."""

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from data.files.images import Exif, read_image
from data.files.listing import (
    first_ten,
    folders_below,
    image_tree,
    in_split,
    require_files,
    require_order,
    require_size,
    require_unique,
    tell_skipped,
    tell_splits,
)
from data.files.masks import OwnMasks, read_mask, stored_files
from data.types import DataError, Labels, MissingDataError
from mtsp.config import Config
from mtsp.text import similar
from mtsp.types import IGNORE, Kind, Sample


class FolderConfig(Config):
    """Select the images to read, and describe the values in their masks."""

    name: Literal["folder"]
    kind: Literal["video", "images"] = "video"
    """`video`: frames of sequences with an object and background, scored with J and F by sequence; `images`: still
    images, or frames with more classes, scored with the IoU of each class."""
    frames: Path
    """A folder of images, or of one subfolder of images per video."""
    masks: Path | None = None
    """Folder of masks in the same layout: <frames>/dog/0001.jpg has the mask <masks>/dog/0001.png. Null: no masks."""
    classes: int | None = Field(default=None, ge=2, le=IGNORE)
    """Number of classes. Masks hold the ids 0 to classes - 1, and 255 for unknown pixels; other ids are errors."""
    foreground: bool = False
    """True: all values above 0 are class 1, as in masks of 0 and 255. False: mask values are class ids."""
    unknown: tuple[Literal[255], ...] | None = None
    """`[255]`: 255 means unknown. Null: 255 means unknown, but masks are refused if all hold only 0 and 255."""
    exif: Literal["apply", "ignore"] | None = None
    """How to use an image's EXIF orientation: `apply` rotates the image, `ignore` reads it as stored. Null reads it as
    stored, and warns about the first file of a folder that has one."""
    next_frame: bool = True
    """Also read the following frame, which only a network with a flow branch needs."""
    split: Path | None = None
    """Text file with one video (a subfolder of `frames`) or one image per line. Null: use all."""

    @model_validator(mode="after")
    def _kind_fits_the_classes(self) -> "FolderConfig":
        if self.kind == "video" and self.classes is not None and self.classes > 2:
            raise ValueError(
                f"kind: J and F compare an object with the background, but `classes` is {self.classes}; set "
                "`kind: images` to score each class"
            )
        if self.kind == "images" and self.masks is not None and not self.foreground and self.classes is None:
            raise ValueError("kind: images are scored by class; set `classes`, the number of classes in the masks")
        return self

    def build(self) -> "Folder":
        """Build the data set and check that its files exist."""
        return Folder(self)


class Folder:
    """Images with the following image and a mask. Names are relative to the folder, such as "dog/0001".

    Images of a subfolder are ordered by the numbers in their names (2 before 10); the last image is paired with itself.
    The ids of an indexed mask are its palette indices, and those of a gray mask its values. Videos have an object and
    background; with more ids, only their objects can be scored one by one.

    Args:
        config: which images and masks.
        objects: masks hold the number of each object, as for DAVIS: an indexed mask whose colors are those of other
            numbers is read by color.

    Raises:
        DataError: there are no images, a link leads nowhere, an image has no mask, or a mask has no image; the message
            has their number and the first ten. On reading: a mask has RGB colors, differs in size from its image, or
            has ids that are not classes.
    """

    def __init__(self, config: FolderConfig, *, objects: bool = False) -> None:
        self._config, self._objects = config, objects
        self.kind: Kind = config.kind
        count = (2 if config.foreground else config.classes or 0) if config.kind == "images" else 0
        self.classes = tuple(map(str, range(count)))
        frames = image_tree(config.frames)
        frames = {name: frames[name] for name in in_split(config.split, frames, config.frames)}
        self.ids = list(frames)
        tell_skipped(config.frames, folders_below(config.frames))
        if config.masks is not None and config.split is None:
            tell_splits(config.frames)
        require_unique("images", config.frames, self.ids)
        if config.next_frame or config.kind == "video":
            require_order("images", config.frames, self.ids)
        self._frames = list(frames.values())
        require_files("images", config.frames, self._frames)
        self._masks: list[Path] | None = None
        if config.masks is not None:
            masks = image_tree(config.masks)
            without_mask = [path for name, path in frames.items() if name not in masks]
            without_frame = [path for name, path in masks.items() if name not in frames]
            if without_mask:
                names = [name for name in frames if name not in masks]
                raise MissingDataError(
                    f"no mask in {config.masks} for {first_ten(without_mask, config.frames)}{similar(names[0], masks)}"
                )
            if without_frame and config.split is None:
                raise MissingDataError(f"no frame in {config.frames} for {first_ten(without_frame, config.masks)}")
            self._masks = [masks[name] for name in self.ids]
            require_files("masks", config.masks, self._masks)
        self._exif: Exif = config.exif or "warn"
        stored = partial(stored_files, self._masks or ())
        own = OwnMasks(stored, foreground=config.foreground, guess=config.unknown is None, exif=self._exif)
        self._read_mask = partial(read_mask, colors="voc") if objects else own.read
        self.read_prediction = own.read_prediction

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        path = self._frames[index]
        sample = Sample(frame=read_image(path, exif=self._exif), **self.labels(index))
        if "mask" in sample and self._masks is not None:
            require_size(path, sample["frame"], self._masks[index], sample["mask"])
        if self._config.next_frame:
            following = self._following(index)
            sample["next_frame"] = next_frame = (
                sample["frame"] if following == path else read_image(following, exif=self._exif)
            )
            require_size(path, sample["frame"], following, next_frame)
        return sample

    def labels(self, index: int) -> Labels:
        """Return the mask of example `index`, if there are masks, without decoding the frame."""
        if self._masks is None:
            return Labels(name=self.ids[index])
        return Labels(name=self.ids[index], mask=self._mask(self._masks[index]))

    def _following(self, index: int) -> Path:
        path = self._frames[index]
        following = self._frames[min(index + 1, len(self) - 1)]
        return following if following.parent == path.parent else path

    def _mask(self, path: Path) -> np.ndarray:
        mask = self._read_mask(path)
        if mask.dtype != np.uint8:
            raise DataError(f"{path}: values above 255 are no ids; set `foreground: true` if they are the object")
        ids = np.flatnonzero(np.bincount(mask.reshape(-1), minlength=256)).tolist()
        classes = self._config.classes
        if self.kind == "video" and not self._objects and (several := [i for i in ids if 1 < i < IGNORE]):
            raise DataError(
                f"{path}: ids {several}, but a video has one object, 1; set `foreground: true` to read all as one, or "
                "score each of several objects with --objects"
            )
        if classes is not None and (wrong := [i for i in ids if i >= classes and i != IGNORE]):
            raise DataError(f"{path}: ids {wrong} are no classes; {classes} classes have the ids 0 to {classes - 1}")
        return mask
