"""Stanford Dogs and Stanford Cars, with labels in MATLAB files.

Khosla et al., "Novel Dataset for Fine-Grained Image Categorization" (2011): 120 classes, 12000 training and 8580 test
images, all from ImageNet, partly from its training set. Krause et al., "3D Object Representations for Fine-Grained
Categorization" (2013): 196 classes, 8144 and 8041 images.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np

from data.classification.labeled_images import Annotations, LabeledConfig, Members, contiguous
from data.files.list_files import read_mat
from data.files.listing import find_root
from data.types import DataError


class StanfordDogsConfig(LabeledConfig):
    """Config of Stanford Dogs: images are in `Images`, lists in the root or in `lists`."""

    name: Literal["stanford_dogs"]
    split: Literal["train", "test"] = "train"
    """Split, as defined by train_list.mat and test_list.mat."""

    def annotations(self) -> Annotations:
        """Return the images of the split. Classes are named after their folders, "n02085620-Chihuahua"."""
        root = find_root("Stanford Dogs", self.root, "Images", ("stanford_dogs", "StanfordDogs"))
        lists = root / "lists" if (root / "lists").is_dir() else root
        rows = {split: _dogs(lists / f"{split}_list.mat") for split in ("train", "test")}
        folders: dict[int, str] = {}
        for split, pairs in rows.items():
            for file, number in pairs:
                folder = file.partition("/")[0]
                if folders.setdefault(number, folder) != folder:
                    where = lists / f"{split}_list.mat"
                    raise DataError(f"{where}: {file} has label {number}, which belongs to {folders[number]}")
        label_of = contiguous(folders)
        members = Members(root / "Images", lists / f"{self.split}_list.mat")
        images = [members.image(file, label_of[number]) for file, number in rows[self.split]]
        classes = [folders[number] for number in label_of]
        return Annotations("Stanford Dogs", root, classes, images, self.split == "train")


class StanfordCarsConfig(LabeledConfig):
    """Config of Stanford Cars in torchvision's layout: folders `cars_train`, `cars_test` and `devkit`.

    `cars_test_annos_withlabels.mat` is in the root or in `devkit`.
    """

    name: Literal["stanford_cars"]
    split: Literal["train", "test"] = "train"

    def annotations(self) -> Annotations:
        """Return the images of the split. Classes are named as in cars_meta.mat, "AM General Hummer SUV 2000"."""
        root = find_root("Stanford Cars", self.root, "devkit", ("stanford_cars",))
        where = root / "devkit" / "cars_train_annos.mat"
        if self.split == "test":
            name = "cars_test_annos_withlabels.mat"
            where = root / "devkit" / name if (root / "devkit" / name).is_file() else root / name
        names = [str(name) for name in read_mat(root / "devkit" / "cars_meta.mat", "class_names")[0]]
        rows = read_mat(where, "annotations")[0]
        if rows.dtype.names is None or not {"class", "fname"} <= set(rows.dtype.names):
            raise DataError(f"{where}: expected the labels of this split, in rows with the fields class and fname")
        folder = root / f"cars_{self.split}"
        if (folder / folder.name).is_dir():  # mirrors nest the folder in itself
            folder = folder / folder.name
        members = Members(folder, where)
        images = []
        for number, file in zip(_whole(rows["class"], where), rows["fname"], strict=True):
            if not 1 <= number <= len(names):
                raise DataError(f"{where}: {file} has class {number}, but cars_meta.mat has {len(names)} classes")
            image = members.image(str(file), number - 1)
            images.append(image._replace(name=f"cars_{self.split}/{image.name}"))
        return Annotations("Stanford Cars", root, names, images, self.split == "train")


def _dogs(path: Path) -> list[tuple[str, int]]:
    files, labels = read_mat(path, "file_list", "labels")
    if len(files) != len(labels):
        raise DataError(f"{path}: {len(files)} files, but {len(labels)} labels; both need the same number")
    return [(str(file), number) for file, number in zip(files, _whole(labels, path), strict=True)]


def _whole(values: Iterable[object], where: Path) -> list[int]:
    """Convert MATLAB's numbers to ints; they may be floats, each in its own array."""
    numbers = []
    for value in values:
        array = np.asarray(value)
        if array.size != 1 or array.dtype.kind not in "iuf" or float(array.item()) != int(array.item()):
            raise DataError(f"{where}: {value!r} is not the number of a class")
        numbers.append(int(array.item()))
    return numbers
