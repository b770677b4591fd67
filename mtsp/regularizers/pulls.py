"""Which weight is pulled where, by name: found once, before anything is trained."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtsp.anchors import aliases, output_dimensions, penalized, plain_name
from mtsp.regularizers.strength import Pace, Strength


class Pull(NamedTuple):
    """What happens to one weight."""

    strength: float  # not a number while it is a pace that no learning rate has made a number yet
    anchor: Tensor | None  # None: pulled to zero
    shared: bool  # True: pretrained (alpha), False: new (beta)
    pace: Pace | None = None
    importance: Tensor | None = None  # the diagonal of the Fisher information, shaped like the weight
    largest: float = 1.0  # of the importance, or 1
    rows: int = 0  # the dimension of the output channels


def pulls(
    model: nn.Module,
    anchors: Mapping[str, Tensor],
    alpha: Strength,
    beta: Strength,
    *,
    zero: bool = False,
    every: bool = False,
    fisher: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Pull]:
    """Return the pull of every weight concerned, by name, in the model's order.

    Raises:
        ValueError: as :class:`mtsp.regularizers.L2SP` says.
    """
    weights = {plain_name(name): weight for name, weight in model.named_parameters()}
    given = _first_names(model, anchors, weights, "anchors")
    important = None if fisher is None else _first_names(model, fisher, weights, "Fisher tensors")
    chosen = penalized(model, every=every)
    if given and not any(name in given for name in chosen):
        raise ValueError(
            f"none of the {len(given)} anchors is a convolution or linear weight, the first {next(iter(given))!r}"
        )
    for strength, word in ((alpha, "alpha"), (beta, "beta")):
        unknown = (
            [p for p in strength if not any(under(n, p) for n in weights)] if isinstance(strength, Mapping) else []
        )
        if unknown:
            raise ValueError(f"{word} is given for {unknown[0]!r}, but no weight's name begins so")
    found, rows = {}, output_dimensions(model, chosen)
    for name in chosen:
        anchor, weight = given.get(name), weights[name]
        shared = anchor is not None
        strength = _strength(name, alpha if shared else beta, "alpha" if shared else "beta")
        pull = (
            Pull(float("nan"), None, shared, strength) if isinstance(strength, Pace) else Pull(strength, None, shared)
        )
        if anchor is not None:
            _check(f"the anchor of {name}", anchor, weight, "leave it out to treat the weight as new")
            held = None if zero else _copy(anchor, dtype or weight.dtype)
            pull = pull._replace(anchor=held, **_importance(name, important, weight))
        found[name] = pull._replace(rows=rows[name])
    return found


def under(name: str, prefix: str) -> bool:
    """Return whether `name` is the module or weight `prefix`, or lies in it."""
    return not prefix or name == prefix or name.startswith(f"{prefix}.")


def _first_names(
    model: nn.Module, tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor], what: str
) -> dict[str, Tensor]:
    """The tensors by the first name of their weight. One that matches nothing would be no regularization, silently."""
    first = dict(aliases(model))
    given = {first.get(plain_name(name), plain_name(name)): value for name, value in tensors.items()}
    buffers = {plain_name(name) for name, _ in model.named_buffers()}
    lost = [name for name in given if name not in weights and name not in buffers]
    if lost:
        near = get_close_matches(lost[0], weights, n=1, cutoff=0.3) or list(weights)[:1]
        raise ValueError(
            f"{len(lost)} of {len(given)} {what} match no weight of the model, the first {lost[0]!r}; "
            f"the weights here are named like {near[0] if near else 'nothing'!r}"
        )
    return given


def _importance(name: str, fisher: Mapping[str, Tensor] | None, weight: Tensor) -> dict[str, Any]:
    if fisher is None:
        return {}
    value = fisher.get(name)
    if value is None:
        raise ValueError(f"there is no Fisher information of {name}, which has an anchor; estimate it for all of them")
    _check(f"the Fisher information of {name}", value, weight, "estimate it on this network")
    if value.is_meta:
        return {"importance": value}
    if bool((value < 0).any()):
        raise ValueError(f"the Fisher information of {name} has negative values; it is a mean of squares")
    return {"importance": _copy(value, weight.dtype), "largest": float(value.max())}


def _check(what: str, value: Tensor, weight: Tensor, instead: str) -> None:
    if value.shape != weight.shape:
        raise ValueError(f"{what} has shape {tuple(value.shape)}, the weight {tuple(weight.shape)}; {instead}")
    if not value.is_meta and not bool(value.isfinite().all()):
        raise ValueError(f"{what} has values that are NaN or infinite")


def _strength(name: str, strength: Strength, word: str) -> float | Pace:
    if isinstance(strength, Mapping):
        prefixes: Iterable[str] = [prefix for prefix in strength if under(name, prefix)]
        if not prefixes:
            raise ValueError(f"no {word} for {name}: there is one for {', '.join(strength) or 'nothing'}")
        strength = strength[max(prefixes, key=len)]
    if isinstance(strength, Pace):
        return strength
    if not 0 <= strength < float("inf"):
        raise ValueError(f"{word} must be a number from 0 up, got {strength} for {name}")
    return float(strength)


def _copy(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor as its own memory: an alias of a live weight would follow it, silently."""
    return tensor.detach().to(dtype=dtype, copy=True)
