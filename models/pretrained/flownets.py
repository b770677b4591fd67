"""FlowNetS as FlowNetPytorch and NVIDIA's flownet2-pytorch publish it. Our FlowNetS has their names: the key map is
the identity; what differs are the missing biases, the normalization and the channel order."""

from typing import Any

import torch
from torch import nn

from models.pretrained.layouts import Layout, LayoutError, WeightsFile, looks_like

PINARD_MEAN = (0.411, 0.432, 0.45)
"""Mean of FlowNetPytorch's published networks, in R, G, B. Their training swapped the order of the channels, so it is
right for these weights only."""

_EXPECTED = "FlowNetS of 33 (FlowNetPytorch), 42 (NVIDIA), 63 (FlowNetPytorch with batch norm) tensors"
_OF_LIGHTNING = ("pytorch-lightning_version", "hyper_parameters")
_DECODER = ("deconv", "predict_flow", "upsampled_flow")


def flownets_layout(network: nn.Module, file: WeightsFile) -> Layout:
    """Return how a published FlowNetS checkpoint of 33, 42 or 63 tensors fits a :class:`models.flow.flownets.FlowNetS`.

    33: FlowNetPytorch, no biases in the decoder; trained on RGB, except the one converted from Caffe (BGR), which is
    recognized by "caffe" in its name or by a container without an epoch. 63: the same with batch normalization. 42:
    NVIDIA's FlowNet2-S, RGB, minus each pair's own mean. ptlflow has the same names and subtracts each frame's own
    mean: a checkpoint of Lightning, as it saves, is refused. FlowNetPytorch's published networks have the mean
    :data:`PINARD_MEAN`; what its present code trains has that of FlyingChairs, which nothing in the file shows: the
    branch's `mean` says so. Biases that a file does not have are zero, which is exact. The
    input channels of BGR weights are reversed, so that frames are always RGB.
    """
    tensors, own = file.tensors, network.state_dict()
    buffers = {name for name, _ in network.named_buffers(recurse=False)}
    batch_norm = any(key.endswith("running_mean") for key in own)
    if {"conv3_1.0.weight", "upsampled_flow6_to_5.weight"} - tensors.keys() or "conv_redir.0.weight" in tensors:
        raise LayoutError(f"it looks like {looks_like(tensors)}; expected {_EXPECTED}")
    if (channels := tensors["conv1.0.weight"].shape[1]) != 6:
        raise LayoutError(f"its conv1 takes {channels} channels, as a refining FlowNetS in a stack; expected 6")
    if batch_norm != ("conv1.1.running_mean" in tensors):
        has, instead = ("no ", "false") if batch_norm else ("", "true")
        raise LayoutError(f"it is FlowNetS with {has}batch norm; set flow.batch_norm={instead} in the model's config")
    if unknown := [key for key in tensors if key not in own or key in buffers]:
        raise LayoutError(f"it looks like {looks_like(tensors)}, but FlowNetS has no {unknown[0]}")
    missing = [k for k in own if k not in tensors and k not in buffers and not k.endswith("num_batches_tracked")]
    if bad := [key for key in missing if not (key.endswith(".bias") and key.startswith(_DECODER))]:
        raise LayoutError(f"it looks like FlowNetS, but {len(bad)} tensors are missing, as {bad[0]}")
    used = tensors | {key: torch.zeros_like(own[key]) for key in missing}
    values: dict[str, Any] = {"own_mean": False, "div_flow": float(file.fields.get("div_flow", 20.0))}
    if "predict_flow6.bias" in tensors:
        lightning = file.name.endswith(".ckpt") or any(key in file.fields for key in _OF_LIGHTNING)
        if lightning:
            raise LayoutError(
                f"its {len(tensors)} tensors are named as those of NVIDIA and of ptlflow; a checkpoint of Lightning is "
                "ptlflow's, whose frames are each normalized by their own mean, which is not supported"
            )
        values["own_mean"] = True
        name = f"FlowNetS of NVIDIA ({len(tensors)} tensors; RGB minus each pair's mean)"
    elif "caffe" in file.name.lower() or ("arch" in file.fields and "epoch" not in file.fields):
        used["conv1.0.weight"] = used["conv1.0.weight"][:, [2, 1, 0, 5, 4, 3]]
        values["mean"] = PINARD_MEAN[::-1] * 2
        name = f"FlowNetS converted from Caffe ({len(tensors)} tensors; BGR, turned into RGB)"
    else:
        values["mean"] = PINARD_MEAN * 2
        name = (
            f"FlowNetS of FlowNetPytorch ({len(tensors)} tensors; RGB minus {PINARD_MEAN} as its published networks; "
            "what its present code trains wants the branch's mean: [0.45, 0.432, 0.411])"
        )
    return Layout(used, [], values, name)
