"""Class names travel with weights: labels of other data are renumbered by name, or refused."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtsp.config import ConfigError
from mtsp.text import first_names
from mtsp.types import IGNORE, Batch, Examples, Kind


class AlignedExamples:
    """Examples whose labels are renumbered to the order of other class names. Everything else is theirs.

    Args:
        examples: with names of classes, all of them among `classes`.
        classes: the names that labels 0, 1, ... are to stand for.
    """

    def __init__(self, examples: Examples, classes: Sequence[str]) -> None:
        self._examples = examples
        self.classes = tuple(classes)
        place = {name: label for label, name in enumerate(classes)}
        table = np.full(IGNORE + 1, IGNORE)
        own = class_names(examples)
        self._labels = [place[name] for name in own]
        table[: min(len(own), IGNORE)] = self._labels[:IGNORE]
        self._table = torch.from_numpy(table)

    @property
    def kind(self) -> Kind:
        """What the data set holds."""
        return self._examples.kind

    def __getattr__(self, name: str) -> Any:
        return getattr(self._examples, name)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Batch:
        """Return example `index` as it is evaluated, its labels renumbered."""
        return self._renumbered(self._examples[index])

    def train_sample(self, index: int, rng: np.random.Generator) -> Batch:
        """Return example `index` as it is trained on, its labels renumbered."""
        return self._renumbered(self._examples.train_sample(index, rng))

    def _renumbered(self, batch: Batch) -> Batch:
        changed: dict[str, Tensor] = {}
        if "mask" in batch:
            changed["mask"] = self._table[batch["mask"]]
        if "label" in batch:
            changed["label"] = torch.tensor(self._labels)[batch["label"]]
        return Batch(**{**batch, **changed})


def align(entry: str, examples: Examples, classes: Sequence[str], whose: str) -> Examples:
    """Return `examples` with their labels in the order of `classes`, whatever order and however many they have.

    Args:
        entry: what the examples are called in a message, as data.val.
        examples: returned as they are if they do not name their classes, or name the same ones.
        classes: of the network; none: not known, and `examples` are returned as they are.
        whose: where `classes` are from, as "the weights in RUN/weights.safetensors".

    Raises:
        ConfigError: the examples have a class that is not among `classes`.
    """
    own = class_names(examples)
    if not own or not classes or own == tuple(classes):
        return examples
    if unknown := [name for name in own if name not in classes]:
        raise ConfigError(
            f"{entry}: {len(unknown)} of its {len(own)} classes ({first_names(unknown)}) are not among the "
            f"{len(classes)} of {whose} ({first_names(list(classes))})"
        )
    return AlignedExamples(examples, classes)


def class_names(examples: Examples) -> tuple[str, ...]:
    """Return the names of the classes of a data set, none if it does not name them."""
    return tuple(getattr(examples, "classes", ()))
