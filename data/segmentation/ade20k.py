"""ADE20K's scene parsing challenge of 2016: 20,210 training and 2,000 validation images, 150 classes.

Layout: images/{training,validation}/<id>.jpg and annotations/{training,validation}/<id>.png.
Source: Zhou et al., "Scene Parsing through ADE20K Dataset", CVPR 2017.
"""

from pathlib import Path
from typing import ClassVar, Literal

from data.files.listing import find_root, images_by_stem
from data.segmentation.label_map import LabelMap
from data.segmentation.segmented_images import SegmentedConfig, SegmentedImage

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
"""The 150 classes of the scene parsing challenge of 2016, each by the first of its names; 0 is everything else."""


class Ade20kConfig(SegmentedConfig):
    """Config of ADE20K."""

    title: ClassVar[str] = "ADE20K"
    name: Literal["ade20k"]
    root: Path
    """The folder ADEChallengeData2016, which has images and annotations, or its parent folder."""
    split: Literal["train", "val"] = "train"

    def label_map(self) -> LabelMap:
        """Return the 150 classes, stored as 1 to 150 in mask files."""
        return ADE20K

    def files(self) -> tuple[Path, list[SegmentedImage]]:
        """Return the root folder and the files of each example. Raises DataError."""
        folder = {"train": "training", "val": "validation"}[self.split]
        root = find_root("ADE20K", self.root, f"images/{folder}", below=("ADEChallengeData2016",))
        images = [
            SegmentedImage(stem, frame, root / "annotations" / folder / f"{stem}.png")
            for stem, frame in images_by_stem(root / "images" / folder).items()
        ]
        return root, images
