"""Your own images and masks: two folders, and the meaning of the values in the masks."""

from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from data.files.list_files import read_classes
from data.files.listing import first_ten, folders_below, image_tree, in_split, tell_skipped, tell_splits
from data.files.masks import OwnMasks, stored_files
from data.segmentation.label_map import LabelMap
from data.segmentation.segmented_images import SegmentedConfig, SegmentedImage, SegmentedImages
from data.types import MissingDataError
from mtsp.text import similar
from mtsp.types import IGNORE


class MaskFolderConfig(SegmentedConfig):
    """Config of your own images and masks. For videos use `folder`."""

    title: ClassVar[str] = "images"
    name: Literal["mask_folder"]
    frames: Path
    """Folder of images, or of subfolders with images."""
    masks: Path
    """Folder of masks; the mask of <frames>/park/1.jpg is <masks>/park/1.png, or another lossless image. It may be the
    folder of the images if `mask_suffix` tells them apart."""
    mask_suffix: str = ""
    """Suffix of mask names after the image name: `_L` if the mask of 1.png is 1_L.png."""
    classes: tuple[str, ...] | Path
    """Class names, in the order of class ids 0, 1, ..., or a text file with one name per line."""
    values: tuple[int, ...] | None = None
    """Value in the masks for each of `classes`. Null: 0, 1, ... To ignore value 0, set 1, 2, ... and `unknown: [0]`."""
    foreground: bool = False
    """Read any value above 0 as the second of two classes, as in masks of 0 and 255."""
    unknown: tuple[int, ...] | None = None
    """Values in the masks where the class is unknown or ignored. Null: 255, unless all masks contain only 0 and 255."""
    exif: Literal["apply", "ignore"] | None = None
    """Treatment of EXIF orientation: `apply` rotates the image (and a mask that has an orientation of its own),
    `ignore` reads it as stored. Null: read it as stored, and name the file in a warning."""
    split: Path | None = None
    """Text file with one image per line, relative to `frames`, without suffix, or a folder of images. Null: use all."""

    @model_validator(mode="after")
    def _map_is_right(self) -> Self:
        if isinstance(self.classes, tuple):  # a file is read when the data set is built
            self.label_map()
            if self.foreground and len(self.classes) != 2:
                raise ValueError(f"`foreground` needs 2 classes, background and object, got {len(self.classes)}")
        if self.foreground and (self.values is not None or self.unknown is not None):
            raise ValueError("`foreground` reads any value above 0 as the object; leave out `values` and `unknown`")
        return self

    def label_map(self) -> LabelMap:
        """Return the label map that the config describes."""
        names = tuple(read_classes(self.classes)) if isinstance(self.classes, Path) else self.classes
        values = tuple(range(len(names))) if self.values is None else self.values
        return LabelMap("mask_folder", names, values, (IGNORE,) if self.unknown is None else self.unknown)

    def build(self) -> SegmentedImages:
        """Return the data set after checking that its files exist. Raises DataError."""
        root, images = self.files()
        label_map = self.label_map()
        guessed = not self.foreground and self.unknown is None and len(label_map.classes) > 1
        stored = partial(stored_files, [image.mask for image in images])
        exif = self.exif or "warn"
        masks = OwnMasks(stored, foreground=self.foreground, guess=guessed, exif=exif)
        predicted = masks.read_prediction if self.values is None else None  # `values` are of the truth alone
        return SegmentedImages(
            self.title, root, images, label_map, read=masks.read, read_prediction=predicted, exif=exif
        )

    def files(self) -> tuple[Path, list[SegmentedImage]]:
        """Return the root folder and the files of each example. Raises DataError."""
        frames, masks = image_tree(self.frames), image_tree(self.masks)
        if self.mask_suffix and self.frames == self.masks:
            frames = {name: path for name, path in frames.items() if not name.endswith(self.mask_suffix)}
        tell_skipped(self.frames, folders_below(self.frames))
        if self.split is None:
            tell_splits(self.frames)
        names = in_split(self.split, frames, self.frames)
        if lacking := [frames[name] for name in names if name + self.mask_suffix not in masks]:
            near = similar(lacking[0].stem + self.mask_suffix, masks)
            raise MissingDataError(f"no mask in {self.masks.absolute()} for {first_ten(lacking, self.frames)}{near}")
        return self.frames, [SegmentedImage(name, frames[name], masks[name + self.mask_suffix]) for name in names]
