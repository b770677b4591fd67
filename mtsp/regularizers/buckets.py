"""Weights that are pulled alike, gathered so that a few foreach calls serve them, wherever and in whatever shards."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtsp.regularizers.penalties import Near, Penalty, divided
from mtsp.regularizers.targets import Pull

_BLOCK = {"cpu": 2**18}
"""Entries pulled at a time: on CPUs, what a core's cache holds (measured: twice as fast as all at once)."""
_OTHER_BLOCK = 2**24


class Storage(NamedTuple):
    """How anchors are kept."""

    dtype: torch.dtype | None = None  # None: the weight's
    offload: bool = False  # in (pinned) CPU memory, copied over block by block


@dataclass
class Bucket:
    """Weights of one parameter group that are pulled alike."""

    group: int
    strength: float
    rows: int
    channel_groups: int  # that each weight is divided into along dimension 0, so that `rows` counts those of each
    shared: bool  # True: pretrained; False: new, pulled to zero
    form: Penalty
    names: list[str] = field(default_factory=list)
    weights: list[nn.Parameter] = field(default_factory=list)
    anchors: list[Tensor] | None = None
    importance: list[Tensor] | None = None
    largest: float = 1.0  # importance of the stiffest weight
    noted: list[Tensor] = field(default_factory=list)  # what a gate measured before the step


class Part(NamedTuple):
    """Some weights of a bucket that have a gradient."""

    near: Near
    gradients: list[Tensor]
    weights: list[nn.Parameter]


def sort(
    model_names: Mapping[int, str],
    optimizer: Any,
    pulls: dict[str, Pull],
    forms: Mapping[bool, Penalty],
    storage: Storage,
) -> list[Bucket]:
    """Gather the optimizer's weights into buckets; move and shard their anchors as the weights are.

    `pulls` then holds the moved anchors, so that each is in memory once.

    Raises:
        ValueError: a weight was flattened, or its shards cut the rows its penalty looks at, or hold what is offloaded,
            or a pace is no number yet.
    """
    buckets: dict[tuple[Any, ...], Bucket] = {}
    for index, group in enumerate(optimizer.param_groups):
        for weight in group["params"]:
            name = model_names.get(id(weight), "")
            pull = pulls.get(name)
            if pull is None or pull.strength == 0:
                continue
            if not pull.is_settled:
                raise ValueError(f"{name} has the strength {pull.pace}, which no learning rate has made a number yet")
            if pull.anchor is not None and pull.anchor.shape != weight.shape:
                raise ValueError(
                    f"{name} has shape {tuple(weight.shape)} now, its anchor {tuple(pull.anchor.shape)}: FSDP1 "
                    "flattens weights; use FSDP2 (fully_shard), which keeps them"
                )
            if storage.offload and is_sharded(weight):
                raise ValueError(
                    f"offload=True: {name} is sharded, and its anchor with it; use FSDP2's CPUOffloadPolicy, or "
                    "anchor_dtype=torch.bfloat16"
                )
            pull = pulls[name] = pull._replace(
                anchor=None if pull.anchor is None else placed(pull.anchor, weight, storage),
                importance=None if pull.importance is None else placed(pull.importance, weight, storage),
            )
            form = forms[pull.shared]
            channel_groups = pull.channel_groups if form.by_row else 1
            alike = (index, pull.strength, pull.rows, channel_groups, pull.shared)
            refuse_split_rows(form, name, weight, pull.rows)
            bucket = buckets.setdefault((*alike, *_kind(weight)), Bucket(*alike, form))
            bucket.names.append(name)
            bucket.weights.append(weight)
            bucket.largest = max(bucket.largest, pull.largest)
            if pull.anchor is not None:
                bucket.anchors = [*(bucket.anchors or []), local(pull.anchor)]
            if pull.importance is not None:
                bucket.importance = [*(bucket.importance or []), local(pull.importance)]
    return list(buckets.values())


def parts(bucket: Bucket, *, whole: bool) -> Iterator[Part]:
    """Yield the weights that have a gradient, in blocks that bound the memory an action needs.

    Args:
        bucket: the weights.
        whole: never divide a weight: for actions that look at its rows or its norm.

    Raises:
        ValueError: a gradient is sparse.
    """
    limit = _BLOCK.get(bucket.weights[0].device.type, _OTHER_BLOCK)
    for indices in _blocks(active(bucket), [local(w).numel() for w in bucket.weights], limit):
        weights = [bucket.weights[i] for i in indices]
        locals_ = [local(weight).detach() for weight in weights]
        anchors = _beside(bucket.anchors, indices, locals_)
        importance = _beside(bucket.importance, indices, locals_)
        gradients = [_gradient(weight, bucket.names[i]) for weight, i in zip(weights, indices, strict=True)]
        if bucket.channel_groups > 1:
            near = Near(locals_, anchors, importance, bucket.rows).divided(bucket.channel_groups)
            repeated = [weight for weight in weights for _ in range(bucket.channel_groups)]
            yield Part(near, divided(gradients, bucket.channel_groups), repeated)
            continue
        if whole or len(indices) > 1 or locals_[0].numel() <= 2 * limit or locals_[0].dim() == 0:
            yield Part(Near(locals_, anchors, importance, bucket.rows), gradients, weights)
            continue
        for lists in _slices([locals_, anchors, importance, gradients], limit):
            yield Part(Near(lists[0] or [], lists[1], lists[2], bucket.rows), lists[3] or [], weights)


