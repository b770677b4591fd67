"""Match the labels of a data set to the class names stored with a network's weights."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mtsp.config import ConfigError
from mtsp.text import first_names, similar
from mtsp.types import IGNORE, Batch, Examples, Kind

if TYPE_CHECKING:
    from torch import Tensor


class AlignedExamples:
    """Wrap examples and renumber their labels to the order of `classes`. Everything else stays as it is.

    Args:
        examples: must have class names, all of them in `classes`.
        classes: name of class 0, 1, ... after renumbering.
    """

    def __init__(self, examples: Examples, classes: Sequence[str]) -> None:
        self._examples = examples
        self.kind: Kind = examples.kind
        self.ids: Sequence[str] = getattr(examples, "ids", ())
        self.classes = tuple(classes)
        self._labels, self._table = renumbering(class_names(examples), classes)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Batch:
        """Return example `index` for evaluation, with renumbered labels."""
        return self._renumbered(self._examples[index])

    def train_sample(self, index: int, rng: np.random.Generator) -> Batch:
        """Return example `index` for training, with renumbered labels."""
        return self._renumbered(self._examples.train_sample(index, rng))

    def _renumbered(self, batch: Batch) -> Batch:
        import torch

        changed: dict[str, Tensor] = {}
        if "mask" in batch:
            changed["mask"] = torch.from_numpy(self._table)[batch["mask"]]
        if "label" in batch:
            changed["label"] = torch.from_numpy(self._labels)[batch["label"]]
        return Batch(**{**batch, **changed})


def align(entry: str, examples: Examples, classes: Sequence[str], whose: str) -> Examples:
    """Return `examples` with labels renumbered, by class name, to the order of `classes`.

    Args:
        entry: name of the examples in messages, such as data.val.
        examples: returned unchanged if they have no class names, or the same ones in the same order.
        classes: class names of the network. If empty, they are not known, and `examples` are returned unchanged.
        whose: where `classes` come from, for messages, such as "the weights in RUN/weights.safetensors".

    Raises:
        ConfigError: a class of the examples is not in `classes`.
    """
    own = class_names(examples)
    if not own or not classes or own == tuple(classes):
        return examples
    require_among(entry, own, classes, whose)
    return AlignedExamples(examples, classes)


def require_among(entry: str, own: Sequence[str], classes: Sequence[str], whose: str) -> None:
    """Raise ConfigError if a class of `own`, the names of `entry`, is not in `classes`, the names of `whose`."""
    if unknown := [name for name in own if name not in classes]:
        raise ConfigError(
            f"{entry}: {len(unknown)} of its {len(own)} classes ({first_names(unknown)}) are not among the "
            f"{len(classes)} of {whose} ({first_names(list(classes))}){similar(unknown[0], classes)}"
        )


def renumbering(own: Sequence[str], classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the index in `classes` of each class in `own`, and a table that maps mask values to them (255 to 255)."""
    place = {name: label for label, name in enumerate(classes)}
    labels = np.array([place[name] for name in own])
    table = np.full(max(len(own), IGNORE + 1), IGNORE)
    table[: len(own)] = labels
    table[IGNORE] = IGNORE
    return labels, table


def class_names(examples: Examples) -> tuple[str, ...]:
    """Return the class names of a data set; an empty tuple if it has none."""
    return tuple(getattr(examples, "classes", ()))
