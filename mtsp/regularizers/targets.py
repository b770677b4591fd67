"""Find the target of each regularized weight, its anchor or zero, by name, once before training."""

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
    penalized,
    plain_name,
    unpenalized_matrices,
)
from mtsp.regularizers.strength import Pace, Strength


class Target(NamedTuple):
    """Anchor and strength of one regularized weight, or of some of its rows (output channels)."""

    strength: float  # NaN until `attach` converts the pace to a strength
    anchor: Tensor | None  # None: pulled to zero
    shared: bool  # True: pretrained (alpha), False: new (beta)
    pace: Pace | None = None
    fisher: Tensor | None = None  # diagonal of the Fisher information, shaped like the weight
    largest_fisher: float = 1.0  # 1 without Fisher information
    rows: int = 0  # dimension of the output channels
    channel_groups: int = 1  # number of groups of output channels along dimension 0
    kept: Tensor | None = None  # numbers of the rows, along dimension 0; None: the whole weight
    rest: "Target | None" = None  # target of the other rows, which are new

    @property
    def is_resolved(self) -> bool:
        """Whether the strength is a number; `attach` converts a pace to one."""
        return not isnan(self.strength)

    @property
    def parts(self) -> tuple["Target", ...]:
        """The target itself and, if it does not cover all rows, the target of the other rows."""
        return (self,) if self.rest is None else (self._replace(rest=None), self.rest)

    def size(self, weight: Tensor) -> int:
        """Return the number of entries of `weight` that it covers, in all shards."""
        return weight.numel() if self.kept is None else weight.numel() // weight.shape[0] * len(self.kept)


def find_targets(
    model: nn.Module,
    anchors: Mapping[str, Tensor] | None,
    alpha: Strength,
    beta: Strength,
    *,
    zero: bool = False,
    every: bool = False,
    fisher: Mapping[str, Tensor] | None = None,
) -> dict[str, Target]:
    """Return the targets of all regularized weights by name, in the model's order.

    Raises:
        ValueError: see :class:`mtsp.regularizers.base.Regularizer`.
    """
    if anchors is not None and not anchors and not zero:
        raise ValueError("anchors is empty, so no weight would be pulled to a start; give None to pull all to zero")
    weights = named_weights(model)
    given = _by_first_name(model, {} if anchors is None else anchors, weights, "anchors")
    given_fisher = None if fisher is None else _by_first_name(model, fisher, weights, "Fisher tensors")
    chosen = penalized(model, every=every)
    if given and not any(name in given for name in chosen):
        raise ValueError(
            f"none of the {len(given)} anchors is a convolution or linear weight, the first {next(iter(given))!r}"
        )
    if hidden := [name for name in unpenalized_matrices(model) if name in given and name not in chosen]:
        raise ValueError(
            f"{hidden[0]} has an anchor but belongs to a recurrent or reparametrized layer, which is regularized only "
            "with every=True; give that, or leave its anchor out"
        )
    for strength, word in ((alpha, "alpha"), (beta, "beta")):
        prefixes = strength if isinstance(strength, Mapping) else ()
        if unknown := [prefix for prefix in prefixes if not any(under(name, prefix) for name in weights)]:
            raise ValueError(f"{word} is given for {unknown[0]!r}, but no weight's name begins with it")
    found, rows, channel_groups = {}, output_dimensions(model), output_groups(model)
    for name in chosen:
        anchor, weight = given.get(name), weights[name]
        shared = anchor is not None
        target = _target(name, alpha, "alpha") if shared else _target(name, beta, "beta")
        target = target._replace(rows=rows[name], channel_groups=channel_groups[name])
        if anchor is not None:
            kept = _kept_rows(name, anchor, target)
            _check(f"the anchor of {name}", anchor, weight, "leave it out to treat the weight as new", kept)
            own = None if zero else _copy(anchor, weight.dtype)
            target = target._replace(anchor=own, kept=kept, **_fisher(name, given_fisher, weight))
            if kept is not None:
                new = torch.tensor(sorted(set(range(len(weight))) - set(kept.tolist())))
                target = target._replace(rest=_target(name, beta, "beta")._replace(rows=rows[name], kept=new))
        found[name] = target
    return found


