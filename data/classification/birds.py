"""CUB-200-2011 and NABirds, which share a layout.

Layout: images/<class>/<image>.jpg and numbered lists images.txt, image_class_labels.txt, classes.txt and
train_test_split.txt. CUB: 200 classes, 5994 training and 5794 test images; Wah, Branson, Welinder, Perona and Belongie,
"The Caltech-UCSD Birds-200-2011 Dataset", 2011. NABirds: 555 classes, 23929 and 24633 images; Van Horn et al.,
"Building a bird recognition app and large scale dataset with citizen scientists", CVPR 2015.
"""

from collections import Counter
from pathlib import Path
from typing import Literal

from data.classification.labeled_images import HELD_OUT, Annotations, LabeledConfig, Members, contiguous
from data.files.list_files import read_lines
from data.files.listing import find_root
from data.types import DataError

_FLAGS = {"1": "train", "0": "test"}


class CubConfig(LabeledConfig):
    """Config of CUB-200-2011. A partial data set can be read if its lists match its files."""

    name: Literal["cub"]
    split: Literal["train", "test"] = "train"
    """Split, as defined by train_test_split.txt."""

    def annotations(self) -> Annotations:
        """Return the images of the split. Classes are named after their folders, "001.Black_footed_Albatross"."""
        root = find_root("CUB-200-2011", self.root, "images.txt", ("CUB_200_2011",))
        annotations = _read("CUB-200-2011", root, self.split)
        where = root / "image_class_labels.txt"
        for image in annotations.images:
            folder, name = image.path.parent.name, annotations.classes[image.label]
            if folder != name:
                raise DataError(f"{where}: {image.name} is labeled {name!r}, but lies in {folder!r}")
        return annotations


class NabirdsConfig(LabeledConfig):
    """Config of NABirds. Class ids have gaps, because classes.txt also names groups without images."""

    name: Literal["nabirds"]
    split: Literal["train", "test"] = "train"
    """Split, as defined by train_test_split.txt."""

    def annotations(self) -> Annotations:
        """Return the images of the split. Only classes with images count, in the order of their ids."""
        root = find_root("NABirds", self.root, "images.txt", ("nabirds",))
        return _read("NABirds", root, self.split, groups=True)


def _read(kind: str, root: Path, split: str, *, groups: bool = False) -> Annotations:
    """Read the four lists; with `groups`, classes.txt may name groups without images."""
    files = _table(root / "images.txt")
    where = root / "image_class_labels.txt"
    labels = {key: _number(where, value) for key, value in _table(where).items()}
    flags = _table(root / "train_test_split.txt")
    names = {_number(root / "classes.txt", key): name for key, name in _table(root / "classes.txt").items()}
    for file, found in (("image_class_labels.txt", labels), ("train_test_split.txt", flags)):
        if odd := files.keys() ^ found.keys():
            first = min(odd)
            absent = "images.txt" if first in found else file
            raise DataError(f"{root / file}: {len(odd)} ids do not match images.txt: {first!r} is not in {absent}")
    for key, number in labels.items():
        if number not in names:
            raise DataError(f"{where}: image {key} has class {number}, which is not in classes.txt")
        if flags[key] not in _FLAGS:
            raise DataError(f"{root / 'train_test_split.txt'}: image {key} has {flags[key]!r}, expected 0 or 1")
    label_of = contiguous(labels.values() if groups else names)
    times = Counter(names[number] for number in label_of)
    classes = [names[n] if times[names[n]] == 1 else f"{names[n]} [{n}]" for n in label_of]
    members = Members(root / "images", root / "images.txt")
    images = [members.image(file, label_of[labels[key]]) for key, file in files.items() if _FLAGS[flags[key]] == split]
    return Annotations(kind, root, classes, images, every_class=split not in HELD_OUT)


def _table(path: Path) -> dict[str, str]:
    """Return a dict from the first word of each line, which must be unique, to the remaining words."""
    table: dict[str, str] = {}
    for words in read_lines(path):
        if len(words) < 2:
            raise DataError(f"{path}: {words[0]!r} has no value; each line needs an id and a value")
        if words[0] in table:
            raise DataError(f"{path}: the id {words[0]} occurs twice")
        table[words[0]] = " ".join(words[1:])
    return table


def _number(path: Path, text: str) -> int:
    if not text.isdecimal():
        raise DataError(f"{path}: {text!r} is not the number of a class")
    return int(text)
