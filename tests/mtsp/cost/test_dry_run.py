"""Dry runs of small networks find the memory and the weights that are worked out by hand."""

import pytest
import torch
from torch import Tensor, nn

from mtsp.cost.dry_run import optimizer_bytes, reached, saved_bytes
from mtsp.optim.optimizers import AdamConfig, SGDConfig


def convolutions() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))


def names(network: nn.Module) -> list[str]:
    return [name for name, _ in network.named_parameters()]


def test_a_forward_pass_keeps_the_inputs_of_its_layers_once() -> None:
    network = convolutions()
    image, hidden, output = 2 * 3 * 256 * 4, 2 * 8 * 256 * 4, 2 * 4 * 256 * 4  # bytes; ReLU keeps what conv 2 reads
    found = saved_bytes(network, [(2, 3, 16, 16)], learning=names(network))
    assert found == image + hidden + 2 * hidden + 2 * output == 6144 + 3 * 16384 + 16384  # hidden is the largest


def test_a_frozen_first_layer_keeps_nothing() -> None:
    network = convolutions()
    hidden, output = 2 * 8 * 256 * 4, 2 * 4 * 256 * 4
    assert saved_bytes(network, [(2, 3, 16, 16)], learning=["2.weight", "2.bias"]) == 3 * hidden + 2 * output


def test_16_bits_keep_half_of_what_a_convolution_reads() -> None:
    network = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.Conv2d(8, 8, 1, bias=False))
    image = 2 * 8 * 256 * 4
    whole = saved_bytes(network, [(2, 8, 16, 16)], learning=names(network))
    half = saved_bytes(network, [(2, 8, 16, 16)], learning=names(network), bf16=True)
    assert whole == (2 * image) + 2 * image + 2 * image  # what both read, twice the largest, and twice the output
    assert half == (2 * image // 2 + 2 * 8 * 8 * 2) + 2 * image // 2 + 2 * image  # weights are kept in 16 bits, too


def test_the_network_is_left_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    saved_bytes(network, [(2, 3, 8, 8)], learning=names(network))
    assert network[1].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (SGDConfig(name="sgd", lr=0.1), 4),
        (SGDConfig(name="sgd", lr=0.1, momentum=0), 0),
        (AdamConfig(name="adam", lr=0.1), 8),
    ],
)
def test_an_optimizers_state_in_bytes_for_each_weight(config: SGDConfig | AdamConfig, expected: float) -> None:
    assert optimizer_bytes(config.build) == expected


class TwoHeads(nn.Module):
    """Two outputs from one trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.left, self.right = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, image: Tensor) -> dict[str, Tensor | list[Tensor]]:
        seen = self.trunk(image)
        return {"left": self.left(seen), "right": [self.right(seen)]}


@pytest.mark.parametrize(
    ("outputs", "modules"),
    [(["left"], {"trunk", "left"}), (["right"], {"trunk", "right"}), (["left", "right"], {"trunk", "left", "right"})],
)
def test_a_loss_reaches_the_weights_that_its_output_depends_on(outputs: list[str], modules: set[str]) -> None:
    network = TwoHeads()
    found = reached(network, [(2, 3)], outputs, names(network))
    assert found == {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}
