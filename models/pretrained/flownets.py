"""FlowNetS as published by FlowNetPytorch and NVIDIA's flownet2-pytorch. Our FlowNetS has the same parameter names;
only missing biases, the normalization and the channel order differ."""

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
    """Map the tensors of a published FlowNetS checkpoint to a :class:`models.flow.flownets.FlowNetS`.

    The number of tensors identifies the source:

    - 33: FlowNetPytorch, without biases in the decoder. Trained on RGB, except for the checkpoint converted from Caffe
      (BGR), which is recognized by "caffe" in its name or by a container without an epoch.
    - 63: FlowNetPytorch with batch normalization.
    - 42: NVIDIA's FlowNet2-S, trained on RGB minus the mean of each pair. ptlflow has the same names, but subtracts the
      mean of each frame; its checkpoints, saved by Lightning, are refused.

    FlowNetPytorch's published networks have the mean :data:`PINARD_MEAN`. Networks trained by its current code have the
    mean of FlyingChairs, which the file does not show; set the branch's `mean` for them. Missing biases are set to
    zero, which is exact. The input channels of BGR weights are reversed, so that frames are always RGB.
    """
    tensors, own = file.tensors, network.state_dict()
    buffers = {name for name, _ in network.named_buffers(recurse=False)}
    batch_norm = any(key.endswith("running_mean") for key in own)
    if {"conv3_1.0.weight", "upsampled_flow6_to_5.weight"} - tensors.keys() or "conv_redir.0.weight" in tensors:
        raise LayoutError(f"it looks like {looks_like(tensors)}; expected {_EXPECTED}")
    if (channels := tensors["conv1.0.weight"].shape[1]) != 6:
        raise LayoutError(f"its conv1 takes {channels} channels, like a refining FlowNetS in a stack; expected 6")
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
                f"its {len(tensors)} tensors are named as by NVIDIA and ptlflow; Lightning ones are from ptlflow, "
                "which subtracts the mean of each frame; that is not supported"
            )
        values["own_mean"] = True
        name = f"FlowNetS of NVIDIA ({len(tensors)} tensors; RGB minus each pair's mean)"
    elif "caffe" in file.name.lower() or ("arch" in file.fields and "epoch" not in file.fields):
        used["conv1.0.weight"] = used["conv1.0.weight"][:, [2, 1, 0, 5, 4, 3]]
        values["mean"] = PINARD_MEAN[::-1] * 2
        name = f"FlowNetS converted from Caffe ({len(tensors)} tensors; converted from BGR to RGB)"
    else:
        values["mean"] = PINARD_MEAN * 2
        name = (
            f"FlowNetS of FlowNetPytorch ({len(tensors)} tensors; RGB minus {PINARD_MEAN}, as published; "
            "for networks trained by its current code, set the branch's mean: [0.45, 0.432, 0.411])"
        )
    return Layout(used, [], values, name)
