"""Your own images and masks: two folders, and what the values in the masks mean."""

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from data.files.listing import folders_below, images_by_stem
from data.files.lists import read_lines
from data.segmentation.label_map import LabelMap
from data.segmentation.segmented_images import SegmentedConfig, SegmentedImage
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
    """Value in the masks of each class. Null: 0, 1, ... Give 1, 2, ... and `unknown: [0]` to leave 0 out."""
    unknown: tuple[int, ...] = (IGNORE,)
    """Values in the masks where the class is unknown or ignored."""
    split: Path | None = None
    """A text file with an image per line, relative to `frames`, without suffix. Null: all images."""

    @model_validator(mode="after")
    def _map_is_right(self) -> Self:
        self.label_map()
        return self

    def label_map(self) -> LabelMap:
        """Return the classes of the config."""
        values = tuple(range(len(self.classes))) if self.values is None else self.values
        return LabelMap("mask_folder", self.classes, values, self.unknown)

    def files(self) -> tuple[Path, list[SegmentedImage]]:
        """Return the root folder and the files of each example."""
        if not self.frames.is_dir():
            raise MissingDataError(f"no folder {self.frames}")
        found = {
            (folder.relative_to(self.frames) / stem).as_posix(): frame
            for folder in folders_below(self.frames)
            for stem, frame in images_by_stem(folder).items()
        }
        names = list(found)
        if self.split is not None:
            names = [" ".join(words) for words in read_lines(self.split)]
            if lacking := [name for name in names if name not in found]:
                raise MissingDataError(
                    f"{self.split}: {len(lacking)} names have no image in {self.frames}, the first {lacking[0]!r}"
                )
        masks = self.masks
        return self.frames, [SegmentedImage(n, found[n], masks / f"{n}{self.mask_suffix}.png") for n in names]
