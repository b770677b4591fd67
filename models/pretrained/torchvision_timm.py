"""Load classifiers of torchvision, timm and EfficientNet-PyTorch into an encoder, a backbone or a last layer."""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from models.pretrained.layouts import Layout, LayoutError, looks_like

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_CLASSIFIERS = (
    *("fc.", "_fc.", "classifier.", "head.", "last_linear.", "conv_head.", "_conv_head.", "_bn1.", "bn2.", "norm."),
    *("fc_norm.", "head_dist.", "attn_pool.", "pre_logits.", "AuxLogits.", "mask_token"),
)
"""Prefixes of the keys of layers after the last feature map, in torchvision, timm and EfficientNet-PyTorch."""

_LAST_LAYERS = ("_fc", "last_linear")
"""Names of the last layer in files of libraries other than the backbone's own."""


def normalization(encoder: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and std (RGB, for values in [0, 1]) that an encoder expects: timm's setting, or ImageNet's."""
    default_cfg = getattr(getattr(encoder, "model", None), "default_cfg", None) or {}
    return tuple(default_cfg.get("mean", IMAGENET_MEAN)), tuple(default_cfg.get("std", IMAGENET_STD))


def encoder_layout(encoder: nn.Module, name: str, tensors: dict[str, Tensor]) -> Layout:
    """Map a classifier's weights to an encoder; the last layers of the classifier are left out.

    EfficientNet-Lite weights, which have no squeeze-and-excitation, expect (x - 127) / 128 for x in 0..255. They were
    trained with TensorFlow's padding and epsilon, as in timm's `tf_` networks: of 100 photos of ImageNet classes, the
    Lite0 weights classify 86 correctly in tf_efficientnet_lite0 and 72 in efficientnet_lite0, whose keys are the same.
    """
    own = encoder.state_dict()
    mean, std = normalization(encoder)
    kind = looks_like(tensors)
    renamed = {key: key for key in tensors}
    if "_conv_stem.weight" in tensors:
        if "_conv_stem.weight" not in own:
            renamed = _efficientnet_names(tensors, own)
        squeezes = any("_se_reduce" in key for key in tensors)
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if squeezes else ((127 / 255,) * 3, (128 / 255,) * 3)
        if "_conv_stem.weight" not in own and "tf_" not in name:
            kind += f", which fits tf_{name} better,"
    ours = {_plain(re.sub(r"^(model\.)+", "", key)): key for key in own}  # timm's feature extractors are wrapped twice
    assert len(ours) == len(own), "two keys of an encoder differ only in dots and underscores"
    used, left_out, unknown = {}, [], []
    for key, value in tensors.items():
        if (target := ours.get(_plain(renamed[key]))) is not None:
            used[target] = value
        elif key.startswith(_CLASSIFIERS):
            left_out.append(f"{key}: after the last feature map")
        else:
            unknown.append(key)
    missing = [key for key in own if key not in used and not key.endswith("num_batches_tracked")]
    if missing or unknown:
        example = f"{missing[0]} is missing" if missing else f"nothing here is called {unknown[0]}"
        raise LayoutError(f"it looks like {kind}; expected weights of {name}: {example}")
    return Layout(used, left_out, {"mean": mean, "std": std}, f"{kind} into {name}")


def backbone_layout(
    network: nn.Module,
    name: str,
    tensors: dict[str, Tensor],
    *,
    classifiers: tuple[str, ...],
    aux_head: bool,
    normalization: tuple[tuple[float, ...], tuple[float, ...]],
) -> Layout:
    """Map a classifier's weights to its backbone; the layers that classify are left out.

    Args:
        network: the backbone, without its last layer.
        name: name of the backbone, for messages.
        tensors: tensors of the whole classifier.
        classifiers: names of the layers that classify, possibly including that of the auxiliary head.
        aux_head: whether the backbone has Inception-V3's auxiliary head.
        normalization: mean and std that the backbone's own weights expect.
    """

    def classifies(key: str) -> bool:
        return any(layer and key.startswith(f"{layer}.") for layer in classifiers)

    left_out = {key: "the layer that classifies" for key in tensors if classifies(key)}
    if aux_head and "Mixed_7c.branch_pool.conv.weight" in tensors and "AuxLogits.conv0.conv.weight" not in tensors:
        raise LayoutError(
            f"it looks like {looks_like(tensors)}, without an auxiliary head; set aux_head=false in the model's config"
        )
    if not aux_head:
        auxiliary = (key for key in tensors if key.startswith(("AuxLogits.", "aux1.", "aux2.")))
        left_out |= {key: "there is no auxiliary head" for key in auxiliary if not classifies(key)}
    kept = {key: value for key, value in tensors.items() if key not in left_out}
    layout = encoder_layout(network, name, kept).under("network.")
    buffers = layout.buffers
    if "_conv_stem.weight" not in tensors:
        buffers = {"mean": normalization[0], "std": normalization[1]}
    lines = [*layout.left_out, *(f"{key}: {reason}" for key, reason in left_out.items())]
    return Layout(layout.tensors, lines, buffers, layout.description)


def head_layout(label: nn.Linear, last: str, tensors: dict[str, Tensor], *, aux_head: bool) -> Layout:
    """Map a classifier's last layers to the layers `label` and `aux_head` of a head.

    Args:
        label: the head's last layer; it must have as many classes as the file.
        last: name of the last layer in files of the backbone's own library.
        tensors: tensors of the whole classifier.
        aux_head: whether the head has a last layer for Inception-V3's auxiliary head.
    """
    names = (last, *_LAST_LAYERS)
    name = next((name for name in names if getattr(tensors.get(f"{name}.weight"), "ndim", 0) == 2), None)
    if name is None:
        raise LayoutError(f"it looks like {looks_like(tensors)}, without a known last layer")
    sources = {"label": name} | ({"aux_head": "AuxLogits.fc"} if aux_head else {})
    keys = {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in sources.items() for kind in ("weight", "bias")}
    if missing := [key for key in keys.values() if key not in tensors]:
        raise LayoutError(f"it looks like {looks_like(tensors)}, but {missing[0]} is missing")
    used = {ours: tensors[theirs] for ours, theirs in keys.items()}
    found, wanted = len(used["label.bias"]), label.out_features
    if found != wanted:
        raise LayoutError(f"its last layer has {found} classes, this network {wanted}; leave this branch's weights out")
    left_out = [f"{key}: not of the head" for key in tensors if key not in keys.values()]
    return Layout(used, left_out, {}, f"the last layer of {looks_like(tensors)}")


def _efficientnet_names(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, str]:
    """Return timm's name for each key of EfficientNet-PyTorch, which numbers blocks across all stages."""
    places = {match[1] for key in own if (match := re.search(r"blocks[._](\d+[._]\d+)\.", key))}
    stages = [tuple(int(n) for n in re.split(r"[._]", place)) for place in places]
    blocks = [f"blocks.{stage}.{block}" for stage, block in sorted(stages)]
    plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    expanding = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    expanding |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    squeeze = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
    outside = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    names = {}
    for key in tensors:
        if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key):
            number, layer, kind = int(match[1]), match[2], match[3]
            expands = f"_blocks.{number}._expand_conv.weight" in tensors
            layer = (squeeze | (expanding if expands else plain)).get(layer, layer)
            names[key] = f"{blocks[number]}.{layer}.{kind}" if number < len(blocks) else key
        else:
            layer, dot, kind = key.partition(".")
            names[key] = outside.get(layer, layer) + dot + kind
    return names


def _plain(key: str) -> str:
    """Return the key with dots only: timm's feature extractors rename `stages.0` to `stages_0`."""
    return key.replace("_", ".")
