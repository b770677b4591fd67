"""The key layouts of published checkpoints, and how each maps onto the networks here. See
:mod:`models.pretrained.load`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from models.encnet.heads import EncHead
from models.encoders.build import IMAGENET_MEAN, IMAGENET_STD, normalization
from models.flow.flownets import FlowNetS

PINARD_MEAN = (0.411, 0.432, 0.45)
"""What FlowNetPytorch's published networks were trained with, in R, G, B: the mean of B, G, R, put the wrong way
round at the time, and so right for these weights only."""

CAFFE_MEAN = (122.67891434, 116.66876762, 104.00698793)
"""Of Caffe's ImageNet networks, here as R, G, B in 0..255."""

CLASSIFIERS = ("fc.", "_fc.", "classifier.", "head.", "last_linear.", "conv_head.", "_conv_head.", "_bn1.", "bn2.")
"""What comes after an encoder's last feature map in torchvision, timm and EfficientNet-PyTorch."""

PUBLISHED_ENCODER = "pretrained."
"""Where PyTorch-Encoding and FastFCN keep the encoder of their segmentation networks."""

_ENCNET = {  # beginning of a key of theirs: of ours, in the head
    "head.conv5.": "reduce.",
    "head.connect.": "lateral.",
    "head.fusion.": "join.",
    "head.encmodule.encoding.0.": "context.project.0.",
    "head.encmodule.encoding.1.": "context.project.1.",
    "head.encmodule.encoding.3.": "context.encoding.",
    "head.encmodule.encoding.4.": "context.norm.",
    "head.encmodule.fc.0.": "context.gate.",
    "head.encmodule.selayer.": "context.se_head.",
    "head.conv6.1.": "classify.",
    "auxlayer.conv5.4.": "aux_head.classify.",
    "auxlayer.conv5.": "aux_head.reduce.",
    **{f"jpu.conv{level}.": f"jpu.project.{level - 3}." for level in (3, 4, 5)},
    **{
        f"jpu.dilation{number}.{theirs}.": f"jpu.read.{number - 1}.{ours}."
        for number in (1, 2, 3, 4)
        for ours, theirs in enumerate(("0.conv1", "0.bn", "0.pointwise", "1"))
    },
}


class LayoutError(ValueError):
    """The file's tensors do not fit. The message says what they look like and what was expected."""


@dataclass(frozen=True)
class Layout:
    """Tensors of a file by the names that they have in a network, and what belongs with them."""

    tensors: dict[str, Tensor]
    left_out: list[str]
    settings: dict[str, Any]
    """Buffers beside them that say what input they expect and what unit they predict."""
    description: str

    def under(self, prefix: str) -> "Layout":
        """Return the layout with `prefix` before all names; an encoder's settings stay, they are its branch's."""
        tensors = {prefix + key: value for key, value in self.tensors.items()}
        own = prefix != "encoder."
        settings = {prefix + key if own else key: value for key, value in self.settings.items()}
        return replace(self, tensors=tensors, settings=settings)

    def settings_tensors(self) -> dict[str, Tensor]:
        """Return the settings as tensors."""
        return {key: torch.as_tensor(value) for key, value in self.settings.items()}


