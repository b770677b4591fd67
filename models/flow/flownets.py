"""FlowNetS: optical flow from two stacked frames, refined over five scales.

After Dosovitskiy et al., "FlowNet: Learning Optical Flow with Convolutional Networks", ICCV 2015 (arXiv:1504.06852),
section 3, as configured in SegFlow's released network. Modules are named as in the two PyTorch ports whose checkpoints
are published, so that their keys fit (see :mod:`models.pretrained.flownets`).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.blocks import cropped, exporting, next_multiple
from models.flow.branch import FlowNetwork, FlowNetworkConfig, Motion, shrinking
from models.pretrained.flownets import flownets_layout
from models.pretrained.layouts import Layout, WeightsFile

CHAIRS_MEAN = (0.45, 0.432, 0.411)
"""Mean of FlyingChairs frames, RGB in [0, 1]. Networks without pretrained weights subtract it."""

SLOPE = 0.1  # negative slope of every LeakyReLU

_CONVS = {  # name: (channels in, channels out, kernel, stride)
    "conv1": (6, 64, 7, 2),
    "conv2": (64, 128, 5, 2),
    "conv3": (128, 256, 5, 2),
    "conv3_1": (256, 256, 3, 1),
    "conv4": (256, 512, 3, 2),
    "conv4_1": (512, 512, 3, 1),
    "conv5": (512, 512, 3, 2),
    "conv5_1": (512, 512, 3, 1),
    "conv6": (512, 1024, 3, 2),
    "conv6_1": (1024, 1024, 3, 1),
}


class FlowNetSConfig(FlowNetworkConfig):
    """Config of :class:`FlowNetS`."""

    name: Literal["flownets"] = "flownets"

    batch_norm: bool = False
    """Add batch normalization after every convolution, which then has no bias, but never after deconvolutions."""

    width: float = Field(default=1.0, gt=0, le=4)
    """Factor on all numbers of channels. 1 gives the published network; 0.25 can be trained on two CPU cores."""

    sizes: Literal["crop", "resize"] = "crop"
    """Treatment of heights and widths that 64 does not divide. `crop`: upsampled maps are cropped to their skip
    connection. `resize`: frames are scaled up to the next multiple of 64 and the flow is scaled back, as in the
    original. In SegFlow the mode decides: `crop` in `modern`, else `resize`."""

    def network(self) -> "FlowNetS":
        """Return the network for a branch, with newly initialized weights."""
        return FlowNetS(self)

    def channels(self, published: int) -> int:
        """Return the number of channels at this width of a layer that has `published` channels at width 1."""
        return max(1, round(published * self.width))


class FlowNetS(FlowNetwork):
    """FlowNetS ("simple"), with all biases of the Caffe original: 38 676 514 parameters.

    Features for SegFlow, at strides 4, 8 and 16, are the inputs of the last three predictions, with 194, 386 and 770
    channels at width 1: skip connection, decoder, upsampled flow.

    The input normalization and the unit of the flow belong to the weights, so they are buffers and are saved in
    checkpoints: `mean` (RGB of frame, RGB of next_frame) is subtracted, or the mean of each pair if `own_mean` is set;
    predictions are multiplied once by `div_flow`.
    """

    strides = (4, 8, 16, 32, 64)
    mean: Tensor
    own_mean: Tensor
    div_flow: Tensor

    def __init__(self, config: FlowNetSConfig) -> None:
        super().__init__()
        self.sizes = config.sizes
        wide = config.channels
        for name, (channels_in, channels_out, kernel, stride) in _CONVS.items():
            channels_in = 6 if name == "conv1" else wide(channels_in)
            self.add_module(name, _conv(channels_in, wide(channels_out), kernel, stride, config.batch_norm))
        below = wide(1024)
        self.decoder_channels: dict[int, int] = {}  # number of channels of each concatenation
        for level, skip, channels in ((5, 512, 512), (4, 512, 256), (3, 256, 128), (2, 128, 64)):
            self.add_module(f"predict_flow{level + 1}", nn.Conv2d(below, 2, 3, padding=1))
            self.add_module(f"upsampled_flow{level + 1}_to_{level}", nn.ConvTranspose2d(2, 2, 4, 2, 1))
            deconv = nn.ConvTranspose2d(below, wide(channels), 4, 2, 1)
            self.add_module(f"deconv{level}", nn.Sequential(deconv, nn.LeakyReLU(SLOPE)))
            below = self.decoder_channels[level] = wide(skip) + wide(channels) + 2
        self.exchanged_channels = tuple(self.decoder_channels[level] for level in (2, 3, 4))
        self.predict_flow2 = nn.Conv2d(below, 2, 3, padding=1)

        self.register_buffer("mean", torch.tensor(CHAIRS_MEAN * 2))
        self.register_buffer("own_mean", torch.tensor(False))
        self.register_buffer("div_flow", torch.tensor(20.0))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, a=SLOPE)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, frame: Tensor, next_frame: Tensor) -> Motion:
        """Predict the flow from `frame` to `next_frame`: B3HW each, RGB in [0, 1], of any size."""
        height, width = frame.shape[-2:]
        x = self._normalized(frame, next_frame)
        unit = self.div_flow.view(1, 1, 1, 1)  # 4-d promotes bfloat16 to float32, in which 100 px are not 100.5
        if self.sizes == "resize" and (exporting() or height % 64 or width % 64):
            rows, columns = (next_multiple(side, 64) for side in (height, width))
            x = F.interpolate(x, (rows, columns), mode="bilinear", align_corners=False)
            unit = unit * shrinking(x, width / columns, height / rows)

        skips = {}
        for name in _CONVS:
            x = self._modules[name](x)  # pyright: ignore[reportOptionalCall]
            skips[int(name[4])] = x  # conv3_1 comes after conv3 and replaces it
        flows, concats = [], {}
        for level in (5, 4, 3, 2):
            flow = self.get_submodule(f"predict_flow{level + 1}")(x)
            flows.append(flow)
            up = self.get_submodule(f"upsampled_flow{level + 1}_to_{level}")(flow)
            x = self.get_submodule(f"deconv{level}")(x)
            x = concats[level] = _joined(skips[level], x, up)
        flows.append(self.predict_flow2(x))
        pyramid = [flow * unit for flow in reversed(flows)]
        return Motion(pyramid[0], [concats[2], concats[3], concats[4]], pyramid, [])

    def published_layout(self, file: WeightsFile) -> Layout:
        """Map the tensors of a published FlowNetS to the network; see :mod:`models.pretrained.flownets`."""
        return flownets_layout(self, file)

    def _normalized(self, frame: Tensor, next_frame: Tensor) -> Tensor:
        own = (frame.mean((2, 3)) + next_frame.mean((2, 3))) / 2  # mean of both frames per channel
        mean = torch.where(self.own_mean, own.repeat(1, 2), self.mean)
        return torch.cat([frame, next_frame], dim=1) - mean[:, :, None, None]


def _conv(channels_in: int, channels_out: int, kernel: int, stride: int, batch_norm: bool) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=not batch_norm)
    norm = [nn.BatchNorm2d(channels_out)] if batch_norm else []
    return nn.Sequential(conv, *norm, nn.LeakyReLU(SLOPE))


def _joined(skip: Tensor, deconv: Tensor, flow: Tensor) -> Tensor:
    return torch.cat([skip, cropped(deconv, skip), cropped(flow, skip)], dim=1)
