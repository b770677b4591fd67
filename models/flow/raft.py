"""RAFT: optical flow by repeated lookups in the correlations of all pairs of pixels, with torchvision's layers.

After Teed and Deng, "RAFT: Recurrent All-Pairs Field Transforms for Optical Flow", ECCV 2020 (arXiv:2003.12039).
"""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.optical_flow import raft_large, raft_small
from torchvision.models.optical_flow._utils import make_coords_grid, upsample_flow

from models.blocks import Normalized, cropped, exporting, halves, next_multiple, padded
from models.flow.branch import FlowNetwork, FlowNetworkConfig, Motion
from models.pretrained.layouts import Layout, LayoutError, WeightsFile, looks_like
from models.pretrained.torchvision_download import download_torchvision

STRIDE = 8
SMALLEST = 128
"""Smallest side in pixels: below it, torchvision's coarsest correlations have no two cells."""


_HALF = (0.5,) * 3  # mean and deviation of frames: torchvision's weights take values in [-1, 1]


class RAFTConfig(FlowNetworkConfig):
    """Config of :class:`RAFT`."""

    name: Literal["raft"]

    size: Literal["small", "large"] = "large"
    """`large`: 5.3 M parameters, `small`: 1.0 M; the two networks of torchvision."""

    iterations: int = Field(default=12, gt=0)
    """Number of updates of the flow in training. The loss `tasks.flow.sequence` trains all of them."""

    eval_iterations: int = Field(default=24, gt=0)
    """Number of updates of the flow in evaluation. The authors use 24 for KITTI, 32 for Sintel."""

    def network(self) -> "RAFT":
        """Return the network for a branch, with newly initialized weights."""
        return RAFT(self)


class RAFT(FlowNetwork, Normalized):
    """RAFT, built of torchvision's modules and with their parameter names; flow is the same as torchvision's.

    Departures from torchvision's network: frames are RGB in [0, 1]; frames of sides that 8 does not divide, or below
    128 pixels, are padded at the bottom right by repeating their border; in evaluation only the last update is enlarged
    to the frame; under autocast, correlations and flow stay in float32, as in the authors' code.

    Features for SegFlow have stride 8, RAFT's only scale: the hidden state after the last update (96 or 128 channels)
    and the flow in cells of 8 pixels.
    """

    def __init__(self, config: RAFTConfig) -> None:
        super().__init__(_HALF, _HALF)
        network: Any = raft_small() if config.size == "small" else raft_large()
        self.size = config.size
        self.iterations, self.eval_iterations = config.iterations, config.eval_iterations
        self.feature_encoder: nn.Module = network.feature_encoder
        self.context_encoder: nn.Module = network.context_encoder
        self.corr_block: Any = network.corr_block
        self.update_block: Any = network.update_block
        self.mask_predictor: nn.Module | None = network.mask_predictor
        self.exchanged_channels = (self.update_block.hidden_state_size + 2,)

    def forward(self, frame: Tensor, next_frame: Tensor) -> Motion:
        """Predict the flow from `frame` to `next_frame`: B3HW each, RGB in [0, 1], of any size."""
        height, width = frame.shape[-2:]
        first, second = (self._prepared(image) for image in (frame, next_frame))
        known = self.feature_encoder(torch.cat([first, second]))
        sizes = [self.update_block.hidden_state_size, -1]
        sizes[1] = (context := self.context_encoder(first)).shape[1] - sizes[0]
        hidden, context = context.split(sizes, dim=1)
        hidden, context = hidden.tanh(), context.relu()
        home = make_coords_grid(first.shape[0], *known.shape[-2:], device=frame.device)  # pyright: ignore[reportArgumentType]
        there, flow = home, torch.zeros_like(home)
        sequence = []
        with torch.autocast(frame.device.type, enabled=False):
            self.corr_block.build_pyramid(*halves(known.float()))
        updates = self.iterations if self.training else self.eval_iterations
        for update in range(updates):
            there = there.detach()
            with torch.autocast(frame.device.type, enabled=False):
                correlations = self.corr_block.index_pyramid(centroids_coords=there)
            hidden, delta = self.update_block(hidden, context, correlations, there - home)
            there = there + delta.float()
            if self.training or update == updates - 1:
                flow = there - home
                mask = None if self.mask_predictor is None else self.mask_predictor(hidden).float()
                sequence.append(cropped(upsample_flow(flow, mask), frame))
        self.corr_block.corr_pyramid = []  # all pairs of pixels: 165 MB at 480x854
        rows, columns = ((side + STRIDE - 1) // STRIDE for side in (height, width))
        features = torch.cat([hidden, flow], dim=1)[..., :rows, :columns]
        return Motion(sequence[-1], [features], [], sequence if self.training else [])

    def published_layout(self, file: WeightsFile) -> Layout:
        """Map the tensors of torchvision's file to the network, whose names they have."""
        return self._layout(file.tensors, f"RAFT of torchvision ({len(file.tensors)} tensors)")

    def download(self, source: str) -> Layout:
        """Download torchvision's weights: `torchvision`, its default ones, or `torchvision:C_T_V2` and others."""
        weights = download_torchvision(f"raft_{self.size}", source)
        return self._layout(weights.tensors, weights.description)

    def _layout(self, tensors: dict[str, Tensor], description: str) -> Layout:
        own = {key for key in self.state_dict() if key not in ("mean", "std")}
        odd = sorted(key for key in own ^ tensors.keys() if not key.endswith("num_batches_tracked"))
        if odd:
            differs = f"{odd[0]} is {'missing' if odd[0] in own else 'unknown'}"
            raise LayoutError(
                f"it looks like {looks_like(tensors)}; expected torchvision's raft_{self.size}: {differs}"
            )
        return Layout(tensors, [], {"mean": _HALF, "std": _HALF}, description)

    def _prepared(self, image: Tensor) -> Tensor:
        """Return the normalized image, padded to sides that RAFT takes."""
        image = self.normalized(image)
        sides = (next_multiple(side, STRIDE) for side in image.shape[-2:])
        return padded(image, *(side if exporting() else max(SMALLEST, side) for side in sides))