def flownets_layout(network: FlowNetS, tensors: dict[str, Tensor], container: Any, filename: str) -> Layout:
    """Return how a published FlowNetS checkpoint of 33, 42 or 63 tensors fits `network`.

    33: FlowNetPytorch, no biases in the decoder; trained on RGB, except the one converted from Caffe (BGR), which is
    told by "caffe" in its name or by a container without an epoch. 63: the same with batch normalization. 42: NVIDIA's
    FlowNet2-S, RGB, minus each pair's own mean. Biases that a file does not have are zero, which is exact. BGR
    weights get the input channels of their first convolution turned round, so that frames are always RGB.
    """
    own = network.state_dict()
    buffers = {name for name, _ in network.named_buffers(recurse=False)}
    batch_norm = any(key.endswith("running_mean") for key in own)
    expected = {33: "FlowNetPytorch", 42: "NVIDIA", 63: "FlowNetPytorch with batch norm"}
    if (
        "conv3_1.0.weight" not in tensors
        or "upsampled_flow6_to_5.weight" not in tensors
        or "conv_redir.0.weight" in tensors
    ):
        raise LayoutError(f"it looks like {looks_like(tensors)}; expected FlowNetS of {_listed(expected)} tensors")
    if (channels := tensors["conv1.0.weight"].shape[1]) != 6:
        raise LayoutError(f"its conv1 takes {channels} channels, as a refining FlowNetS in a stack; expected 6")
    if batch_norm != ("conv1.1.running_mean" in tensors):
        has, instead = ("no ", "false") if batch_norm else ("", "true")
        raise LayoutError(f"it is FlowNetS with {has}batch norm; set flow.batch_norm={instead} in the model's config")
    if unknown := [key for key in tensors if key not in own or key in buffers]:
        raise LayoutError(f"it looks like {looks_like(tensors)}, but FlowNetS has no {unknown[0]}")
    used = dict(tensors)
    missing = [k for k in own if k not in used and k not in buffers and not k.endswith("num_batches_tracked")]
    decoder = ("deconv", "predict_flow", "upsampled_flow")
    if bad := [key for key in missing if not (key.endswith(".bias") and key.startswith(decoder))]:
        raise LayoutError(f"it looks like FlowNetS, but {len(bad)} tensors are missing, as {bad[0]}")
    used |= {key: torch.zeros_like(own[key]) for key in missing}

    fields = container if isinstance(container, Mapping) else {}
    settings: dict[str, Any] = {"own_mean": False, "div_flow": float(fields.get("div_flow", 20.0))}
    if "predict_flow6.bias" in tensors:
        settings |= {"own_mean": True}
        name = f"FlowNetS of NVIDIA ({len(tensors)} tensors; RGB minus each pair's mean)"
    elif "caffe" in filename.lower() or ("arch" in fields and "epoch" not in fields):
        used["conv1.0.weight"] = used["conv1.0.weight"][:, [2, 1, 0, 5, 4, 3]]
        settings["mean"] = PINARD_MEAN[::-1] * 2
        name = f"FlowNetS converted from Caffe ({len(tensors)} tensors; BGR, turned into RGB)"
    else:
        settings["mean"] = PINARD_MEAN * 2
        name = f"FlowNetS of FlowNetPytorch ({len(tensors)} tensors; RGB)"
    return Layout(used, [], settings, name)


def encoder_layout(encoder: nn.Module, name: str, tensors: dict[str, Tensor]) -> Layout:
    """Return how classification weights of torchvision, timm or EfficientNet-PyTorch fit an encoder.

    The classifier, and what else comes after the last feature map, is left out. EfficientNet-Lite weights, which have
    no squeeze-and-excitation, expect (x - 127) / 128 of x in 0..255. Both were trained with TensorFlow's padding and
    epsilon, which timm's `tf_` networks have: on 100 photos of ImageNet classes the Lite0 weights name 86 right in
    tf_efficientnet_lite0 and 72 in efficientnet_lite0, whose keys are the same.
    """
    own = encoder.state_dict()
    mean, std = normalization(encoder)
    kind = looks_like(tensors)
    renamed = {key: key for key in tensors}
    if "_conv_stem.weight" in tensors:
        if "_conv_stem.weight" not in own:
            renamed = _efficientnet_names(tensors, own)
        if not any("_se_reduce" in key for key in tensors):
            mean, std = (127 / 255,) * 3, (128 / 255,) * 3
        else:
            mean, std = IMAGENET_MEAN, IMAGENET_STD
        if name.startswith("tu-") and "tf_" not in name:
            kind += f", which fits tu-tf_{name.removeprefix('tu-')} better,"
    ours = {_plain(key.removeprefix("model.")): key for key in own}
    assert len(ours) == len(own), "two keys of an encoder differ only in dots and underscores"
    used, left_out, unknown = {}, [], []
    for key, value in tensors.items():
        if (target := ours.get(_plain(renamed[key]))) is not None:
            used[target] = value
        elif key.startswith(CLASSIFIERS):
            left_out.append(f"{key}: after the last feature map")
        else:
            unknown.append(key)
    missing = [key for key in own if key not in used and not key.endswith("num_batches_tracked")]
    if missing or unknown:
        example = f"{missing[0]} is missing" if missing else f"nothing here is called {unknown[0]}"
        raise LayoutError(f"it looks like {kind}; expected weights of {name}: {example}")
    return Layout(used, left_out, {"mean": mean, "std": std}, f"{kind} into {name}")


