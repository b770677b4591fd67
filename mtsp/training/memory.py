"""Predict the memory that training takes, before the first step."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from mtsp.distributed.sharding import is_sharded
from mtsp.training.state import TrainingRun


class MemoryEstimate(NamedTuple):
    """Bytes that one training process takes in its largest step."""

    now: int
    """Taken before the first step: weights, anchors and, without a GPU, the program and its libraries."""
    optimizer: int
    gradients: int
    activations: int
    """Tensors of the forward and backward pass of one micro-batch, see :func:`saved_bytes`."""

    @property
    def peak(self) -> int:
        """Return the sum: gradients of one data entry are kept while the activations of the next are computed."""
        return sum(self)


def predict_memory(run: TrainingRun) -> MemoryEstimate | None:
    """Return the memory of the largest step, or None if weights are sharded or the network is compiled.

    The forward pass runs on tensors without contents, so it takes no memory and little time. Every data entry is taken
    to have samples of one size, that of its first sample in training. Workspaces of libraries are not known before a
    step, and are not counted.
    """
    network, experiment = run.network, run.experiment
    if experiment.train.compile or is_sharded(network):
        return None
    shares = run.state.accelerator.num_processes * experiment.train.accumulate
    activations, gradients = 0, 0
    for stage in experiment.train.stages:
        learning = [
            name for name in _trainable(network) if stage.learn is None or name.partition(".")[0] in stage.learn
        ]
        gradients = max(gradients, sum(_size(network.get_parameter(name)) for name in learning))
        for name, size in stage.batch_size.items():
            sample: Any = run.data[name].train_sample(0, np.random.default_rng(0))
            inputs = [sample[key] for key in ("frame", "next_frame") if key in sample]
            shapes = [(max(1, size // shares), *image.shape) for image in inputs]
            bf16 = run.state.accelerator.mixed_precision in ("bf16", "fp16")
            activations = max(activations, saved_bytes(network, shapes, learning=learning, bf16=bf16))
    state = optimizer_bytes(experiment.optimizer.build) * sum(
        network.get_parameter(n).numel() for n in _trainable(network)
    )
    return MemoryEstimate(_taken(), round(state), gradients, activations)


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
    return sum(kept) + 2 * max(kept, default=0) + 2 * sum(4 * tensor.numel() for tensor in _tensors(outputs))


def fake_state(network: nn.Module, mode: Any, learning: Sequence[str]) -> dict[str, Tensor]:
    """Return the parameters and buffers as tensors without contents, of torch's FakeTensorMode `mode`."""
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
    return sum(_size(value) for value in kept if value.numel() > 1) / weight.numel()


def _trainable(network: nn.Module) -> list[str]:
    return [name for name, weight in network.named_parameters() if weight.requires_grad]


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


def _tensors(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        for value in outputs.values():
            yield from _tensors(value)
    elif isinstance(outputs, Sequence):
        for value in outputs:
            yield from _tensors(value)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _taken() -> int:
    """Return the bytes that this process takes: on its GPU, or else of main memory (0 where that is not known)."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
