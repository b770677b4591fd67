"""FlowNetS: optical flow from two stacked frames, refined over five scales.

After Dosovitskiy et al., "FlowNet: Learning Optical Flow with Convolutional Networks", ICCV 2015 (arXiv:1504.06852),
section 3, as configured in SegFlow's released network. Modules are named as in the two PyTorch ports whose checkpoints
are published, so that their keys fit (see :mod:`models.pretrained.flownets`).
"""

import math
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.pretrained.flownets import flownets_layout
from models.pretrained.layouts import Layout, WeightsFile
from mtsp.config import Config
from mtsp.types import Outputs

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


class FlowNetSConfig(Config):
    """Config of :class:`FlowNetS`."""

    batch_norm: bool = False
    """Add batch normalization after every convolution, which then has no bias, but never after deconvolutions."""

    width: float = Field(default=1.0, gt=0, le=4)
    """Factor on all numbers of channels. 1 gives the published network; 0.25 can be trained on two CPU cores."""

    def channels(self, published: int) -> int:
        """Return the number of channels at this width of a layer that has `published` channels at width 1."""
        return max(1, round(published * self.width))


class Motion(NamedTuple):
    """Output of :class:`FlowNetS` for two frames; h and w are the frame's height and width over the stride, rounded
    up."""

    pyramid: list[Tensor]  # B2hw at strides 4, 8, 16, 32, 64; (dx, dy) in pixels of the frame
    concat2: Tensor  # B194hw at stride 4, at width 1: skip connection, decoder, upsampled flow
    concat3: Tensor  # B386hw at stride 8
    concat4: Tensor  # B770hw at stride 16


class FlowNetS(nn.Module):
    """FlowNetS ("simple"), with all biases of the Caffe original: 38 676 514 parameters.

    The input normalization and the unit of the flow belong to the weights, so they are buffers and are saved in
    checkpoints: `mean` (RGB of frame, RGB of next_frame) is subtracted, or the mean of each pair if `own_mean` is set;
    predictions are multiplied once by `div_flow`.

    Args:
        config: config of the network.
        sizes: treatment of heights and widths that 64 does not divide; see :class:`FlowNetConfig`.
    """

    mean: Tensor
    own_mean: Tensor
    div_flow: Tensor

    def __init__(self, config: FlowNetSConfig, sizes: Literal["crop", "resize"] = "crop") -> None:
        super().__init__()
        self.sizes = sizes
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
        if self.sizes == "resize" and (height % 64 or width % 64):
            rows, columns = (64 * math.ceil(side / 64) for side in (height, width))
            x = F.interpolate(x, (rows, columns), mode="bilinear", align_corners=False)
            unit = unit * unit.new_tensor([width / columns, height / rows]).view(1, 2, 1, 1)

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
        return Motion([flow * unit for flow in reversed(flows)], concats[2], concats[3], concats[4])

    def _normalized(self, frame: Tensor, next_frame: Tensor) -> Tensor:
        own = (frame.mean((2, 3)) + next_frame.mean((2, 3))) / 2  # mean of both frames per channel
        mean = torch.where(self.own_mean, own.repeat(1, 2), self.mean)
        return torch.cat([frame, next_frame], dim=1) - mean[:, :, None, None]


class FlowNetConfig(Config):
    """Config of :class:`FlowNet`: FlowNetS alone, to pretrain SegFlow's flow branch without the cost of its
    segmentation branch."""

    name: Literal["flownets"]
    network: FlowNetSConfig = FlowNetSConfig()

    sizes: Literal["crop", "resize"] = "crop"
    """Treatment of heights and widths that 64 does not divide. `crop`: upsampled maps are cropped to their skip
    connection. `resize`:
    frames are scaled up to the next multiple of 64 and the flow is scaled back, as in the original."""

    def build(self) -> "FlowNet":
        """Return the network with newly initialized weights."""
        return FlowNet(self)


class FlowBranch(nn.Module):
    """FlowNetS with its parameter names in SegFlow (`flow.network.*`)."""

    def __init__(self, network: FlowNetS) -> None:
        super().__init__()
        self.network = network

    def published_layout(self, file: WeightsFile) -> Layout:
        """Map the tensors of a published FlowNetS to the branch; see :mod:`models.pretrained.flownets`."""
        layout = flownets_layout(self.network, file).under("network.")
        return replace(layout, buffers={f"network.{key}": value for key, value in layout.buffers.items()})


class FlowNet(nn.Module):
    """FlowNetS with its finest flow enlarged to the frame. Its only branch, `flow`, has the parameters of SegFlow's."""

    branches: tuple[str, ...] = ("flow",)

    def __init__(self, config: FlowNetConfig) -> None:
        super().__init__()
        self.flow = FlowBranch(FlowNetS(config.network, config.sizes))

    def forward(self, frame: Tensor, next_frame: Tensor | None = None) -> Outputs:
        """Predict the flow from `frame` to `next_frame`: B3HW each, RGB in [0, 1], of any size."""
        network = self.flow.network
        pyramid = network(frame, frame if next_frame is None else next_frame).pyramid
        outputs = Outputs(flow=enlarged(pyramid[0], frame, crop=network.sizes == "crop"))
        if self.training:
            outputs["flow_pyramid"] = pyramid
        return outputs


def enlarged(small: Tensor, frame: Tensor, *, crop: bool) -> Tensor:
    """Enlarge a map at stride 4 bilinearly to the size of `frame`; values are not scaled.

    Args:
        small: the map, BChw.
        frame: B?HW; only its height and width are used.
        crop: True: cells of the map are 4x4 pixels from the top left, and may extend past the frame. False: the map
            spans the frame.
    """
    height, width = frame.shape[-2:]
    size = (4 * small.shape[-2], 4 * small.shape[-1]) if crop else (height, width)
    return F.interpolate(small, size, mode="bilinear", align_corners=False)[..., :height, :width]


def _conv(channels_in: int, channels_out: int, kernel: int, stride: int, batch_norm: bool) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=not batch_norm)
    norm = [nn.BatchNorm2d(channels_out)] if batch_norm else []
    return nn.Sequential(conv, *norm, nn.LeakyReLU(SLOPE))


def _joined(skip: Tensor, deconv: Tensor, flow: Tensor) -> Tensor:
    height, width = skip.shape[-2:]
    return torch.cat([skip, deconv[..., :height, :width], flow[..., :height, :width]], dim=1)
