"""Compute sums of squared gradients of log-likelihoods, the terms of the Fisher information.

Dimensions: B samples, K classes, S pixels of a sample (1 for classification), n label sets per sample.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.utils._pytree import tree_map, tree_map_only

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Observed(NamedTuple):
    """Samples, and the labels at which the log-likelihood is differentiated."""

    arguments: Arguments
    """The model's arguments; the first dimension of every tensor is the sample."""
    logits: Callable[[Any], Tensor]
    """Function from the model's output to BK or BK... logits."""
    valid: Tensor
    """BS bool: False for pixels to exclude."""
    labels: Tensor | None
    """BnS long. None: use every class of every pixel, weighted by its probability."""
    passes: int
    """Number of backward passes per sample: n, or K times S if `labels` is None."""


@torch.no_grad()  # otherwise a graph of the gradients would be recorded for the model's other parameters
def vectorized(model: nn.Module, weights: Mapping[str, Tensor], observed: Observed, chunk: int) -> dict[str, Tensor]:
    """Return the squared gradients by weight name, summed over samples and labels, computed with vmap.

    At most about `chunk` gradients are in memory at once: from several samples, or from one sample with many labels.

    Raises:
        RuntimeError: vmap does not support the model.
    """

    def of_sample(arguments: Arguments, valid: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        def forward(weights: dict[str, Tensor]) -> Tensor:
            args, kwargs = tree_map_only(Tensor, lambda value: value[None], arguments)
            return _flat(observed.logits(functional_call(model, weights, args, kwargs)))

        scores, pull_back = cast(tuple[Tensor, Callable[[Tensor], Any]], vjp(forward, dict(weights)))
        total = _zeros(weights)
        for directions in _directions(scores, valid, labels, chunk):
            grads = vmap(pull_back)(directions)[0]
            total = {name: value + _squared(grads[name]).sum(0) for name, value in total.items()}
        return total

    total = _zeros(weights)
    at_once = max(1, chunk // observed.passes)
    for start in range(0, len(observed.valid), at_once):
        part = _rows(observed, start, start + at_once)
        axes = tree_map(lambda value: 0 if isinstance(value, Tensor) else None, part.arguments)
        in_dims = (axes, 0, None if part.labels is None else 0)
        sums = vmap(of_sample, in_dims=in_dims)(part.arguments, part.valid, part.labels)
        for name, value in sums.items():
            total[name] += value.sum(0)
    return total


def looped(model: nn.Module, weights: Mapping[str, Tensor], observed: Observed) -> dict[str, Tensor]:
    """Return the same values as :func:`vectorized`, computed with plain autograd, one gradient at a time."""
    total = _zeros(weights)
    for i in range(len(observed.valid)):
        one = _rows(observed, i, i + 1)
        leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        with torch.enable_grad():
            scores = _flat(observed.logits(functional_call(model, leaves, *one.arguments)))
        labels = None if one.labels is None else one.labels[0]
        for directions in _directions(scores.detach(), one.valid[0], labels, 1):
            inputs = list(leaves.values())
            grads = torch.autograd.grad(scores, inputs, directions[0], retain_graph=True, allow_unused=True)
            for name, grad in zip(leaves, grads, strict=True):
                if grad is not None:
                    total[name] += _squared(grad)
    return total


def _directions(scores: Tensor, valid: Tensor, labels: Tensor | None, chunk: int) -> Iterator[Tensor]:
    """Yield the derivatives of log f with respect to the KS logits, which are one-hot - f, as nKS, `chunk` at a time.

    Without labels, there is one derivative per class and pixel, multiplied by the square root of the class probability.
    """
    classes, pixels = scores.shape
    chances = scores.to(at_least_float32(scores.dtype)).softmax(0)
    if labels is not None:
        for part in labels.split(chunk):
            yield ((_one_hot(part, classes).movedim(-1, 1) - chances) * valid).to(scores.dtype)
        return
    for index in torch.arange(classes * pixels, device=scores.device).split(chunk):
        k, p = index // pixels, index % pixels
        of_class = _one_hot(k, classes) - chances[:, p].movedim(0, 1)  # nK
        weighted = of_class * (chances[k, p] * valid[p]).sqrt()[:, None]
        yield (weighted[:, :, None] * _one_hot(p, pixels)[:, None, :]).to(scores.dtype)


def _one_hot(index: Tensor, size: int) -> Tensor:
    """One-hot encoding; vmap does not support the value check in torch.nn.functional.one_hot."""
    return (index[..., None] == torch.arange(size, device=index.device)).float()


def _rows(observed: Observed, start: int, end: int) -> Observed:
    return observed._replace(
        arguments=tree_map_only(Tensor, lambda value: value[start:end], observed.arguments),
        valid=observed.valid[start:end],
        labels=None if observed.labels is None else observed.labels[start:end],
    )


def _flat(scores: Tensor) -> Tensor:
    """1K or 1K... logits of one sample as KS."""
    return scores[0].flatten(1) if scores.ndim > 2 else scores[0][:, None]


def _zeros(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(weight, dtype=at_least_float32(weight.dtype)) for name, weight in weights.items()}


def _squared(grad: Tensor) -> Tensor:
    return grad.to(at_least_float32(grad.dtype)).square()


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return float32 for dtypes of lower precision, else `dtype` itself."""
    return torch.promote_types(dtype, torch.float32)