def _target(name: str, strength: Strength, word: str) -> Target:
    value = _strength(name, strength, word)
    if isinstance(value, Pace):
        return Target(float("nan"), None, word == "alpha", value)
    return Target(value, None, word == "alpha")


def _kept_rows(name: str, anchor: Tensor, target: Target) -> Tensor | None:
    """Return the numbers of the rows that have an anchor, or None if all have: rows of NaN have none."""
    whole = getattr(anchor, "full_tensor", lambda: anchor)()
    if whole.is_meta or whole.dim() < 2:
        return None
    new = whole.isnan().flatten(1).all(1).cpu()
    if new.all() or not new.any():
        return None
    if target.rows != 0 or target.channel_groups > 1:
        raise ValueError(f"{name} belongs to a transposed layer; its anchor must cover all channels or none")
    return (~new).nonzero().flatten()


def under(name: str, prefix: str) -> bool:
    """Return whether `name` equals `prefix` or is inside the module named `prefix`."""
    return not prefix or name == prefix or name.startswith(f"{prefix}.")


def _by_first_name(
    model: nn.Module, tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor], what: str
) -> dict[str, Tensor]:
    """The tensors, by the first name of the weight. Unmatched names raise an error: they would have no effect."""
    if not isinstance(tensors, Mapping):
        raise ValueError(f"the {what} must be a mapping of names to tensors, got a {type(tensors).__name__}")
    if odd := [name for name, value in tensors.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{odd[0]} among the {what} is a {type(tensors[odd[0]]).__name__}, not a torch.Tensor")
    first = dict(aliases(model))
    buffers = {plain_name(name) for name, _ in model.named_buffers()}
    known = {*weights, *first, *buffers}
    given: dict[str, Tensor] = {}
    for name, value in tensors.items():
        found = known_name(name, known)
        found = first.get(found, found)
        if not _same(given.setdefault(found, value), value):
            raise ValueError(
                f"two of the {what} belong to {found}, which the model shares, but they differ; give one of them"
            )
    unknown = [name for name in given if name not in weights and name not in buffers]
    if unknown:
        block = get_close_matches(unknown[0], weights, n=1, cutoff=0.3) or list(weights)[:1]
        raise ValueError(
            f"{len(unknown)} of {len(given)} {what} match no weight of the model, the first {unknown[0]!r}; "
            f"weights of this model are named like {block[0] if block else 'nothing'!r}"
        )
    return given


def _same(one: Tensor, other: Tensor) -> bool:
    if one is other or one.is_meta or other.is_meta:
        return True
    return one.shape == other.shape and bool((one.detach() == other.detach().to(one.device)).all())


def _fisher(name: str, fisher: Mapping[str, Tensor] | None, weight: Tensor) -> dict[str, Any]:
    if fisher is None:
        return {}
    value = fisher.get(name)
    if value is None:
        raise ValueError(
            f"{name} has an anchor but no Fisher information; estimate it for all weights that have an anchor"
        )
    _check(f"the Fisher information of {name}", value, weight, "estimate it on this network")
    if value.is_meta:
        return {"fisher": value}
    if bool((value < 0).any()):
        raise ValueError(
            f"the Fisher information of {name} has negative values, but a mean of squares has none; estimate it again"
        )
    return {"fisher": _copy(value, weight.dtype), "largest_fisher": float(value.max())}


def _check(what: str, value: Tensor, weight: Tensor, instead: str, kept: Tensor | None = None) -> None:
    if value.shape != weight.shape:
        raise ValueError(f"{what} has shape {tuple(value.shape)}, the weight {tuple(weight.shape)}; {instead}")
    value = value if kept is None else getattr(value, "full_tensor", lambda: value)()[kept.to(value.device)]
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
    """A copy in new memory, because an alias of the trained weight would change with it."""
    return tensor.detach().to(dtype=dtype, copy=True)
