"""How published classification weights fit a backbone without its last layer, and the head that is that layer."""

from dataclasses import replace

from torch import Tensor

from models.classifier import Backbone, Head
from models.pretrained.layouts import Layout, LayoutError, encoder_layout, looks_like
from models.pretrained.tf_slim import Slim, converted, is_slim

_LAST_LAYERS = ("_fc", "last_linear")
"""Names of the last layer in files that are not of the backbone's own library."""


def backbone_layout(backbone: Backbone, tensors: dict[str, Tensor]) -> Layout:
    """Return how a whole network's published weights fit its backbone: all used but the layers that classify.

    For Inception-V3 that is torchvision's file or TF-slim's: its `fc` and `AuxLogits.fc` are left out, and all of
    `AuxLogits` where the network has no auxiliary head. EfficientNet-Lite weights of EfficientNet-PyTorch are for
    timm's `tf_` networks.
    """
    if is_slim(tensors):
        return _slim_backbone(backbone, tensors)
    left_out = [f"{key}: the layer that classifies" for key in tensors if _is_of(key, backbone.classifiers)]
    if backbone.aux_width is None:
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
    if is_slim(tensors):
        return _slim_head(head, tensors)
    names = (head.published[0], *_LAST_LAYERS)
    name = next((name for name in names if getattr(tensors.get(f"{name}.weight"), "ndim", 0) == 2), None)
    if name is None:
        raise LayoutError(f"it looks like {looks_like(tensors)}, without a last layer that is known here")
    sources = {"label": name} | ({"aux_head": "AuxLogits.fc"} if head.aux_head is not None else {})
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


def _slim_backbone(backbone: Backbone, tensors: dict[str, Tensor]) -> Layout:
    slim = converted(tensors)
    if backbone.aux_width is not None and "AuxLogits.conv0.conv.weight" not in slim.tensors:
        raise LayoutError(f"{slim.description} are without an auxiliary head; set aux_head=false in the model's config")
    layout = backbone_layout(backbone, slim.tensors)
    settings = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    return _in_slims_names(replace(layout, settings=settings), slim)


def _slim_head(head: Head, tensors: dict[str, Tensor]) -> Layout:
    """Return how slim's last layers fit; of one class more than the head has, the first is ImageNet's background."""
    slim = converted(tensors)
    last = {key: value for key, value in slim.tensors.items() if key.startswith(("fc.", "AuxLogits.fc."))}
    background = "fc.bias" in last and len(last["fc.bias"]) == head.label.out_features + 1
    if background:
        last = {key: value[1:] for key, value in last.items()}
    layout = _in_slims_names(head_layout(head, slim.tensors | last), slim)
    if background:
        first = [f"{slim.names[key]}[0]: the background" for key in last]
        layout = replace(layout, left_out=[*layout.left_out, *first])
    return layout


def _in_slims_names(layout: Layout, slim: Slim) -> Layout:
    """Return the layout with what is left out under its name in the file."""
    lines = [line.partition(": ") for line in layout.left_out]
    left_out = [f"{slim.names[key]}: {reason}" for key, _, reason in lines if key in slim.names]
    return replace(layout, left_out=[*left_out, *slim.left_out], description=slim.description)


def _is_of(key: str, layers: tuple[str, ...]) -> bool:
    return any(layer and key.startswith(f"{layer}.") for layer in layers)
