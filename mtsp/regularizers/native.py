"""The fast way for fused SGD: its kernel decays the weights, so that only the anchors' part is added beside it.

alpha (w - w0) = alpha w - alpha w0. The kernel computes the first part as weight decay while it has the weights in
hand; the second is one foreach call on the gradients. Three passes over memory beside the kernel's five, no temporary.
"""

from typing import Any

import torch

from mtsp.regularizers.buckets import Bucket, gradients


def fits(optimizer: Any, buckets: list[Bucket]) -> bool:
    """Return whether the step that is about to come can decay in its kernel.

    float32 and float64 alone: the two parts are much larger than their difference, which float16 would round away. A
    GradScaler's scale on a GPU cannot be read without waiting for it.
    """
    scale = getattr(optimizer, "grad_scale", None)
    return (
        type(optimizer) is torch.optim.SGD
        and all(group["fused"] for group in optimizer.param_groups)
        and (scale is None or scale.device.type == "cpu")
        and not torch.compiler.is_compiling()
        and all(
            weight.dtype in (torch.float32, torch.float64)
            and (anchor is None or (anchor.dtype, anchor.device) == (weight.dtype, weight.device))
            for bucket in buckets
            for weight, anchor in zip(bucket.weights, bucket.anchors or [None] * len(bucket.weights), strict=True)
        )
    )


class DecayInKernel:
    """Shows the optimizer, for the length of one step, groups with the strengths as weight decay.

    The optimizer's own groups, which schedules, checkpoints and users see, are untouched and come back after the step.
    """

    def __init__(self) -> None:
        self._own: list[dict[str, Any]] | None = None

    def enter(self, optimizer: Any, buckets: list[Bucket]) -> None:
        """Subtract the anchors' part from the gradients and leave the rest to the kernel."""
        scale = getattr(optimizer, "grad_scale", None)
        pulled = {id(weight) for bucket in buckets for weight in bucket.weights}
        self._own = optimizer.param_groups
        shown = []
        for group in optimizer.param_groups:
            rest = [weight for weight in group["params"] if id(weight) not in pulled]
            if rest:
                shown.append({**group, "params": rest})
        for bucket in buckets:
            group = optimizer.param_groups[bucket.group]
            shown.append({**group, "params": bucket.weights, "weight_decay": bucket.strength})
            if bucket.anchors is not None:
                kept, found = gradients(bucket)
                # Where the optimizer maximizes, the kernel turns the gradient's sign before it decays.
                part = (1 if group["maximize"] else -1) * bucket.strength * (1 if scale is None else float(scale))
                if found:
                    torch._foreach_add_(found, [bucket.anchors[i] for i in kept], alpha=part)
        optimizer.param_groups = shown

    def leave(self, optimizer: Any) -> None:
        """Give the optimizer its own groups back."""
        if self._own is not None:
            optimizer.param_groups, self._own = self._own, None
