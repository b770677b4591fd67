"""Cityscapes with fine annotations: 2975 training and 500 validation images of 1024x2048, 19 classes.

Layout: leftImg8bit/<split>/<city>/<id>_leftImg8bit.png and gtFine/<split>/<city>/<id>_gtFine_labelIds.png.
Source: Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016.
"""

from pathlib import Path
from typing import ClassVar, Literal

from data.files.listing import find_root, images_by_stem, subfolders
from data.segmentation.label_map import LabelMap
from data.segmentation.segmented_images import SegmentedConfig, SegmentedImage

_CITYSCAPES: tuple[tuple[int, str, tuple[int, int, int]], ...] = (
    (7, "road", (128, 64, 128)), (8, "sidewalk", (244, 35, 232)), (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)), (13, "fence", (190, 153, 153)), (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)), (20, "traffic sign", (220, 220, 0)), (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)), (23, "sky", (70, 130, 180)), (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)), (26, "car", (0, 0, 142)), (27, "truck", (0, 0, 70)), (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)), (32, "motorcycle", (0, 0, 230)), (33, "bicycle", (119, 11, 32)),
)  # fmt: skip
_NAMES, _COLORS = tuple(row[1] for row in _CITYSCAPES), tuple(row[2] for row in _CITYSCAPES)
_IDS = tuple(row[0] for row in _CITYSCAPES)
CITYSCAPES = LabelMap("cityscapes labelIds", _NAMES, _IDS, (*sorted({*range(34)} - {*_IDS}), 255), _COLORS)
"""The 19 scored classes in files of labelIds, 0 to 33. 255 is the license plate, id -1 stored in a byte."""
CITYSCAPES_TRAIN = LabelMap("cityscapes labelTrainIds", _NAMES, tuple(range(19)), (255,), _COLORS)
"""The 19 scored classes in files of labelTrainIds."""


class CityscapesConfig(SegmentedConfig):
    """Config of Cityscapes."""

    title: ClassVar[str] = "Cityscapes"
    name: Literal["cityscapes"]
    root: Path
    """The folder that has leftImg8bit and gtFine."""
    split: Literal["train", "val"] = "train"
    masks: Literal["labelIds", "labelTrainIds"] = "labelIds"
    """Encoding of the mask files. labelIds: as released. labelTrainIds: the 19 classes renumbered by the authors'
    script."""

    def label_map(self) -> LabelMap:
        """Return the 19 scored classes."""
        return CITYSCAPES if self.masks == "labelIds" else CITYSCAPES_TRAIN

    def files(self) -> tuple[Path, list[SegmentedImage]]:
        """Return the root folder and the files of each example. Raises DataError."""
        root = find_root("Cityscapes", self.root, f"leftImg8bit/{self.split}")
        images = []
        for city in subfolders(root / "leftImg8bit" / self.split):
            for stem, frame in images_by_stem(city).items():
                place = f"{city.name}/{stem.removesuffix('_leftImg8bit')}"
                mask = root / "gtFine" / self.split / f"{place}_gtFine_{self.masks}.png"
                images.append(SegmentedImage(place, frame, mask))
        return root, images
