"""Base of the classification data sets, and selection of their classes and images."""

import difflib
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, model_validator

from data.files.images import open_image, read_file, read_image
from data.files.list_files import read_classes
from data.files.listing import inside, require_files, require_unicode, require_unique
from data.files.undecoded import UndecodedSample, read_undecoded
from data.types import DataError, Labels
from mtsp.config import Config
from mtsp.indices import evenly_spaced
from mtsp.text import first_names
from mtsp.types import Kind, Sample

_LOG = logging.getLogger("mtsp")
HELD_OUT = ("val", "test")
"""Splits for evaluation: their images are never subsampled, and classes may be missing."""


class LabeledImage(NamedTuple):
    """An image and its class."""

    name: str
    path: Path
    label: int


@dataclass(frozen=True)
class Annotations:
    """Classes of a data set in the order of their labels, and the labeled images of one split."""

    kind: str
    root: Path
    classes: Sequence[str]
    images: Sequence[LabeledImage]
    every_class: bool = True
    """Whether a class without images raises an error."""


class LabeledConfig(Config):
    """Base config of labeled images. Subclasses add `name`, `split` and :meth:`annotations`."""

    kind: ClassVar[Kind] = "labeled"
    root: Path
    """Folder of the data set, or its parent folder."""
    classes: Path | None = None
    """File with one class name per line, as written by `tools/select_source.py`: use only these classes, labeled 0, 1,
    ... in the data set's order. A name ends at a tab; blank lines and lines that begin with # are skipped."""
    label_percent: float = Field(default=100.0, gt=0, le=100)
    """Use this percentage of each class's training images, at least one. With the same seed, the images of 15 percent
    are a subset of those of 30 percent. The choice within a class does not depend on the other classes."""
    label_seed: int = Field(default=0, ge=0)
    """Seed of the random choice of images for `label_percent` and `per_class`."""
    per_class: int | None = Field(default=None, gt=0)
    """Use exactly this many training examples of each class, to balance a long-tailed source. Large classes are
    subsampled; images of small classes are repeated, with a new augmentation each time."""

    exif: Literal["apply", "ignore"] | None = None
    """How to treat EXIF orientation: `apply` rotates images accordingly, `ignore` reads them as stored, like
    torchvision.
    Null: read them as stored, and warn how many images have an EXIF orientation."""

    @model_validator(mode="after")
    def _held_out_splits_stay_whole(self) -> Self:
        split = getattr(self, "split", "")
        if split in HELD_OUT and (self.label_percent != 100 or self.per_class is not None):
            raise ValueError(f"`label_percent` and `per_class` are for training; leave them out of split {split}")
        return self

    @abstractmethod
    def annotations(self) -> Annotations:
        """Return the classes and images of the split. Raises DataError."""

    def build(self) -> "LabeledImages":
        """Return the data set after checking its files against the disk and the class list. Raises DataError."""
        annotations = self.annotations()
        if self.classes is not None:
            annotations = with_classes(annotations, read_classes(self.classes), self.classes)
        kind, root, classes = annotations.kind, annotations.root, annotations.classes
        require_unique(kind, root, [image.name for image in annotations.images])
        present = {image.label for image in annotations.images}
        empty = [name for label, name in enumerate(classes) if label not in present]
        if annotations.every_class and empty:
            raise DataError(
                f"{kind} at {root}: {len(empty)} of {len(classes)} classes have no images ({first_names(empty)}); "
                "exclude them with a list in `classes`"
            )
        require_unicode(kind, root, classes)
        require_files(kind, root, (image.path for image in annotations.images))
        images = label_subset(annotations, self.label_percent, self.label_seed)
        if self.per_class is not None:
            images = repeat_per_class(classes, images, self.per_class, self.label_seed)
        if self.exif is None:
            tell_turned(annotations.root, len(images), lambda i: (images[i].path, read_file(images[i].path)))
        return LabeledImages(classes, images, exif=self.exif or "ignore")


_LOOKED_AT = 200


def tell_turned(root: Path | str, count: int, stored: Callable[[int], tuple[Path, bytes]]) -> None:
    """Check a sample of `count` images, and warn if some have an EXIF orientation.

    `stored` returns the path of an image, for the warning, and its bytes.
    """
    looked = evenly_spaced(count, _LOOKED_AT)
    if turned := [path for i in looked if (path := _turned(stored, i)) is not None]:
        _LOG.warning(
            "images at %s: %d of %d checked have an EXIF orientation, for example %s; they are read as stored. Set "
            "`exif: apply` to rotate them, or `exif: ignore`", root, len(turned), len(looked), turned[0],
        )  # fmt: skip


def _turned(stored: Callable[[int], tuple[Path, bytes]], index: int) -> Path | None:
    try:
        path, data = stored(index)
        return None if open_image(path, data, any_format=True).orientation == 1 else path
    except DataError:  # reported with its cause when the image is read
        return None


