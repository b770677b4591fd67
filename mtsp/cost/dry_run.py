"""Run a network on tensors without contents: what it keeps in memory, and which weights get a gradient."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mtsp.batches import tensors_in


def saved_bytes(
    network: nn.Module, shapes: Sequence[Sequence[int]], *, learning: Sequence[str], bf16: bool = False
) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, and those that come on top.

    On top come twice the outputs, for the losses, and twice the largest tensor, for the gradients at one layer.

    Args:
        network: any module; it is not changed.
        shapes: shapes of the inputs, which are float32.
        learning: names of the parameters that get a gradient.
        bf16: whether the pass runs under autocast to 16 bits.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    sizes: dict[int, tuple[int, Tensor]] = {}  # the tensors are kept, so that no address is used twice
    mode = FakeTensorMode()
    state = fake_state(network, mode, learning)
    weights = {tensor.untyped_storage()._cdata for tensor in state.values()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            sizes[storage._cdata] = (storage.nbytes(), tensor)
        return tensor

    with mode, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = fake_forward(network, state, shapes, bf16=bf16)
    kept = [size for size, _ in sizes.values()]
    return sum(kept) + 2 * max(kept, default=0) + 2 * sum(4 * tensor.numel() for tensor in tensors_in(outputs))


def fake_state(network: nn.Module, mode: Any, learning: Sequence[str]) -> dict[str, Tensor]:
    """Return the parameters and buffers as tensors without contents, made by torch's FakeTensorMode `mode`."""
    named = (*network.named_parameters(), *network.named_buffers())
    state: dict[str, Tensor] = {name: mode.from_tensor(tensor.detach()) for name, tensor in named}
    for name in learning:
        state[name].requires_grad_()
    return state


def fake_forward(
    network: nn.Module, state: dict[str, Tensor], shapes: Sequence[Sequence[int]], *, bf16: bool = False
) -> Any:
    """Return the outputs of the network with such a `state`; call it inside the mode of the state."""
    device = next(iter(state.values())).device.type
    with _fixed_norms(network), torch.autocast(device, torch.bfloat16, enabled=bf16):
        return functional_call(network, state, tuple(torch.zeros(*shape, device=device) for shape in shapes))


def optimizer_bytes(build: Callable[[Any], torch.optim.Optimizer]) -> float:
    """Return the bytes of state that an optimizer keeps for each weight, tried out on a small matrix."""
    weight = nn.Parameter(torch.zeros(32, 32))
    weight.grad = torch.ones_like(weight)
    optimizer = build([weight])
    optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(size_of(value) for value in kept if value.numel() > 1) / weight.numel()


def reached(
    network: nn.Module, shapes: Sequence[Sequence[int]], outputs: Sequence[str], learning: Sequence[str]
) -> set[str]:
    """Return the names of the parameters in `learning` that these outputs of a network depend on."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode()
    state = fake_state(network, mode, learning)
    with mode:
        given = fake_forward(network, state, shapes)
        total = torch.stack(
            [t.float().sum() for t in tensors_in([given[key] for key in outputs if key in given])]
        ).sum()
        gradients: tuple[Tensor | None, ...] = torch.autograd.grad(
            total, [state[name] for name in learning], allow_unused=True
        )
    return {name for name, gradient in zip(learning, gradients, strict=True) if gradient is not None}


@contextmanager
def _fixed_norms(network: nn.Module) -> Iterator[None]:
    """Let batch norms use their stored statistics, which keeps as much, and needs no other process."""
    norms = [layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    modes = [layer.training for layer in norms]
    for layer in norms:
        layer.training = False
    try:
        yield
    finally:
        for layer, mode in zip(norms, modes, strict=True):
            layer.training = mode


def size_of(tensor: Tensor) -> int:
    """Return the bytes of a tensor's elements."""
    return tensor.numel() * tensor.element_size()
