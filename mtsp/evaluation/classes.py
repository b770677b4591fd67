"""Match the labels of a data set to the class names stored with a network's weights."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mtsp.config import ConfigError
from mtsp.text import first_names
from mtsp.types import IGNORE, Batch, Examples, Kind


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
        place = {name: label for label, name in enumerate(classes)}
        own = class_names(examples)
        self._labels = [place[name] for name in own]
        table = np.full(max(len(own), IGNORE + 1), IGNORE)
        table[: len(own)] = self._labels
        table[IGNORE] = IGNORE
        self._table = torch.from_numpy(table)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Batch:
        """Return example `index` for evaluation, with renumbered labels."""
        return self._renumbered(self._examples[index])

    def train_sample(self, index: int, rng: np.random.Generator) -> Batch:
        """Return example `index` for training, with renumbered labels."""
        return self._renumbered(self._examples.train_sample(index, rng))

    def _renumbered(self, batch: Batch) -> Batch:
        changed: dict[str, Tensor] = {}
        if "mask" in batch:
            changed["mask"] = self._table[batch["mask"]]
        if "label" in batch:
            changed["label"] = torch.tensor(self._labels)[batch["label"]]
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
    if unknown := [name for name in own if name not in classes]:
        raise ConfigError(
            f"{entry}: {len(unknown)} of its {len(own)} classes ({first_names(unknown)}) are not among the "
            f"{len(classes)} of {whose} ({first_names(list(classes))})"
        )
    return AlignedExamples(examples, classes)


def class_names(examples: Examples) -> tuple[str, ...]:
    """Return the class names of a data set; an empty tuple if it has none."""
    return tuple(getattr(examples, "classes", ()))
