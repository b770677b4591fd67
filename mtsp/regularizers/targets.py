"""Which weight is pulled where, by name: found once, before anything is trained."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from math import isnan
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtsp.anchors import (
    aliases,
    known_name,
    named_weights,
    output_dimensions,
    output_groups,
    passed_over,
    penalized,
    plain_name,
)
from mtsp.regularizers.strength import Pace, Strength


class Pull(NamedTuple):
    """What happens to one weight."""

    strength: float  # NaN until `attach` converts the pace to a strength
    anchor: Tensor | None  # None: pulled to zero
    shared: bool  # True: pretrained (alpha), False: new (beta)
    pace: Pace | None = None
    importance: Tensor | None = None  # the diagonal of the Fisher information, shaped like the weight
    largest: float = 1.0  # of the importance, or 1
    rows: int = 0  # the dimension of the output channels
    channel_groups: int = 1  # one behind another along dimension 0

    @property
    def is_settled(self) -> bool:
        """Whether the strength is a number: a pace is none before `attach`."""
        return not isnan(self.strength)


def pulls(
    model: nn.Module,
    anchors: Mapping[str, Tensor] | None,
    alpha: Strength,
    beta: Strength,
    *,
    zero: bool = False,
    every: bool = False,
    fisher: Mapping[str, Tensor] | None = None,
) -> dict[str, Pull]:
    """Return the pull of every weight concerned, by name, in the model's order.

    Raises:
        ValueError: as :class:`mtsp.regularizers.L2SP` says.
    """
    if anchors is not None and not anchors and not zero:
        raise ValueError("anchors is empty, so nothing would be pulled to a start; give None to pull all to zero")
    weights = named_weights(model)
    given = _first_names(model, {} if anchors is None else anchors, weights, "anchors")
    important = None if fisher is None else _first_names(model, fisher, weights, "Fisher tensors")
    chosen = penalized(model, every=every)
    if given and not any(name in given for name in chosen):
        raise ValueError(
            f"none of the {len(given)} anchors is a convolution or linear weight, the first {next(iter(given))!r}"
        )
    if hidden := [name for name in passed_over(model) if name in given and name not in chosen]:
        raise ValueError(
            f"{hidden[0]} has an anchor but is of a recurrent or reparametrized layer, which is not pulled unasked; "
            "give every=True, or leave its anchor out"
        )
    for strength, word in ((alpha, "alpha"), (beta, "beta")):
        unknown = (
            [p for p in strength if not any(under(n, p) for n in weights)] if isinstance(strength, Mapping) else []
        )
        if unknown:
            raise ValueError(f"{word} is given for {unknown[0]!r}, but no weight's name begins so")
    found, rows, channel_groups = {}, output_dimensions(model), output_groups(model)
    for name in chosen:
        anchor, weight = given.get(name), weights[name]
        shared = anchor is not None
        strength = _strength(name, alpha if shared else beta, "alpha" if shared else "beta")
        pull = (
            Pull(float("nan"), None, shared, strength) if isinstance(strength, Pace) else Pull(strength, None, shared)
        )
        if anchor is not None:
            _check(f"the anchor of {name}", anchor, weight, "leave it out to treat the weight as new")
            held = None if zero else _copy(anchor, weight.dtype)
            pull = pull._replace(anchor=held, **_importance(name, important, weight))
        found[name] = pull._replace(rows=rows[name], channel_groups=channel_groups[name])
    return found


def under(name: str, prefix: str) -> bool:
    """Return whether `name` is the module or weight `prefix`, or lies in it."""
    return not prefix or name == prefix or name.startswith(f"{prefix}.")


def _first_names(
    model: nn.Module, tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor], what: str
) -> dict[str, Tensor]:
    """The tensors by the first name of their weight. One that matches nothing would be no regularization, silently."""
    if not isinstance(tensors, Mapping):
        raise ValueError(f"the {what} must be tensors by name, got a {type(tensors).__name__}")
    if odd := [name for name, value in tensors.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"of the {what}, {odd[0]} is a {type(tensors[odd[0]]).__name__} and no torch.Tensor")
    first = dict(aliases(model))
    buffers = {plain_name(name) for name, _ in model.named_buffers()}
    known = {*weights, *first, *buffers}
    given: dict[str, Tensor] = {}
    for name, value in tensors.items():
        found = known_name(name, known)
        found = first.get(found, found)
        if not _same(given.setdefault(found, value), value):
            raise ValueError(f"two of the {what} are for {found}, and they differ; the model shares this weight")
    lost = [name for name in given if name not in weights and name not in buffers]
    if lost:
        near = get_close_matches(lost[0], weights, n=1, cutoff=0.3) or list(weights)[:1]
        raise ValueError(
            f"{len(lost)} of {len(given)} {what} match no weight of the model, the first {lost[0]!r}; "
            f"the weights here are named like {near[0] if near else 'nothing'!r}"
        )
    return given


def _same(one: Tensor, other: Tensor) -> bool:
    if one is other or one.is_meta or other.is_meta:
        return True
    return one.shape == other.shape and bool((one.detach() == other.detach().to(one.device)).all())


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
    if not isinstance(strength, Real) or not 0 <= float(strength) < float("inf"):
        raise ValueError(f"{word} must be a number from 0 up, got {strength!r} for {name}")
    return float(strength)


def _copy(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor as its own memory: an alias of a live weight would follow it, silently."""
    return tensor.detach().to(dtype=dtype, copy=True)
