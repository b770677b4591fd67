"""Each optimizer of a config makes the step of its paper, and the pull comes on top of it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mtsp.config import ConfigError, parse
from mtsp.optim.optimizers import AdamConfig, LambConfig, LionConfig, MuonConfig, RMSPropConfig
from tools.build import AnyExperiment


def one(values: list[float]) -> tuple[torch.nn.Parameter, list[dict[str, Any]]]:
    weight = torch.nn.Parameter(torch.tensor(values))
    return weight, [{"params": [weight]}]


def test_rmsprop_divides_by_the_root_of_the_running_mean_square() -> None:
    weight, groups = one([1.0])
    optimizer = RMSPropConfig(name="rmsprop", lr=0.1, decay=0.75, momentum=0.0, eps=1.0).build(groups)
    weight.grad = torch.tensor([2.0])
    optimizer.step()
    assert weight.item() == pytest.approx(1 - 0.1 * 2 / (1 + 1))  # mean square 0.25 * 4 = 1


def test_lion_moves_by_the_sign() -> None:
    weight, groups = one([1.0, 1.0])
    weight.grad = torch.tensor([2.0, -0.1])
    LionConfig(name="lion", lr=0.1).build(groups).step()
    assert weight.tolist() == pytest.approx([0.9, 1.1])


def test_a_step_of_lamb_is_as_long_as_its_weight_without_clipping_or_decay() -> None:
    """Adam's first step is the sign (here +1, +1, of length sqrt 2), which LAMB scales to the weight's length 5, times
    0.1; timm's own defaults would make Adam's step, 0.1 in each, because there is no decay.
    """
    weight, groups = one([3.0, 4.0])
    weight.grad = torch.tensor([100.0, 1.0])
    LambConfig(name="lamb", lr=0.1, eps=1e-12).build(groups).step()
    step = 0.1 * 5 / 2**0.5
    assert weight.tolist() == pytest.approx([3 - step, 4 - step])


def test_muon_turns_the_gradient_of_a_matrix_into_a_rotation_and_gives_vectors_to_adamw() -> None:
    """The step of a matrix has all singular values near 1, times 0.2 * sqrt(8) (Liu et al.); AdamW's is the sign."""
    torch.manual_seed(0)
    matrix, bias = torch.nn.Parameter(torch.zeros(8, 8)), torch.nn.Parameter(torch.zeros(8))
    matrix.grad, bias.grad = torch.randn(8, 8), torch.randn(8)
    MuonConfig(name="muon", lr=0.1).build([{"params": [matrix, bias]}]).step()
    sizes: Tensor = torch.linalg.svdvals(matrix.detach()) / (0.1 * 0.2 * 8**0.5)
    assert float(sizes.min()) > 0.6
    assert float(sizes.max()) < 1.3
    assert torch.allclose(bias.detach(), -0.1 * bias.grad.sign(), rtol=1e-4)


def test_adamw_is_adam_without_a_decay_of_its_own_and_refuses_a_coupled_pull(values: dict[str, Any]) -> None:
    assert AdamConfig(name="adamw", lr=0.1).build(one([0.0])[1]).defaults["weight_decay"] == 0
    values["optimizer"] = {"name": "adamw", "lr": 0.1}
    parse(AnyExperiment, values)
    values["regularizer"]["mode"] = "coupled"
    with pytest.raises(ConfigError, match=r"regularizer.mode: adamw decouples the pull; set `mode: auto`, or `optim"):
        parse(AnyExperiment, values)
