"""Which value in a data set's label images is which class: names, values, colors.

The order of the classes is the order of the values in the files, and names are kept beside the values: a list of names
in another order leaves mIoU as it is and makes every per-class table wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from data.files.images import DataError
from mtsp.files.palettes import palette
from mtsp.types import IGNORE

MAX_CLASSES = 254
"""One value of a byte is IGNORE, one marks values that the map does not know."""

_FOREIGN = MAX_CLASSES

Color = tuple[int, int, int]


@dataclass(frozen=True)
class LabelMap:
    """The classes of a data set, ids 0, 1, ... in the order of `classes`, and what files hold for them.

    Raises:
        ValueError: the names and values do not match one to one, or a value is no byte or means two things.
    """

    name: str
    classes: tuple[str, ...]
    values: tuple[int, ...]  # what files hold for each class
    unknown: tuple[int, ...] = (IGNORE,)  # what files hold where the class is unknown
    colors: tuple[Color, ...] = ()  # of each class; none: those of PASCAL VOC

    def __post_init__(self) -> None:
        if not 1 <= len(self.classes) <= MAX_CLASSES:
            raise ValueError(f"{self.name}: {len(self.classes)} classes; 1 to {MAX_CLASSES} fit into a byte")
        if len(self.classes) != len(self.values):
            raise ValueError(f"{self.name}: {len(self.classes)} classes, but {len(self.values)} values for them")
        if twice := _twice(self.classes):
            raise ValueError(f"{self.name}: two classes are called {twice[0]!r}")
        if self.colors and len(self.colors) != len(self.classes):
            raise ValueError(f"{self.name}: {len(self.classes)} classes, but {len(self.colors)} colors for them")
        meanings = (*self.values, *self.unknown)
        if bad := [value for value in meanings if not 0 <= value <= 255]:
            raise ValueError(f"{self.name}: the values {bad} are outside 0 to 255")
        if twice := _twice(meanings):
            raise ValueError(f"{self.name}: the values {twice} have two meanings each")

    def __call__(self, stored: np.ndarray, path: Path) -> np.ndarray:
        """Return class ids, HW uint8 with IGNORE where unknown, of what the file `path` holds, HW uint8.

        Raises:
            DataError: a value that is neither a class nor unknown: the file is of another data set or encoding.
        """
        table = np.full(256, _FOREIGN, np.uint8)
        table[list(self.values)] = np.arange(len(self.values))
        table[list(self.unknown)] = IGNORE
        mask = np.asarray(cv2.LUT(stored, table))
        if (foreign := mask == _FOREIGN).any():
            found = np.unique(stored[foreign]).tolist()
            raise DataError(
                f"{path}: the values {found} are no labels of {self.name}, whose classes are {ranges(self.values)}, "
                f"unknown {ranges(self.unknown) or 'none'}; the file has another encoding, or the label map is wrong"
            )
        return mask

    def palette(self) -> np.ndarray:
        """Return the color of each class, K3 uint8 RGB."""
        if self.colors:
            return np.array(self.colors, np.uint8)
        # In VOC's palette 0 is black, the color of "background"; where id 0 is a thing, all move on by one.
        shift = 0 if self.classes[0] == "background" else 1
        return palette(len(self.classes) + shift)[shift:]


def ranges(values: Sequence[int]) -> str:
    """Return whole numbers in few words: "0 to 10, 12"."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in runs)


def _twice(values: Sequence[object]) -> list[object]:
    seen: set[object] = set()
    return [value for value in values if value in seen or seen.add(value)]


CAMVID = LabelMap(
    "camvid",
    (
        "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
    ),
    values=tuple(range(11)),
    unknown=(11,),
    colors=(
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0), (192, 128, 128),
        (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    ),
)  # fmt: skip
"""The 11 classes of SegNet's version (Badrinarayanan et al., 2015), made of CamVid's 32; 11 is void."""

_VOC_THINGS = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
)
PASCAL_VOC = LabelMap("pascal_voc", ("background", *_VOC_THINGS.split()), values=tuple(range(21)))
"""255 is the seam around objects and what is too hard to tell."""

_CITYSCAPES: tuple[tuple[int, str, Color], ...] = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
_NAMES, _COLORS = tuple(row[1] for row in _CITYSCAPES), tuple(row[2] for row in _CITYSCAPES)
_IDS = tuple(row[0] for row in _CITYSCAPES)
CITYSCAPES = LabelMap("cityscapes labelIds", _NAMES, _IDS, (*sorted({*range(34)} - {*_IDS}), 255), _COLORS)
"""The 19 classes that are scored, in files of labelIds: 0 to 33; 255 is -1, the license plate, in a byte."""
CITYSCAPES_TRAIN = LabelMap("cityscapes labelTrainIds", _NAMES, tuple(range(19)), (255,), _COLORS)
"""The same classes in files of labelTrainIds."""

_ADE20K = """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door, table,
mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair, seat,
fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers, counter,
sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow,
screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop,
stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck, tower,
chandelier, awning, streetlight, booth, television receiver, airplane, dirt track, apparel, pole, land, bannister,
escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything,
swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name,
microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray,
ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag
"""
ADE20K = LabelMap("ade20k", tuple(" ".join(_ADE20K.split()).split(", ")), tuple(range(1, 151)), unknown=(0,))
"""The 150 classes of the scene parsing challenge of 2016, by the first of their names; 0 is everything else."""
