"""Small networks and FlowNetS checkpoints in the published key layouts, for the tests of this room."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.flow.branch import FlowNet
from models.flow.flownets import FlowNetSConfig
from models.segflow.network import SegFlow, SegFlowConfig

WIDTH = 0.0625
CONVS = ["conv1", "conv2", "conv3", "conv3_1", "conv4", "conv4_1", "conv5", "conv5_1", "conv6", "conv6_1"]


def flow_network(*, batch_norm: bool = False, width: float = WIDTH) -> FlowNet:
    torch.manual_seed(1)
    return FlowNetSConfig(width=width, batch_norm=batch_norm).build()


def segflow(encoder: str = "tu-tf_efficientnet_lite0", **changes: Any) -> SegFlow:
    torch.manual_seed(1)
    small = {"width": 8, "flow_width": 8, "flow": FlowNetSConfig(width=WIDTH)}
    return SegFlowConfig(name="segflow", encoder=encoder, **(small | changes)).build()


def flownets_file(tensors: int, *, width: float = WIDTH) -> dict[str, Tensor]:
    """A FlowNetS checkpoint by the keys that the three published kinds have, with random values."""
    torch.manual_seed(0)
    own = flow_network(batch_norm=tensors == 63, width=width).flow.network.state_dict()
    layers = [f"{conv}.0.weight" for conv in CONVS]
    if tensors == 63:
        layers += [f"{c}.1.{kind}" for c in CONVS for kind in ("weight", "bias", "running_mean", "running_var")]
    else:
        layers += [f"{conv}.0.bias" for conv in CONVS]
    layers += [f"deconv{level}.0.weight" for level in (5, 4, 3, 2)]
    layers += [f"predict_flow{level}.weight" for level in (6, 5, 4, 3, 2)]
    layers += [f"upsampled_flow{level}_to_{level - 1}.weight" for level in (6, 5, 4, 3)]
    if tensors == 42:
        layers += [f"deconv{level}.0.bias" for level in (5, 4, 3, 2)]
        layers += [f"predict_flow{level}.bias" for level in (6, 5, 4, 3, 2)]
    assert len(layers) == tensors
    return {key: torch.rand_like(own[key]) for key in layers}


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path
