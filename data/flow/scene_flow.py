"""The Scene Flow data sets Monkaa, Driving and FlyingThings3D: rendered stereo videos with exact flow both ways.

540x960 pixels, each film in two passes (clean, final) from two cameras, with flow into the future and into the past.
Layout: frames_cleanpass/<film>/<camera>/0001.png, frames_finalpass, and optical_flow/<film>/into_future/<camera>/
OpticalFlowIntoFuture_0001_L.pfm. torchvision reads Monkaa and Driving for stereo only, and FlyingThings3D always in
both directions. Source: Mayer et al., "A Large Dataset to Train Convolutional Networks for Disparity, Optical Flow, and
Scene Flow Estimation", CVPR 2016.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, Literal

from data.files.listing import find_root, images_by_stem, natural_order, subfolders
from data.files.lists import read_lines
from data.flow.pairs import FlowPair, FlowPairs
from data.types import DataError, MissingDataError
from mtsp.config import Config
from mtsp.types import Kind

MONKAA_VAL = frozenset({"a_rain_of_stones_x2", "family_x2", "top_view_x2"})
"""Scenes of Monkaa in val: the 3 of 24 that have no variants among the others."""

DRIVING_VAL = frozenset({"35mm_focallength/scene_backwards/fast", "35mm_focallength/scene_backwards/slow"})
"""Sequences of Driving in val: one drive at both speeds, since the fast one is a part of the slow one."""

_MONKAA_FAMILIES = (
    "a_rain_of",
    "eating_",
    "family_",
    "flower_storm_",
    "funnyworld_",
    "lonetree_",
    "top_view_",
    "treeflight_",
)
_FLOW = re.compile(r"OpticalFlowInto(?:Future|Past)_([0-9]+)_[LR]\.pfm")
_UNUSED = re.compile(r"((?:TRAIN|TEST)/[ABC]/[0-9]+)/(?:left/|right/)?([0-9]+)")


class _SceneFlowConfig(Config):
    kind: ClassVar[Kind] = "pairs"
    root: Path
    """The folder that has frames_cleanpass or frames_finalpass, and optical_flow."""
    passes: tuple[Literal["clean", "final"], ...] = ("clean", "final")
    directions: tuple[Literal["into_future", "into_past"], ...] = ("into_future", "into_past")
    """into_future: flow to the following frame. into_past: flow to the preceding frame, which is then `next_frame`."""
    cameras: tuple[Literal["left", "right"], ...] = ("left",)


class MonkaaConfig(_SceneFlowConfig):
    """Which pairs of Monkaa to read."""

    name: Literal["monkaa"]
    split: Literal["train", "val", "all"] = "train"

    def build(self) -> "Monkaa":
        """Return the data set, its files checked to be there."""
        return Monkaa(self)


class DrivingConfig(_SceneFlowConfig):
    """Which pairs of Driving to read."""

    name: Literal["driving"]
    split: Literal["train", "val", "all"] = "train"

    def build(self) -> "Driving":
        """Return the data set, its files checked to be there."""
        return Driving(self)


class FlyingThingsConfig(_SceneFlowConfig):
    """Which pairs of FlyingThings3D to read."""

    name: Literal["flying_things"]
    split: Literal["train", "val", "all"] = "train"
    """train: the published TRAIN. val: the published TEST."""
    skip_unused: bool = False
    """Leave out the pairs with a frame in Freiburg's all_unused_files.txt, put beside optical_flow."""

    def build(self) -> "FlyingThings":
        """Return the data set, its files checked to be there."""
        return FlyingThings(self)


class Monkaa(FlowPairs):
    """Pairs with flow of Monkaa. Names: "clean/into_future/left/<scene>/0001", the number of the pair's first frame.

    The paper leaves the split open; here the scenes of :data:`MONKAA_VAL` are val, the other published ones train.
    Of scenes with names of their own, a last eighth, at least one of two, is val.

    Raises:
        DataError: files that are missing (the first ten and their number), or an empty split.
    """

    def __init__(self, config: MonkaaConfig) -> None:
        root = find_root("Monkaa", config.root, "optical_flow", below=["Monkaa", "monkaa"])
        scenes = _split(_sequences(root, depth=1, config=config), config.split, MONKAA_VAL, _MONKAA_FAMILIES)
        super().__init__("Monkaa", config.root, list(_pairs(root, scenes, config)))