def active(bucket: Bucket) -> list[int]:
    """Return the places of the weights that learn: a gradient of zeros may be left on one that was frozen."""
    return [i for i, weight in enumerate(bucket.weights) if weight.grad is not None and weight.requires_grad]


def gradients(bucket: Bucket) -> tuple[list[int], list[Tensor]]:
    """Return the places of the weights that learn, and their gradients."""
    kept = active(bucket)
    return kept, [_gradient(bucket.weights[i], bucket.names[i]) for i in kept]


def placed(value: Tensor, weight: Tensor, storage: Storage) -> Tensor:
    """Return the value where the weight is and sharded as it is, with its strides, in the storage's dtype."""
    dtype = storage.dtype or weight.dtype
    if is_sharded(weight):
        same = is_sharded(value) and value.device_mesh == weight.device_mesh and value.placements == weight.placements  # pyright: ignore[reportAttributeAccessIssue]
        if not same:
            from torch.distributed.tensor import distribute_tensor

            value = value.full_tensor() if is_sharded(value) else value  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
            value = distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)  # pyright: ignore[reportAttributeAccessIssue]
        return value.to(dtype)
    if is_sharded(value):
        value = value.full_tensor()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    if storage.offload and weight.device.type != "cpu":
        value = value.to("cpu", dtype)
        return value if value.is_pinned() or weight.device.type != "cuda" else value.pin_memory()
    if value.device == weight.device and value.dtype == dtype and value.stride() == weight.stride():
        return value
    # Strides like the weight's, as in a network in channels_last: an operation on unlike strides is many times slower.
    return torch.empty_like(weight, dtype=dtype, requires_grad=False).copy_(value)


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor that FSDP2 may have sharded, sharing its memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]


def is_sharded(tensor: Tensor) -> bool:
    """Return whether this is a DTensor, which FSDP2 and tensor parallelism make of a weight."""
    return hasattr(tensor, "device_mesh")


def refuse_split_rows(form: Penalty, name: str, weight: Tensor, rows: int) -> None:
    """Raise ValueError if the penalty looks at rows of this weight that no process sees whole."""
    if form.by_row and is_sharded(weight) and any(p.is_shard() and not p.is_shard(rows) for p in weight.placements):  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(
            f"{name} is sharded inside its output channels, which this penalty looks at as wholes; shard dimension 0"
        )


def summed(values: Tensor, weight: Tensor) -> Tensor:
    """Return the sums over the processes that hold shards of `weight`; the values of a whole one as they are."""
    if is_sharded(weight):
        for dimension, placement in enumerate(weight.placements):  # pyright: ignore[reportAttributeAccessIssue]
            if placement.is_shard():
                torch.distributed.all_reduce(values, group=weight.device_mesh.get_group(dimension))  # pyright: ignore[reportAttributeAccessIssue]
    return values


def _kind(weight: Tensor) -> tuple[Any, ...]:
    layout = (weight.device_mesh, weight.placements) if is_sharded(weight) else None  # pyright: ignore[reportAttributeAccessIssue]
    return weight.device, weight.dtype, layout


def _gradient(weight: nn.Parameter, name: str) -> Tensor:
    gradient = weight.grad
    assert gradient is not None
    if gradient.layout != torch.strided:
        raise ValueError(f"the gradient of {name} is sparse, which a pull on every entry is not; set sparse=False")
    if is_sharded(gradient) and gradient.placements != weight.placements:  # pyright: ignore[reportAttributeAccessIssue]
        gradient = weight.grad = gradient.redistribute(placements=weight.placements)  # pyright: ignore[reportAttributeAccessIssue]
    return local(gradient)


def _beside(tensors: list[Tensor] | None, indices: Iterable[int], weights: list[Tensor]) -> list[Tensor] | None:
    """The chosen tensors, on the weights' device and in their dtype: copied there only where they are stored apart."""
    if tensors is None:
        return None
    return [
        tensors[i].to(weight.device, weight.dtype, non_blocking=True)
        for i, weight in zip(indices, weights, strict=True)
    ]


def _blocks(indices: list[int], sizes: list[int], limit: int) -> Iterator[list[int]]:
    block: list[int] = []
    entries = 0
    for i in indices:
        if block and entries + sizes[i] > limit:
            yield block
            block, entries = [], 0
        block.append(i)
        entries += sizes[i]
    if block:
        yield block


def _slices(lists: list[list[Tensor] | None], limit: int) -> Iterator[list[list[Tensor] | None]]:
    """Cut the one tensor of each list along its first dimension."""
    first = next(tensors[0] for tensors in lists if tensors)
    rows = max(1, limit * first.shape[0] // first.numel())
    for start in range(0, first.shape[0], rows):
        size = min(rows, first.shape[0] - start)
        yield [None if tensors is None else [tensors[0].narrow(0, start, size)] for tensors in lists]
