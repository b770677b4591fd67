"""Keep an exponential moving average of the weights, as the authors of Inception-V3 and DSTL do for evaluation."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from mtsp.config import Config


class EmaConfig(Config):
    """Settings of the exponential moving average of the weights."""

    decay: float = Field(default=0.9999, gt=0, lt=1)
    """Weight of the old average at each step: 0.9999 averages over about 10 000 steps. Use a smaller value for a short
    run."""
    warmup: bool = True
    """Limit the decay to (1 + t) / (10 + t) at step t (from 0), as TensorFlow does, to forget the first weights."""


class Ema:
    """A running average of the weights of a network, on its device. Pass the network without Accelerate's wrapper.

    After each optimizer step, the average a of the weights w is updated as a <- d a + (1 - d) w with decay d.
    Floating-point buffers (means and variances of batch normalization) are averaged too, as in TensorFlow-Slim, so that
    they fit the averaged weights; integer buffers are copied. Averages of 16-bit weights are float32, because 16 bits
    would round (1 - d) w away.
    """

    def __init__(self, model: nn.Module, config: EmaConfig) -> None:
        self.config = config
        self.updates = 0
        self._averages = {}
        for name, value in _tensors(model).items():
            wide = torch.float32 if value.is_floating_point() and value.element_size() < 4 else value.dtype
            self._averages[name] = value.detach().to(wide, copy=True)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average after an optimizer step."""
        decay = self.config.decay
        if self.config.warmup:
            decay = min(decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        lists: dict[tuple[type, torch.device], tuple[list[Tensor], list[Tensor]]] = {}
        for name, value in _tensors(model).items():
            average = self._averages[name]
            if not average.is_floating_point():
                average.copy_(value)
                continue
            # torch's foreach functions do not accept sharded and whole tensors in one call.
            ours, theirs = lists.setdefault((type(value), value.device), ([], []))
            ours.append(average)
            theirs.append(value.detach().to(average.dtype))
        for ours, theirs in lists.values():
            torch._foreach_lerp_(ours, theirs, 1 - decay)

    @contextmanager
    def swapped(self, model: nn.Module) -> Generator[None, None, None]:
        """Give `model` the averaged weights within the context; afterwards restore its own weights exactly.

        The parameters stay the same objects, so optimizer and anchors still refer to them. Do not train in the context.
        """
        tensors = _tensors(model)
        own = {name: value.detach().clone() for name, value in tensors.items()}
        try:
            _fill(tensors, self._averages)
            yield
        finally:
            _fill(tensors, own)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of updates and the averages by name; the tensors are not copied."""
        return {"updates": self.updates, "averages": dict(self._averages)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the average from a checkpoint.

        Raises:
            ValueError: the averages belong to another network.
        """
        averages: Mapping[str, Tensor] = state["averages"]
        if odd := self._averages.keys() ^ averages.keys():
            raise ValueError(f"the averaged weights are of another network: {len(odd)} names differ, as {min(odd)}")
        for name, value in self._averages.items():
            if (found := averages[name].shape) != value.shape:
                shapes = f"{tuple(found)}, expected {tuple(value.shape)}"
                raise ValueError(f"the averaged weights are of another network: {name} has shape {shapes}")
        _fill(self._averages, averages)
        self.updates = int(state["updates"])


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, each shared tensor once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@torch.no_grad()
def _fill(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, target in targets.items():
        target.copy_(values[name])
