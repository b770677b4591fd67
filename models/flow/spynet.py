"""SPyNet: optical flow from an image pyramid, refined by a small network at each level.

After Ranjan and Black, "Optical Flow Estimation using a Spatial Pyramid Network", CVPR 2017 (arXiv:1611.00850).
"""

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import Normalized, exporting, next_multiple
from models.flow.branch import FlowNetwork, FlowNetworkConfig, Motion, shrinking, warped
from models.pretrained.layouts import Layout, WeightsFile
from models.pretrained.spynet import spynet_layout
from models.pretrained.torchvision_timm import IMAGENET_MEAN, IMAGENET_STD

LEVELS = 6
_CHANNELS = (8, 32, 64, 32, 16, 2)  # of each level's network: input, four hidden layers, flow


class SPyNetConfig(FlowNetworkConfig):
    """Config of :class:`SPyNet`."""

    name: Literal["spynet"]

    def network(self) -> "SPyNet":
        """Return the network for a branch, with newly initialized weights."""
        return SPyNet()


class SPyNet(FlowNetwork, Normalized):
    """SPyNet with six levels, at strides 32 to 1: 1 440 300 parameters.

    At each level, coarse to fine, five 7x7 convolutions see the first frame, the second frame warped by the flow of the
    coarser level, and that flow, and predict what to add to it. As published, frames of sides that 32 does not divide
    are scaled up, and the flow is scaled back.

    Features for SegFlow, at strides 8, 16 and 32, have 50 channels: the last two hidden layers of the level, and the
    final flow, averaged, in cells of the map. No layer sees features of another level.
    """

    strides = tuple(2**k for k in range(LEVELS))
    exchanged_channels = (_CHANNELS[3] + _CHANNELS[4] + 2,) * 3

    def __init__(self) -> None:
        super().__init__(IMAGENET_MEAN, IMAGENET_STD)
        self.levels = nn.ModuleList([_level() for _ in range(LEVELS)])  # coarse to fine, as in published files

    def forward(self, frame: Tensor, next_frame: Tensor) -> Motion:
        """Predict the flow from `frame` to `next_frame`: B3HW each, RGB in [0, 1], of any size."""
        height, width = frame.shape[-2:]
        rows, columns = (next_multiple(side, self.strides[-1]) for side in (height, width))
        firsts, seconds = (self._pyramid(image, rows, columns) for image in (frame, next_frame))
        unit = shrinking(frame, width / columns, height / rows)
        flow = frame.new_zeros(frame.shape[0], 2, *firsts[-1].shape[-2:], dtype=torch.float32)
        flows, hidden = [], []
        for level, first, second in zip(self.levels, reversed(firsts), reversed(seconds), strict=True):
            if flows:
                flow = 2 * F.interpolate(flow, scale_factor=2, mode="bilinear", align_corners=True)
            x = torch.cat([first, warped(second, flow, outside="border"), flow], dim=1)
            layers = []
            for layer in level:  # pyright: ignore[reportGeneralTypeIssues]
                x = layer(x)
                layers.append(x)
            flow = flow + x.float()
            flows.append(flow)
            hidden.append(torch.cat([layers[5], layers[7]], dim=1))
        final = flow
        features = [
            torch.cat([hidden[level], F.avg_pool2d(final, stride) / stride], dim=1)
            for level, stride in ((2, 8), (1, 16), (0, 32))
        ]
        pyramid = [flow * unit * stride for flow, stride in zip(reversed(flows), self.strides, strict=True)]
        full = F.interpolate(pyramid[0], (height, width), mode="bilinear", align_corners=False)
        return Motion(full if exporting() or (rows, columns) != (height, width) else pyramid[0], features, pyramid, [])

    def published_layout(self, file: WeightsFile) -> Layout:
        """Map the tensors of a published SPyNet to the network; see :mod:`models.pretrained.spynet`."""
        return spynet_layout(self, file)

    def _pyramid(self, image: Tensor, rows: int, columns: int) -> list[Tensor]:
        """Return the normalized image at strides 1 to 32."""
        image = self.normalized(image)
        if exporting() or image.shape[-2:] != (rows, columns):
            image = F.interpolate(image, (rows, columns), mode="bilinear", align_corners=False)
        images = [image]
        for _ in range(LEVELS - 1):
            images.append(F.avg_pool2d(images[-1], 2))
        return images


def _level() -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels_in, channels_out in pairwise(_CHANNELS):
        conv = nn.Conv2d(channels_in, channels_out, 7, padding=3)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        nn.init.zeros_(conv.bias)  # pyright: ignore[reportArgumentType]
        layers += [conv, nn.ReLU()]
    nn.init.normal_(layers[-2].weight, std=1e-3)  # pyright: ignore[reportArgumentType]  # the first flow is near zero
    return nn.Sequential(*layers[:-1])
