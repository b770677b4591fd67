"""An optimizer that moves none of the pretrained weights is noticed when a regularizer is attached to it."""

import warnings

import pytest
import torch
from torch import nn

from mtsp import anchors
from mtsp.regularizers import L2SP


def network() -> tuple[nn.Sequential, dict[str, torch.Tensor]]:
    """Two linear layers; the first is pretrained."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    return model, anchors.capture(model, ["0.weight"])


def test_an_optimizer_of_the_head_alone_is_noticed() -> None:
    model, pretrained = network()
    with pytest.warns(UserWarning, match="none of the 1 pretrained weights that may train"):
        L2SP(model, anchors=pretrained, alpha=0.1, beta=0.1).attach(torch.optim.SGD(model[1].parameters(), lr=0.1))


def test_an_optimizer_of_all_weights_and_a_frozen_backbone_are_not() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, pretrained = network()
        L2SP(model, anchors=pretrained, alpha=0.1, beta=0.1).attach(torch.optim.SGD(model.parameters(), lr=0.1))
        model, pretrained = network()
        model[0].requires_grad_(False)
        L2SP(model, anchors=pretrained, alpha=0.1, beta=0.1).attach(torch.optim.SGD(model[1].parameters(), lr=0.1))
