"""The Scene Flow data sets Monkaa, Driving and FlyingThings3D: rendered stereo videos with exact flow in both
directions.

540x960 pixels. Each film is rendered in two passes (clean, final) from two cameras, with flow to the next and to the
previous frame.
Layout: frames_cleanpass/<film>/<camera>/0001.png, frames_finalpass, and optical_flow/<film>/into_future/<camera>/
OpticalFlowIntoFuture_0001_L.pfm. torchvision reads Monkaa and Driving for stereo only, and FlyingThings3D always in
both directions. Source: Mayer et al., "A Large Dataset to Train Convolutional Networks for Disparity, Optical Flow, and
Scene Flow Estimation", CVPR 2016.
"""

import re
from abc import abstractmethod
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import ClassVar, Literal

from data.files.list_files import read_lines
from data.files.listing import find_root, images_by_stem, subfolders
from data.flow.pairs import FlowConfig, FlowPair
from data.types import DataError, MissingDataError
from mtsp.text import natural_order

MONKAA_VAL = frozenset({"a_rain_of_stones_x2", "family_x2", "top_view_x2"})
"""Scenes of Monkaa in val: the 3 of 24 scenes that have no variants among the training scenes."""

DRIVING_VAL = frozenset({"35mm_focallength/scene_backwards/fast", "35mm_focallength/scene_backwards/slow"})
"""Sequences of Driving in val: one drive at both speeds, since the fast sequence is a part of the slow sequence."""

_MONKAA_FAMILIES = (
    "a_rain_of", "eating_", "family_", "flower_storm_", "funnyworld_", "lonetree_", "top_view_", "treeflight_",
)  # fmt: skip
_FLOW = re.compile(r"OpticalFlowInto(?:Future|Past)_([0-9]+)_[LR]\.pfm")
_UNUSED = re.compile(r"((?:TRAIN|TEST)/[ABC]/[0-9]+)/(?:left/|right/)?([0-9]+)")


class _SceneFlowConfig(FlowConfig):
    depth: ClassVar[int] = 3  # folders between optical_flow (or frames_cleanpass) and the folders of a sequence
    split: Literal["train", "val", "all"] = "train"
    passes: tuple[Literal["clean", "final"], ...] = ("clean", "final")
    directions: tuple[Literal["into_future", "into_past"], ...] = ("into_future", "into_past")
    """into_future: flow to the following frame. into_past: flow to the preceding frame, which becomes `next_frame`."""
    cameras: tuple[Literal["left", "right"], ...] = ("left",)

    @abstractmethod
    def sequences(self, found: list[str]) -> list[str]:
        """Return the sequences of the split."""

    def unused(self, root: Path) -> frozenset[tuple[str, int]]:
        """Return the sequence and the frame number of each frame to leave out."""
        return frozenset()

    def pairs(self) -> list[FlowPair]:
        """Return the files of each pair, sorted by pass, then direction, then camera."""
        root = find_root(self.title, self.root, "optical_flow", below=[self.title, self.title.lower()])
        found: set[str] = set()
        for top in (root / "optical_flow", *(root / f"frames_{which}pass" for which in self.passes)):
            places = [top]
            for _ in range(self.depth):
                places = [inner for place in places for inner in subfolders(place)]
            found |= {place.relative_to(top).as_posix() for place in places}
        sequences, unused = self.sequences(sorted(found, key=natural_order)), self.unused(root)
        passes, directions, cameras = map(dict.fromkeys, (self.passes, self.directions, self.cameras))
        films = product(passes, directions, cameras, sequences)
        return [pair for film in films for pair in _film(root, *film, unused)]


class MonkaaConfig(_SceneFlowConfig):
    """Config of Monkaa. Pairs are named like "clean/into_future/left/<scene>/0001", with their first frame's number.

    The paper defines no split; here the scenes of :data:`MONKAA_VAL` are val and the other published scenes are train.
    If there are unpublished scenes, the last eighth of them is val, but at least one of two.
    """

    depth: ClassVar[int] = 1
    title: ClassVar[str] = "Monkaa"
    name: Literal["monkaa"]

    def sequences(self, found: list[str]) -> list[str]:
        """Return the scenes of the split."""
        return _split(found, self.split, MONKAA_VAL, _MONKAA_FAMILIES)


class DrivingConfig(_SceneFlowConfig):
    """Config of Driving. Pairs are named like "clean/into_future/left/15mm_focallength/scene_forwards/fast/0001".

    The paper defines no split; here the sequences of :data:`DRIVING_VAL` are val and the other published sequences are
    train. All sequences show one street, and train shows it through the 15mm lens, so errors on val say little about
    other streets. If there are unpublished sequences, the last eighth of them is val, but at least one of two.
    """

    title: ClassVar[str] = "Driving"
    name: Literal["driving"]

    def sequences(self, found: list[str]) -> list[str]:
        """Return the sequences of the split."""
        return _split(found, self.split, DRIVING_VAL, ("15mm_", "35mm_"))


class FlyingThingsConfig(_SceneFlowConfig):
    """Config of FlyingThings3D. Pairs are named like "clean/into_future/left/TRAIN/A/0000/0006"."""

    title: ClassVar[str] = "FlyingThings3D"
    name: Literal["flying_things"]
    split: Literal["train", "val", "all"] = "train"
    """train: the published folder TRAIN. val: the published folder TEST."""
    skip_unused: bool = False
    """Leave out the pairs with a frame listed in Freiburg's all_unused_files.txt, which must lie beside
    optical_flow."""

    def sequences(self, found: list[str]) -> list[str]:
        """Return the sequences of the split."""
        parts = {"train": ("TRAIN/",), "val": ("TEST/",), "all": ("TRAIN/", "TEST/")}[self.split]
        return [name for name in found if name.startswith(parts)]

    def unused(self, root: Path) -> frozenset[tuple[str, int]]:
        """Return the frames in the list of unused files, which has lines like "TRAIN/A/0024/left/0006.png"."""
        if not self.skip_unused:
            return frozenset()
        path = root / "all_unused_files.txt"
        lines = [" ".join(words) for words in read_lines(path)]
        matches = [_UNUSED.search(line) for line in lines]
        if None in matches:
            raise DataError(f"{path}: {lines[matches.index(None)]!r} does not have the form TRAIN/A/0024/left/0006.png")
        return frozenset((match[1], int(match[2])) for match in matches if match)


def _split(sequences: list[str], split: str, val: frozenset[str], published: tuple[str, ...]) -> list[str]:
    own = [name for name in sequences if not name.startswith(published)]
    held_out = val | set(own[len(own) - (len(own) + 7) // 8 :] if len(own) > 1 else [])
    return [name for name in sequences if split == "all" or (name in held_out) == (split == "val")]


def _film(
    root: Path, which: str, direction: str, camera: str, sequence: str, unused: frozenset[tuple[str, int]]
) -> Iterator[FlowPair]:
    """Yield the pairs of one film.

    Frame numbers are read from the file names, since not every film starts at 1. The last frame of a film (into the
    past: the first frame) has flow to a frame that was not published. Any other missing frame is an error.
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
