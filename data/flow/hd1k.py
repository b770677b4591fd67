"""HD1K: driving videos of 1080x2560 with flow measured by laser, 36 sequences with flow.

Layout: hd1k_input/image_2/000000_0000.png and hd1k_flow_gt/flow_occ/000000_0000.png, sequence and frame in each name.
Source: Kondermann et al., "The HCI Benchmark Suite: Stereo and Flow Ground Truth With Uncertainties for Urban
Autonomous Driving", CVPR 2016 Workshops.
"""

import re
from itertools import groupby, pairwise
from typing import ClassVar, Literal

from data.files.listing import find_root, images_by_stem
from data.flow.pairs import FlowConfig, FlowPair

_NAME = re.compile(r"([0-9]+)_([0-9]+)")
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
        pairs = []
        found = sorted(match.groups() for stem in frames.keys() | flows.keys() if (match := _NAME.fullmatch(stem)))
        for sequence, members in groupby(found, key=lambda name: name[0]):
            names = [name for _, name in members]
            step = min((int(b) - int(a) for a, b in pairwise(names)), default=1)
            # A frame missing between the first and the last one is named by the check for missing files.
            numbers = range(int(names[0]), int(names[-1]) + step, step)
            stems = [f"{sequence}_{number:0{len(names[0])}d}" for number in numbers]
            for stem, following in pairwise(stems) if int(sequence) % 6 in wanted else ():
                first, second = (frames.get(name, root / _FRAMES / f"{name}.png") for name in (stem, following))
                pairs.append(FlowPair(stem, first, second, root / _FLOWS / f"{stem}.png"))
        return pairs
