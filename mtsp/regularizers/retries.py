"""A step that an exception cut short has pulled already: the next one must not pull the same again."""

import torch
from torch import Tensor

from mtsp.regularizers.buckets import Bucket, Trace, active, local


def remember(buckets: list[Bucket], *, coupled: bool) -> None:
    """Note what has been pulled, until :func:`forget` or the next step."""
    if not torch.compiler.is_compiling():
        for bucket in buckets:
            bucket.pulled = {i: _trace(bucket.weights[i], coupled=coupled) for i in active(bucket)}


def find(buckets: list[Bucket]) -> None:
    """Find what the step before has pulled if it was cut short: what nothing has written to since."""
    for bucket in buckets:
        bucket.done = {i for i, before in bucket.pulled.items() if _is_still(before, bucket.weights[i])}


def forget(buckets: list[Bucket]) -> None:
    """The step is done: whatever comes next is another one."""
    for bucket in buckets:
        bucket.pulled, bucket.done = {}, set()


def _trace(weight: Tensor, *, coupled: bool) -> Trace:
    gradient = weight.grad if coupled else None
    return Trace(local(weight)._version, gradient, 0 if gradient is None else local(gradient)._version)


def _is_still(before: Trace, weight: Tensor) -> bool:
    now = _trace(weight, coupled=before.gradient is not None)
    versions = (before.weight_version, before.gradient_version)
    return (now.weight_version, now.gradient_version) == versions and now.gradient is before.gradient
