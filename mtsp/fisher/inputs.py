"""Get the model's arguments, the logits, and the labels for the Fisher information from a batch."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mtsp.fisher.gradients import Arguments, Observed, at_least_float32

Labels = Literal["exact", "sampled", "empirical"]
"""Source of the labels; see :class:`mtsp.fisher.estimate.FisherSum`."""


class Reader(NamedTuple):
    """Settings for reading batches and labels; see :class:`mtsp.fisher.estimate.FisherSum`."""

    inputs: Callable[[Any], Any]
    logits: Callable[[Any], Tensor]
    targets: Callable[[Any], Tensor | None]
    labels: Labels
    draws: int
    ignore: int
    generator: torch.Generator | None

    @torch.no_grad()
    def read(self, model: nn.Module, batch: Any) -> Observed:
        """Return the samples of a batch with their labels; `sampled` labels are drawn here.

        Raises:
            ValueError: logits or labels are missing, or their shapes or classes do not match.
        """
        arguments = _arguments(self.inputs(batch))
        scores = self.logits(model(*arguments[0], **arguments[1]))
        if scores.ndim < 2:
            raise ValueError(
                f"expected logits of shape BK or BKHW, got {tuple(scores.shape)}; select them with `logits`"
            )
        scores = scores.flatten(2) if scores.ndim > 2 else scores[..., None]  # BKS
        given = self._given(batch, scores)
        valid = torch.ones_like(scores[:, 0], dtype=torch.bool)
        if given is not None and scores.shape[2] > 1:
            valid = given != self.ignore
        if self.labels == "exact":
            return Observed(arguments, self.logits, valid, None, scores.shape[1] * scores.shape[2])
        if self.labels == "sampled":
            return Observed(arguments, self.logits, valid, self._drawn(scores), self.draws)
        if given is None:
            raise ValueError("empirical needs labels; select a batch's labels with `targets`, or use sampled")
        known = given[valid]
        if known.numel() and (int(known.min()) < 0 or int(known.max()) >= scores.shape[1]):
            raise ValueError(
                f"labels {int(known.min())} to {int(known.max())} do not fit {scores.shape[1]} logits; check `targets`"
            )
        return Observed(arguments, self.logits, valid, given[:, None], 1)

    def _given(self, batch: Any, scores: Tensor) -> Tensor | None:
        """The labels of the batch, BS; None if they are not needed."""
        samples, _, pixels = scores.shape
        given = self.targets(batch)
        if given is None or (self.labels != "empirical" and pixels == 1):
            return None
        if given.numel() != samples * pixels:
            raise ValueError(
                f"{given.numel()} labels for logits of {samples} x {pixels} observations; select them with `targets`"
            )
        return given.to(scores.device).reshape(samples, pixels)

    def _drawn(self, scores: Tensor) -> Tensor:
        samples, _, pixels = scores.shape
        chances = scores.to(at_least_float32(scores.dtype)).softmax(1).movedim(1, -1).flatten(0, 1)
        drawn = torch.multinomial(chances, self.draws, replacement=True, generator=self.generator)  # (BS)n
        return drawn.reshape(samples, pixels, self.draws).movedim(2, 1)


def _arguments(value: Any) -> Arguments:
    if isinstance(value, Mapping):
        return (), dict(value)
    return (tuple(value) if isinstance(value, tuple | list) else (value,)), {}


def inputs_of(batch: Any) -> Any:
    """Return the model's arguments: the batch, the first element of a tuple or list, or a dict without `labels`."""
    if isinstance(batch, Mapping):
        return {name: value for name, value in batch.items() if name != "labels"}
    return batch[0] if isinstance(batch, tuple | list) else batch


def logits_of(output: Any) -> Tensor:
    """Return the output if it is a tensor, else its `logits`. Raises ValueError if it has none."""
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(found, Tensor):
        raise ValueError(f"the model returns a {type(output).__name__} without `logits`; select them with `logits`")
    return found


def targets_of(batch: Any) -> Tensor | None:
    """Return the labels: the second element of a tuple or list, or the `labels` of a dict; None if there are none."""
    if isinstance(batch, Mapping):
        return batch.get("labels")
    return batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
