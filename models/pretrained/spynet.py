"""SPyNet as published by its PyTorch ports, which name its levels differently."""

import re

from torch import nn

from models.pretrained.layouts import Layout, LayoutError, WeightsFile, looks_like
from models.pretrained.torchvision_timm import IMAGENET_MEAN, IMAGENET_STD

_KEY = re.compile(r"(netBasic|moduleBasic|basic_module)\.(\d+)\.\1\.(\d+)\.(?:conv\.)?(weight|bias)")


def spynet_layout(network: nn.Module, file: WeightsFile) -> Layout:
    """Map the tensors of a published SPyNet to a :class:`models.flow.spynet.SPyNet`.

    Keys are `netBasic.L.netBasic.K.weight` (older files: `moduleBasic`) with layer K = 0, 2, 4, 6, 8 of level L, coarse
    to fine, or `basic_module.L.basic_module.N.conv.weight` with convolution N = 0 to 4 (mmediting, which adds `mean`
    and `std`). All expect RGB in [0, 1], normalized by ImageNet's mean and standard deviation.
    """
    used, own = {}, {key for key, _ in network.named_parameters()}
    for key, value in file.tensors.items():
        if (match := _KEY.fullmatch(key)) is not None:
            port, level, layer, kind = match.groups()
            index = 2 * int(layer) if port == "basic_module" else int(layer)
            used[f"levels.{level}.{index}.{kind}"] = value
        elif key not in ("mean", "std"):
            raise LayoutError(f"it looks like {looks_like(file.tensors)}, but SPyNet has no {key}")
    if odd := sorted(own ^ used.keys()):
        seen = looks_like(file.tensors)
        raise LayoutError(f"it looks like {seen}; expected {len(own)} tensors, the first that differs is {odd[0]}")
    left_out = [f"{key}: ImageNet's" for key in ("mean", "std") if key in file.tensors]
    buffers = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    return Layout(used, left_out, buffers, f"SPyNet ({len(used)} tensors; RGB, normalized as for ImageNet)")