class Members:
    """Images inside `root` that are listed in the file `where`. An image may be a link to a file anywhere."""

    def __init__(self, root: Path, where: Path) -> None:
        self.root, self.where = root, where
        self._folders: dict[str, Path] = {}  # each folder is resolved once, since there may be a million images

    def image(self, entry: str, label: int) -> LabeledImage:
        """Return the image at the path `entry`. Raises DataError if it is not inside `root`."""
        folder, _, name = entry.rpartition("/")
        if folder not in self._folders:
            self._folders[folder] = inside(self.root, folder, self.where) if folder else self.root
        if name in ("", "..") or "\\" in name or "\0" in name:
            raise DataError(f"{self.where}: {entry!r} is not an image inside {self.root}")
        return LabeledImage(entry.rpartition(".")[0] or entry, self._folders[folder] / name, label)


class LabeledImages:
    """Images with one class each, a :class:`data.types.SampleDataset`.

    Args:
        classes: class names in the order of their labels.
        images: images with unique names.
        exif: "apply" rotates images by their EXIF orientation.
    """

    kind: Kind = "labeled"

    def __init__(
        self, classes: Sequence[str], images: Sequence[LabeledImage], *, exif: Literal["apply", "ignore"] = "ignore"
    ) -> None:
        self.classes = tuple(classes)
        self._exif: Literal["apply", "ignore"] = exif
        self.images = list(images)
        self.ids = [image.name for image in images]
        self.targets = [image.label for image in images]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        image = self.images[index]
        return Sample(
            name=image.name, frame=read_image(image.path, any_format=True, exif=self._exif), label=image.label
        )

    def undecoded(self, index: int) -> UndecodedSample:
        """Return example `index` with its image undecoded if it is a JPEG."""
        image = self.images[index]
        frame = read_undecoded(image.path, any_format=True, exif=self._exif)
        return UndecodedSample(name=image.name, frame=frame, label=image.label)

    def labels(self, index: int) -> Labels:
        """Return the class of example `index` without decoding its image."""
        image = self.images[index]
        return Labels(name=image.name, label=image.label)

    def subset(self, indices: Iterable[int]) -> "LabeledImages":
        """Return a data set of these examples with the same classes."""
        return LabeledImages(self.classes, [self.images[index] for index in indices], exif=self._exif)


def with_classes(annotations: Annotations, wanted: Sequence[str], where: Path) -> Annotations:
    """Return the annotations of the `wanted` classes only, with contiguous labels in the data set's order.

    Raises DataError if a wanted class does not exist; the message names `where`, the file that lists the class.
    """
    if unknown := [name for name in wanted if name not in set(annotations.classes)]:
        near = difflib.get_close_matches(unknown[0], annotations.classes, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]!r}?" if near else f"its classes are named like {annotations.classes[0]!r}"
        raise DataError(
            f"{where}: {len(unknown)} of {len(wanted)} classes are not in {annotations.kind} at {annotations.root}, "
            f"the first {unknown[0]!r}; {hint}"
        )
    kept = [label for label, name in enumerate(annotations.classes) if name in set(wanted)]
    labels = {old: new for new, old in enumerate(kept)}
    images = [image._replace(label=labels[image.label]) for image in annotations.images if image.label in labels]
    return replace(annotations, classes=[annotations.classes[label] for label in kept], images=images)


def label_subset(annotations: Annotations, percent: float, seed: int) -> list[LabeledImage]:
    """Return `percent` of each class's images, at least one, in the order of the annotations."""
    if percent == 100:
        return list(annotations.images)
    chosen: set[str] = set()
    for label, members in _by_class(annotations.images).items():
        count = max(1, int(len(members) * percent / 100 + 0.5))
        order = _order(members, annotations.classes[label], seed)
        chosen |= {image.name for image in order[:count]}
    return [image for image in annotations.images if image.name in chosen]


def repeat_per_class(
    classes: Sequence[str], images: Sequence[LabeledImage], per_class: int, seed: int
) -> list[LabeledImage]:
    """Return `per_class` examples of each class, class by class; #2, #3, ... are added to names of repeated
    examples."""
    out = []
    for label, members in sorted(_by_class(images).items()):
        order = _order(members, classes[label], seed)
        for place in range(per_class):
            again, image = place // len(order), order[place % len(order)]
            out.append(image._replace(name=f"{image.name}#{again + 1}") if again else image)
    return out


def contiguous(ids: Iterable[int]) -> dict[int, int]:
    """Return the labels 0, 1, ... of `ids` in ascending order; ids may have gaps, as in NABirds."""
    return {id_: label for label, id_ in enumerate(sorted(set(ids)))}


def _by_class(images: Iterable[LabeledImage]) -> dict[int, list[LabeledImage]]:
    members: dict[int, list[LabeledImage]] = {}
    for image in images:
        members.setdefault(image.label, []).append(image)
    return members


def _order(members: Sequence[LabeledImage], class_name: str, seed: int) -> list[LabeledImage]:
    """Shuffle the images of one class by (seed, class name), whatever their order in the lists."""
    by_name = sorted(members, key=lambda image: image.name)
    permutation = np.random.default_rng([seed, *class_name.encode()]).permutation(len(by_name))
    return [by_name[place] for place in permutation]
