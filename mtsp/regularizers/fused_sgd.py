"""Fast path for fused SGD: its kernel decays the weights, and only the anchors' part of the pull is added.

alpha (w - w0) = alpha w - alpha w0. The kernel computes the first part as weight decay while it reads the weights; the
second is one foreach call on the gradients. Three passes over memory besides the kernel's five, and no temporary.
"""

from collections.abc import Iterator
from typing import Any

import torch

from mtsp.regularizers.buckets import Bucket, gradients


def fused(optimizer: Any) -> bool:
    """Return whether this is a fused SGD, whose kernel can decay weights for which :func:`fits` holds."""
    return (
        type(optimizer) is torch.optim.SGD
        and all(group["fused"] for group in optimizer.param_groups)
        and not torch.compiler.is_compiling()
    )


def fits(optimizer: Any, buckets: list[Bucket]) -> bool:
    """Return whether the kernel of the next step can decay the weights.

    Only float32 and float64: the two parts are much larger than their difference, which float16 would round away. The
    scale of a GradScaler on a GPU cannot be read without waiting for it.
    """
    scale = getattr(optimizer, "grad_scale", None)
    return (
        fused(optimizer)
        and (scale is None or scale.device.type == "cpu")
        and all(
            weight.dtype in (torch.float32, torch.float64)
            and (anchor is None or (anchor.dtype, anchor.device) == (weight.dtype, weight.device))
            for bucket in buckets
            for weight, anchor in zip(bucket.weights, bucket.anchors or [None] * len(bucket.weights), strict=True)
        )
    )


def decay_in_kernel(optimizer: Any, buckets: list[Bucket]) -> None:
    """Subtract the anchors' part from the gradients and let the kernel that runs next do the rest.

    Call it inside the step, after everything else that may read the parameter groups: only the kernel may see groups
    with the strengths as weight decay.
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
            # With `maximize`, the kernel flips the gradient's sign before it decays.
            part = (1 if group["maximize"] else -1) * bucket.strength * (1 if scale is None else float(scale))
            torch._foreach_add_(found, [bucket.anchors[i] for i in kept], alpha=part)
    for group in optimizer.param_groups:
        rest = [weight for weight in group["params"] if id(weight) not in pulled]
        if rest:
            shown.append({**group, "params": rest})
    optimizer.param_groups = _Shown(optimizer, shown)


class _Shown(list[dict[str, Any]]):
    """Parameter groups for one loop: when it ends, also by an exception, the optimizer gets its own list back."""

    def __init__(self, optimizer: Any, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups)
        self._optimizer, self._own = optimizer, optimizer.param_groups

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            yield from super().__iter__()
        finally:
            self._optimizer.param_groups = self._own
