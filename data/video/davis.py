"""DAVIS: short videos with masks of one object (2016) or several objects (2017) in every frame.

Layout: JPEGImages/480p/<sequence>/00000.jpg, Annotations/480p/<sequence>/00000.png, ImageSets/{480p,2016,2017}/
{train,val}.txt. 2016 has 50 sequences: train 30 (2079 frames), val 20 (1376 frames); 2017 has train 60, val 30.
Source: Perazzi, Pont-Tuset, McWilliams, Van Gool, Gross and Sorkine-Hornung, "A Benchmark Dataset and Evaluation
Methodology for Video Object Segmentation", CVPR 2016; Pont-Tuset et al., "The 2017 DAVIS Challenge on Video Object
Segmentation", arXiv:1704.00675.
"""

from pathlib import Path
from typing import ClassVar, Literal
from unicodedata import normalize

import numpy as np

from data.files.images import read_image
from data.files.list_files import read_lines
from data.files.listing import (
    find_root,
    images_by_stem,
    inside,
    require_files,
    require_order,
    require_size,
    require_unique,
)
from data.files.masks import read_foreground, read_mask
from data.types import DataError, Labels, MissingDataError
from mtsp.config import Config
from mtsp.text import natural_order
from mtsp.types import Kind, Sample


class DavisConfig(Config):
    """Select the frames of DAVIS to read."""

    kind: ClassVar[Kind] = "video"
    name: Literal["davis"]
    root: Path
    """Folder that contains JPEGImages, Annotations and ImageSets."""
    split: Literal["train", "val", "trainval"] = "train"
    resolution: str = "480p"
    """Name of the folder in JPEGImages and Annotations: 480p, 1080p or your own."""
    sequences: tuple[str, ...] | None = None
    """Names of the sequences to read; by default, all sequences of the split."""
    next_frame: bool = True
    """Also read the following frame, which only a network with a flow branch needs."""

    def build(self) -> "Davis":
        """Build the data set and check that its files exist."""
        return Davis(self)


