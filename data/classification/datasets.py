"""All data sets of labeled images, and how many images and classes were published of each."""

from typing import Any, NamedTuple

from data.classification.birds import CubConfig, NabirdsConfig
from data.classification.food101 import Food101Config
from data.classification.image_folder import ImageFolderConfig
from data.classification.inaturalist import INaturalistConfig
from data.classification.labeled_images import LabeledImages
from data.classification.oxford import AircraftConfig, FlowersConfig
from data.classification.stanford import StanfordCarsConfig, StanfordDogsConfig
from mtsp.config import Config

AnyLabeled = (
    CubConfig
    | NabirdsConfig
    | StanfordDogsConfig
    | StanfordCarsConfig
    | FlowersConfig
    | AircraftConfig
    | Food101Config
    | INaturalistConfig
    | ImageFolderConfig
)


class Published(NamedTuple):
    """What a release states."""

    config: type[Config]
    splits: dict[str, int]
    """Images of each split."""
    classes: int


PUBLISHED: dict[str, Published] = {
    "cub": Published(CubConfig, {"train": 5994, "test": 5794}, 200),
    "nabirds": Published(NabirdsConfig, {"train": 23929, "test": 24633}, 555),
    "stanford_dogs": Published(StanfordDogsConfig, {"train": 12000, "test": 8580}, 120),
    "stanford_cars": Published(StanfordCarsConfig, {"train": 8144, "test": 8041}, 196),
    "flowers102": Published(FlowersConfig, {"train": 1020, "val": 1020, "test": 6149}, 102),
    "aircraft": Published(AircraftConfig, {"train": 3334, "val": 3333, "test": 3333}, 100),
    "food101": Published(Food101Config, {"train": 75750, "test": 25250}, 101),
    "inaturalist": Published(INaturalistConfig, {"train": 579184, "val": 95986}, 5089),  # of 2017
}


def miscounted_classes(name: str, split: str, dataset: Any) -> list[str]:
    """Return a line if a split of the data set `name` has another number of classes than was published."""
    if name not in PUBLISHED or not isinstance(dataset, LabeledImages):
        return []
    found, published = len(dataset.classes), PUBLISHED[name].classes
    return [] if found == published else [f"{split}: {found:,} classes, published are {published:,}"]
