"""Group weights that are pulled in the same way into buckets, so that a few foreach calls move them all."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtsp.regularizers.penalties import Penalty, WeightBlock, divided
from mtsp.regularizers.targets import Target

_BLOCK = {"cpu": 2**18}
"""Number of entries pulled at a time, by device. On a CPU they fit in a core's cache, which measured twice as fast."""
_OTHER_BLOCK = 2**24


class Storage(NamedTuple):
    """Dtype and device in which anchors are stored."""

    dtype: torch.dtype | None = None  # None: the dtype of the weight
    offload: bool = False  # True: in (pinned) CPU memory, copied to the weight's device block by block


@dataclass
class Bucket:
    """Weights of one parameter group that are pulled in the same way."""

    group: int
    strength: float
    rows: int  # dimension of the output channels
    channel_groups: int  # number of slices of each weight along dimension 0 that have their own output channels
    shared: bool  # True: pretrained; False: new, pulled to zero
    penalty: Penalty
    names: list[str] = field(default_factory=list)
    weights: list[nn.Parameter] = field(default_factory=list)
    anchors: list[Tensor] | None = None
    fisher: list[Tensor] | None = None
    largest_fisher: float = 1.0  # maximum over all weights; 1 without Fisher information
    kept: Tensor | None = None  # numbers of the rows of the only weight that are meant; None: whole weights
    pre_step: list[Tensor] = field(default_factory=list)  # measured before the step by selective regularizers


class Block(NamedTuple):
    """Weights of a bucket that are moved at once; all of them have a gradient."""

    values: WeightBlock
    gradients: list[Tensor]
    parameters: list[nn.Parameter]
    kept: Tensor | None = None  # numbers of the rows of the only parameter that are meant; None: whole weights


def make_buckets(
    model_names: Mapping[int, str],
    optimizer: Any,
    targets: dict[str, Target],
    penalties: Mapping[bool, Penalty],
    storage: Storage,
) -> list[Bucket]:
    """Return the optimizer's weights in buckets, with anchors on the same device and sharded in the same way.

    The anchors in `targets` are replaced by the moved ones, so that each is in memory only once.

    Raises:
        ValueError: a weight was flattened; its shards cut output channels that the penalty needs whole; `offload` is
            set but a weight is sharded; or a pace was not converted to a number.
    """
    buckets: dict[tuple[Any, ...], Bucket] = {}
    for index, group in enumerate(optimizer.param_groups):
        for weight in group["params"]:
            name = model_names.get(id(weight), "")
            target = targets.get(name)
            if target is None or all(part.strength == 0 for part in target.parts):
                continue
            if odd := [part.pace for part in target.parts if not part.is_resolved]:
                raise ValueError(f"the strength of {name} is still a pace, {odd[0]}; attach() converts it")
            if target.anchor is not None and target.anchor.shape != weight.shape:
                raise ValueError(
                    f"{name} now has shape {tuple(weight.shape)}, its anchor has {tuple(target.anchor.shape)}: FSDP1 "
                    "flattens weights; use FSDP2 (fully_shard), which keeps their shape"
                )
            if storage.offload and is_sharded(weight):
                raise ValueError(
                    f"offload=True does not work with {name}, which is sharded like its anchor; use FSDP2's "
                    "CPUOffloadPolicy, or anchor_dtype=torch.bfloat16"
                )
            target = targets[name] = target._replace(
                anchor=None if target.anchor is None else placed(target.anchor, weight, storage),
                fisher=None if target.fisher is None else placed(target.fisher, weight, storage),
            )
            for part in target.parts:
                if part.strength == 0:
                    continue
                penalty = penalties[part.shared]
                channel_groups = part.channel_groups if penalty.by_row else 1
                alike = (index, part.strength, part.rows, channel_groups, part.shared)
                check_whole_rows(penalty, name, weight, part.rows)
                alone = None if part.kept is None else name
                bucket = buckets.setdefault((*alike, *_kind(weight), alone), Bucket(*alike, penalty))
                bucket.kept = local_rows(part.kept, weight)
                bucket.names.append(name)
                bucket.weights.append(weight)
                bucket.largest_fisher = max(bucket.largest_fisher, part.largest_fisher)
                if part.anchor is not None:
                    bucket.anchors = [*(bucket.anchors or []), some_rows(local(part.anchor), bucket.kept)]
                if part.fisher is not None:
                    bucket.fisher = [*(bucket.fisher or []), some_rows(local(part.fisher), bucket.kept)]
    return list(buckets.values())


def blocks(bucket: Bucket, *, whole: bool = False) -> Iterator[Block]:
    """Yield the weights that have a gradient, in blocks small enough to limit the memory in use.

    Args:
        bucket: the weights.
        whole: never split a weight into several blocks, because its norm is needed. Penalties that treat each output
            channel as a whole imply this.

    Raises:
        ValueError: a gradient is sparse.
    """
    if bucket.kept is not None:
        yield from _block_of_rows(bucket, bucket.kept)
        return
    limit = _BLOCK.get(bucket.weights[0].device.type, _OTHER_BLOCK)
    for indices in _grouped(active(bucket), [local(w).numel() for w in bucket.weights], limit):
        weights = [bucket.weights[i] for i in indices]
        locals_ = [local(weight).detach() for weight in weights]
        anchors = _like(bucket.anchors, indices, locals_)
        fisher = _like(bucket.fisher, indices, locals_)
        gradients = [_gradient(weight, bucket.names[i]) for weight, i in zip(weights, indices, strict=True)]
        if bucket.channel_groups > 1:
            block = WeightBlock(locals_, anchors, fisher, bucket.rows).divided(bucket.channel_groups)
            repeated = [weight for weight in weights for _ in range(bucket.channel_groups)]
            yield Block(block, divided(gradients, bucket.channel_groups), repeated)
            continue
        if (
            whole
            or bucket.penalty.by_row
            or len(indices) > 1
            or locals_[0].numel() <= 2 * limit
            or locals_[0].dim() == 0
        ):
            yield Block(WeightBlock(locals_, anchors, fisher, bucket.rows), gradients, weights)
            continue
        for lists in _slices([locals_, anchors, fisher, gradients], limit):
            yield Block(WeightBlock(lists[0] or [], lists[1], lists[2], bucket.rows), lists[3] or [], weights)


