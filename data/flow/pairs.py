"""Base of the flow data sets: frame pairs with flow."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from data.files.flow_formats.read import read_flow
from data.files.images import read_image
from data.files.listing import require_files, require_size, require_unique
from data.files.masks import read_foreground
from data.types import Labels
from mtsp.config import Config
from mtsp.types import Kind, Sample


@dataclass(frozen=True)
class FlowPair:
    """The files of one pair of frames. Without `flow` the pair has no label."""

    name: str
    frame: Path
    next_frame: Path
    flow: Path | None
    invalid: Path | None = None  # mask file that is not zero where flow is unknown


class FlowPairs:
    """Pairs of frames with flow, as :class:`SampleDataset`.

    Args:
        title: name of the data set in messages.
        root: folder of the data set, for messages.
        pairs: files of each pair, with unique names.

    Raises:
        DataError: there is no pair, a name occurs twice, or files are missing (the message names the first ten).
    """

    kind: Kind = "pairs"

    def __init__(self, title: str, root: Path, pairs: Sequence[FlowPair]) -> None:
        self.ids = [pair.name for pair in pairs]
        self._pairs = pairs
        require_unique(title, root, self.ids)
        files = (file for p in pairs for file in (p.frame, p.next_frame, p.flow, p.invalid) if file is not None)
        require_files(title, root, files)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Sample:
        pair = self._pairs[index]
        labels = self.labels(index)
        frame, next_frame = (read_image(file, exif="warn") for file in (pair.frame, pair.next_frame))
        require_size(pair.frame, frame, pair.next_frame, next_frame)
        if "flow" in labels and pair.flow is not None:
            require_size(pair.frame, frame, pair.flow, labels["flow"])
        return Sample(frame=frame, next_frame=next_frame, **labels)

    def labels(self, index: int) -> Labels:
        """Return the flow of pair `index` and its validity, or no flow if there is none. Frames are not decoded."""
        pair = self._pairs[index]
        if pair.flow is None:
            return Labels(name=pair.name)
        flow, valid = read_flow(pair.flow)
        if pair.invalid is not None:
            known = ~read_foreground(pair.invalid)
            require_size(pair.flow, flow, pair.invalid, known)
            valid = known if valid is None else known & valid
        if valid is None:
            return Labels(name=pair.name, flow=flow)
        return Labels(name=pair.name, flow=flow, flow_valid=valid)


class FlowConfig(Config):
    """Base config of the flow data sets. Subclasses add `name`, `title`, `split` and :meth:`pairs`."""

    kind: ClassVar[Kind] = "pairs"
    title: ClassVar[str]
    """Name of the data set in messages."""
    root: Path
    """Folder of the data set, or its parent folder."""

    @abstractmethod
    def pairs(self) -> list[FlowPair]:
        """Return the files of each pair. Raises DataError."""

    def build(self) -> FlowPairs:
        """Return the data set after checking that its files exist. Raises DataError."""
        return FlowPairs(self.title, self.root, self.pairs())
