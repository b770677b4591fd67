"""iNaturalist's competitions of 2017, 2018, 2019 and 2021.

Van Horn et al., "The iNaturalist Species Classification and Detection Dataset" (CVPR 2018). DSTL trains on 665473
images of 2017's train and val sets (5089 classes) and validates on 9697 other images of val; to read DSTL's lists,
use `image_folder` with `list`.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from data.classification.image_folder import read_tree
from data.classification.labeled_images import Annotations, LabeledConfig, Members, contiguous
from data.files.list_files import read_json
from data.types import DataError, MissingDataError

_FOLDERS = {
    "train": ("2021_train", "train"),
    "train_mini": ("2021_train_mini", "train_mini"),
    "val": ("2021_valid", "val"),
}


class INaturalistConfig(LabeledConfig):
    """Config of iNaturalist: 2017 to 2019 have images and `train2017.json` etc., 2021 has only folders of images.

    Images are in the folders as archived (`train_val_images`, `train`) or as torchvision names them (`2017`,
    `2021_train`).
    """

    name: Literal["inaturalist"]
    version: Literal["2017", "2018", "2019", "2021"] = "2017"
    split: Literal["train", "train_mini", "val"] = "train"

    @model_validator(mode="after")
    def _only_2021_has_a_small_one(self) -> "INaturalistConfig":
        if self.split == "train_mini" and self.version != "2021":
            raise ValueError(f"iNaturalist {self.version} has no train_mini; use train, or version 2021")
        return self

    def annotations(self) -> Annotations:
        """Return the images of the split. Classes are named like "Aves/Acanthis cannabina", or after their folders for
        2021."""
        kind = f"iNaturalist {self.version}"
        if self.version == "2021":
            names = _FOLDERS[self.split]
            folder = next((folder for name in names if (folder := self.root / name).is_dir()), None)
            if folder is None:
                raise MissingDataError(f"no {kind} at {self.root}: expected {' or '.join(names)} inside it")
            return read_tree(kind, folder)
        where = self.root / f"{self.split}{self.version}.json"
        if not where.is_file():
            raise MissingDataError(f"no {kind} at {self.root}: expected {where.name} inside it; see docs/data_sets.md")
        return _annotated(kind, self.root, where, self.version, every_class=self.split == "train")


def _annotated(kind: str, root: Path, where: Path, version: str, *, every_class: bool) -> Annotations:
    """Read annotations in COCO's format."""
    found: Any = read_json(where)
    try:
        files = {row["id"]: row["file_name"] for row in found["images"]}
        numbers = {row["image_id"]: row["category_id"] for row in found["annotations"]}
        names = {row["id"]: f"{row.get('supercategory', '')}/{row['name']}".lstrip("/") for row in found["categories"]}
        label_of = contiguous(names)
    except (TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{where}: expected images, annotations and categories in COCO's format: {error!r}") from error
    if odd := files.keys() ^ numbers.keys():
        raise DataError(
            f"{where}: ids of images and annotations differ in {len(odd)} cases, for example {next(iter(odd))}"
        )
    if unknown := set(numbers.values()) - names.keys():
        raise DataError(f"{where}: category {next(iter(unknown))} of an annotation is not in the list of categories")
    members = Members(root, where)
    moved = (root / version).is_dir()
    images = []
    for key, file in files.items():
        first, _, rest = str(file).partition("/")
        place = f"{version}/{rest}" if moved and first != version else str(file)
        images.append(members.image(place, label_of[numbers[key]]))
    return Annotations(kind, root, [names[number] for number in label_of], images, every_class)
