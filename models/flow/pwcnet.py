"""PWC-Net in a size that two CPU cores can train: optical flow from warped features and cost volumes.

After Sun, Yang, Liu and Kautz, "PWC-Net: CNNs for Optical Flow Using Pyramid, Warping, and Cost Volume", CVPR 2018
(arXiv:1709.02371). Departures: a tenth of the parameters, no context network, one estimator for all scales (as in Hur
and Roth, CVPR 2019), features normalized before they are compared, and an estimator for strides 64 to 4.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.blocks import cropped, halves
from models.flow.branch import FlowNetwork, FlowNetworkConfig, Motion, warped
from models.flow.flownets import SLOPE
from models.pretrained.layouts import Layout, LayoutError, WeightsFile

_UNIT = 20.0  # pixels; the unit of the flow among the exchanged features
_CONTRAST = 4.0  # factor on frames after their mean is subtracted, which gives them a deviation of about 1


class PwcNetConfig(FlowNetworkConfig):
    """Config of :class:`PwcNet`."""

    name: Literal["pwcnet"]

    features: tuple[int, ...] = Field(default=(12, 24, 32, 48, 64, 64), min_length=6, max_length=6)
    """Numbers of channels of the features at strides 2, 4, 8, 16, 32, 64."""

    estimator: tuple[int, int, int] = (64, 48, 32)
    """Numbers of channels of the estimator's three layers."""

    radius: int = Field(default=3, gt=0, le=8)
    """Largest offset, in cells of a scale, at which features are compared."""

    def network(self) -> "PwcNet":
        """Return the network for a branch, with newly initialized weights."""
        return PwcNet(self)


class PwcNet(FlowNetwork):
    """A small PWC-Net. Its features for SegFlow, at strides 4, 8 and 16, are the estimator's last layer and the flow.

    Each pair's mean color is subtracted, so a frame needs no other normalization.
    """

    sizes = "crop"
    strides = (4, 8, 16, 32, 64)

    def __init__(self, config: PwcNetConfig) -> None:
        super().__init__()
        self.radius = config.radius
        wide = (3, *config.features)
        self.pyramid = nn.ModuleList(
            nn.Sequential(*_conv(below, channels, 2), *_conv(channels, channels))
            for below, channels in zip(wide, config.features, strict=False)
        )
        first, second, last = config.estimator
        offsets = (2 * config.radius + 1) ** 2
        self.context = nn.ModuleList(nn.Conv2d(channels, last, 1) for channels in config.features[1:])
        self.estimator = nn.Sequential(
            *_conv(offsets + 2 * last + 2, first), *_conv(first, second), *_conv(second, last)
        )
        self.predict = nn.Conv2d(last, 2, 3, padding=1)
        self.exchanged_channels = (last + 5,) * 3
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=SLOPE)
                nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]
        nn.init.zeros_(self.predict.weight)

    def forward(self, frame: Tensor, next_frame: Tensor) -> Motion:
        """Predict the flow from `frame` to `next_frame`: B3HW each, RGB in [0, 1], of any size."""
        mean = (frame.mean((2, 3), keepdim=True) + next_frame.mean((2, 3), keepdim=True)) / 2
        x = torch.cat([frame - mean, next_frame - mean]) * _CONTRAST
        scales = []
        for stage in self.pyramid:
            x = stage(x)
            scales.append(halves(x))
        batch, _, height, width = scales[-1][0].shape
        flow = frame.new_zeros(batch, 2, height, width)
        hidden = frame.new_zeros(batch, self.predict.in_channels, height, width)
        flows, exchanged = [], []
        for level in range(5, 0, -1):
            first, second = scales[level]
            stride = 2 ** (level + 1)
            if flows:
                flow, hidden = _doubled(flow, first), _doubled(hidden, first)
            matches = compared(first, warped(second, flow / stride, outside="zeros"), self.radius)
            context = self.context[level - 1](first)
            hidden = self.estimator(torch.cat([matches, context, hidden, flow / stride], dim=1))
            flow = flow + stride * self.predict(hidden).float()
            flows.append(flow)
            exchanged.append(torch.cat([hidden, flow / _UNIT, relative_motion(flow)], dim=1))
        return Motion(flow, exchanged[:1:-1], flows[::-1], [])

    def published_layout(self, file: WeightsFile) -> Layout:
        """Raise LayoutError: nobody publishes a network of this shape."""
        raise LayoutError("this small PWC-Net loads only weights that mtsp saved, as `shipped`")


def relative_motion(flow: Tensor) -> Tensor:
    """Return the flow minus its mean over the image, as dx, dy and length (B3HW), scaled to a mean square of about 1.

    Where the camera moves as much as the objects, this tells them apart better than the flow itself. Differences below
    half a pixel stay small.
    """
    other = flow - flow.mean((2, 3), keepdim=True)
    length = (other.square().sum(1, keepdim=True) + 1e-6).sqrt()
    typical = length.square().mean((2, 3), keepdim=True).sqrt() + 0.5
    return torch.cat([other, length], dim=1) / typical


def compared(first: Tensor, second: Tensor, radius: int) -> Tensor:
    """Return the cost volume, B(2 * radius + 1)^2HW: normalized features times those at each offset, over sqrt(C).

    Offset (dx, dy) is channel `(dy + radius) * (2 * radius + 1) + dx + radius`, and compares with `second` there.
    """
    height, width = first.shape[-2:]
    rows = F.group_norm(first, 1).permute(0, 2, 3, 1) / math.sqrt(first.shape[1])
    others = F.pad(F.group_norm(second, 1), [radius] * 4).permute(0, 2, 1, 3)
    side = 2 * radius + 1
    matches = []
    for y in range(side):
        # Products of all pairs of cells of two rows: 4 times faster than one product for each offset.
        band = (rows @ others[:, y : y + height]).flatten(2)  # b, y, x * (width + 2 * radius) + x + radius + dx
        diagonal = band[..., :-side].unflatten(2, (width - 1, width + side))[..., :side]  # each x starts one later
        matches.append(torch.cat([diagonal, band[..., None, -side:]], dim=2))
    return torch.cat(matches, dim=3).permute(0, 3, 1, 2)


def _doubled(x: Tensor, like: Tensor) -> Tensor:
    """Return `x` enlarged to the next finer scale and cropped to `like`."""
    return cropped(F.interpolate(x, scale_factor=2.0, mode="bilinear"), like)


def _conv(channels_in: int, channels_out: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(channels_in, channels_out, 3, stride, 1), nn.LeakyReLU(SLOPE, inplace=True)
