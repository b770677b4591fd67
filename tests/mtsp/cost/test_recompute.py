"""Recomputed blocks: which they are, the same numbers, less memory."""

import copy

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from mtsp.cost.dry_run import saved_bytes
from mtsp.cost.recompute import recompute_blocks, repeated_blocks


class Block(nn.Module):
    """A residual block with what is hard to recompute: statistics and random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(8, 4, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(Block(), Block(), Block()), nn.Conv2d(4, 2, 1))


def test_blocks_of_a_resnet_are_found() -> None:
    assert repeated_blocks(resnet18()) == [f"layer{stage}.{place}" for stage in (1, 2, 3, 4) for place in (0, 1)]


def test_layers_and_single_modules_are_no_blocks() -> None:
    assert repeated_blocks(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1), Block())) == []


def test_a_step_gives_the_same_bits() -> None:
    plain = network()
    recomputed = copy.deepcopy(plain)
    assert recompute_blocks(recomputed) == 3
    for step in range(3):
        image = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(step))
        for model in (plain, recomputed):
            torch.manual_seed(step)
            model(image).square().sum().backward()
    theirs, ours = dict(plain.named_parameters()), dict(recomputed.named_parameters())
    assert ours.keys() == theirs.keys()
    gradients = [(ours[name].grad, theirs[name].grad) for name in theirs]
    assert all(a is not None and b is not None and torch.equal(a, b) for a, b in gradients)
    states = plain.state_dict()
    assert all(torch.equal(value, states[name]) for name, value in recomputed.state_dict().items())
    assert int(states["1.0.body.1.num_batches_tracked"]) == 3


def test_only_the_inputs_of_blocks_are_kept() -> None:
    model = network()
    names = [name for name, _ in model.named_parameters()]
    before = saved_bytes(model, [(2, 3, 16, 16)], learning=names)
    recompute_blocks(model)
    # Kept are the image, the inputs of three blocks and of the last layer; twice the largest; twice the output.
    pixels = 2 * 16 * 16 * 4  # bytes of one channel of the batch
    assert saved_bytes(model, [(2, 3, 16, 16)], learning=names) == pixels * (3 + 4 * 4 + 2 * 4 + 2 * 2) < before
