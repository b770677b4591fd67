"""Layers that several networks use."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtsp.config import Config


class ClassesConfig(Config):
    """Base of the configs of networks with a number of classes, which may be left to the data."""

    classes: int | None

    @property
    def class_count(self) -> int:
        """The number of classes. Raises ValueError if `classes` is null: the data were not looked at."""
        if self.classes is None:
            raise ValueError("model.classes is null; give the number of classes, or the experiment.yaml of a run")
        return self.classes


def conv_norm_relu(channels_in: int, channels_out: int, kernel: int) -> nn.Sequential:
    """Return a convolution without bias that keeps the size, batch normalization, and a ReLU."""
    conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True))


def exporting() -> bool:
    """Return whether torch.export traces the network: then no branch may depend on the image's size."""
    return torch.compiler.is_exporting()


def next_multiple(side: int, factor: int) -> int:
    """Return the smallest multiple of `factor` that is at least `side`."""
    return factor * ((side + factor - 1) // factor)


def padded(x: Tensor, rows: int, columns: int) -> Tensor:
    """Return `x`, BCHW, with its last row and column repeated to this height and width."""
    if exporting():
        return _indexed(x, rows, columns)
    height, width = x.shape[-2:]
    return F.pad(x, [0, columns - width, 0, rows - height], mode="replicate") if x.shape[-2:] != (rows, columns) else x


def cropped(x: Tensor, like: Tensor) -> Tensor:
    """Return the top left part of `x`, BCHW, that has the height and width of `like`."""
    height, width = like.shape[-2:]
    return _indexed(x, height, width) if exporting() else x[..., :height, :width]


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and the second half of a batch, like `x.chunk(2)`, which ONNX would export as a sequence."""
    count = x.shape[0] // 2
    return x[:count], x[count:]


def _indexed(x: Tensor, rows: int, columns: int) -> Tensor:
    """Pad or crop without comparing sizes, as F.pad and slices do: the exported network would refuse other sizes."""
    x = x[:, :, torch.arange(rows, device=x.device).clamp(max=x.shape[2] - 1)]
    return x[..., torch.arange(columns, device=x.device).clamp(max=x.shape[3] - 1)]


def resized(x: Tensor, like: Tensor, *, align_corners: bool = True) -> Tensor:
    """Return `x` resized bilinearly to the height and width of `like`, by default with corner pixels aligned."""
    if not exporting() and x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=align_corners)


def on_grid(x: Tensor, like: Tensor) -> Tensor:
    """Return `x` resized bilinearly to the height and width of `like`, where both maps span the same image."""
    return resized(x, like, align_corners=False)


class Normalized(nn.Module):
    """Base of branches that normalize frames themselves.

    The normalization belongs to the weights, so `mean` and `std` (RGB, for values in [0, 1]) are buffers: they are
    saved in checkpoints, and :func:`models.pretrained.load.load_branch` sets them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def normalized(self, frame: Tensor) -> Tensor:
        """Return `frame` (B3HW, RGB in [0, 1]), normalized as the weights expect."""
        return (frame - self.mean.view(1, 3, 1, 1)) / self.std.view(1, 3, 1, 1)
