"""Base of the segmentation data sets: images with masks of class ids."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from data.files.images import Exif, read_image
from data.files.listing import require_files, require_size, require_unique
from data.files.mask_colors import SameColors
from data.files.masks import read_mask
from data.files.undecoded import UndecodedJpeg, UndecodedSample, read_undecoded
from data.segmentation.label_map import LabelMap
from data.types import Labels
from mtsp.config import Config
from mtsp.types import Kind, Sample


class SegmentedImage(NamedTuple):
    """The files of one example."""

    name: str
    frame: Path
    mask: Path


class SegmentedImages:
    """Images and their masks of class ids, a :class:`data.types.SampleDataset`.

    Images without any known pixel are kept; they do not change a loss or a metric.

    Args:
        title: name of the data set in messages.
        root: folder of the data set, for messages.
        images: files of each example, with unique names.
        label_map: meaning of the values in the mask files.
        read: function that reads a mask file; None: :func:`data.files.masks.read_mask`.
        read_prediction: the same for predicted masks; None: as `read` does by default.
        colors: known palette of the indexed mask files, also of predicted masks.
        exif: treatment of EXIF orientation; "warn": read images as stored and warn once if an orientation is set.

    Raises:
        DataError: there is no image, a name occurs twice, or files are missing (the message names the first ten). Also
            when an example is read: its mask has RGB colors, another size than the image, or a value that is not in the
            label map.
    """

    kind: Kind = "images"

    def __init__(
        self,
        title: str,
        root: Path,
        images: Sequence[SegmentedImage],
        label_map: LabelMap,
        *,
        read: Callable[[Path], np.ndarray] | None = None,
        read_prediction: Callable[[Path], np.ndarray] | None = None,
        colors: Literal["voc"] | None = None,
        exif: Exif = "warn",
    ) -> None:
        self.ids = [image.name for image in images]
        self.label_map = label_map
        self._images = images
        self._exif: Exif = exif
        self.read_mask, self.colors = read or partial(read_mask, colors=colors), colors
        self.read_prediction = read_prediction or partial(read_mask, colors=colors, same=SameColors())
        require_unique(title, root, self.ids)
        require_files(title, root, (file for image in images for file in (image.frame, image.mask)))

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of each class id."""
        return self.label_map.classes

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        frame = read_image(self._images[index].frame, exif=self._exif)
        return Sample(frame=frame, **self._labels_of(index, frame))

    def undecoded(self, index: int) -> UndecodedSample:
        """Return example `index` with its frame undecoded if it is a JPEG."""
        frame = read_undecoded(self._images[index].frame, exif=self._exif)
        return UndecodedSample(frame=frame, **self._labels_of(index, frame))

    def labels(self, index: int) -> Labels:
        """Return the mask of example `index` without decoding its frame."""
        image = self._images[index]
        return Labels(name=image.name, mask=self.label_map(self.read_mask(image.mask), image.mask))

    def _labels_of(self, index: int, frame: np.ndarray | UndecodedJpeg) -> Labels:
        """Return the labels of an example. Raises DataError if the mask and the frame differ in size."""
        image, labels = self._images[index], self.labels(index)
        require_size(image.frame, frame, image.mask, labels["mask"])  # pyright: ignore[reportTypedDictNotRequiredAccess]
        return labels


class SegmentedConfig(Config):
    """Base config of the segmentation data sets. Subclasses add `name`, `title`, :meth:`label_map` and
    :meth:`files`."""

    kind: ClassVar[Kind] = "images"
    title: ClassVar[str]
    """Name of the data set in messages."""

    @abstractmethod
    def label_map(self) -> LabelMap:
        """Return the classes and their values in mask files."""

    @abstractmethod
    def files(self) -> tuple[Path, list[SegmentedImage]]:
        """Return the root folder and the files of each example. Raises DataError."""

    def build(self) -> SegmentedImages:
        """Return the data set after checking that its files exist. Raises DataError."""
        root, images = self.files()
        return SegmentedImages(self.title, root, images, self.label_map())
