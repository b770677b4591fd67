"""Caffe's ResNet-50 and ResNet-101: load numbered blobs of a caffemodel into CaffeResNet."""

import torch
from torch import Tensor, nn

from models.pretrained.layouts import Layout, LayoutError, looks_like

CAFFE_MEAN = (122.67891434, 116.66876762, 104.00698793)
"""Mean of Caffe's ImageNet networks, in the order R, G, B, in 0..255."""


def caffe_layout(encoder: nn.Module, tensors: dict[str, Tensor]) -> Layout:
    """Map the blobs of Caffe's ResNet-50 or -101 to a :class:`models.encoders.caffe_resnet.CaffeResNet`.

    The file must have the numbered blobs of the caffemodel: `conv1.0`, `bn_conv1.0`, `.1`, `.2` (mean, variance, and
    the factor by which both are multiplied), `scale_conv1.0`, `.1`, `res2a_branch2a.0`, ... The input channels of conv1
    are converted from BGR to RGB. A file with torchvision's names is refused: its shapes are the same, but its weights
    are for strides in the 3x3 convolutions.
    """
    if "bn_conv1.0" not in tensors or "res2a_branch2a.0" not in tensors:
        raise LayoutError(
            f"it looks like {looks_like(tensors)}; expected numbered blobs of Caffe's ResNet (conv1.0, bn_conv1.0, "
            "...), or use mode modern"
        )
    counts = [len(list(encoder.get_submodule(f"layer{stage}").children())) for stage in (1, 2, 3, 4)]
    blocks = {
        f"layer{stage}.{index}": _block(stage + 1, index, numbered=counts[2] > 6 and stage in (2, 3))
        for stage, count in enumerate(counts, start=1)
        for index in range(count)
    }
    layers = {("conv1", "bn1"): ("conv1", "_conv1")}  # our layers: Caffe's layer, suffix of its norms
    for ours, theirs in blocks.items():
        for number, branch in enumerate("abc", start=1):
            end = f"{theirs}_branch2{branch}"
            layers[f"{ours}.conv{number}", f"{ours}.bn{number}"] = (f"res{end}", end)
        if f"{ours}.downsample.0.weight" in encoder.state_dict():
            layers[f"{ours}.downsample.0", f"{ours}.downsample.1"] = (f"res{theirs}_branch1", f"{theirs}_branch1")
    used: dict[str, Tensor] = {}
    rest = dict(tensors)

    def take(key: str) -> Tensor:
        if key not in rest:
            raise LayoutError(f"it looks like a Caffe ResNet, but blob {key} is missing; expected {len(blocks)} blocks")
        return rest.pop(key)

    for (conv, norm), (layer, end) in layers.items():
        factor = take(f"bn{end}.2").flatten()[0]
        factor = torch.where(factor == 0, torch.ones_like(factor), factor)
        used[f"{conv}.weight"] = take(f"{layer}.0")
        used[f"{norm}.running_mean"] = take(f"bn{end}.0").flatten() / factor
        used[f"{norm}.running_var"] = take(f"bn{end}.1").flatten() / factor
        used[f"{norm}.weight"] = take(f"scale{end}.0").flatten()
        used[f"{norm}.bias"] = take(f"scale{end}.1").flatten()
    used["conv1.weight"] = used["conv1.weight"].flip(1)
    if unknown := [key for key in rest if not key.startswith("fc")]:
        raise LayoutError(f"it looks like a Caffe ResNet, but CaffeResNet has no layer for blob {unknown[0]}")
    left_out = [f"{key}: the classifier" for key in rest]
    buffers = {"mean": [value / 255 for value in CAFFE_MEAN], "std": (1 / 255,) * 3}
    return Layout(used, left_out, buffers, "blobs of a Caffe ResNet (converted from BGR to RGB)")


def _block(stage: int, index: int, *, numbered: bool) -> str:
    """Return Caffe's name of a block: 2a, 2b, 2c, but 4a, 4b1, 4b2, ... in the long stages of ResNet-101."""
    return f"{stage}b{index}" if numbered and index else f"{stage}{'abcdef'[index]}"
