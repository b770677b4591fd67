"""Types of the data sets: configs, decoded examples, errors."""

from collections.abc import Sequence
from typing import NotRequired, Protocol, TypedDict

import numpy as np

from mtsp.config import Config
from mtsp.types import Kind, Sample


class DataError(ValueError):
    """A file or folder of data cannot be used. The message names it and says why."""


class MissingDataError(DataError, FileNotFoundError):
    """Files of a data set are missing. The message gives their number and the first ten."""


class Labels(TypedDict):
    """Labels of one example without its frames, with the keys of :class:`mtsp.types.Sample`."""

    name: str
    mask: NotRequired[np.ndarray]  # HW uint8, or uint16 with more than 255 classes
    flow: NotRequired[np.ndarray]  # HW2 float32
    flow_valid: NotRequired[np.ndarray]  # HW bool
    label: NotRequired[int]


class SampleDataset(Protocol):
    """A data set of examples decoded from disk, at native resolution and without augmentation."""

    @property
    def kind(self) -> Kind:
        """Kind of data, which decides which metrics apply."""
        ...

    @property
    def ids(self) -> Sequence[str]:
        """Unique name of each example: a relative path without suffix. Nothing is decoded to find it."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def labels(self, index: int) -> Labels:
        """Return the labels of example `index` without decoding its frames."""
        ...


class DatasetConfig(Config):
    """Interface of the configs of data sets, for type checkers."""

    name: str

    @property
    def kind(self) -> Kind:
        """Kind of data, which decides which metrics apply."""
        raise NotImplementedError

    def build(self) -> SampleDataset:
        """Return the data set after checking that its files exist. Raises DataError."""
        raise NotImplementedError
