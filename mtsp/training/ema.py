"""An exponential moving average of the weights: what Inception-V3's authors, and DSTL, evaluate instead of the last."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from mtsp.config import Config


class EmaConfig(Config):
    """How long the average remembers."""

    decay: float = Field(default=0.9999, gt=0, lt=1)
    """What is kept at each step: 0.9999 averages over about the last 10 000 steps. Take less for a short run."""
    warmup: bool = True
    """At step t (from 0) keep no more than (1 + t) / (10 + t), as TensorFlow does: the first steps are forgotten."""


class Ema:
    """A running average of a network's weights, beside the network.

    The average a follows the weights w by a <- d a + (1 - d) w after each optimizer step. Buffers of floating point
    numbers, which are batch normalization's mean and variance, are averaged alike, as slim does: the statistics then
    belong to the averaged weights, with the same delay. Integer buffers are copied. Averages are float32 where weights
    are of fewer bits: (1 - d) w would be rounded away.

    Args:
        model: not wrapped; its weights on the device where they train.
        config: of the average.
    """

    def __init__(self, model: nn.Module, config: EmaConfig) -> None:
        self.config = config
        self.updates = 0
        self._averages = {name: _copy(value) for name, value in _tensors(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after an optimizer step."""
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
            # One call takes tensors of one kind: sharded and whole ones do not mix.
            ours, theirs = lists.setdefault((type(value), value.device), ([], []))
            ours.append(average)
            theirs.append(value.detach().to(average.dtype))
        for ours, theirs in lists.values():
            torch._foreach_lerp_(ours, theirs, 1 - decay)

    @contextmanager
    def swapped(self, model: nn.Module) -> Generator[None, None, None]:
        """Let `model` have the averaged weights inside a `with`; its own come back bit for bit, whatever happens.

        The tensors stay the same objects, so that optimizer and anchors still know them. Do not train inside.
        """
        tensors = _tensors(model)
        own = {name: value.detach().clone() for name, value in tensors.items()}
        try:
            _fill(tensors, self._averages)
            yield
        finally:
            _fill(tensors, own)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs: the number of updates, and the averages by name (not copied)."""
        return {"updates": self.updates, "averages": dict(self._averages)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint.

        Raises:
            ValueError: the averages are of another network.
        """
        averages: Mapping[str, Tensor] = state["averages"]
        if odd := self._averages.keys() ^ averages.keys():
            raise ValueError(f"the averaged weights are of another network: {len(odd)} names differ, as {min(odd)}")
        for name, value in self._averages.items():
            if value.shape != averages[name].shape:
                shapes = f"{tuple(averages[name].shape)}, expected {tuple(value.shape)}"
                raise ValueError(f"the averaged weights are of another network: {name} has shape {shapes}")
        _fill(self._averages, averages)
        self.updates = int(state["updates"])


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, shared ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _copy(value: Tensor) -> Tensor:
    wide = torch.float32 if value.is_floating_point() and value.element_size() < 4 else value.dtype
    return value.detach().to(wide, copy=True)


@torch.no_grad()
def _fill(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, target in targets.items():
        target.copy_(values[name])
