"""PASCAL VOC 2012: 1464 training and 1449 validation images, 20 classes and background.

Layout: JPEGImages/<id>.jpg, SegmentationClass/<id>.png, ImageSets/Segmentation/{train,val}.txt with an id per line.
Source: Everingham et al., "The PASCAL Visual Object Classes Challenge: A Retrospective", IJCV 2015.
"""

from pathlib import Path
from typing import ClassVar, Literal

from data.files.list_files import read_lines
from data.files.listing import find_root, inside
from data.segmentation.label_map import LabelMap
from data.segmentation.segmented_images import SegmentedConfig, SegmentedImage, SegmentedImages
from data.types import MissingDataError

_VOC_THINGS = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
)
PASCAL_VOC = LabelMap("pascal_voc", ("background", *_VOC_THINGS.split()), values=tuple(range(21)))
"""The 21 classes; 255 marks the borders of objects and ambiguous pixels."""


class PascalVocConfig(SegmentedConfig):
    """Config of PASCAL VOC 2012."""

    title: ClassVar[str] = "PASCAL VOC"
    name: Literal["pascal_voc"]
    root: Path
    """The folder that has JPEGImages, or a folder above it."""
    split: str = "train"
    """Name of a list in ImageSets/Segmentation: train, val or trainval, or train_aug if you have it."""
    masks: str = "SegmentationClass"
    """Folder of masks; with SBD, which extends training to 10,582 images, the usual name is SegmentationClassAug."""

    def label_map(self) -> LabelMap:
        """Return the 21 classes, background first."""
        return PASCAL_VOC

    def build(self) -> SegmentedImages:
        """Return the data set after checking that its files exist. Raises DataError."""
        root, images = self.files()
        return SegmentedImages(self.title, root, images, self.label_map(), colors="voc")

    def files(self) -> tuple[Path, list[SegmentedImage]]:
        """Return the root folder and the files of each example. Raises DataError."""
        root = find_root("PASCAL VOC", self.root, "JPEGImages", below=("VOC2012", "VOCdevkit/VOC2012"))
        return root, read_voc_list(root, root / "ImageSets" / "Segmentation", self.split, self.masks)


def read_voc_list(root: Path, lists: Path, split: str, masks: str) -> list[SegmentedImage]:
    """Return the files that a list of PASCAL VOC names: a name, or the paths of an image and its mask, on each line.

    Raises DataError if the list is missing or a path is outside `root`.
    """
    path = lists / f"{split}.txt"
    if not path.is_file():
        others = ", ".join(sorted(other.stem for other in lists.glob("*.txt"))) or "none"
        raise MissingDataError(f"no list at {path}; available lists: {others}")
    images = []
    for words in read_lines(path):
        frame, mask = words if len(words) == 2 else (f"JPEGImages/{words[0]}.jpg", f"{masks}/{words[0]}.png")
        images.append(SegmentedImage(Path(frame).stem, inside(root, frame, path), inside(root, mask, path)))
    return images
