"""Images with a class for every pixel, in a second image each: one class, and a label map for each data set."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Self

from pydantic import model_validator

from data.files.images import DataError, MissingDataError, read_image, read_mask
from data.files.listing import (
    Labels,
    find_root,
    folders_below,
    images_by_stem,
    inside,
    read_lines,
    require_files,
    require_size,
    require_unique,
    subfolders,
)
from data.segmentation.label_maps import ADE20K, CAMVID, CITYSCAPES, CITYSCAPES_TRAIN, PASCAL_VOC, LabelMap
from mtsp.config import Config
from mtsp.types import IGNORE, Sample


class SegmentedImage(NamedTuple):
    """The files of one example."""

    name: str
    frame: Path
    mask: Path


class SegmentedImages:
    """Images and their masks of class ids, as :class:`data.files.listing.SampleDataset`.

    An image without a single known pixel is an example like any other: it adds nothing to a loss or a metric.

    Args:
        kind: what the data set is called in an error.
        root: where it is.
        images: the files; names unique.
        label_map: what the values in the mask files mean.

    Raises:
        DataError: no image, a name twice, or files that are missing (the first ten and their number). When read: a
            mask of RGB colors, of another size than its image, or with a value that the label map does not know.
    """

    def __init__(self, kind: str, root: Path, images: Sequence[SegmentedImage], label_map: LabelMap) -> None:
        self.ids = [image.name for image in images]
        self.label_map = label_map
        self._images = images
        require_unique(kind, root, self.ids)
        require_files(kind, root, (file for image in images for file in (image.frame, image.mask)))

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of each class id."""
        return self.label_map.classes

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        image, labels = self._images[index], self.labels(index)
        sample = Sample(frame=read_image(image.frame), **labels)
        if "mask" in sample:
            require_size(image.frame, sample["frame"], image.mask, sample["mask"])
        return sample

    def labels(self, index: int) -> Labels:
        """Return the mask of example `index`. Its frame is not decoded."""
        image = self._images[index]
        return Labels(name=image.name, mask=self.label_map(read_mask(image.mask), image.mask))


class SegmentedConfig(Config):
    """What data sets with a class for every pixel have in common: the classes are known before a file is read."""

    kind: ClassVar[str]
    """What the data set is called in an error."""

    @abstractmethod
    def label_map(self) -> LabelMap:
        """Return its classes, and what its files hold for them."""

    @abstractmethod
    def files(self) -> tuple[Path, list[SegmentedImage]]:
        """Return where it is, and the files of each example. Raises DataError."""

    def build(self) -> SegmentedImages:
        """Return the data set, its files checked to be there. Raises DataError."""
        root, images = self.files()
        return SegmentedImages(self.kind, root, images, self.label_map())


class CamVidConfig(SegmentedConfig):
    """CamVid in SegNet's version: 367 training, 101 validation and 233 test images of 360x480, 11 classes.

    After Brostow, Fauqueur and Cipolla, "Semantic object classes in video", Pattern Recognition Letters 2009.
    """

    kind: ClassVar[str] = "CamVid"
    name: Literal["camvid"]
    root: Path
    """The folder that has train.txt, train and trainannot."""
    split: Literal["train", "val", "test"] = "train"

    def label_map(self) -> LabelMap:
        """Return its 11 classes."""
        return CAMVID

    def files(self) -> tuple[Path, list[SegmentedImage]]:
        """Return where it is, and the files of each example.

        The lists name files as they lay on their authors' disk, /SegNet/CamVid/train/0001TP_006690.png: the last two
        parts are looked for in `root`.
        """
        root = find_root("CamVid", self.root, f"{self.split}.txt", below=("CamVid",))
        path = root / f"{self.split}.txt"
        images = []
        for words in read_lines(path):
            if len(words) != 2:
                raise DataError(f"{path}: {' '.join(words)!r} is not a image and its labels")
            frame, mask = (inside(root, "/".join(word.split("/")[-2:]), path) for word in words)
            images.append(SegmentedImage(frame.stem, frame, mask))
        return root, images


class PascalVocConfig(SegmentedConfig):
    """PASCAL VOC 2012: 1464 training and 1449 validation images, 20 classes and background.

    After Everingham et al., "The PASCAL Visual Object Classes Challenge: A Retrospective", IJCV 2015.
    """

    kind: ClassVar[str] = "PASCAL VOC"
    name: Literal["pascal_voc"]
    root: Path
    """The folder that has JPEGImages, or one above it."""
    split: str = "train"
    """A list in ImageSets/Segmentation: train, val or trainval, or train_aug if you have it."""
    masks: str = "SegmentationClass"
    """The folder of masks: SegmentationClassAug is that of the 10,582 images that SBD adds to."""

    def label_map(self) -> LabelMap:
        """Return its 21 classes, background first."""
        return PASCAL_VOC

    def files(self) -> tuple[Path, list[SegmentedImage]]:
        """Return where it is, and the files of each example."""
        root = find_root("PASCAL VOC", self.root, "JPEGImages", below=("VOC2012", "VOCdevkit/VOC2012"))
        return root, read_voc_list(root, root / "ImageSets" / "Segmentation", self.split, self.masks)


