"""EncNet as published by PyTorch-Encoding and FastFCN: map the keys of the head, and find the encoder."""

from torch import Tensor, nn

from models.pretrained.layouts import Layout, LayoutError, WeightsFile, looks_like

_ENCODER = "pretrained."

_HEAD = {  # prefix of a published key: prefix of our key
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


def split_encoder(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the encoder of a published EncNet and the left-out tensors; tensors of other files stay unchanged."""
    encoder = {key.removeprefix(_ENCODER): value for key, value in tensors.items() if key.startswith(_ENCODER)}
    if not encoder:
        return tensors, []
    return encoder, [f"{key}: not of the encoder" for key in tensors if not key.startswith(_ENCODER)]


def encnet_layout(head: nn.Module, task_layers: tuple[str, ...], file: WeightsFile) -> Layout:
    """Map the head of a published EncNet to a :class:`models.encnet.network.EncHead`.

    The file holds the whole network. The encoder, which belongs to the branch `backbone`, is left out, and so are
    layers for other classes and an auxiliary or SE head that `head` does not have.
    """
    tensors, own = file.tensors, head.state_dict()
    seen = f"it looks like {looks_like(tensors)}"
    if not any(key.startswith(_ENCODER) for key in tensors):
        raise LayoutError(f"{seen}; expected weights that mtsp saved, or an EncNet of PyTorch-Encoding")
    used, left_out = {}, [f"{key}: of the encoder" for key in tensors if key.startswith(_ENCODER)]
    for key, value in tensors.items():
        if key.startswith(_ENCODER):
            continue
        begins = next((begins for begins in _HEAD if key.startswith(begins)), None)
        ours = "" if begins is None else _HEAD[begins] + key.removeprefix(begins)
        if ours in own and own[ours].shape == value.shape:
            used[ours] = value
        elif ours.startswith(task_layers):
            left_out.append(f"{key}: for other classes, or not in this network")
        elif ours in own:
            shapes = f"{tuple(value.shape)}, expected {tuple(own[ours].shape)}"
            raise LayoutError(f"{seen}, but {key} has shape {shapes}")
        else:
            option = next((option for option in ("lateral", "jpu") if ours.startswith(f"{option}.")), "")
            hint = f"; set {option}=true in the model's config" if option else ""
            raise LayoutError(f"{seen}, but this head has no layer for {key}{hint}")
    for key in own:
        if key not in used and not key.startswith(task_layers) and not key.endswith("num_batches_tracked"):
            raise LayoutError(f"{seen}, but the file has no tensor for {key} of this head")
    return Layout(used, left_out, {}, "an EncNet head of PyTorch-Encoding")
