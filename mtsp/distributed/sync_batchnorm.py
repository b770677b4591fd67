"""Batch normalization over the batches of all processes: PyTorch's own is for GPUs only, this one is for CPUs too."""

from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def synchronize(model: nn.Module, device: torch.device) -> nn.Module:
    """Return `model` with its batch normalization sharing statistics between processes; same weights, same names.

    Layers that compute an activation after the normalization, as timm's `BatchNormAct2d`, keep theirs (PyTorch's
    `convert_sync_batchnorm` drops it without a word). Weights and buffers stay the same objects.

    Args:
        model: not yet wrapped.
        device: where it will train. On a GPU the work is PyTorch's, which has none for CPUs.

    Raises:
        ValueError: a kind of batch normalization that does something else besides, which would be lost.
    """
    kind = _GpuSyncBatchNorm if device.type == "cuda" else SyncBatchNorm
    if isinstance(model, kind):
        return model
    if isinstance(model, _BatchNorm):
        if type(model) not in _PLAIN and not hasattr(model, "act"):
            name = type(model).__name__
            raise ValueError(f"{name} cannot share its statistics between processes; set `freeze_norm`")
        return kind(model)
    for name, child in model.named_children():
        changed = synchronize(child, device)
        if changed is not child:
            setattr(model, name, changed)
    return model


class SyncBatchNorm(_BatchNorm):
    """Batch normalization on CPUs whose statistics are those of the batches of all processes together.

    After Ioffe and Szegedy (2015). The processes' batches may differ in size. Means and variances are gathered and
    combined as Chan et al. (1979) do, without cancellation.

    Args:
        layer: whose weights, buffers and settings it takes over, and its `drop` and `act`, applied afterwards.
    """

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__(layer.num_features, layer.eps, layer.momentum, affine=False)
        self.after = _taken_over(self, layer)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize B C *, over all axes but the second."""
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        if self.training and dist.is_initialized():
            return self.after(cast(Tensor, _Shared.apply(input, self.weight, self.bias, self)))
        moving = self.training or self.running_mean is None
        arguments = (self.running_mean, self.running_var, self.weight, self.bias, moving, self.share(), self.eps)
        return self.after(F.batch_norm(input, *arguments))

    def share(self) -> float:
        """Return how much of the running statistics the newest batch replaces."""
        if self.momentum is not None:
            return self.momentum
        return 1 / float(self.num_batches_tracked) if self.num_batches_tracked is not None else 0.0

    def _check_input_dim(self, input: Tensor) -> None:
        pass


class _GpuSyncBatchNorm(nn.SyncBatchNorm):
    """PyTorch's, with what a layer applies after the normalization."""

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__(layer.num_features, layer.eps, layer.momentum, affine=False)
        self.after = _taken_over(self, layer)

    def forward(self, input: Tensor) -> Tensor:
        return self.after(super().forward(input))


def _taken_over(shared: Any, layer: _BatchNorm) -> nn.Sequential:
    """Give `shared` the weights, buffers and mode of `layer`; return what that applies after the normalization."""
    shared.affine, shared.track_running_stats = layer.affine, layer.track_running_stats
    shared.weight, shared.bias = layer.weight, layer.bias
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        setattr(shared, name, getattr(layer, name))
    shared.training = layer.training
    steps = (getattr(layer, name, None) for name in ("drop", "act"))
    return nn.Sequential(*(step for step in steps if isinstance(step, nn.Module))).train(layer.training)


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, layer: SyncBatchNorm) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        x = input.float()
        axes = [axis for axis in range(x.ndim) if axis != 1]
        variance, mean = torch.var_mean(x, axes, correction=0)
        count = x.new_full((1,), x.numel() / x.shape[1])
        gathered = _gathered(torch.cat([mean, variance, count]).double())
        means, variances, counts = gathered.split([len(mean), len(mean), 1], dim=1)
        total = counts.sum()
        mean = (means * counts).sum(0) / total
        variance = ((variances + (means - mean).square()) * counts).sum(0) / total
        if layer.running_mean is not None and layer.running_var is not None:
            unbiased = variance * total / (total - 1).clamp(min=1)
            layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), layer.share())
            layer.running_var.lerp_(unbiased.to(layer.running_var.dtype), layer.share())
        mean, scale = mean.float(), (variance + layer.eps).rsqrt().float()
        ctx.save_for_backward(input, weight, mean, scale, total)
        return F.batch_norm(x, mean, variance.float(), weight, bias, eps=layer.eps).to(input.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        input, weight, mean, scale, total = ctx.saved_tensors
        shape = [1, -1, *[1] * (input.ndim - 2)]
        axes = [axis for axis in range(input.ndim) if axis != 1]
        dy = gradient.float()
        normalized = (input.float() - mean.view(shape)) * scale.view(shape)
        sums = torch.stack([dy.sum(axes), (dy * normalized).sum(axes)]).double()
        own = sums.float()
        dist.all_reduce(sums)
        dy_mean, dy_normalized = (sums / total).float()
        change = dy - dy_mean.view(shape) - normalized * dy_normalized.view(shape)
        scale = scale if weight is None else scale * weight
        learned = (None, None) if weight is None else (own[1], own[0])
        return (change * scale.view(shape)).to(input.dtype), *learned, None


def _gathered(values: Tensor) -> Tensor:
    """Return the processes' rows below each other."""
    rows = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, values)
    return torch.stack(rows)
