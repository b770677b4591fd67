"""Prepare the examples of a data set for training and evaluation: augment, resize, convert to tensors."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import cv2
import numpy as np
from pydantic import ByteSize, Field, model_validator

from data.augment import geometry
from data.augment.augment import Augmentation, AugmentConfig, check_sizes
from data.augment.crops import center_crop, scaled
from data.augment.geometry import Size
from data.catalog.datasets import AnyDataset
from data.classification.labeled_images import LabeledImages
from data.files.undecoded import UndecodedSample
from data.types import DataError, Labels, SampleDataset
from data.video.davis import DavisConfig
from mtsp.config import Config
from mtsp.indices import evenly_spaced
from mtsp.types import IGNORE, Batch, Examples, Kind, Sample

if TYPE_CHECKING:
    from torch import Tensor


class HoldoutConfig(Config):
    """A split of a training set that has no validation set."""

    fraction: float = Field(gt=0, lt=1)
    """Fraction of the examples to hold out; of labeled images, this fraction of each class, at least one."""
    seed: int = Field(default=0, ge=0)
    """Seed of the choice of held-out examples."""
    part: Literal["rest", "held_out"]
    """Part to use: the rest for training, or the held-out examples for validation."""


class DataConfig(Config):
    """Config of a data set and of its preprocessing for a network."""

    dataset: AnyDataset
    augment: AugmentConfig | None = None
    """Random augmentation in training; null: no augmentation."""
    size: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] | None = None
    """Height and width to resize frames to at evaluation; labels keep their size. In training without `augment`, frames
    and labels are resized to `size`."""
    crop_pct: float | None = Field(default=None, gt=0, le=1)
    """Center crop of labeled images at evaluation, as in timm: this fraction of the shorter side is cropped and resized
    to `size`; the aspect ratio is kept. The usual value is 0.875. Null: stretch the whole image to `size`."""
    holdout: HoldoutConfig | None = None
    """Split the data set, to choose settings without the test set; null: use all examples. Videos with masks cannot be
    split."""
    limit: int | None = Field(default=None, gt=0)
    """Use only this many examples, evenly spaced. Not for videos with masks, as they are scored as a whole."""
    decode: Literal["reduced", "full"] = "reduced"
    """Size at which a JPEG is decoded that `augment` shrinks to half or less, for labeled images and images with masks:
    `reduced` lets libjpeg compute 1/8 to 4/8 of each side, with exact geometry; `full` averages over all pixels. Pixels
    differ by 1 to 2 gray levels on average. Evaluation and `cache` always decode in full."""
    cache: Annotated[ByteSize, Field(gt=0)] | None = None
    """Largest size of a cache of decoded samples in shared memory, as in `2GB`, for each training process; its workers
    share it. Null: decode every time. Use it where all samples, decoded, fit into memory."""

    @model_validator(mode="after")
    def _videos_stay_whole(self) -> "DataConfig":
        # J and F leave out the first and last frame of each video.
        whole = self.limit is None and self.holdout is None
        if whole or self.dataset.kind != "video" or getattr(self.dataset, "masks", "") is None:
            return self
        fewer = "set `dataset.sequences`"
        if not isinstance(self.dataset, DavisConfig):
            fewer = "set `dataset.frames` and `dataset.masks` to folders with fewer sequences"
        key = "holdout" if self.limit is None else "limit"
        raise ValueError(f"`{key}` would split sequences, which are scored as a whole; to use fewer, {fewer}")

    @model_validator(mode="after")
    def _only_a_class_survives_mixing(self) -> "DataConfig":
        keys = [] if self.augment is None else self.augment.only_for_labeled
        if keys and self.dataset.kind != "labeled":
            raise ValueError(f"`augment.{keys[0]}` is for labeled images; {self.dataset.name} has other labels")
        return self

    @model_validator(mode="after")
    def _only_a_class_survives_a_crop(self) -> "DataConfig":
        if self.crop_pct is None:
            return self
        if self.dataset.kind != "labeled":
            name = self.dataset.name
            raise ValueError(f"`crop_pct` is for labeled images; {name} is scored on whole images, so set only `size`")
        if self.size is None:
            raise ValueError("`crop_pct` needs `size`, the size of the center crop")
        return self

    def build(self) -> Examples:
        """Return the examples after checking that their files exist. Raises DataError."""
        augmentation = None if self.augment is None else self.augment.build()
        dataset = self.build_dataset()
        if self.cache is not None:
            from data.cache import CachedDataset

            dataset = CachedDataset(dataset, self.cache)
        reduced = self.decode == "reduced" and self.cache is None
        return PreparedExamples(dataset, augmentation, self.size, self.crop_pct, reduced=reduced)

    def build_dataset(self) -> SampleDataset:
        """Return the data set of decoded examples, neither resized nor augmented. Raises DataError."""
        dataset: SampleDataset = self.dataset.build()
        if self.holdout is not None:
            dataset = _part(dataset, self.holdout)
        if self.limit is None or self.limit >= len(dataset):
            return dataset
        indices = evenly_spaced(len(dataset), self.limit)
        return dataset.subset(indices) if isinstance(dataset, LabeledImages) else Subset(dataset, indices)


def _part(dataset: SampleDataset, holdout: HoldoutConfig) -> SampleDataset:
    """Return the held-out examples or the rest. Raises DataError if a class has a single image."""
    groups: dict[int, list[int]] = {}
    for index, label in enumerate(getattr(dataset, "targets", [0] * len(dataset))):
        groups.setdefault(label, []).append(index)
    if single := [members[0] for members in groups.values() if len(members) < 2]:
        raise DataError(f"holdout: {dataset.ids[single[0]]} is the only one of its class, which cannot be split")
    held_out: set[int] = set()
    for label, members in sorted(groups.items()):
        count = min(len(members) - 1, max(1, round(len(members) * holdout.fraction)))
        held_out |= {members[i] for i in np.random.default_rng([holdout.seed, label]).permutation(len(members))[:count]}
    indices = [i for i in range(len(dataset)) if (i in held_out) == (holdout.part == "held_out")]
    return dataset.subset(indices) if isinstance(dataset, LabeledImages) else Subset(dataset, indices)


def undecoded(dataset: SampleDataset, index: int) -> Sample | UndecodedSample:
    """Return example `index` with its frame undecoded, if the data set has a method for this, or else decoded."""
    read: Callable[[int], Sample | UndecodedSample] = getattr(dataset, "undecoded", dataset.__getitem__)
    return read(index)


class Subset:
    """The examples of `dataset` at `indices`. The next frame of each example stays the same."""

    def __init__(self, dataset: SampleDataset, indices: Sequence[int]) -> None:
        self._dataset = dataset
        self.kind: Kind = dataset.kind
        self._indices = indices
        self.ids = [dataset.ids[i] for i in indices]
        self.classes: tuple[str, ...] = getattr(dataset, "classes", ())

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        return self._dataset[self._indices[index]]

    def undecoded(self, index: int) -> Sample | UndecodedSample:
        """Return example `index`, with its frame undecoded where the data set can leave it so."""
        return undecoded(self._dataset, self._indices[index])

    def labels(self, index: int) -> Labels:
        """Return the labels of example `index`."""
        return self._dataset.labels(self._indices[index])


class PreparedExamples:
    """A data set with its augmentation: implements `mtsp.types.Examples`.

    Examples have no batch dimension; their `name` is a list with one name.

    Args:
        dataset: source of the examples.
        augmentation: applied by :meth:`train_sample`; None: only resize to `size`.
        size: height and width of frames at evaluation, and in training without augmentation; None: do not resize.
        crop_pct: see :attr:`DataConfig.crop_pct`.
        reduced: see :attr:`DataConfig.decode`.
    """

    def __init__(
        self,
        dataset: SampleDataset,
        augmentation: Augmentation | None = None,
        size: Size | None = None,
        crop_pct: float | None = None,
        *,
        reduced: bool = False,
    ) -> None:
        self.dataset = dataset
        self.augmentation = augmentation
        self.size = size
        self.crop_pct = crop_pct
        self._reduced = reduced

    @property
    def kind(self) -> Kind:
        """Kind of data, which decides which metrics apply."""
        return self.dataset.kind

    @property
    def ids(self) -> list[str]:
        """Name of each example, in order."""
        return list(self.dataset.ids)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty if the data set has none."""
        return tuple(getattr(self.dataset, "classes", ()))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Batch:
        """Return example `index` for evaluation: frames of `size`, labels at native resolution."""
        sample = self.dataset[index]
        check_sizes(sample)
        if self.crop_pct is not None:
            sample = self._cropped(sample)
        elif self.size is not None:
            sample = Sample(**{**sample, **_resized_frames(sample, self.size)})
        return to_tensors(sample)

    def train_sample(self, index: int, rng: np.random.Generator) -> Batch:
        """Return example `index` for training: augmented with `rng`, or without augmentation resized to `size`."""
        if self.augmentation is not None:
            sample = undecoded(self.dataset, index) if self._reduced else self.dataset[index]
            return to_tensors(self.augmentation(sample, rng))
        sample = self.dataset[index]
        if self.crop_pct is not None:
            return to_tensors(self._cropped(sample))
        return to_tensors(resized(sample, self.size or check_sizes(sample)))

    def _cropped(self, sample: Sample) -> Sample:
        assert self.size is not None
        assert self.crop_pct is not None
        return Sample(**{**sample, "frame": center_crop(sample["frame"], self.size, self.crop_pct)})


