"""Food-101: 101 classes, 75750 training images with noisy labels and 25250 test images.

Layout: images/<class>/<image>.jpg and meta/{train,test}.json. Source: Bossard, Guillaumin and Van Gool, "Food-101:
Mining Discriminative Components with Random Forests", ECCV 2014.
"""

from typing import Literal

from data.classification.labeled_images import Annotations, LabeledConfig, Members
from data.files.list_files import read_json
from data.files.listing import find_root
from data.types import DataError


class Food101Config(LabeledConfig):
    """Config of Food-101, in torchvision's layout with the folders `images` and `meta`."""

    name: Literal["food101"]
    split: Literal["train", "test"] = "train"

    def annotations(self) -> Annotations:
        """Return the images of the split. Classes are named after their folders, "apple_pie"."""
        root = find_root("Food-101", self.root, "meta", ("food-101",))
        where = root / "meta" / f"{self.split}.json"
        files = read_json(where)
        whole = isinstance(files, dict) and all(isinstance(paths, list) for paths in files.values())
        if not whole or not all(isinstance(path, str) for paths in files.values() for path in paths):
            raise DataError(f"{where}: expected a dict with a list of images for each class")
        names = sorted(files)
        members = Members(root / "images", where)
        images = []
        for label, name in enumerate(names):
            for path in files[name]:
                if path.partition("/")[0] != name:
                    raise DataError(f"{where}: {path} is listed as class {name!r}, but lies in another folder")
                images.append(members.image(f"{path}.jpg", label))
        return Annotations("Food-101", root, names, images, self.split == "train")
