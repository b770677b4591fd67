"""Your own labeled images: one folder per class, or a list of files and labels as in DSTL."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Literal
from unicodedata import normalize

from pydantic import model_validator

from data.classification.labeled_images import Annotations, LabeledConfig, LabeledImage, Members, contiguous
from data.files.list_files import read_names
from data.files.listing import folders_below, images_by_stem, in_split, split_folders, subfolders, tell_skipped
from data.types import DataError, MissingDataError
from mtsp.text import first_names

_LOG = logging.getLogger("mtsp")


class ImageFolderConfig(LabeledConfig):
    """Config of images in folders `root/class/image`, labeled in the order of the sorted class names as in torchvision.

    A test folder needs the same classes as the training folder; set `classes` to ensure that the labels agree.
    """

    name: Literal["image_folder"]
    list: Path | None = None
    """Use only the images listed in this file, in lines like `class/image.jpg: 17` as in DSTL's train.txt and
    val.txt."""
    split: Path | None = None
    """Text file with one image per line, relative to `root`, without suffix. The classes stay those of all folders.
    Null: use all images."""
    one_class_per_image: bool = False
    """Treat each image directly in `root` as a class named after its file: one photo per class, for domain
    similarity."""

    @model_validator(mode="after")
    def _one_source_of_labels(self) -> "ImageFolderConfig":
        if self.one_class_per_image and self.list is not None:
            raise ValueError("`list` and `one_class_per_image` both define the classes; set only one of them")
        if self.split is not None and (self.one_class_per_image or self.list is not None):
            raise ValueError("`split` selects images in folders by class; leave out `list` and `one_class_per_image`")
        return self

    def annotations(self) -> Annotations:
        """Return the images and their classes."""
        if not self.root.is_dir():
            raise MissingDataError(f"no folder {self.root}")
        if self.list is not None:
            return _listed(self.root, self.list)
        if self.one_class_per_image:
            found = sorted(images_by_stem(self.root).items())
            images = [LabeledImage(stem, path, label) for label, (stem, path) in enumerate(found)]
            return Annotations("images", self.root, [stem for stem, _ in found], images)
        _require_classes(self.root)
        found = read_tree("images", self.root)
        tell_skipped(self.root, folders_below(self.root))
        if self.split is None:
            return found
        kept = set(in_split(self.split, [image.name for image in found.images], self.root))
        return replace(found, images=[image for image in found.images if image.name in kept], every_class=False)


def _require_classes(root: Path) -> None:
    """Raise DataError if the folders are called like splits; warn if all have folders in common, as splits have."""
    splits, others = split_folders(root), subfolders(root)
    nested = len(splits) > 1 and any(subfolders(root / name) for name in splits)
    if splits and (nested or len(splits) == len(others)):
        raise DataError(
            f"{root}: the folders {', '.join(splits)} are splits, but would be read as classes; set `root` to one "
            f"of them, for example {root / splits[0]}"
        )
    inner = [{folder.name for folder in subfolders(other)} for other in others]
    if len(others) > 1 and len(shared := sorted(set.intersection(*inner))) > 1:
        _LOG.warning(
            "%s: the folders %s are read as classes, but each holds the folders %s; if they are splits of a data set, "
            "set `root` to one of them", root, first_names([other.name for other in others]), first_names(shared),
        )  # fmt: skip


def read_tree(kind: str, root: Path) -> Annotations:
    """Return the images below `root`; each folder directly in `root` is a class. Raises DataError."""
    if loose := images_by_stem(root):
        first = next(iter(loose.values())).name
        raise DataError(f"{root}: {len(loose)} images are outside the class folders, for example {first}")
    folders = {normalize("NFC", folder.name): folder for folder in subfolders(root)}
    if not folders:
        raise DataError(f"{root} has no folders; expected one folder for each class")
    if len(folders) < len(subfolders(root)):
        raise DataError(f"{root}: two folders have the same name, with composed and with decomposed accents; join them")
    names = sorted(folders)
    images = [
        LabeledImage(normalize("NFC", path.relative_to(root).with_suffix("").as_posix()), path, label)
        for label, name in enumerate(names)
        for folder in folders_below(folders[name], root)
        for path in images_by_stem(folder).values()
    ]
    return Annotations(kind, root, names, images)


def _listed(root: Path, where: Path) -> Annotations:
    """Read lines of `path: label`. Classes are named after their folders, or after their label in a flat folder."""
    rows: list[tuple[str, int]] = []
    for line in read_names(where):
        file, colon, label = line.rpartition(":")
        if not colon or not label.strip().isdecimal():
            raise DataError(f"{where}: {line!r} does not have the form `path: label`, as in class/image.jpg: 17")
        rows.append((file.strip(), int(label)))
    folders: dict[int, str] = {}
    flat = len({file.rpartition("/")[0] for file, _ in rows}) == 1
    for file, number in rows:
        folder = str(number) if flat else file.rpartition("/")[0]
        if folders.setdefault(number, folder) != folder:
            raise DataError(f"{where}: {file} has label {number}, which belongs to {folders[number]}")
    if len(set(folders.values())) < len(folders):
        twice = next(name for name in folders.values() if list(folders.values()).count(name) > 1)
        numbers = sorted(number for number, name in folders.items() if name == twice)
        raise DataError(
            f"{where}: images in {twice} have the labels {', '.join(map(str, numbers))}; expected one label"
        )
    label_of = contiguous(folders)
    members = Members(root, where)
    images = [members.image(file, label_of[number]) for file, number in rows]
    return Annotations("images", root, [folders[number] for number in label_of], images)
