"""Samples to evaluate that are trained on, too, are said by name."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from mtsp.training.checks.held_out import trained_on
from mtsp.types import Batch, Kind


class Images:
    """An image of one gray value for each name."""

    kind: Kind = "labeled"

    def __init__(self, ids: Sequence[str], values: Sequence[float]) -> None:
        self.ids, self.values = ids, values

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Batch:
        frame = torch.full((3, 4, 4), self.values[index])
        return Batch(name=[self.ids[index]], frame=frame, label=torch.tensor(index % 2))

    def train_sample(self, index: int, rng: np.random.Generator) -> Batch:
        return self[index]


def lines(**data: Images) -> list[str]:
    entries = SimpleNamespace(train=SimpleNamespace(entries=["train"]), evaluation=SimpleNamespace(data=list(data)))
    experiment: Any = entries
    return trained_on(experiment, data)


TRAIN = Images(["a/0", "b/1", "a/2", "b/3"], [0.0, 0.1, 0.2, 0.3])


def test_a_validation_entry_with_the_files_of_training_is_said_once() -> None:
    val = Images(["a/0", "b/1"], [0.0, 0.1])
    assert lines(train=TRAIN, val=val) == [
        "2 of 2 checked samples of data.val are trained on, too, in data.train, such as a/0"
    ]


def test_equal_names_of_other_images_are_usual() -> None:
    assert lines(train=TRAIN, val=Images(["a/0", "b/1"], [0.5, 0.6])) == []
    assert lines(train=TRAIN, val=Images(["a/9", "b/8"], [0.0, 0.1])) == []
    assert lines(train=TRAIN) == []  # measured on what it is trained on: that is what was asked for
