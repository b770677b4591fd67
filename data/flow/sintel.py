"""MPI Sintel: an animated film with exact flow, 1041 training pairs of 436x1024 in 23 scenes, in two passes.

Layout: training/{clean,final}/<scene>/frame_0001.png, training/flow/<scene>/frame_0001.flo, training/invalid.
Source: Butler, Wulff, Stanley and Black, "A Naturalistic Open Source Movie for Optical Flow Evaluation", ECCV 2012.
"""

import re
from pathlib import Path
from typing import ClassVar, Literal

from data.files.listing import find_root, images_by_stem, natural_order, subfolders
from data.flow.pairs import FlowPair, FlowPairs
from mtsp.config import Config
from mtsp.types import Kind

_FRAME = re.compile(r"frame_([0-9]{4})")
VAL_SCENES = frozenset({"alley_2", "ambush_6", "bandage_2", "cave_4", "market_6", "temple_2"})
"""The 6 of 23 scenes that are never trained on, each from a place that training shows in another scene."""


class SintelConfig(Config):
    """Which pairs of Sintel to read."""

    kind: ClassVar[Kind] = "pairs"
    name: Literal["sintel"]
    root: Path
    """MPI-Sintel, the folder that has `training`."""
    split: Literal["train", "val", "all"] = "train"
    passes: tuple[Literal["clean", "final"], ...] = ("clean", "final")

    def build(self) -> "Sintel":
        """Return the data set, its files checked to be there."""
        return Sintel(self)


class Sintel(FlowPairs):
    """Pairs with flow of Sintel's training part (the test part has no public flow). Names: "clean/alley_1/frame_0001".

    The release leaves the split open; here the scenes of :data:`VAL_SCENES` are val and the others train, so that no
    frame of a val scene is seen in training. Where `training/invalid` is there, its pixels are unknown flow.

    torchvision's Sintel is not used: its file lists are private, and it drops a missing frame without a word.

    Raises:
        DataError: files that are missing (the first ten and their number), or an empty split.
    """

    def __init__(self, config: SintelConfig) -> None:
        root = find_root("Sintel", config.root, "training/flow", below=["MPI-Sintel", "Sintel"]) / "training"
        wanted = {"train": lambda s: s not in VAL_SCENES, "val": VAL_SCENES.__contains__, "all": lambda _: True}
        folders = [root / kind for kind in ("flow", *config.passes)]
        scenes = {scene.name for folder in folders for scene in subfolders(folder)}
        chosen = sorted(filter(wanted[config.split], scenes), key=natural_order)
        pairs = [
            pair for which in dict.fromkeys(config.passes) for scene in chosen for pair in _pairs(root, which, scene)
        ]
        super().__init__("Sintel", config.root, pairs)


def _pairs(root: Path, which: str, scene: str) -> list[FlowPair]:
    """Return the pairs of one scene: a frame that has flow and the next number; all frames but the last have flow."""
    frames = images_by_stem(root / which / scene)
    numbers = {int(match[1]) for stem in frames if (match := _FRAME.fullmatch(stem))}
    files = (root / "flow" / scene).glob("*.flo")
    flows = {int(match[1]) for path in files if (match := _FRAME.fullmatch(path.stem))}
    starts = flows | {number for number in numbers if number + 1 in numbers}

    def frame(number: int) -> Path:
        stem = f"frame_{number:04d}"
        return frames.get(stem, root / which / scene / f"{stem}.png")

    invalid = root / "invalid"
    return [
        FlowPair(
            name=f"{which}/{scene}/frame_{number:04d}",
            frame=frame(number),
            next_frame=frame(number + 1),
            flow=root / "flow" / scene / f"frame_{number:04d}.flo",
            invalid=invalid / scene / f"frame_{number:04d}.png" if invalid.is_dir() else None,
        )
        for number in sorted(starts)
    ]