def encnet_layout(head: EncHead, tensors: dict[str, Tensor]) -> Layout:
    """Return how the head of an EncNet of PyTorch-Encoding or FastFCN fits `head`.

    Layers for other classes, and an auxiliary head or a presence prediction that `head` does not have, are left out.
    The encoder, under `pretrained.`, belongs to the other branch.
    """
    own = head.state_dict()
    used, left_out = {}, []
    for key, value in tensors.items():
        if key.startswith(PUBLISHED_ENCODER):
            left_out.append(f"{key}: of the encoder")
            continue
        begins = next((begins for begins in _ENCNET if key.startswith(begins)), None)
        ours = key if begins is None else _ENCNET[begins] + key.removeprefix(begins)
        if begins is not None and ours in own and own[ours].shape == value.shape:
            used[ours] = value
        elif ours.startswith(head.task_layers):
            left_out.append(f"{key}: for other classes, or not in this network")
        elif begins is not None and ours in own:
            shapes = f"{tuple(value.shape)}, expected {tuple(own[ours].shape)}"
            raise LayoutError(f"it looks like {looks_like(tensors)}, but {key} has shape {shapes}")
        else:
            option = next((o for o, start in (("lateral", "lateral."), ("jpu", "jpu.")) if ours.startswith(start)), "")
            hint = f"; set {option}=true in the model's config" if option else ""
            raise LayoutError(f"it looks like {looks_like(tensors)}, but this head has no place for {key}{hint}")
    fresh = (*head.task_layers, "num_batches_tracked")
    missing = [key for key in own if key not in used and not key.startswith(fresh) and not key.endswith(fresh)]
    if missing:
        raise LayoutError(f"it looks like {looks_like(tensors)}, but it has nothing for {missing[0]} of this head")
    return Layout(used, left_out, {}, "an EncNet head of PyTorch-Encoding")


def caffe_layout(encoder: nn.Module, tensors: dict[str, Tensor]) -> Layout:
    """Return how Caffe's ResNet-50 or -101 fits :class:`models.encoders.caffe_resnet.CaffeResNet`.

    Expected are the blobs of the caffemodel, numbered: `conv1.0`, `bn_conv1.0`, `.1`, `.2` (mean, variance, and the
    factor that both are multiplied with), `scale_conv1.0`, `.1`, `res2a_branch2a.0`, ... The input channels of conv1
    are turned from BGR into RGB. A file in torchvision's names is refused: it has the same shapes, but its weights are
    for strides in the 3x3 convolutions.
    """
    if "bn_conv1.0" not in tensors or "res2a_branch2a.0" not in tensors:
        raise LayoutError(
            f"it looks like {looks_like(tensors)}; expected numbered blobs of Caffe's ResNet (conv1.0, bn_conv1.0, "
            "...), or use mode modern"
        )
    counts = [len(list(encoder.get_submodule(f"layer{stage}").children())) for stage in (1, 2, 3, 4)]
    blocks = {
        f"layer{stage}.{index}": _caffe_block(stage + 1, index, numbered=counts[2] > 6 and stage in (2, 3))
        for stage, count in enumerate(counts, start=1)
        for index in range(count)
    }
    layers = {("conv1", "bn1"): ("conv1", "_conv1")}  # ours: (layer of the convolution, end of the two norm layers)
    for ours, theirs in blocks.items():
        for number, branch in enumerate("abc", start=1):
            end = f"{theirs}_branch2{branch}"
            layers[f"{ours}.conv{number}", f"{ours}.bn{number}"] = (f"res{end}", end)
        if f"{ours}.downsample.0.weight" in encoder.state_dict():
            layers[f"{ours}.downsample.0", f"{ours}.downsample.1"] = (f"res{theirs}_branch1", f"{theirs}_branch1")
    used: dict[str, Tensor] = {}
    taken: set[str] = set()

    def take(key: str) -> Tensor:
        if key not in tensors:
            raise LayoutError(f"it looks like a Caffe ResNet, but blob {key} is missing; expected {len(blocks)} blocks")
        taken.add(key)
        return tensors[key]

    for (conv, norm), (layer, end) in layers.items():
        factor = take(f"bn{end}.2").flatten()[0]
        factor = torch.where(factor == 0, torch.ones_like(factor), factor)
        used[f"{conv}.weight"] = take(f"{layer}.0")
        used[f"{norm}.running_mean"] = take(f"bn{end}.0").flatten() / factor
        used[f"{norm}.running_var"] = take(f"bn{end}.1").flatten() / factor
        used[f"{norm}.weight"] = take(f"scale{end}.0").flatten()
        used[f"{norm}.bias"] = take(f"scale{end}.1").flatten()
    used["conv1.weight"] = used["conv1.weight"].flip(1)
    left_out = [f"{key}: the classifier" for key in tensors if key.startswith("fc")]
    if unknown := [key for key in tensors if key not in taken and not key.startswith("fc")]:
        raise LayoutError(f"it looks like a Caffe ResNet, but nothing here takes its blob {unknown[0]}")
    settings = {"mean": [value / 255 for value in CAFFE_MEAN], "std": (1 / 255,) * 3}
    return Layout(used, left_out, settings, "blobs of a Caffe ResNet (BGR, turned into RGB)")


