"""How published classification weights fit a backbone without its last layer, and the head that is that layer."""

from dataclasses import replace

from torch import Tensor

from models.dstl import Backbone, Head
from models.weights_layouts import Layout, LayoutError, encoder_layout, looks_like

_LAST_LAYERS = ("_fc", "last_linear")
"""Names of the last layer in files that are not of the backbone's own library."""


def backbone_layout(backbone: Backbone, tensors: dict[str, Tensor]) -> Layout:
    """Return how a whole network's published weights fit its backbone: all used but the layers that classify.

    For Inception-V3 that is torchvision's file: its `fc` and `AuxLogits.fc` are left out, and all of `AuxLogits` where
    the network has no auxiliary head. EfficientNet-Lite weights of EfficientNet-PyTorch are for timm's `tf_` networks.
    """
    left_out = [f"{key}: the layer that classifies" for key in tensors if _is_of(key, backbone.classifiers)]
    if backbone.auxiliary_width is None:
        left_out += [
            f"{key}: there is no auxiliary head"
            for key in tensors
            if key.startswith(("AuxLogits.", "aux1.", "aux2.")) and not _is_of(key, backbone.classifiers)
        ]
    dropped = {line.partition(":")[0] for line in left_out}
    kept = {key: value for key, value in tensors.items() if key not in dropped}
    layout = encoder_layout(backbone.network, backbone.name, kept)
    settings = layout.settings
    if "_conv_stem.weight" not in tensors:
        settings = {"mean": backbone.normalization[0], "std": backbone.normalization[1]}
    layout = replace(layout, left_out=[*layout.left_out, *left_out], settings={})
    return replace(layout.under("network."), settings=settings)


def head_layout(head: Head, tensors: dict[str, Tensor]) -> Layout:
    """Return how the last layers of a published file become the head, of as many classes as it has."""
    names = (head.published[0], *_LAST_LAYERS)
    name = next((name for name in names if getattr(tensors.get(f"{name}.weight"), "ndim", 0) == 2), None)
    if name is None:
        raise LayoutError(f"it looks like {looks_like(tensors)}, without a last layer that is known here")
    sources = {"label": name} | ({"auxiliary": "AuxLogits.fc"} if head.auxiliary is not None else {})
    used: dict[str, Tensor] = {}
    for ours, theirs in sources.items():
        for kind in ("weight", "bias"):
            if f"{theirs}.{kind}" not in tensors:
                raise LayoutError(f"it looks like {looks_like(tensors)}, but {theirs}.{kind} is missing")
            used[f"{ours}.{kind}"] = tensors[f"{theirs}.{kind}"]
    found, wanted = len(used["label.bias"]), head.label.out_features
    if found != wanted:
        raise LayoutError(f"its last layer has {found} classes, this network {wanted}; leave this branch's weights out")
    taken = {f"{theirs}.{kind}" for theirs in sources.values() for kind in ("weight", "bias")}
    left_out = [f"{key}: not of the head" for key in tensors if key not in taken]
    return Layout(used, left_out, {}, f"the last layer of {looks_like(tensors)}")


def _is_of(key: str, layers: tuple[str, ...]) -> bool:
    return any(layer and key.startswith(f"{layer}.") for layer in layers)