def resized(sample: Sample, size: Size) -> Sample:
    """Return `sample` stretched to `size`, with flow scaled to the new pixels.

    Raises ValueError if the arrays of `sample` differ in size.
    """
    source = check_sizes(sample)
    if size == source:
        return sample
    stretch = geometry.resize(source, size)
    out = _resized_frames(sample, size)
    if "label" in sample:
        out["label"] = sample["label"]
    if "mask" in sample:
        out["mask"] = geometry.warp_mask(sample["mask"], stretch, size, IGNORE)
    if "flow" in sample:
        flow, valid = sample["flow"], sample.get("flow_valid")
        out["flow"], out["flow_valid"] = geometry.warp_flow(flow, valid, stretch, stretch, size)
    return out


def to_tensors(sample: Sample) -> Batch:
    """Return a copy of `sample` as tensors, in the format of a `Batch` without the batch dimension."""
    import torch

    out = Batch(name=[sample["name"]], frame=_floats(sample["frame"]))
    if "next_frame" in sample:
        out["next_frame"] = _floats(sample["next_frame"])
    if "mask" in sample:
        out["mask"] = torch.from_numpy(sample["mask"].astype(np.int64))
    if "flow" in sample:
        out["flow"] = torch.from_numpy(np.stack([sample["flow"][..., 0], sample["flow"][..., 1]]))
    if "flow_valid" in sample:
        out["flow_valid"] = torch.from_numpy(sample["flow_valid"].astype(bool))
    if "label" in sample:
        out["label"] = torch.tensor(sample["label"])
    if "mix" in sample:
        out["mix"] = torch.from_numpy(sample["mix"])
    return out


def _resized_frames(sample: Sample, size: Size) -> Sample:
    """Return a sample with the name and both frames of `sample`, resized to `size`."""
    out = Sample(name=sample["name"], frame=scaled(sample["frame"], size))
    if "next_frame" in sample:
        out["next_frame"] = scaled(sample["next_frame"], size)
    return out


def _floats(image: np.ndarray) -> "Tensor":
    """Return HW3 bytes as contiguous 3HW float32 in [0, 1]; 2.5 times faster than a transposed copy."""
    import torch

    out = np.empty((3, *image.shape[:2]), np.float32)
    for channel, plane in enumerate(cv2.split(image)):
        np.divide(plane, np.float32(255), out=out[channel])
    return torch.from_numpy(out)
