"""Capture anchors, the pretrained weights w0 towards which fine-tuning is pulled, by parameter name.

Like `mtsp.regularizers`, this module needs only PyTorch.
"""

import ctypes
import hashlib
import warnings
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

_INSIDE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
"""Weights of linear layers that `nn.MultiheadAttention` keeps as its own parameters."""
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


class _Place(NamedTuple):
    """A weight and a module that holds it."""

    name: str
    weight: nn.Parameter
    owner: nn.Module
    leaf: str


def plain_name(name: str) -> str:
    """Return a parameter's name without the prefixes that DDP, FSDP, torch.compile and LoRA's wrappers add."""
    return _without_inside(name).removeprefix("module.").removeprefix("base_model.model.")


def named_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights by plain name, without LoRA's `base_layer`; a shared weight has its first name.

    Raises:
        ValueError: two weights have the same plain name.
    """
    return {place.name: place.weight for place, *_ in _shared_places(model)}


def known_name(name: str, known: Container[str]) -> str:
    """Return the name in `known` that refers to the same weight as `name`, or the plain form of `name` if none does."""
    plain = plain_name(name)
    unwrapped = ".".join(part for part in plain.split(".") if part != "base_layer")
    return next((found for found in (name, plain, unwrapped) if found in known), plain)


def penalized(model: nn.Module, *, every: bool = False) -> list[str]:
    """Return the names of the weights that regularizers act on: the weights of convolution and linear layers.

    Biases and normalization layers are excluded (section 5.1 of the paper), as are embeddings and LoRA matrices, which
    are already displacements. A weight shared by two layers is listed once, under its first name, and is included if
    either is a convolution or linear layer.

    Args:
        model: the network, with or without wrappers such as DDP.
        every: include every parameter except those of LoRA adapters (mode 101 of the authors' code).
    """
    return [
        places[0].name
        for places in _shared_places(model)
        if not any(part.startswith("lora_") for part in places[0].name.split("."))
        and (every or any(_is_matrix(place.owner, place.leaf) for place in places))
    ]


def unpenalized_matrices(model: nn.Module) -> list[str]:
    """Return the names of matrices in recurrent and reparametrized layers, which :func:`penalized` excludes."""
    return [places[0].name for places in _shared_places(model) if any(_is_hidden_matrix(place) for place in places)]


def output_dimensions(model: nn.Module) -> dict[str, int]:
    """Return the dimension of the output channels by weight name: 1 for transposed layers, else 0."""
    return {
        places[0].name: int(
            any(isinstance(place.owner, _TRANSPOSED) or _is_conv1d_of_gpt2(place.owner) for place in places)
        )
        for places in _shared_places(model)
    }


def output_groups(model: nn.Module) -> dict[str, int]:
    """Return the number of groups of output channels along dimension 0, by weight name.

    It is 1 except for transposed convolutions with groups. Their weights have the shape (in, out / groups, ...), and
    output channel o of group g is the slice [g * in / groups : (g + 1) * in / groups, o].
    """
    return {
        places[0].name: max(place.owner.groups if isinstance(place.owner, _TRANSPOSED) else 1 for place in places)
        for places in _shared_places(model)
    }


def capture(
    model: nn.Module, names: Iterable[str] | None = None, *, rows: Mapping[str, Sequence[int]] | None = None
) -> dict[str, Tensor]:
    """Return copies of the current values of the weights in `names` that regularizers act on.

    If `names` is None, copy every convolution and linear weight and warn with their number, because a randomly
    initialized head would be pulled to its random start.

    Call it while the weights have their pretrained values: after loading them, before training or resuming. If the
    optimizer has already trained them, attaching is refused, provided that the optimizer has state such as momentum;
    SGD without momentum has none, so a late capture goes unnoticed. To resume training, save the regularizer's
    `state_dict()` with the weights and pass it to `load_state_dict()`, which compares the anchors.

    Args:
        model: the network, with or without wrappers.
        names: names of the pretrained weights; names of other parameters and buffers are ignored, with a warning for
            matrices of recurrent and reparametrized layers (weight norm).
        rows: for weights of which only some output channels are pretrained, the numbers of these channels. The other
            rows of such an anchor are NaN, and are new: regularizers pull them to zero with beta.

    Raises:
        ValueError: one of `names` is not in the model, or none belongs to a convolution or linear layer; or the weight
            of one of `rows` is not captured, or has no such row.
        TypeError: `names` is a string.
    """
    if isinstance(names, str):
        inside = f'[name for name, _ in model.named_parameters() if name.startswith("{names}")]'
        raise TypeError(f"`names` is the string {names!r}; give a list of names: {inside}")
    weights, first = named_weights(model), dict(aliases(model))
    if names is None:
        names = penalized(model)
        warnings.warn(
            f"all {len(names)} convolution and linear weights are captured as anchors, the last {names[-1:]}; if some "
            "are new, give the names of the pretrained ones",
            stacklevel=2,
        )
    known = {*weights, *first, *(plain_name(name) for name in model.state_dict())}
    known |= {plain_name(name) for name, _ in model.named_buffers()}
    wanted = {found: name for name in names if (found := known_name(name, known))}
    if lost := [name for found, name in wanted.items() if found not in known]:
        raise ValueError(f"{len(lost)} of {len(wanted)} names are not in the model, the first {lost[0]!r}")
    wanted_weights = {first.get(name, name) for name in wanted}
    chosen = [name for name in penalized(model) if name in wanted_weights]
    if not chosen:
        raise ValueError(
            f"none of the {len(wanted)} pretrained tensors, the first {min(wanted, default=None)!r}, is a convolution "
            f"or linear weight of this model; its weights are named like {next(iter(penalized(model)), 'nothing')!r}"
        )
    if left := [name for name in unpenalized_matrices(model) if name in wanted_weights and name not in chosen]:
        warnings.warn(
            f"{len(left)} matrices of recurrent or reparametrized layers, the first {left[0]}, are not captured and "
            "stay free; to pull them as well, add their values to the anchors and give every=True",
            stacklevel=2,
        )
    anchors = {name: weights[name].detach().clone() for name in chosen}
    for name, kept in (rows or {}).items():
        _keep_rows(anchors, known_name(name, known), kept)
    return anchors


def _keep_rows(anchors: dict[str, Tensor], name: str, kept: Sequence[int]) -> None:
    """Set all rows of an anchor to NaN except for those in `kept`."""
    if name not in anchors:
        raise ValueError(f"rows: {name} is not among the captured weights")
    count = anchors[name].shape[0]
    if not kept or not all(0 <= row < count for row in kept):
        raise ValueError(f"rows: {name} has rows 0 to {count - 1}, got {list(kept)[:10]}")
    others = sorted(set(range(count)) - set(kept))
    anchors[name][others] = torch.nan


def fingerprint(anchors: Mapping[str, Tensor]) -> str:
    """Return a hash of names, shapes, dtypes and values, which is the same on every device."""
    digest = hashlib.sha256()
    for name in sorted(anchors):
        whole = getattr(anchors[name], "full_tensor", lambda name=name: anchors[name])()  # FSDP2 shards weights
        digest.update(f"{name}:{tuple(whole.shape)}:{whole.dtype};".encode())
        if whole.is_meta:
            continue
        value = whole.detach().cpu().contiguous()
        size = value.numel() * value.element_size()
        if size:  # read the memory directly: numpy may not be installed
            digest.update((ctypes.c_char * size).from_address(value.data_ptr()))
    return digest.hexdigest()


def relative_distances(weights: Mapping[str, Tensor], anchors: Mapping[str, Tensor]) -> dict[str, float]:
    """Return ||w - w0|| / ||w0|| of each convolution or matrix that has an anchor; rows of NaN have none."""
    result = {}
    for name, anchor in anchors.items():
        if name in weights and anchor.dim() > 1:
            start = anchor.detach().cpu().double()
            moved = (weights[name].detach().cpu().double() - start).nan_to_num(0.0)
            if (length := float(start.nan_to_num(0.0).norm())) > 0:
                result[name] = float(moved.norm()) / length
    return result


def aliases(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield (other name, first name) for each further name of a weight that several modules share."""
    for first, *others in _shared_places(model):
        for other in others:
            yield other.name, first.name


def _shared_places(model: nn.Module) -> list[list[_Place]]:
    """The names and modules under which each weight appears, in the model's order."""
    modules = dict(model.named_modules(remove_duplicate=False))
    weights = list(model.named_parameters(remove_duplicate=False))
    # A model may have an attribute `module` besides others, while DDP's wrapper has only `module`.
    wrapped = all(_without_inside(name).startswith("module.") for name, _ in weights)
    found: dict[int, list[_Place]] = {}
    taken: dict[str, nn.Parameter] = {}
    for raw, weight in weights:
        path, _, leaf = raw.rpartition(".")
        name = _without_inside(_without_base_layers(raw, modules))
        name = (name.removeprefix("module.") if wrapped else name).removeprefix("base_model.model.")
        if taken.setdefault(name, weight) is not weight:
            raise ValueError(f"two weights of the model are named {name!r} without their wrappers; rename a module")
        found.setdefault(id(weight), []).append(_Place(name, weight, modules[path], leaf))
    return list(found.values())


def _without_inside(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _INSIDE)


def _without_base_layers(name: str, modules: Mapping[str, nn.Module]) -> str:
    """The name without the `base_layer` parts that PEFT's adapters add; other modules of that name are kept."""
    parts = name.split(".")
    if "base_layer" not in parts:
        return name
    kept = []
    for i, part in enumerate(parts):
        parent = modules.get(".".join(parts[:i]))
        adapted = hasattr(parent, "adapter_layer_names") or (
            parent is not None and any(child.startswith("lora_") for child, _ in parent.named_children())
        )
        if part != "base_layer" or not adapted:
            kept.append(part)
    return ".".join(kept)


def _is_matrix(owner: nn.Module, leaf: str) -> bool:
    if isinstance(owner, nn.MultiheadAttention):
        return leaf in _ATTENTION
    return leaf == "weight" and (isinstance(owner, _WEIGHTED) or _is_conv1d_of_gpt2(owner))


def _is_hidden_matrix(place: _Place) -> bool:
    if place.weight.ndim < 2 or place.leaf.startswith("bias"):
        return False
    parametrized = ".parametrizations.weight" in f".{place.name}"
    renamed = isinstance(place.owner, _WEIGHTED) and place.leaf in ("weight_g", "weight_v", "weight_orig")
    return parametrized or renamed or (isinstance(place.owner, _RECURRENT) and place.leaf.startswith("weight"))


def _is_conv1d_of_gpt2(owner: nn.Module) -> bool:
    """Whether this is the Conv1D of transformers, a transposed linear layer; compared by name to avoid the import."""
    return type(owner).__name__ == "Conv1D" and hasattr(owner, "nf")
