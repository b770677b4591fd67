"""Batch normalization over two processes is that of one process with both batches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtsp.distributed.sync_batchnorm import SyncBatchNorm, synchronize

CPU = torch.device("cpu")


class Activated(nn.BatchNorm2d):
    """Normalization and activation in one layer, as timm has it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1), Activated(5), nn.Conv2d(5, 2, 1))


def images() -> Tensor:
    return (
        torch.rand(5, 3, 6, 7, generator=torch.Generator().manual_seed(1)) * 3 + 100
    )  # far from zero: the first gradient loses three digits


def step(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    model(batch).square().sum().backward()
    grads = {
        f"grad {name}": weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None
    }
    return grads | {name: value.clone() for name, value in model.state_dict().items()}


def in_one_of_two_processes(rank: int, folder: str) -> None:
    model = synchronize(network(), CPU).train()
    batch = images()[:2] if rank == 0 else images()[2:]  # two images here, three there
    found = step(model, batch)
    for name, value in found.items():
        if name.startswith("grad "):
            torch.distributed.all_reduce(value)
    torch.save(found, f"{folder}/{rank}.pt")


def test_two_processes_with_uneven_batches_equal_one_in_gradients_and_statistics(
    in_two_processes: Callable[..., None], tmp_path: Path
) -> None:
    in_two_processes(in_one_of_two_processes, str(tmp_path))
    expected = step(network().train(), images())
    alone = step(network().train(), images()[:2])
    for rank in (0, 1):
        found: dict[str, Any] = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=5e-3 if name == "grad 0.weight" else 2e-4)
        assert not torch.allclose(found["1.running_var"], alone["1.running_var"], rtol=1e-4)


def test_alone_it_is_the_layer_that_it_replaces_activation_included() -> None:
    for training in (True, False):
        plain, shared = network().train(training), synchronize(network(), CPU).train(training)
        torch.testing.assert_close(shared(images()), plain(images()), rtol=0, atol=0)
        assert shared.state_dict().keys() == plain.state_dict().keys()
        for name, value in plain.state_dict().items():
            assert torch.equal(shared.state_dict()[name], value), name


def test_on_a_gpu_it_is_pytorchs_own_with_the_activation_kept() -> None:
    shared = synchronize(network(), torch.device("cuda"))
    layers = [layer for layer in shared.modules() if isinstance(layer, nn.SyncBatchNorm)]
    assert len(layers) == 2
    assert any(isinstance(step, nn.ReLU) for step in layers[1].modules())
    torch.testing.assert_close(shared.eval()(images()), network().eval()(images()), rtol=0, atol=0)
    assert shared.state_dict().keys() == network().state_dict().keys()


def test_the_weights_stay_the_same_objects_for_the_optimizer() -> None:
    model = network()
    before = {name: id(weight) for name, weight in model.named_parameters()}
    assert {name: id(weight) for name, weight in synchronize(model, CPU).named_parameters()} == before
    assert sum(isinstance(layer, SyncBatchNorm) for layer in model.modules()) == 2


def test_a_layer_that_does_more_is_refused() -> None:
    class Doubled(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    with pytest.raises(ValueError, match="Doubled cannot share its statistics"):
        synchronize(nn.Sequential(Doubled(3)), CPU)
