"""Report on a regularizer: total penalty, relative distances, measured pulls, and a table of all weights."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mtsp.regularizers.buckets import (
    Bucket,
    Storage,
    blocks,
    check_whole_rows,
    local,
    local_rows,
    placed,
    some_rows,
    summed,
)
from mtsp.regularizers.penalties import Penalty, SquaredDistance, WeightBlock
from mtsp.regularizers.targets import Target, under

Weights = Mapping[str, nn.Parameter]
_SQUARED = SquaredDistance()
"""Used to measure distances for every penalty; the factor 1/2 cancels in their ratio."""


class Report(NamedTuple):
    """Distance of some weights from their anchors, and how strongly they are pulled."""

    distance: float
    """||w - w0|| / ||w0|| over the weights that have an anchor; NaN if none has one."""
    pull_to_gradient: float
    """||pull|| / ||gradient of the loss|| in the last measured step; NaN if no step was measured or gradients
    overflowed."""
    time_constant: float
    """Number of steps after which the pull alone, at the current learning rate, leaves 1/e of the distance of the
    pretrained weights (of the new ones if none is pretrained); NaN if undefined, as for a pull coupled through Adam."""


def total_penalty(penalties: Mapping[bool, Penalty], weights: Weights, targets: Mapping[str, Target]) -> float:
    """Return the sum of strength times penalty, in float64, over all processes that hold shards.

    Args:
        penalties: penalty of pretrained weights (key True) and of new weights (key False).
        weights: weights by name.
        targets: targets by weight name.

    Raises:
        ValueError: a strength is still a pace, or a shard cuts output channels that the penalty needs whole.
    """
    total = 0.0
    for name, weight in weights.items():
        for target in targets[name].parts if name in targets else ():
            if target.strength == 0:
                continue
            if not target.is_resolved:
                raise ValueError(f"the strength of {name} is still a pace, {target.pace}; attach() converts it")
            penalty = penalties[target.shared]
            check_whole_rows(penalty, name, weight, target.rows)
            block = _block(weight, target.kept, target.anchor, target.fisher, target.rows)
            total += target.strength * float(summed(penalty.value(block.divided(target.channel_groups)), weight))
    return total


def distances(weights: Weights, targets: Mapping[str, Target], prefixes: Iterable[str]) -> dict[str, float]:
    """Return ||w_S - w_S0|| / ||w_S0|| by name prefix, for each prefix that has anchored weights S."""
    result = {}
    for prefix in prefixes:
        moved = start = 0.0
        for name, weight in weights.items():
            target = targets.get(name)
            if target is not None and target.anchor is not None and under(name, prefix):
                moved += float(summed(_SQUARED.value(_block(weight, target.kept, target.anchor)), weight))
                start_block = _block(placed(target.anchor, weight, Storage()), target.kept)
                start += float(summed(_SQUARED.value(start_block), weight))
        if start:
            result[prefix] = (moved / start) ** 0.5
    return result


def measured(buckets: Iterable[Bucket], scale: Tensor | None) -> dict[str, Tensor]:
    """Return the squared norms of pull and gradient, as a tensor of two, by weight name, without waiting for a GPU.

    Args:
        buckets: weights whose gradients do not contain the pull yet.
        scale: factor by which the gradients are still multiplied (by a GradScaler), if any.
    """
    result: dict[str, Tensor] = {}
    for bucket in buckets:
        names = {id(weight): name for name, weight in zip(bucket.names, bucket.weights, strict=True)}
        for block in blocks(bucket):
            norms = torch._foreach_norm(bucket.penalty.gradients(block.values))
            pull = torch.stack(list(norms)).double() * bucket.strength
            gradient = torch.stack(list(torch._foreach_norm(block.gradients))).double()
            if scale is not None:
                gradient = gradient / scale.to(gradient.device).double()
            squares = summed(torch.stack([pull, gradient], dim=1).square(), block.parameters[0])
            for weight, both in zip(block.parameters, squares, strict=True):  # a weight may be in several blocks
                name = names[id(weight)]
                result[name] = result[name] + both if name in result else both
    return result


def table(weights: Weights, targets: Mapping[str, Target]) -> str:
    """Return a table with one weight per line (anchored, pulled to zero, new or free), followed by totals."""
    rows = []
    for name, weight in weights.items():
        target = targets.get(name)
        for part in (None,) if target is None else target.parts:
            label = name if part is None or part.kept is None else f"{name} ({len(part.kept)} of {len(weight)} rows)"
            size = weight.numel() if part is None else part.size(weight)
            rows.append((label, size, _kind(weight, part), _strength(part)))
    for kind in dict.fromkeys(row[2] for row in rows):
        sizes = [row[1] for row in rows if row[2] == kind]
        rows.append((f"{len(sizes)} tensors", sum(sizes), kind, ""))
    width = max((len(row[0]) for row in rows), default=0)
    lines = [f"{name:<{width}}  {size:>13,}  {kind:<16}  {strength}" for name, size, kind, strength in rows]
    return "\n".join(line.rstrip() for line in lines)


def _kind(weight: Tensor, target: Target | None) -> str:
    kind = (
        "free" if target is None else "new" if not target.shared else "to zero" if target.anchor is None else "anchored"
    )
    return kind if weight.requires_grad else f"{kind}, frozen"


def _strength(target: Target | None) -> str:
    if target is None:
        return "-"
    return f"{target.strength:g}" if target.is_resolved else str(target.pace)


def _block(
    weight: Tensor,
    kept: Tensor | None = None,
    anchor: Tensor | None = None,
    fisher: Tensor | None = None,
    rows: int = 0,
) -> WeightBlock:
    """This process's shard of one weight, or of its rows `kept`, in float64; complex numbers as pairs of real ones."""
    kept = local_rows(kept, weight)
    own, *beside = (
        None if v is None else [_real(some_rows(local(v).detach(), kept)).double()]
        for v in (weight, *(v if v is None else placed(v, weight, Storage()) for v in (anchor, fisher)))
    )
    assert own is not None
    return WeightBlock(own, beside[0], beside[1], rows)


def _real(values: Tensor) -> Tensor:
    return torch.view_as_real(values) if values.is_complex() else values
