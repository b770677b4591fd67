"""The moving average of the weights: its formula, what it does with buffers, and that it leaves a run as it was."""

import pytest
import torch
from torch import nn

from mtsp.training.ema import Ema, EmaConfig

PLAIN = EmaConfig(decay=0.75, warmup=False)


class Small(nn.Module):
    """A weight of 1, and batch normalization with its statistics and its counter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))
        self.norm = nn.BatchNorm1d(1)


def set_to(model: Small, value: float) -> None:
    with torch.no_grad():
        model.weight.fill_(value)


def test_the_average_keeps_the_decay_of_what_it_had() -> None:
    model = Small()
    average = Ema(model, PLAIN)
    for value in (5.0, 9.0):
        set_to(model, value)
        average.update(model)
    # 0.75 * 1 + 0.25 * 5 = 2, then 0.75 * 2 + 0.25 * 9 = 3.75
    assert average.state_dict()["averages"]["weight"].item() == 3.75
    assert model.weight.item() == 9.0


def test_the_first_steps_are_forgotten_faster() -> None:
    model = Small()
    average = Ema(model, EmaConfig(decay=0.75))
    set_to(model, 11.0)
    average.update(model)
    # (1 + 0) / (10 + 0) = 0.1 is kept of 1, and 0.9 of 11 taken
    assert average.state_dict()["averages"]["weight"].item() == pytest.approx(10.0)
    set_to(model, 0.0)
    average.update(model)
    assert average.state_dict()["averages"]["weight"].item() == pytest.approx(10.0 * 2 / 11)


def test_the_warmup_ends_at_the_decay() -> None:
    model = Small()
    average = Ema(model, EmaConfig(decay=0.5))
    average.updates = 100  # (1 + 100) / (10 + 100) is above 0.5
    set_to(model, 3.0)
    average.update(model)
    assert average.state_dict()["averages"]["weight"].item() == 2.0


def test_statistics_are_averaged_and_counters_copied() -> None:
    model = Small()
    average = Ema(model, PLAIN)
    model.norm.running_mean.fill_(4.0)  # pyright: ignore[reportOptionalMemberAccess]
    model.norm.num_batches_tracked.fill_(7)  # pyright: ignore[reportOptionalMemberAccess]
    average.update(model)
    averages = average.state_dict()["averages"]
    assert averages["norm.running_mean"].item() == 1.0  # 0.75 * 0 + 0.25 * 4
    assert averages["norm.num_batches_tracked"].item() == 7


def test_a_small_step_is_not_rounded_away_in_half_precision() -> None:
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.ones_(model.weight)
    average = Ema(model, EmaConfig(decay=0.999, warmup=False))
    with torch.no_grad():
        model.weight.fill_(2.0)
    average.update(model)
    # In bfloat16 the next number after 1 is 1.0078.
    assert average.state_dict()["averages"]["weight"].item() == pytest.approx(1.001, abs=1e-6)


def test_the_network_has_the_average_inside_and_its_own_bits_afterwards() -> None:
    model = Small()
    average = Ema(model, PLAIN)
    set_to(model, 0.1)
    average.update(model)
    weight, before = model.weight, model.weight.detach().clone()

    def fails() -> None:
        with average.swapped(model):
            assert model.weight.item() == pytest.approx(0.75 + 0.25 * 0.1)
            raise RuntimeError("in the middle of an evaluation")

    with pytest.raises(RuntimeError, match="in the middle"):
        fails()
    assert model.weight is weight
    assert torch.equal(model.weight, before)


def test_it_continues_from_its_state() -> None:
    model = Small()
    whole, first = (Ema(model, EmaConfig(decay=0.9)) for _ in range(2))
    for value in (2.0, 3.0):
        set_to(model, value)
        whole.update(model)
        first.update(model)
    continued = Ema(model, EmaConfig(decay=0.9))
    continued.load_state_dict(first.state_dict())
    set_to(model, 8.0)
    whole.update(model)
    continued.update(model)
    ours, theirs = whole.state_dict(), continued.state_dict()
    assert ours["updates"] == theirs["updates"] == 3
    assert all(torch.equal(value, theirs["averages"][name]) for name, value in ours["averages"].items())


def test_the_state_of_another_network_is_refused() -> None:
    average = Ema(Small(), PLAIN)
    with pytest.raises(ValueError, match="another network: 6 names differ, as bias"):
        average.load_state_dict(Ema(nn.Linear(1, 1), PLAIN).state_dict())
    odd = average.state_dict()
    odd["averages"] = {**odd["averages"], "weight": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"weight has shape \(2,\), expected \(1,\)"):
        average.load_state_dict(odd)
