"""WiSE-FT: interpolate between the weights before and after fine-tuning.

After Wortsman, Ilharco, Kim, Li et al., "Robust fine-tuning of zero-shot models", CVPR 2022, section 3: a
fraction of about one half often keeps the original accuracy on other data at little or no cost on the target data.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

FRACTIONS = tuple(step / 10 for step in range(11))
"""Interpolation fractions from the start (0) to the end (1), both included."""

ResultT = TypeVar("ResultT")


@torch.no_grad()
def interpolated(
    start: Mapping[str, Tensor], end: Mapping[str, Tensor], fraction: float, *, only: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Return (1 - fraction) * start + fraction * end for every tensor; 0 and 1 give start and end bit for bit.

    Integers and booleans, such as the counters of batch normalization, are taken from `start` if `fraction` is below
    0.5, else from `end`. Running statistics are interpolated like weights, as in the paper's code; they are not the
    true statistics of the interpolated network, so re-estimating them on some batches may help. Half precision is
    computed in float32.

    Args:
        start: weights before fine-tuning.
        end: weights after fine-tuning.
        fraction: weight of `end`, 0 to 1.
        only: names of the tensors or modules to interpolate; all other tensors are taken from `end` and need not be in
            `start`. Use it for a network with a new head, because interpolating with a random start is of no use.

    Raises:
        ValueError: `fraction` is outside 0 to 1, the names or shapes differ, or a prefix matches nothing.
    """
    mixed = _checked(start, end, [fraction], only)
    return {n: _between(start[n], value, fraction) if n in mixed else value.clone() for n, value in end.items()}


def along(
    model: nn.Module,
    start: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    evaluate: Callable[[nn.Module], ResultT],
    *,
    fractions: Sequence[float] = FRACTIONS,
    only: Sequence[str] | None = None,
) -> dict[float, ResultT]:
    """Return the result of `evaluate(model)` by fraction; afterwards, the model's original weights are restored.

    Raises:
        ValueError: see :func:`interpolated`; raised before the first evaluation.
        RuntimeError: the weights do not fit this model.
    """
    _checked(start, end, fractions, only)
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    results = {}
    try:
        for fraction in fractions:
            model.load_state_dict(interpolated(start, end, fraction, only=only))
            results[fraction] = evaluate(model)
    finally:
        model.load_state_dict(before)
    return results


def _checked(
    start: Mapping[str, Tensor], end: Mapping[str, Tensor], fractions: Sequence[float], only: Sequence[str] | None
) -> set[str]:
    """Return the names to interpolate."""
    for fraction in fractions:
        if not 0 <= fraction <= 1:
            raise ValueError(f"the fraction must lie between 0 and 1, got {fraction}")
    own, other = ({n for n in names if only is None or any(_under(n, p) for p in only)} for names in (start, end))
    for prefix in only or ():
        if not any(_under(name, prefix) for name in other):
            raise ValueError(f"no tensor is named {prefix!r}; the names are like {next(iter(end), 'none')!r}")
    for names, here, there in ((own - other, "start", "end"), (other - own, "end", "start")):
        if names:
            raise ValueError(
                f"{len(names)} tensors of `{here}` are not in `{there}`, the first {min(names)!r}; interpolate weights "
                "of one network, or name the common modules with `only`"
            )
    for name in sorted(own):
        if start[name].shape != end[name].shape:
            raise ValueError(
                f"{name} has shape {tuple(start[name].shape)} in `start`, {tuple(end[name].shape)} in `end`; "
                "name the common modules with `only`, such as the backbone of a network with a new head"
            )
    return own


def _under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _between(start: Tensor, end: Tensor, fraction: float) -> Tensor:
    if fraction in (0, 1) or not end.is_floating_point():
        return (start if fraction < 0.5 else end).to(end).clone()
    precise = torch.promote_types(end.dtype, torch.float32)
    return start.to(end.device, precise).lerp(end.to(precise), fraction).to(end.dtype)