class Driving(FlowPairs):
    """Pairs with flow of Driving. Names: "clean/into_future/left/15mm_focallength/scene_forwards/fast/0001".

    The paper leaves the split open; here the sequences of :data:`DRIVING_VAL` are val, the other published ones train.
    It is all one street: val is seen in training through the 15mm lens, so error on it says little of other streets.
    Of sequences with names of their own, a last eighth, at least one of two, is val.

    Raises:
        DataError: files that are missing (the first ten and their number), or an empty split.
    """

    def __init__(self, config: DrivingConfig) -> None:
        root = find_root("Driving", config.root, "optical_flow", below=["Driving", "driving"])
        sequences = _split(_sequences(root, depth=3, config=config), config.split, DRIVING_VAL, ("15mm_", "35mm_"))
        super().__init__("Driving", config.root, list(_pairs(root, sequences, config)))


class FlyingThings(FlowPairs):
    """Pairs with flow of FlyingThings3D. Names: "clean/into_future/left/TRAIN/A/0000/0006".

    Raises:
        DataError: files that are missing (the first ten and their number), an empty split, or no list of unused
            files where it was asked for.
    """

    def __init__(self, config: FlyingThingsConfig) -> None:
        root = find_root("FlyingThings3D", config.root, "optical_flow", below=["FlyingThings3D", "flyingthings3d"])
        parts = {"train": ("TRAIN/",), "val": ("TEST/",), "all": ("TRAIN/", "TEST/")}[config.split]
        sequences = [s for s in _sequences(root, depth=3, config=config) if s.startswith(parts)]
        unused = _unused(root) if config.skip_unused else frozenset()
        super().__init__("FlyingThings3D", config.root, list(_pairs(root, sequences, config, unused)))


def _sequences(root: Path, depth: int, config: _SceneFlowConfig) -> list[str]:
    """Return the sequences of frames or flow, as paths `depth` folders long, in natural order."""
    found: set[str] = set()
    for top in ("optical_flow", *(f"frames_{which}pass" for which in config.passes)):
        places = [root / top]
        for _ in range(depth):
            places = [inner for place in places for inner in subfolders(place)]
        found |= {place.relative_to(root / top).as_posix() for place in places}
    return sorted(found, key=natural_order)


def _split(sequences: list[str], split: str, val: frozenset[str], published: tuple[str, ...]) -> list[str]:
    own = [name for name in sequences if not name.startswith(published)]
    held_out = val | set(own[len(own) - (len(own) + 7) // 8 :] if len(own) > 1 else [])
    return [name for name in sequences if split == "all" or (name in held_out) == (split == "val")]


def _pairs(
    root: Path, sequences: Iterable[str], config: _SceneFlowConfig, unused: frozenset[tuple[str, int]] = frozenset()
) -> Iterator[FlowPair]:
    """Yield the pairs of `sequences`, all that is asked for of one pass before the next."""
    sequences = list(sequences)
    for which in dict.fromkeys(config.passes):
        for direction in dict.fromkeys(config.directions):
            for camera in dict.fromkeys(config.cameras):
                for sequence in sequences:
                    yield from _film(root, which, direction, camera, sequence, unused)


def _film(
    root: Path, which: str, direction: str, camera: str, sequence: str, unused: frozenset[tuple[str, int]]
) -> Iterator[FlowPair]:
    """Yield the pairs of one film.

    The numbers come from the files, for not every film starts at 1. The film's last frame (into the past: its first)
    has a file of flow too, to a frame that was not published; any other frame without a partner is missing.
    """
    folder = root / f"frames_{which}pass" / sequence / camera
    flows = root / "optical_flow" / sequence / direction / camera
    frames = {int(stem): path for stem, path in images_by_stem(folder).items() if stem.isdecimal()}
    names = [path.name for path in flows.iterdir()] if flows.is_dir() else []
    numbers = frames.keys() | {int(match[1]) for name in names if (match := _FLOW.fullmatch(name))}
    step = 1 if direction == "into_future" else -1
    if not numbers:
        raise MissingDataError(f"neither frames in {folder} nor flow in {flows}")
    end = max(numbers) if step == 1 else min(numbers)
    for number in sorted(numbers - {end}):
        if (sequence, number) in unused or (sequence, number + step) in unused:
            continue
        first, second = (frames.get(n, folder / f"{n:04d}.png") for n in (number, number + step))
        file = f"OpticalFlowInto{'Future' if step == 1 else 'Past'}_{number:04d}_{camera[0].upper()}.pfm"
        yield FlowPair(f"{which}/{direction}/{camera}/{sequence}/{number:04d}", first, second, flows / file)


def _unused(root: Path) -> frozenset[tuple[str, int]]:
    """Return the (sequence, number) of each frame in the list of unused files: lines "TRAIN/A/0024/left/0006.png"."""
    path = root / "all_unused_files.txt"
    lines = [" ".join(words) for words in read_lines(path)]
    matches = [_UNUSED.search(line) for line in lines]
    if None in matches:
        raise DataError(f"{path}: {lines[matches.index(None)]!r} is not like TRAIN/A/0024/left/0006.png")
    return frozenset((match[1], int(match[2])) for match in matches if match)