class Davis:
    """Frames with the following frame and a mask: 1 on the object, 0 elsewhere. Names are like "surf/00054".

    A split is read from ImageSets/<resolution>/<split>.txt, a line per frame ("/JPEGImages/480p/surf/00000.jpg
    /Annotations/480p/surf/00000.png"), or ImageSets/2016 or 2017 /<split>.txt, a line per sequence ("surf"); either
    form is read from either place. A trainval that has no file is train and val. The next frame is the next one of
    the same sequence in the split; a sequence's last frame is paired with itself.

    Sequences may lie in folders: "aeroplane/0001" of YouTube-Objects is named by its whole path.

    A mask's pixel is on the object if it is not zero (in an indexed file: not black): the release has gray masks of 0
    and 255, an RGBA one (bear/00077) and empty ones, and 2017 and other copies have indexed masks of several objects,
    which become one.

    Args:
        config: which frames.
        objects: masks hold the number of each object instead, 255 where it is not known; the lists of 2017 are then
            looked for first, since its release has those of 2016 beside them.

    Raises:
        DataError: files that are missing, a mask without its frame or the reverse (the first ten and their number),
            an empty split, a sequence that it does not have, or a line that leads out of the root.
    """

    kind: Kind = "video"

    def __init__(self, config: DavisConfig, *, objects: bool = False) -> None:
        frames = config.root / "JPEGImages"
        others = sorted(folder.name for folder in frames.iterdir()) if frames.is_dir() else []
        if others and config.resolution not in others:
            raise MissingDataError(
                f"DAVIS at {config.root} has {', '.join(others)}, not {config.resolution}; set resolution"
            )
        self._root = find_root("DAVIS", config.root, f"JPEGImages/{config.resolution}")
        self._config, self._objects = config, objects
        files = self._files()
        if config.sequences is not None:
            known = {name.rpartition("/")[0] for name in files}
            if unknown := [s for s in config.sequences if s not in known]:
                raise DataError(
                    f"DAVIS at {config.root}: {config.split} has no {', '.join(unknown)}; it has {sorted(known)}"
                )
            files = {name: pair for name, pair in files.items() if name.rpartition("/")[0] in config.sequences}
        self.ids = sorted(files, key=natural_order)
        require_unique("DAVIS", config.root, self.ids)
        require_order("DAVIS", config.root, self.ids)
        require_files("DAVIS", config.root, (file for name in self.ids for file in files[name]))
        self._frames, self._masks = zip(*(files[name] for name in self.ids), strict=True)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        frame, mask = read_image(self._frames[index], exif="warn"), self._mask(index)
        require_size(self._frames[index], frame, self._masks[index], mask)
        sample = Sample(name=self.ids[index], frame=frame, mask=mask)
        if self._config.next_frame:
            following = self._following(index)
            sample["next_frame"] = next_frame = (
                frame if following == index else read_image(self._frames[following], exif="warn")
            )
            require_size(self._frames[index], frame, self._frames[following], next_frame)
        return sample

    def labels(self, index: int) -> Labels:
        """Return the mask of example `index`. Its frame is not decoded."""
        return Labels(name=self.ids[index], mask=self._mask(index))

    def several_objects(self) -> list[str]:
        """Return the sequences whose first mask numbers several objects: 1, 2, ... and no gray values between."""
        first: dict[str, Path] = {}
        for name, mask in zip(self.ids, self._masks, strict=True):
            first.setdefault(name.rpartition("/")[0], mask)
        return [sequence for sequence, mask in first.items() if _count(mask) > 1]

    def _mask(self, index: int) -> np.ndarray:
        path = self._masks[index]
        return read_mask(path, colors="voc") if self._objects else read_foreground(path).astype(np.uint8)

    def _following(self, index: int) -> int:
        following = index + 1
        same = following < len(self) and self.ids[following].rpartition("/")[0] == self.ids[index].rpartition("/")[0]
        return following if same else index

    def _files(self) -> dict[str, tuple[Path, Path]]:
        """Return the frame and the mask of each name in the split."""
        split = self._config.split
        lists = [self._list(split)]
        if split == "trainval" and lists[0] is None:
            lists = [self._list("train"), self._list("val")]
        files: dict[str, tuple[Path, Path]] = {}
        for path in lists:
            if path is None:
                places = f"ImageSets/{self._config.resolution}, ImageSets/2016 or ImageSets/2017"
                raise DataError(f"DAVIS at {self._config.root}: no {split}.txt in {places}")
            for words in read_lines(path):
                for name, pair in self._sequence(path, words[0]) if len(words) == 1 else self._frame(path, words):
                    if files.setdefault(name, pair) != pair:
                        raise DataError(f"{path}: {name} is listed twice, as {files[name][0]} and {pair[0]}")
        return files

    def _list(self, split: str) -> Path | None:
        usual = (self._config.resolution, "2016")
        names = ("2017", *usual) if self._objects else (*usual, "2017")
        folders = (self._root / "ImageSets" / name for name in names)
        return next((path for folder in folders if (path := folder / f"{split}.txt").is_file()), None)

    def _frame(self, path: Path, words: list[str]) -> list[tuple[str, tuple[Path, Path]]]:
        frame, mask = (inside(self._root, word, path) for word in words[:2])
        name, same = (self._name(file) for file in (frame, mask))
        if name != same:
            raise DataError(f"{path}: {words[0]} and {words[1]} are not a frame and its mask")
        return [(name, (frame, mask))]

    def _name(self, file: Path) -> str:
        """Return the id of a frame or mask: its path below JPEGImages/480p or Annotations/480p."""
        parts = file.relative_to(self._root).with_suffix("").parts
        return normalize("NFC", "/".join(parts[2:] if len(parts) > 3 else parts[-2:]))

    def _sequence(self, path: Path, sequence: str) -> list[tuple[str, tuple[Path, Path]]]:
        folders = [inside(self._root, f"{kind}/{self._config.resolution}/{sequence}", path) for kind in _KINDS]
        frames, masks = (images_by_stem(folder) for folder in folders)
        stems = frames.keys() | masks.keys()
        if not stems:
            raise DataError(f"{path}: {sequence!r} names no sequence, {folders[0]} has no frames")
        files = (
            (frames.get(stem, folders[0] / f"{stem}.jpg"), masks.get(stem, folders[1] / f"{stem}.png"))
            for stem in stems
        )
        return [(self._name(frame), (frame, mask)) for frame, mask in files]


def _count(mask: Path) -> int:
    try:
        found = np.flatnonzero(np.bincount(read_mask(mask).reshape(-1), minlength=256)[1:255])
    except DataError:  # in colors: it numbers nothing
        return 0
    return len(found) if np.array_equal(found, np.arange(len(found))) else 0


_KINDS = ("JPEGImages", "Annotations")
