"""Define the output and the config of all flow networks, and the branch of a network that holds one of them."""

from abc import abstractmethod
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import cropped, exporting
from models.pretrained.layouts import Layout, LayoutError, WeightsFile
from mtsp.config import Config
from mtsp.types import Outputs


class Motion(NamedTuple):
    """Output of a flow network for two frames. All flows are float32, (dx, dy) in pixels of the frame."""

    flow: Tensor  # B2hw: the network's best flow, at stride 1 or 4
    features: list[Tensor]  # BChw maps for other branches, finest first; the network says their strides
    pyramid: list[Tensor]  # B2hw: flows at the network's `strides`, finest first; empty if it has one scale
    sequence: list[Tensor]  # B2HW: successive estimates in training, best last; empty if the network does not iterate


class FlowNetwork(nn.Module):
    """Base of the flow networks."""

    strides: tuple[int, ...] = ()
    """Strides of the pyramid."""
    exchanged_channels: tuple[int, ...]
    """Numbers of channels of the features."""
    sizes: Literal["crop", "resize"] = "resize"
    """Grid of maps whose stride does not divide the frame's sides. `crop`: cells start at the top left, and the last
    extend past the frame. `resize`: the map spans the frame."""

    @abstractmethod
    def forward(self, frame: Tensor, next_frame: Tensor) -> Motion:
        """Predict the flow from `frame` to `next_frame`: B3HW each, RGB in [0, 1], of any size."""

    @abstractmethod
    def published_layout(self, file: WeightsFile) -> Layout:
        """Map the tensors of a published file to the network. Raises LayoutError if they do not fit."""

    def download(self, source: str) -> Layout:
        """Download weights from `source`; see :class:`models.pretrained.layouts.Downloadable`."""
        raise LayoutError(f"no library publishes weights of {type(self).__name__} as {source}; give a file")


class FlowNetworkConfig(Config):
    """Base config of the flow networks: of SegFlow's flow branch, or of a network that is trained alone."""

    def build(self) -> "FlowNet":
        """Return the network alone, with newly initialized weights."""
        return FlowNet(self.network())

    @abstractmethod
    def network(self) -> FlowNetwork:
        """Return the network for a branch, with newly initialized weights."""


class FlowBranch(nn.Module):
    """A flow network with its parameter names in SegFlow (`flow.network.*`)."""

    def __init__(self, network: FlowNetwork) -> None:
        super().__init__()
        self.network = network

    def published_layout(self, file: WeightsFile) -> Layout:
        """Map the tensors of a published file to the branch; see :meth:`FlowNetwork.published_layout`."""
        return self._inside(self.network.published_layout(file))

    def download(self, source: str) -> Layout:
        """Download weights of the network; see :meth:`FlowNetwork.download`."""
        return self._inside(self.network.download(source))

    def _inside(self, layout: Layout) -> Layout:
        layout = layout.under("network.")
        return replace(layout, buffers={f"network.{key}": value for key, value in layout.buffers.items()})


class FlowNet(nn.Module):
    """A flow network alone, to pretrain SegFlow's flow branch without the cost of its segmentation branch.

    Its only branch, `flow`, has the parameters of SegFlow's.
    """

    branches: tuple[str, ...] = ("flow",)

    def __init__(self, network: FlowNetwork) -> None:
        super().__init__()
        self.flow = FlowBranch(network)

    def forward(self, frame: Tensor, next_frame: Tensor | None = None) -> Outputs:
        """Predict the flow from `frame` to `next_frame`: B3HW each, RGB in [0, 1], of any size."""
        network = self.flow.network
        motion: Motion = network(frame, frame if next_frame is None else next_frame)
        outputs = Outputs(flow=enlarged(motion.flow, frame, crop=network.sizes == "crop"))
        if self.training and motion.pyramid:
            outputs["flow_pyramid"] = motion.pyramid
        if self.training and motion.sequence:
            outputs["flow_sequence"] = motion.sequence
        return outputs


def enlarged(small: Tensor, frame: Tensor, *, crop: bool) -> Tensor:
    """Enlarge a map at stride 4 bilinearly to the size of `frame`; values are not scaled.

    Args:
        small: the map, BChw; a map of the frame's size is returned as it is.
        frame: B?HW; only its height and width are used.
        crop: True: cells of the map are 4x4 pixels from the top left, and may extend past the frame. False: the map
            spans the frame.
    """
    height, width = frame.shape[-2:]
    if not exporting() and small.shape[-2:] == (height, width):
        return small
    size = (4 * small.shape[-2], 4 * small.shape[-1]) if crop else (height, width)
    return cropped(F.interpolate(small, size, mode="bilinear", align_corners=False), frame)


def warped(x: Tensor, flow: Tensor, *, outside: Literal["zeros", "border"]) -> Tensor:
    """Return `x` (BChw) sampled bilinearly where `flow` (B2hw, in cells of `x`) leads, in float32.

    bfloat16 would place samples to half a cell. Outside of `x` are zeros, or its repeated border.
    """
    height, width = flow.shape[-2:]
    columns = torch.arange(width, device=flow.device, dtype=torch.float32) + flow[:, 0]
    rows = torch.arange(height, device=flow.device, dtype=torch.float32)[:, None] + flow[:, 1]
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=3)
    return F.grid_sample(x.float(), grid, mode="bilinear", padding_mode=outside, align_corners=False)


def shrinking(like: Tensor, x: float, y: float) -> Tensor:
    """Return the factors of dx and dy, 1211, of a flow between enlarged frames, on the device of `like`.

    Made by products, because torch.export would take the numbers of a new tensor for constants.
    """
    one = torch.ones(1, 1, 1, 1, device=like.device)
    return torch.cat([one * x, one * y], dim=1)
