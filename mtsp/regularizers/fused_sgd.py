"""Fast path for fused SGD: the optimizer's kernel computes part of the pull as weight decay.

alpha (w - w0) = alpha w - alpha w0. The kernel computes alpha w as weight decay while it reads the weights; -alpha w0
is added to the gradients by one foreach call. This takes three passes over memory in addition to the five of the
kernel, and no temporary memory.
"""

from collections.abc import Iterator
from typing import Any

import torch

from mtsp.regularizers.buckets import Bucket, gradients


def fused(optimizer: Any) -> bool:
    """Return whether this is a fused SGD; :func:`fits` then tells if its kernel can also apply the pull."""
    return (
        type(optimizer) is torch.optim.SGD
        and all(group["fused"] for group in optimizer.param_groups)
        and not torch.compiler.is_compiling()
    )


def fits(optimizer: Any, buckets: list[Bucket]) -> bool:
    """Return whether the kernel can apply the weight decay in the next step.

    It can only for float32 and float64: alpha w and alpha w0 are much larger than their difference, so float16 would
    round it away. It cannot if a GradScaler keeps its scale on a GPU, because reading the scale would wait for the GPU.
    """
    scale = getattr(optimizer, "grad_scale", None)
    return (
        fused(optimizer)
        and (scale is None or scale.device.type == "cpu")
        and all(
            bucket.kept is None
            and weight.dtype in (torch.float32, torch.float64)
            and (anchor is None or (anchor.dtype, anchor.device) == (weight.dtype, weight.device))
            for bucket in buckets
            for weight, anchor in zip(bucket.weights, bucket.anchors or [None] * len(bucket.weights), strict=True)
        )
    )


def decay_in_kernel(optimizer: Any, buckets: list[Bucket]) -> None:
    """Subtract alpha w0 from the gradients and let the kernel that runs next add alpha w as weight decay.

    Call it inside the step, after all other code that reads the parameter groups: until the kernel has read them, the
    groups have the strengths as their weight decay.
    """
    scale = getattr(optimizer, "grad_scale", None)
    shown, pulled = [], set()
    for bucket in buckets:
        group, (kept, found) = optimizer.param_groups[bucket.group], gradients(bucket)
        if not found:
            continue
        weights = [bucket.weights[i] for i in kept]
        pulled |= {id(weight) for weight in weights}
        shown.append({**group, "params": weights, "weight_decay": bucket.strength})
        if bucket.anchors is not None:
            # With `maximize`, the kernel flips the sign of the gradient before it applies weight decay.
            part = (1 if group["maximize"] else -1) * bucket.strength * (1 if scale is None else float(scale))
            torch._foreach_add_(found, [bucket.anchors[i] for i in kept], alpha=part)
    for group in optimizer.param_groups:
        rest = [weight for weight in group["params"] if id(weight) not in pulled]
        if rest:
            shown.append({**group, "params": rest})
    optimizer.param_groups = _Shown(optimizer, shown)


class _Shown(list[dict[str, Any]]):
    """Parameter groups to be iterated over once; afterwards, even after an exception, the original list is restored."""

    def __init__(self, optimizer: Any, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups)
        self._optimizer, self._own = optimizer, optimizer.param_groups

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            yield from super().__iter__()
        finally:
            self._optimizer.param_groups = self._own
