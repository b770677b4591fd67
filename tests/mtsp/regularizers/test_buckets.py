"""Weights pulled block by block, and where and how their anchors are stored."""

import pytest
import torch
from torch import nn

from mtsp.regularizers import GLSP, L2SP

SGD = torch.optim.SGD


def test_a_large_weight_is_pulled_in_slices_that_meet() -> None:
    """800 x 1000 entries are more than two blocks."""
    torch.manual_seed(0)
    results = []
    for kind in (L2SP, GLSP):
        model = nn.Linear(1000, 800, bias=False)
        anchor, start = torch.randn(800, 1000), model.weight.detach().clone()
        optimizer = SGD(model.parameters(), lr=0.1)
        kind(model, anchors={"weight": anchor}, alpha=0.5, beta=0.0, mode="coupled").attach(optimizer)
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
        d = start - anchor
        pull = d if kind is L2SP else 1000**0.5 * d / d.norm(dim=1, keepdim=True)
        torch.testing.assert_close(model.weight.detach(), start - 0.05 * pull)
        results.append(model.weight)
    assert not torch.equal(results[0], results[1])


def test_anchors_lie_in_memory_as_their_weights_do() -> None:
    model = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    regularizer = L2SP(model, anchors={"weight": torch.randn(4, 4, 3, 3)}, alpha=1.0, beta=0.0)
    regularizer.attach(SGD(model.parameters(), lr=0.1))
    anchor = regularizer.targets["weight"].anchor
    assert anchor is not None
    assert anchor.stride() == model.weight.stride()


def test_bfloat16_anchors_pull_to_the_rounded_anchor() -> None:
    """1.001 becomes 1 in bfloat16: w = 3 is pulled by 2 * (3 - 1), and half of the memory is used."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 3.0)
    optimizer = SGD(model.parameters(), lr=0.1)
    regularizer = L2SP(
        model,
        anchors={"weight": torch.full((1, 1), 1.001)},
        alpha=2.0,
        beta=0.0,
        anchor_dtype=torch.bfloat16,
        offload=True,
    )
    regularizer.attach(optimizer)
    held = regularizer.targets["weight"].anchor
    assert held is not None
    assert held.dtype == torch.bfloat16
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    assert model.weight.item() == pytest.approx(2.6)