class Ade20kConfig(SegmentedConfig):
    """ADE20K's scene parsing challenge of 2016: 20,210 training and 2,000 validation images, 150 classes.

    After Zhou et al., "Scene Parsing through ADE20K Dataset", CVPR 2017.
    """

    kind: ClassVar[str] = "ADE20K"
    name: Literal["ade20k"]
    root: Path
    """The folder ADEChallengeData2016, which has images and annotations, or the one above it."""
    split: Literal["train", "val"] = "train"

    def label_map(self) -> LabelMap:
        """Return its 150 classes; files count from 1."""
        return ADE20K

    def files(self) -> tuple[Path, list[SegmentedImage]]:
        """Return where it is, and the files of each example."""
        folder = {"train": "training", "val": "validation"}[self.split]
        root = find_root("ADE20K", self.root, f"images/{folder}", below=("ADEChallengeData2016",))
        images = [
            SegmentedImage(stem, frame, root / "annotations" / folder / f"{stem}.png")
            for stem, frame in images_by_stem(root / "images" / folder).items()
        ]
        return root, images


class CityscapesConfig(SegmentedConfig):
    """Cityscapes, finely annotated: 2975 training and 500 validation images of 1024x2048, 19 classes.

    After Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016.
    """

    kind: ClassVar[str] = "Cityscapes"
    name: Literal["cityscapes"]
    root: Path
    """The folder that has leftImg8bit and gtFine."""
    split: Literal["train", "val"] = "train"
    masks: Literal["labelIds", "labelTrainIds"] = "labelIds"
    """Files as released, or as the authors' own script numbers the 19 classes."""

    def label_map(self) -> LabelMap:
        """Return its 19 classes."""
        return CITYSCAPES if self.masks == "labelIds" else CITYSCAPES_TRAIN

    def files(self) -> tuple[Path, list[SegmentedImage]]:
        """Return where it is, and the files of each example."""
        root = find_root("Cityscapes", self.root, f"leftImg8bit/{self.split}")
        images = []
        for city in subfolders(root / "leftImg8bit" / self.split):
            for stem, frame in images_by_stem(city).items():
                place = f"{city.name}/{stem.removesuffix('_leftImg8bit')}"
                mask = root / "gtFine" / self.split / f"{place}_gtFine_{self.masks}.png"
                images.append(SegmentedImage(place, frame, mask))
        return root, images


class MaskFolderConfig(SegmentedConfig):
    """Your own images and masks, and what the values in the masks mean. (Of videos, see `folder`.)"""

    kind: ClassVar[str] = "images"
    name: Literal["mask_folder"]
    frames: Path
    """A folder of images, or of subfolders of images."""
    masks: Path
    """The same with masks: <frames>/park/1.jpg has <masks>/park/1.png."""
    mask_suffix: str = ""
    """Suffix that a mask's name adds to its image's: `_L` where 1.png has 1_L.png."""
    classes: tuple[str, ...]
    """Names, in the order of class ids 0, 1, ..."""
    values: tuple[int, ...] | None = None
    """What the masks hold for each of `classes`. Null: 0, 1, ... Give 1, 2, ... and `unknown: [0]` to leave 0 out."""
    unknown: tuple[int, ...] = (IGNORE,)
    """What the masks hold where the class is not known, or does not count."""
    split: Path | None = None
    """A text file with an image's name per line, relative to `frames` and without suffix. Null: all of them."""

    @model_validator(mode="after")
    def _map_is_right(self) -> Self:
        self.label_map()
        return self

    def label_map(self) -> LabelMap:
        """Return the classes as they are told."""
        values = tuple(range(len(self.classes))) if self.values is None else self.values
        return LabelMap("mask_folder", self.classes, values, self.unknown)

    def files(self) -> tuple[Path, list[SegmentedImage]]:
        """Return where it is, and the files of each example."""
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
        images = [SegmentedImage(name, found[name], self.masks / f"{name}{self.mask_suffix}.png") for name in names]
        return self.frames, images


def read_voc_list(root: Path, lists: Path, split: str, masks: str) -> list[SegmentedImage]:
    """Return the files of a list in the layout of PASCAL VOC: a name per line, or the paths of an image and its mask.

    Raises:
        DataError: there is no such list, or a line leads out of `root`.
    """
    path = lists / f"{split}.txt"
    if not path.is_file():
        others = ", ".join(sorted(other.stem for other in lists.glob("*.txt"))) or "none"
        raise MissingDataError(f"{path}: no such list; there is {others}")
    images = []
    for words in read_lines(path):
        frame, mask = words if len(words) == 2 else (f"JPEGImages/{words[0]}.jpg", f"{masks}/{words[0]}.png")
        images.append(SegmentedImage(Path(frame).stem, inside(root, frame, path), inside(root, mask, path)))
    return images