def looks_like(tensors: Mapping[str, Tensor]) -> str:
    """Return in words which network a file's keys look like."""
    signs = {
        "conv_redir.0.weight": "FlowNetC",
        "upsampled_flow6_to_5.weight": "FlowNetS",
        "netBasic.0.netBasic.0.weight": "SPyNet",
        "_conv_stem.weight": "an EfficientNet of EfficientNet-PyTorch",
        "conv_stem.weight": "an EfficientNet or MobileNet of timm",
        "layer4.0.conv1.weight": "a ResNet of torchvision or timm",
        "layer3.0.conv1.weight": "a small (CIFAR) ResNet",
        "features.3.squeeze.weight": "SqueezeNet of torchvision",
        "features.0.weight": "VGG or AlexNet of torchvision",
        "bn_conv1.0": "blobs of a Caffe ResNet",
        "head.encmodule.fc.0.weight": "an EncNet of PyTorch-Encoding",
        "head.context.gate.weight": "an mtsp file",
        "segmentation.encoder.conv1.weight": "an mtsp file",
        "flow.network.conv1.0.weight": "an mtsp file",
        "Mixed_7c.branch_pool.conv.weight": "Inception-V3",
        "InceptionV3/Conv2d_1a_3x3/weights": "TF-slim's InceptionV3",
        "InceptionV4/Conv2d_1a_3x3/weights": "TF-slim's InceptionV4",
        "InceptionResnetV2/Conv2d_1a_3x3/weights": "TF-slim's InceptionResnetV2",
    }
    sign = next((sign for key, sign in signs.items() if key in tensors), None)
    first = next(iter(tensors), "nothing")
    return f"{sign or 'a network not known here'} ({len(tensors)} tensors, the first {first!r})"


def _efficientnet_names(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, str]:
    """Return EfficientNet-PyTorch's keys as timm's: blocks counted through become stage and block."""
    places = {match[1] for key in own if (match := re.search(r"blocks[._](\d+[._]\d+)\.", key))}
    stages = [tuple(int(n) for n in re.split(r"[._]", place)) for place in places]
    blocks = [f"blocks.{stage}.{block}" for stage, block in sorted(stages)]
    names = {}
    for key in tensors:
        match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
        if match is None:
            stem = key.replace("_conv_stem.", "conv_stem.").replace("_bn0.", "bn1.")
            names[key] = stem.replace("_conv_head.", "conv_head.").replace("_bn1.", "bn2.")
            continue
        number, layer, kind = int(match[1]), match[2], match[3]
        expands = f"_blocks.{number}._expand_conv.weight" in tensors
        plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
        expanding = {
            "_expand_conv": "conv_pw",
            "_bn0": "bn1",
            "_depthwise_conv": "conv_dw",
            "_bn1": "bn2",
            "_project_conv": "conv_pwl",
            "_bn2": "bn3",
        }
        squeeze = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
        layer = {**squeeze, **(expanding if expands else plain)}.get(layer, layer)
        names[key] = f"{blocks[number]}.{layer}.{kind}" if number < len(blocks) else key
    return names


def _plain(key: str) -> str:
    """Timm's feature extractors rename `stages.0` to `stages_0`."""
    return key.replace("_", ".")


def _caffe_block(stage: int, index: int, *, numbered: bool) -> str:
    """Return Caffe's name of a block: 2a, 2b, 2c; in the long stages of ResNet-101 4a, 4b1, 4b2, ..."""
    return f"{stage}b{index}" if numbered and index else f"{stage}{'abcdef'[index]}"


def _listed(layouts: Mapping[int, str]) -> str:
    return ", ".join(f"{count} ({name})" for count, name in layouts.items())
