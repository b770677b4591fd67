"""Oxford's Flowers-102 and FGVC-Aircraft, in torchvision's layout.

Nilsback and Zisserman, "Automated Flower Classification over a Large Number of Classes" (2008): 102 classes, 1020
training, 1020 validation and 6149 test images. Maji et al., "Fine-Grained Visual Classification of Aircraft"
(arXiv:1306.5151): 100 variants, 3334, 3333 and 3333 images. DSTL trains on train and val together, as the
default `trainval` does here.
"""

from typing import Literal

from data.classification.labeled_images import HELD_OUT, Annotations, LabeledConfig, LabeledImage, Members
from data.files.list_files import read_mat, read_names
from data.files.listing import find_root
from data.types import DataError

_IDS = {"train": ("trnid",), "val": ("valid",), "trainval": ("trnid", "valid"), "test": ("tstid",)}


class FlowersConfig(LabeledConfig):
    """Config of Flowers-102, with the files `jpg`, `imagelabels.mat`, `setid.mat`."""

    name: Literal["flowers102"]
    split: Literal["train", "val", "trainval", "test"] = "trainval"

    def annotations(self) -> Annotations:
        """Return the images of the split. Classes are named as in torchvision."""
        from torchvision.datasets import Flowers102

        root = find_root("Flowers-102", self.root, "setid.mat", ("flowers-102",))
        labels = read_mat(root / "imagelabels.mat", "labels")[0].tolist()
        names = list(Flowers102.classes)
        images = []
        for ids in read_mat(root / "setid.mat", *_IDS[self.split]):
            for number in ids.tolist():
                if not 1 <= number <= len(labels):
                    raise DataError(f"{root / 'setid.mat'}: image {number} has no label in imagelabels.mat")
                label = labels[number - 1]
                if not 1 <= label <= len(names):
                    raise DataError(
                        f"{root / 'imagelabels.mat'}: image {number} has class {label}, expected 1 to {len(names)}"
                    )
                stem = f"image_{number:05d}"
                images.append(LabeledImage(stem, root / "jpg" / f"{stem}.jpg", label - 1))
        return Annotations("Flowers-102", root, names, images, self.split not in HELD_OUT)


class AircraftConfig(LabeledConfig):
    """Config of FGVC-Aircraft: `data/images` and lists in `data`. The strip with the photographer's name is kept."""

    name: Literal["aircraft"]
    split: Literal["train", "val", "trainval", "test"] = "trainval"
    level: Literal["variant", "family", "manufacturer"] = "variant"
    """Level of the classes: 100 variants, 70 families or 30 manufacturers."""

    def annotations(self) -> Annotations:
        """Return the images of the split. Classes are named as in variants.txt, "707-320"."""
        root = find_root("FGVC-Aircraft", self.root, "data/images", ("fgvc-aircraft-2013b",)) / "data"
        plural = {"variant": "variants", "family": "families", "manufacturer": "manufacturers"}[self.level]
        names = read_names(root / f"{plural}.txt")
        labels = {name: label for label, name in enumerate(names)}
        where = root / f"images_{self.level}_{self.split}.txt"
        members = Members(root / "images", where)
        images = []
        for line in read_names(where):
            image, _, name = line.partition(" ")
            name = name.strip()
            if name not in labels:
                raise DataError(f"{where}: {image} has class {name!r}, which is not in {plural}.txt")
            images.append(members.image(f"{image}.jpg", labels[name]))
        return Annotations("FGVC-Aircraft", root, names, images, self.split not in HELD_OUT)
