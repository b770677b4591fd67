"""Files that timm can read: renamed to its keys, with positions interpolated for images of another size."""

import math
import sys
from typing import Any

import torch
from torch import Tensor

from models.encoders.sizes import Size
from models.encoders.timm_networks import timm_network


def as_timm_reads(name: str, tensors: dict[str, Tensor], image_size: Size | None) -> dict[str, Tensor]:
    """Return the tensors of a file as timm itself would load them into a network: renamed, and of its size.

    timm reads the files of many authors (DINOv2, BEiT, ConvNeXt, Swin, ...). Unknown tensors stay as they are.
    """
    import timm

    with torch.device("meta"):
        network: Any = timm.create_model(name, pretrained=False)
    rename = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    own = network.state_dict()
    if rename is not None and not own.keys() <= tensors.keys():
        try:
            tensors = dict(rename(dict(tensors), network))
        except Exception:  # made for the files of its authors: others are refused with their own keys
            return tensors
    return tensors if image_size is None else _resized(name, own, tensors, image_size)


def _resized(name: str, own: dict[str, Tensor], tensors: dict[str, Tensor], size: Size) -> dict[str, Tensor]:
    """Return the tensors with positions interpolated from the published size to another one."""
    from timm.layers.pos_embed import resample_abs_pos_embed

    native: Any = timm_network(name)
    if hasattr(native, "set_input_size"):
        native.load_state_dict({**native.state_dict(), **{key: v for key, v in tensors.items() if key in own}})
        native.set_input_size(size)
        return {**tensors, **{key: value for key, value in native.state_dict().items() if key in tensors}}
    wanted = timm_network(name, image_size=size).state_dict()
    for key, value in tensors.items():
        if key.endswith("pos_embed") and value.ndim == 3 and key in wanted and wanted[key].shape != value.shape:
            scale = math.sqrt(wanted[key].shape[1] / (size[0] * size[1]))
            grid = [round(side * scale) for side in size]
            tensors = {**tensors, key: resample_abs_pos_embed(value, grid, num_prefix_tokens=0)}
    return tensors
