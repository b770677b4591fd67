"""HD1K: driving videos of 1080x2560 with flow measured by laser, 36 sequences with flow.

Layout: hd1k_input/image_2/000000_0000.png and hd1k_flow_gt/flow_occ/000000_0000.png, sequence and frame in each name.
Source: Kondermann et al., "The HCI Benchmark Suite: Stereo and Flow Ground Truth With Uncertainties for Urban
Autonomous Driving", CVPR 2016 Workshops.
"""

from itertools import groupby
from typing import ClassVar, Literal

from data.files.listing import find_root, images_by_stem
from data.flow.pairs import FlowConfig, FlowPair

_FRAMES, _FLOWS = "hd1k_input/image_2", "hd1k_flow_gt/flow_occ"


class Hd1kConfig(FlowConfig):
    """Config of HD1K. Pairs are named by their first frame, "000000_0000".

    The last frame of a sequence has no next one. Its flow file, if there is one, is not read, as in RAFT and
    torchvision. The release defines no split; here every sixth sequence (0, 6, ...) is val. torchvision's HD1K is not
    used, since a missing file shifts its pairs.
    """

    title: ClassVar[str] = "HD1K"
    name: Literal["hd1k"]
    split: Literal["train", "val", "all"] = "train"

    def pairs(self) -> list[FlowPair]:
        """Return the files of each pair."""
        root = find_root(self.title, self.root, _FRAMES, below=["hd1k", "HD1K"])
        frames, flows = images_by_stem(root / _FRAMES), images_by_stem(root / _FLOWS)
        wanted = {"train": (1, 2, 3, 4, 5), "val": (0,), "all": range(6)}[self.split]
        named = sorted({_numbers(stem) for stem in frames.keys() | flows.keys()} - {None})
        pairs = []
        for sequence, members in groupby(named, key=lambda pair: pair[0]):
            numbers = [number for _, number in members]
            # A hole between the first and the last frame is an error, which require_files names.
            for number in range(numbers[0], numbers[-1]) if sequence % 6 in wanted else ():
                stem, following = (f"{sequence:06d}_{n:04d}" for n in (number, number + 1))
                frame, next_frame = (frames.get(s, root / _FRAMES / f"{s}.png") for s in (stem, following))
                pairs.append(FlowPair(stem, frame, next_frame, root / _FLOWS / f"{stem}.png"))
        return pairs


def _numbers(stem: str) -> tuple[int, int] | None:
    sequence, _, frame = stem.partition("_")
    return (int(sequence), int(frame)) if sequence.isdecimal() and frame.isdecimal() else None
