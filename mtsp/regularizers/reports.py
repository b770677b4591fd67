"""What a regularizer has to say: its value, its distances, its table."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mtsp.regularizers.buckets import Bucket, Storage, local, parts, placed, refuse_split_rows, summed
from mtsp.regularizers.penalties import Near, Penalty, SquaredDistance
from mtsp.regularizers.targets import Pull, under

Weights = Mapping[str, nn.Parameter]
SQUARED = SquaredDistance()
"""Twice its value is what distances are measured by, whatever the penalty; the factor falls out of their ratio."""


class Report(NamedTuple):
    """How strongly some weights are held."""

    distance: float
    """||w - w0|| / ||w0|| over those with an anchor; NaN where there are none."""
    pull_to_gradient: float
    """||pull|| / ||gradient of the loss||, in the step measured last; NaN if none was, or its gradients overflowed."""
    time_constant: float
    """Steps until a pull alone leaves 1/e of the distance of pretrained weights, or of new ones where there are no
    others, at the present learning rate; NaN where there is no such number, as coupled through Adam."""


def penalty(forms: Mapping[bool, Penalty], weights: Weights, pulls: Mapping[str, Pull]) -> float:
    """Return the sum of strength times penalty, in float64, over all processes that hold shards.

    Args:
        forms: the penalties of pretrained (True) and of new weights.
        weights: by name.
        pulls: by name.

    Raises:
        ValueError: a strength is a pace, or a shard cuts a row that the penalty looks at.
    """
    total = 0.0
    for name, weight in weights.items():
        pull = pulls.get(name)
        if pull is None or pull.strength == 0:
            continue
        if not pull.is_settled:
            raise ValueError(f"{name} has the strength {pull.pace}; attach() makes it a number")
        form = forms[pull.shared]
        refuse_split_rows(form, name, weight, pull.rows)
        total += pull.strength * _value(form, weight, pull.anchor, pull.importance, pull.rows, pull.channel_groups)
    return total


def distances(weights: Weights, pulls: Mapping[str, Pull], prefixes: Iterable[str]) -> dict[str, float]:
    """Return ||w_S - w_S0|| / ||w_S0|| for each name prefix under which something is anchored."""
    result = {}
    for prefix in prefixes:
        moved = start = 0.0
        for name, weight in weights.items():
            pull = pulls.get(name)
            if pull is not None and pull.anchor is not None and under(name, prefix):
                moved += _value(SQUARED, weight, pull.anchor)
                start += _value(SQUARED, placed(pull.anchor, weight, Storage()))
        if start:
            result[prefix] = (moved / start) ** 0.5
    return result


def measured(bucket: Bucket, scale: Tensor | None) -> dict[str, Tensor]:
    """Return, by weight, the squared norms of its pull and of its gradient, without waiting for a GPU.

    Args:
        bucket: weights whose gradients are those of the loss alone.
        scale: what the gradients are still multiplied by, if they are.
    """
    names = {id(weight): name for name, weight in zip(bucket.names, bucket.weights, strict=True)}
    result: dict[str, Tensor] = {}
    for near, gradients, weights in parts(bucket, whole=bucket.form.by_row):
        pull = torch.stack(list(torch._foreach_norm(bucket.form.gradients(near)))).double() * bucket.strength
        gradient = torch.stack(list(torch._foreach_norm(gradients))).double()
        if scale is not None:
            gradient = gradient / scale.to(gradient.device).double()
        squares = summed(torch.stack([pull, gradient], dim=1).square(), weights[0])
        for weight, both in zip(weights, squares, strict=True):  # a large weight comes in slices
            name = names[id(weight)]
            result[name] = result[name] + both if name in result else both
    return result


def table(weights: Weights, pulls: Mapping[str, Pull]) -> str:
    """Return what is anchored, pulled to zero, new and free, one weight a line, and the sums below."""
    rows = [
        (name, weight.numel(), _kind(weight, pulls.get(name)), _said(pulls.get(name)))
        for name, weight in weights.items()
    ]
    for kind in dict.fromkeys(row[2] for row in rows):
        sizes = [row[1] for row in rows if row[2] == kind]
        rows.append((f"{len(sizes)} tensors", sum(sizes), kind, ""))
    wide = max((len(row[0]) for row in rows), default=0)
    return "\n".join(f"{name:<{wide}}  {size:>13,}  {kind:<16}  {said}".rstrip() for name, size, kind, said in rows)


def _kind(weight: Tensor, pull: Pull | None) -> str:
    kind = "free" if pull is None else "new" if not pull.shared else "to zero" if pull.anchor is None else "anchored"
    return kind if weight.requires_grad else f"{kind}, frozen"


def _said(pull: Pull | None) -> str:
    if pull is None:
        return "-"
    return f"{pull.strength:g}" if pull.is_settled else str(pull.pace)


@torch.no_grad()
def _value(
    form: Penalty,
    weight: Tensor,
    anchor: Tensor | None = None,
    importance: Tensor | None = None,
    rows: int = 0,
    channel_groups: int = 1,
) -> float:
    """One weight's part of a penalty, over all processes that hold shards of it."""
    beside = [None if v is None else [local(placed(v, weight, Storage())).double()] for v in (anchor, importance)]
    near = Near([local(weight).detach().double()], beside[0], beside[1], rows)
    return float(summed(form.value(near.divided(channel_groups)), weight))
