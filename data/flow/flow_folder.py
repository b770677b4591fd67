"""Your own pairs of frames with flow: folders, or a list of files."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, Self
from unicodedata import normalize

from pydantic import model_validator

from data.files.flow_formats.read import FLOW_SUFFIXES
from data.files.list_files import read_lines
from data.files.listing import first_ten, folders_below, image_tree, in_split, inside
from data.flow.pairs import FlowPair, FlowPairs
from data.types import DataError, MissingDataError
from mtsp.config import Config
from mtsp.text import natural_order
from mtsp.types import Kind

_WORDS = re.compile(r"(?:flow|frame|image|img|[\W_])+", re.IGNORECASE)


class FlowFolderConfig(Config):
    """Config of your own pairs. A file of flow belongs to the first of its two frames, by its name.

    With `next_frames`, a pair is the frames of one name in both folders, and its flow has that name. Without, a flow
    file is matched with the frame of its name in the same subfolder, without the words flow, frame, image and img (the
    flow of frame10.png is flow10.flo or frame10.flo), and the next frame is the next one of that subfolder that differs
    only in numbers (2_L.png after 1_L.png); or with the two frames whose names begin with its own (00001_flow.flo:
    00001_img1.ppm and 00001_img2.ppm). Where names are otherwise, give a `triples`.
    """

    kind: ClassVar[Kind] = "pairs"
    name: Literal["flow_folder"]
    frames: Path
    """Folder of frames, or of a subfolder per video or scene; with `triples`, the folder that its paths start from."""
    next_frames: Path | None = None
    """Folder of the second frames of all pairs, which have the names of the first ones."""
    flow: Path | None = None
    """Folder of .flo, .pfm or .npy files, or KITTI's .png, with the subfolders of `frames`; it may be the same folder,
    but not for .png."""
    triples: Path | None = None
    """Text file with three paths per line, frame, next frame and flow, in place of `flow`."""
    split: Path | None = None
    """Text file with one pair per line (the path of its flow below `flow`, without suffix) or a folder of pairs. Null:
    use all."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.flow is None) == (self.triples is None):
            raise ValueError(
                "set either `flow`, a folder of flow, or `triples`, a file with the three paths of each pair"
            )
        if self.triples is not None and self.next_frames is not None:
            raise ValueError("`triples` names the second frames; leave out `next_frames`")
        return self

    def build(self) -> FlowPairs:
        """Return the data set after checking that its files exist. Raises DataError."""
        pairs = {pair.name: pair for pair in self.pairs()}
        return FlowPairs("pairs", self.frames, [pairs[name] for name in in_split(self.split, pairs, self.frames)])

    def pairs(self) -> list[FlowPair]:
        """Return the files of all pairs. Raises DataError, also if the frames of a flow file cannot be told."""
        if self.triples is not None:
            return [self._listed(words) for words in read_lines(self.triples)]
        assert self.flow is not None
        flows = flow_tree(self.flow)
        if not flows:
            raise MissingDataError(f"no flow in {self.flow.absolute()}; files end with {', '.join(FLOW_SUFFIXES)}")
        frames = image_tree(self.frames)
        if self.next_frames is not None:
            return self._of_two_folders(flows, frames, image_tree(self.next_frames))
        places: dict[str, dict[str, Path]] = {}
        for name, path in frames.items():
            places.setdefault(name.rpartition("/")[0], {})[name.rpartition("/")[2]] = path
        found = {name: _frames_of(name, places) for name in flows}
        if unknown := [path for name, path in flows.items() if found[name] is None]:
            raise DataError(
                f"the frames of {first_ten(unknown, self.flow)} cannot be told from the names in "
                f"{self.frames.absolute()}; give a `triples` of frame, next frame and flow"
            )
        return [FlowPair(name, *pair, flows[name]) for name, pair in found.items() if pair is not None]

    def _listed(self, words: list[str]) -> FlowPair:
        assert self.triples is not None
        if len(words) != 3:
            raise DataError(f"{self.triples}: {' '.join(words)!r} must be the paths of frame, next frame and flow")
        first, second, flow = (inside(self.frames, word, self.triples) for word in words)
        return FlowPair(words[2].lstrip("/").rpartition(".")[0], first, second, flow)

    def _of_two_folders(
        self, flows: Mapping[str, Path], first: Mapping[str, Path], second: Mapping[str, Path]
    ) -> list[FlowPair]:
        for folder, frames in ((self.frames, first), (self.next_frames, second)):
            if lacking := [flows[name] for name in flows if name not in frames]:
                assert self.flow is not None
                raise MissingDataError(f"no frame in {folder} for {first_ten(lacking, self.flow)}")
        return [FlowPair(name, first[name], second[name], path) for name, path in flows.items()]


def flow_tree(folder: Path) -> dict[str, Path]:
    """Return the flow files in `folder` and its subfolders by name: .flo, .pfm and .npy, or .png if there is no other.

    Raises MissingDataError if there is no such folder, and DataError if two files differ only in their suffix.
    """
    if not folder.is_dir():
        raise MissingDataError(f"no folder {folder.absolute()}")
    files = [
        path
        for place in folders_below(folder)
        for path in place.iterdir()
        if path.suffix.lower() in FLOW_SUFFIXES and not path.name.startswith(".")
    ]
    files = [path for path in files if path.suffix.lower() != ".png"] or files
    names: dict[str, Path] = {}
    for path in sorted(files):
        name = normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())
        if name in names:
            raise DataError(f"{path.parent}: both {names[name].name} and {path.name} hold flow; keep one of them")
        names[name] = path
    return {name: names[name] for name in sorted(names, key=natural_order)}


def _frames_of(flow: str, places: Mapping[str, Mapping[str, Path]]) -> tuple[Path, Path] | None:
    """Return the two frames of a flow file among the frames of each folder; None if they cannot be told."""
    folder, _, stem = flow.rpartition("/")
    frames = places.get(folder) or {}
    names = list(frames)
    begin = re.sub(r"[_-]?flow$", "", stem, flags=re.IGNORECASE)
    after = r"(?!\d)" if begin[-1:].isdigit() else ""
    pair = [name for name in names if re.match(re.escape(begin) + after, name)]
    if len(pair) == 2 and begin not in pair:
        return frames[pair[0]], frames[pair[1]]
    same = [place for place, name in enumerate(names) if _key(name) == _key(stem)]
    if len(same) != 1:
        return None
    first, *later = names[same[0] :]
    following = next((name for name in later if _series(name) == _series(first)), None)
    return None if following is None else (frames[first], frames[following])


def _series(name: str) -> str:
    """Return what the names of a video's frames have in common: "#_L" of 1_L and 2_L, "" of names without digits."""
    return re.sub(r"\d+", "#", name) if re.search(r"\d", name) else ""


def _key(stem: str) -> str:
    """Return the parts of a name that tell frames apart, joined by "_": "10" of flow10 and frame_10."""
    return "_".join(part for part in _WORDS.split(stem) if part)