def _block_of_rows(bucket: Bucket, kept: Tensor) -> Iterator[Block]:
    """Yield some rows of the bucket's only weight; what is changed in them is written back when the next is taken."""
    if not active(bucket) or not (len(kept) or is_sharded(bucket.weights[0])):  # other shards wait for this one
        return
    weight = bucket.weights[0]
    whole, gradient = local(weight).detach(), _gradient(weight, bucket.names[0])
    rows, gradients = whole[kept], gradient[kept]
    values = WeightBlock([rows], _like(bucket.anchors, [0], [rows]), _like(bucket.fisher, [0], [rows]), bucket.rows)
    yield Block(values, [gradients], [weight], kept)
    whole[kept] = rows
    gradient[kept] = gradients


def active(bucket: Bucket) -> list[int]:
    """Return the indices of the weights that are trained; a frozen weight may still have a gradient of zeros."""
    return [i for i, weight in enumerate(bucket.weights) if weight.grad is not None and weight.requires_grad]


def gradients(bucket: Bucket) -> tuple[list[int], list[Tensor]]:
    """Return the indices of the weights that are trained, and their gradients."""
    kept = active(bucket)
    return kept, [_gradient(bucket.weights[i], bucket.names[i]) for i in kept]


def placed(value: Tensor, weight: Tensor, storage: Storage) -> Tensor:
    """Return `value` on the device of `weight`, with the same shards and strides, in the dtype of `storage`."""
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
    # Copy the strides of the weight (such as channels_last): operations on different strides are many times slower.
    return torch.empty_like(weight, dtype=dtype, requires_grad=False).copy_(value)


def local(tensor: Tensor) -> Tensor:
    """Return this process's shard if FSDP2 has sharded the tensor, else the tensor; both share its memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]


def local_rows(kept: Tensor | None, weight: Tensor) -> Tensor | None:
    """Return the numbers that the rows `kept` of `weight` have in this process's shard, on its device.

    Raises:
        ValueError: the shards cut rows.
    """
    if kept is None or not is_sharded(weight):
        return kept if kept is None else kept.to(weight.device)
    from torch.distributed.tensor import distribute_tensor

    if any(place.is_shard() and not place.is_shard(0) for place in weight.placements):  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError("an anchor of some rows needs them whole, but the weight's shards cut them; shard dimension 0")
    mask = torch.zeros(weight.shape[0], device=weight.device)
    mask[kept.to(weight.device)] = 1
    return local(distribute_tensor(mask, weight.device_mesh, weight.placements)).nonzero().flatten()  # pyright: ignore[reportAttributeAccessIssue]


def some_rows(tensor: Tensor, kept: Tensor | None) -> Tensor:
    """Return the rows `kept` of a tensor, in new memory; all of it, the tensor itself, if `kept` is None."""
    return tensor if kept is None else tensor[kept.to(tensor.device)]


def is_sharded(tensor: Tensor) -> bool:
    """Return whether the tensor is a DTensor, as used by FSDP2 and tensor parallelism."""
    return hasattr(tensor, "device_mesh")


def check_whole_rows(penalty: Penalty, name: str, weight: Tensor, rows: int) -> None:
    """Raise ValueError if the penalty needs whole output channels but the shards of `weight` cut them."""
    if penalty.by_row and is_sharded(weight) and any(p.is_shard() and not p.is_shard(rows) for p in weight.placements):  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(
            f"{name} is sharded inside its output channels, but this penalty needs them whole; shard dimension 0"
        )


def summed(values: Tensor, weight: Tensor) -> Tensor:
    """Return the values summed over the processes that hold shards of `weight`; unchanged if it is not sharded."""
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
        raise ValueError(
            f"the gradient of {name} is sparse, but every entry is regularized; build the layer with sparse=False"
        )
    if is_sharded(gradient) and gradient.placements != weight.placements:  # pyright: ignore[reportAttributeAccessIssue]
        gradient = weight.grad = gradient.redistribute(placements=weight.placements)  # pyright: ignore[reportAttributeAccessIssue]
    return local(gradient)


def _like(tensors: list[Tensor] | None, indices: Iterable[int], weights: list[Tensor]) -> list[Tensor] | None:
    """The tensors at these indices, converted to the device and dtype of the weights where these differ."""
    if tensors is None:
        return None
    return [
        tensors[i].to(weight.device, weight.dtype, non_blocking=True)
        for i, weight in zip(indices, weights, strict=True)
    ]


def _grouped(indices: list[int], sizes: list[int], limit: int) -> Iterator[list[int]]:
    """Group consecutive indices so that a group has at most `limit` entries, or only one index."""
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
    """Cut the single tensor of each list along its first dimension."""
    first = next(tensors[0] for tensors in lists if tensors)
    rows = max(1, limit * first.shape[0] // first.numel())
    for start in range(0, first.shape[0], rows):
        size = min(rows, first.shape[0] - start)
        yield [None if tensors is None else [tensors[0].narrow(0, start, size)] for tensors in lists]
