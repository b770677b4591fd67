"""SBD: 8498 training and 2857 validation images of PASCAL VOC 2011 with masks of VOC's 20 classes and background.

Layout: img/<id>.jpg, cls/<id>.mat, train.txt and val.txt with an id per line. Its lists are not those of VOC: images of
its train are in VOC's val. Most results on VOC are of networks trained on both ("train_aug", 10,582 images).
Source: Hariharan, Arbelaez, Bourdev, Maji and Malik, "Semantic Contours from Inverse Detectors", ICCV 2011.
"""

from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import model_validator

from data.files.list_files import read_lines, read_mat
from data.files.listing import find_root
from data.files.masks import read_mask
from data.segmentation.label_map import LabelMap
from data.segmentation.pascal_voc import PASCAL_VOC, PascalVocConfig
from data.segmentation.segmented_images import SegmentedConfig, SegmentedImage, SegmentedImages
from data.types import DataError


class SbdConfig(SegmentedConfig):
    """Config of SBD, with classes and ids of :mod:`data.segmentation.pascal_voc`. Its masks have no unknown pixels."""

    title: ClassVar[str] = "SBD"
    name: Literal["sbd"]
    root: Path
    """The folder that has img, cls and train.txt, or a folder above it, such as benchmark_RELEASE."""
    split: Literal["train", "val", "train_noval", "train_aug"] = "train"
    """train, val: SBD's lists. train_noval: its authors' list without images of VOC's val, a file apart. train_aug: all
    images of SBD and of VOC's train that are not in VOC's val, with VOC's masks where VOC's train has them."""
    voc: Path | None = None
    """Folder of PASCAL VOC 2012, which `train_aug` needs."""

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.voc is not None) != (self.split == "train_aug"):
            raise ValueError("`voc`, the folder of PASCAL VOC 2012, belongs to `split: train_aug`; set both or none")
        return self

    def label_map(self) -> LabelMap:
        """Return the 21 classes, background first."""
        return PASCAL_VOC

    def build(self) -> SegmentedImages:
        """Return the data set after checking that its files exist. Raises DataError."""
        root, images = self.files()
        return SegmentedImages(self.title, root, images, self.label_map(), read=_read, colors="voc")

    def files(self) -> tuple[Path, list[SegmentedImage]]:
        """Return the root folder and the files of each example. Raises DataError."""
        root = find_root(self.title, self.root, "cls", below=("dataset", "benchmark_RELEASE/dataset"))
        splits = (self.split,) if self.voc is None else ("train", "val")
        names = [words[0] for split in splits for words in read_lines(root / f"{split}.txt")]
        if odd := next((name for name in names if Path(name).name != name), None):
            raise DataError(f"{root / splits[0]}.txt: {odd!r} is not the name of an image")
        images = [SegmentedImage(name, root / f"img/{name}.jpg", root / f"cls/{name}.mat") for name in names]
        if self.voc is None:
            return root, images
        train, val = (PascalVocConfig(name="pascal_voc", root=self.voc, split=s).files()[1] for s in ("train", "val"))
        known = {image.name for image in (*train, *val)}
        return root, [*train, *(image for image in images if image.name not in known)]


def _read(path: Path) -> np.ndarray:
    """Return a mask of VOC (.png) or of SBD (.mat), HW uint8."""
    if path.suffix != ".mat":
        return read_mask(path, colors="voc")
    found = read_mat(path, "GTcls")[0]
    mask = found["Segmentation"][0] if "Segmentation" in (found.dtype.names or ()) else None
    if not isinstance(mask, np.ndarray) or mask.ndim != 2 or mask.dtype != np.uint8:
        raise DataError(f"{path}: expected GTcls.Segmentation, a mask of 8-bit class ids")
    return np.ascontiguousarray(mask)
