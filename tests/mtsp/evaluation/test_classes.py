"""Examples whose labels or frames are changed on the way: like the examples they wrap, also in other processes."""

import pickle

import numpy as np
import pytest
import torch

from mtsp.config import ConfigError
from mtsp.evaluation.classes import AlignedExamples, require_among
from mtsp.evaluation.corruptions import Corrupted
from mtsp.types import Batch, Examples, Kind


class Labeled:
    """Four images of the classes a, b, a, b."""

    kind: Kind = "labeled"
    classes = ("a", "b")
    ids = ("0", "1", "2", "3")

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Batch:
        return Batch(name=[self.ids[index]], frame=torch.full((3, 8, 8), 0.5), label=torch.tensor(index % 2))

    def train_sample(self, index: int, rng: np.random.Generator) -> Batch:
        return self[index]


@pytest.mark.parametrize("examples", [AlignedExamples(Labeled(), ("b", "c", "a")), Corrupted(Labeled(), "contrast", 1)])
def test_worker_processes_can_be_given_wrapped_examples(examples: Examples) -> None:
    sent = pickle.loads(pickle.dumps(examples))
    assert (sent.kind, len(sent)) == ("labeled", 4)
    assert torch.equal(sent[1]["frame"], examples[1]["frame"])
    assert sent[1].get("label") == examples[1].get("label")


def test_labels_are_numbered_as_the_network_numbers_its_classes() -> None:
    aligned = AlignedExamples(Labeled(), ("b", "c", "a"))
    assert [int(aligned[i].get("label", -1)) for i in range(2)] == [2, 0]  # a is class 2, b is class 0
    assert aligned.ids == ("0", "1", "2", "3")
    with pytest.raises(AttributeError):
        getattr(aligned, "no_such_attribute")  # noqa: B009


def test_names_that_look_the_same_are_shown_by_their_codes() -> None:
    with pytest.raises(ConfigError, match=r"for 'caf\\xe9' there is 'cafe\\u0301'"):
        require_among("data.val", ("caf\u00e9",), ("cafe\u0301", "the"), "the weights")
    with pytest.raises(ConfigError, match=r"for 'Dog ' there is 'dog'"):
        require_among("data.val", ("Dog ",), ("cat", "dog"), "the weights")
