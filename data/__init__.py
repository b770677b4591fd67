"""Data sets: what an experiment can name under `data`, and the one class that makes examples of it."""

from typing import Annotated

from pydantic import Field, model_validator

from data.augment.augment import AugmentConfig
from data.classification.datasets import AnyLabeled
from data.classification.labeled_images import LabeledConfig, LabeledImages
from data.files.images import DataError, MissingDataError
from data.files.listing import Labels, SampleDataset
from data.flow.flying_chairs import FlyingChairsConfig
from data.flow.kitti import KittiConfig
from data.flow.middlebury import MiddleburyConfig
from data.flow.scene_flow import DrivingConfig, FlyingThingsConfig, MonkaaConfig
from data.flow.sintel import SintelConfig
from data.prepared import PreparedExamples
from data.segmentation.mask_images import (
    Ade20kConfig,
    CamVidConfig,
    CityscapesConfig,
    MaskFolderConfig,
    PascalVocConfig,
)
from data.segmentation.pascal_context import PascalContextConfig
from data.video.davis import DavisConfig
from data.video.folder import FolderConfig
from mtsp.config import Config
from mtsp.types import Examples, Sample

__all__ = [
    "AnyDataset",
    "DataConfig",
    "DataError",
    "LabeledConfig",
    "LabeledImages",
    "Labels",
    "MissingDataError",
    "SampleDataset",
]

AnyDataset = Annotated[
    DavisConfig
    | FlyingChairsConfig
    | MonkaaConfig
    | DrivingConfig
    | FlyingThingsConfig
    | SintelConfig
    | KittiConfig
    | MiddleburyConfig
    | FolderConfig
    | PascalContextConfig
    | PascalVocConfig
    | Ade20kConfig
    | CityscapesConfig
    | CamVidConfig
    | MaskFolderConfig
    | AnyLabeled,
    Field(discriminator="name"),
]
"""The data sets that an experiment can name: `dataset: {name: davis, root: ...}`."""


class DataConfig(Config):
    """A data set, and what is done to it before a network sees it."""

    dataset: AnyDataset
    augment: AugmentConfig | None = None
    """What training draws at random; None: frames as they are."""
    size: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] | None = None
    """Height and width that frames are resized to for the network at evaluation; labels keep their own. Training
    without `augment` resizes to it as well, labels included."""
    crop_pct: float | None = Field(default=None, gt=0, le=1)
    """Of labeled images: see the middle at evaluation, this share of the shorter side, as `size`, its aspect kept.
    0.875 is usual (and 1 all of the shorter side). Null: all of the image, stretched to `size`."""
    limit: int | None = Field(default=None, gt=0)
    """Only this many examples, evenly spaced over the data set. Not of videos with masks, which are scored whole."""

    @model_validator(mode="after")
    def _videos_stay_whole(self) -> "DataConfig":
        """J and F are means over a video without its first and last frame: of a few of its frames they are wrong."""
        if self.limit is None:
            return self
        if isinstance(self.dataset, DavisConfig):
            raise ValueError("`limit` would tear sequences apart, which are scored whole; set `dataset.sequences`")
        if isinstance(self.dataset, FolderConfig) and self.dataset.masks is not None:
            raise ValueError(
                "`limit` would tear sequences apart, which are scored whole; let `dataset.frames` and `dataset.masks` "
                "name a folder of fewer sequences"
            )
        return self

    @model_validator(mode="after")
    def _only_a_class_survives_a_crop(self) -> "DataConfig":
        if self.crop_pct is None:
            return self
        if not isinstance(self.dataset, LabeledConfig):
            raise ValueError(f"`crop_pct` is of labeled images; {self.dataset.name} is scored whole, set `size` alone")
        if self.size is None:
            raise ValueError("`crop_pct` needs `size`, which the middle of each image becomes")
        return self

    def build(self) -> Examples:
        """Return the examples, files checked to be there.

        Raises:
            DataError: the data set's files are not as they should be.
        """
        augmentation = None if self.augment is None else self.augment.build()
        return PreparedExamples(self.build_dataset(), augmentation, self.size, self.crop_pct)

    def build_dataset(self) -> SampleDataset:
        """Return the examples as decoded: nothing resized, nothing augmented. Raises as :meth:`build`."""
        dataset = self.dataset.build()
        if self.limit is None or self.limit >= len(dataset):
            return dataset
        indices = [i * len(dataset) // self.limit for i in range(self.limit)]
        return dataset.subset(indices) if isinstance(dataset, LabeledImages) else EvenlySpaced(dataset, self.limit)


class EvenlySpaced:
    """`count` examples of `dataset`, evenly spaced, the first one first. Each still has its next frame."""

    def __init__(self, dataset: SampleDataset, count: int) -> None:
        self._dataset = dataset
        self._indices = [i * len(dataset) // count for i in range(count)]
        self.ids = [dataset.ids[i] for i in self._indices]
        self.classes: tuple[str, ...] = getattr(dataset, "classes", ())

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        return self._dataset[self._indices[index]]

    def labels(self, index: int) -> Labels:
        """Return the labels of example `index`."""
        return self._dataset.labels(self._indices[index])
