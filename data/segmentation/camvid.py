"""CamVid in SegNet's version: 367 training, 101 validation and 233 test images of 360x480, 11 classes.

Layout: train.txt, val.txt, test.txt with lines `/SegNet/CamVid/train/0001TP_006690.png /SegNet/.../trainannot/...`;
train, trainannot, val, valannot, test, testannot with PNG images. Source: Brostow, Fauqueur and Cipolla, "Semantic
object classes in video", Pattern Recognition Letters 2009; Badrinarayanan et al. (SegNet), 2015.
"""

from pathlib import Path
from typing import ClassVar, Literal

from data.files.list_files import read_lines
from data.files.listing import find_root, inside
from data.segmentation.label_map import LabelMap
from data.segmentation.segmented_images import SegmentedConfig, SegmentedImage
from data.types import DataError

CAMVID = LabelMap(
    "camvid",
    ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),
    values=tuple(range(11)),
    unknown=(11,),
    colors=(
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0), (192, 128, 128),
        (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    ),
)  # fmt: skip
"""The 11 classes of SegNet's version (Badrinarayanan et al., 2015), merged from CamVid's 32; 11 is void."""


class CamVidConfig(SegmentedConfig):
    """Config of CamVid."""

    title: ClassVar[str] = "CamVid"
    name: Literal["camvid"]
    root: Path
    """The folder that has train.txt, train and trainannot."""
    split: Literal["train", "val", "test"] = "train"

    def label_map(self) -> LabelMap:
        """Return the 11 classes."""
        return CAMVID

    def files(self) -> tuple[Path, list[SegmentedImage]]:
        """Return the root folder and the files of each example, named by the last two parts of each path in the
        list."""
        root = find_root("CamVid", self.root, f"{self.split}.txt", below=("CamVid",))
        path = root / f"{self.split}.txt"
        images = []
        for words in read_lines(path):
            if len(words) != 2:
                raise DataError(f"{path}: {' '.join(words)!r} must be the path of an image and the path of its mask")
            frame, mask = (inside(root, "/".join(word.split("/")[-2:]), path) for word in words)
            images.append(SegmentedImage(frame.stem, frame, mask))
        return root, images
