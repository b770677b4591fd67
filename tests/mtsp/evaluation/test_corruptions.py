"""Corruptions of frames: what each does, and that it is the same every time."""

import numpy as np
import pytest
import torch

from mtsp.evaluation.corruptions import CORRUPTIONS, STRENGTHS, Corrupted
from mtsp.types import Batch, Kind


class Photos:
    """Six frames of 24x32: a smooth gradient with a bright square."""

    kind: Kind = "labeled"
    classes = ("a", "b")

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Batch:
        frame = torch.linspace(0.2, 0.6, 32).expand(3, 24, 32).clone()
        frame[:, 8:16, 10:20] = 0.9
        return Batch(name=[str(index)], frame=frame, label=torch.tensor(index % 2))

    def train_sample(self, index: int, rng: np.random.Generator) -> Batch:
        return self[index]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_in_range_the_same_every_time_and_stronger_at_strength_two(name: str) -> None:
    clean = Photos()[2]["frame"]
    weak, strong = (Corrupted(Photos(), name, strength)[2]["frame"] for strength in STRENGTHS)
    assert weak.shape == clean.shape
    assert weak.dtype == torch.float32
    assert float(strong.min()) >= 0
    assert float(strong.max()) <= 1
    assert 0 < float((weak - clean).abs().mean()) < float((strong - clean).abs().mean())
    assert torch.equal(weak, Corrupted(Photos(), name, 1)[2]["frame"])
    assert Photos()[2]["frame"].equal(clean)


def test_contrast_is_halved_around_the_mean_of_each_channel() -> None:
    clean = Photos()[0]["frame"]
    low = Corrupted(Photos(), "contrast", 1)[0]["frame"]
    assert torch.allclose(low.mean((1, 2)), clean.mean((1, 2)), atol=1e-6)
    assert torch.allclose(low.std((1, 2)), clean.std((1, 2)) / 2, atol=1e-6)


def test_noise_has_the_deviation_that_it_says_and_differs_between_samples() -> None:
    clean = Photos()[0]["frame"]
    first, second = (Corrupted(Photos(), "noise", 1)[i]["frame"] - clean for i in (0, 1))
    assert float(first[:, :8].std()) == pytest.approx(0.06, rel=0.1)
    assert not torch.equal(first, second)


def test_jpeg_keeps_the_order_of_the_channels() -> None:
    class Red(Photos):
        def __getitem__(self, index: int) -> Batch:
            frame = torch.zeros(3, 16, 16)
            frame[0] = 0.8
            return Batch(name=["red"], frame=frame, label=torch.tensor(0))

    frame = Corrupted(Red(), "jpeg", 1)[0]["frame"]
    assert frame.mean((1, 2)).tolist() == pytest.approx([0.8, 0.0, 0.0], abs=0.05)


def test_fewer_samples_are_spread_evenly() -> None:
    few = Corrupted(Photos(), "blur", 1, limit=3)
    assert [few[i]["name"] for i in range(len(few))] == [["0"], ["2"], ["4"]]
    assert (few.kind, few.classes) == ("labeled", ("a", "b"))
