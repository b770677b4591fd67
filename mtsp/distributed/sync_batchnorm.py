"""Synchronize batch normalization over processes, also on CPUs, which PyTorch's SyncBatchNorm does not support."""

from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def synchronize(model: nn.Module, device: torch.device) -> nn.Module:
    """Return `model` with batch-norm statistics computed over all processes; weights and names stay the same.

    Layers with a built-in activation, like timm's `BatchNormAct2d`, keep it (PyTorch's `convert_sync_batchnorm` drops
    it silently). Weights and buffers stay the same objects. On a GPU `device`, PyTorch's implementation is used.

    Raises:
        ValueError: a layer is a subclass of batch normalization and its extra behavior would be lost.
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
    """Batch normalization on CPUs, with statistics over the batches of all processes, after Ioffe and Szegedy (2015).

    It uses the weights, buffers, settings, `drop` and `act` of the layer that it replaces. Batches of different
    processes may differ in size. Means and variances are combined as in Chan et al. (1979), which avoids cancellation.
    """

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__(layer.num_features, layer.eps, layer.momentum, affine=False)
        self.after = _taken_over(self, layer)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize a tensor of shape B C *, with statistics over all axes but the second."""
        if not (self.training and dist.is_initialized()):
            return self.after(super().forward(input))
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return self.after(cast(Tensor, _Shared.apply(input, self.weight, self.bias, self)))

    def update_factor(self) -> float:
        """Return the weight of the newest batch in the running statistics."""
        if self.momentum is not None:
            return self.momentum
        return 1 / float(self.num_batches_tracked) if self.num_batches_tracked is not None else 0.0

    def _check_input_dim(self, input: Tensor) -> None:
        pass


class _GpuSyncBatchNorm(nn.SyncBatchNorm):
    """PyTorch's SyncBatchNorm, followed by the replaced layer's dropout and activation."""

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__(layer.num_features, layer.eps, layer.momentum, affine=False)
        self.after = _taken_over(self, layer)

    def forward(self, input: Tensor) -> Tensor:
        return self.after(super().forward(input))


def _taken_over(shared: Any, layer: _BatchNorm) -> nn.Sequential:
    """Give `shared` the weights, buffers and mode of `layer`; return the dropout and activation of `layer`."""
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
        own = torch.cat([mean, variance, count]).double()
        rows = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, own)
        means, variances, counts = torch.stack(rows).split([len(mean), len(mean), 1], dim=1)
        total = counts.sum()
        mean = (means * counts).sum(0) / total
        variance = ((variances + (means - mean).square()) * counts).sum(0) / total
        if layer.running_mean is not None and layer.running_var is not None:
            unbiased = variance * total / (total - 1).clamp(min=1)
            layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), layer.update_factor())
            layer.running_var.lerp_(unbiased.to(layer.running_var.dtype), layer.update_factor())
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
