"""Anchors: the reference weights w0 that fine-tuning is pulled towards, by parameter name.

Like `mtsp.regularizers`, this needs PyTorch and nothing else.
"""

import ctypes
import hashlib
from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor, nn

_INSIDE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "base_layer.")
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
"""The linear layers that `nn.MultiheadAttention` keeps as bare parameters."""


def plain_name(name: str) -> str:
    """Return a parameter's name without what DDP, FSDP, torch.compile and LoRA's wrappers put into it."""
    for wrapper in _INSIDE:
        name = name.replace(wrapper, "")
    return name.removeprefix("module.").removeprefix("base_model.model.")


def penalized(model: nn.Module, *, every: bool = False) -> list[str]:
    """Return the names of the weights a regularizer acts on: weights of convolution and linear layers.

    Biases and normalization layers are left alone (section 5.1 of the paper), and so are embeddings and the matrices of
    LoRA adapters, which are displacements already. A weight that two layers share is named once, by its first name.

    Args:
        model: the network, wrapped or not.
        every: every parameter but those of LoRA adapters (mode 101 of the authors' code).
    """
    owners = _owners(model)
    chosen = []
    for name, _ in model.named_parameters():
        name = plain_name(name)
        owner, _, leaf = name.rpartition(".")
        if any(part.startswith("lora_") for part in name.split(".")):
            continue
        if every or _is_matrix(owners.get(owner), leaf):
            chosen.append(name)
    return chosen


def output_dimensions(model: nn.Module, names: Iterable[str]) -> dict[str, int]:
    """Return, by name, the dimension of a weight that counts its output channels: 1 if transposed, else 0."""
    owners = _owners(model)

    def transposed(owner: nn.Module | None) -> bool:
        return isinstance(owner, _TRANSPOSED) or _is_conv1d_of_gpt2(owner)

    return {name: int(transposed(owners.get(name.rpartition(".")[0]))) for name in names}


def _owners(model: nn.Module) -> dict[str, nn.Module]:
    """Modules by plain path; where an adapter wraps a layer, the layer."""
    return {plain_name(f"{path}.").removesuffix("."): module for path, module in model.named_modules()}


def _is_matrix(owner: nn.Module | None, leaf: str) -> bool:
    if isinstance(owner, nn.MultiheadAttention):
        return leaf in _ATTENTION
    return leaf == "weight" and (isinstance(owner, _WEIGHTED) or _is_conv1d_of_gpt2(owner))


def _is_conv1d_of_gpt2(owner: nn.Module | None) -> bool:
    """transformers' own linear layer, which holds its weight transposed; not imported for its name."""
    return type(owner).__name__ == "Conv1D" and hasattr(owner, "nf")


def capture(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Return copies of the current values of those of `names` that a regularizer acts on.

    Call it when `names` hold their pretrained values: after loading them, before any training or resuming.

    Raises:
        ValueError: nothing in `names` is a weight of a convolution or linear layer of `model`.
    """
    wanted = set(names)
    weights = {plain_name(name): weight for name, weight in model.named_parameters()}
    chosen = [name for name in penalized(model) if name in wanted]
    if not chosen:
        raise ValueError(
            f"none of the {len(wanted)} pretrained tensors, the first {min(wanted, default=None)!r}, is a convolution "
            f"or linear weight here; the weights here are named like {next(iter(penalized(model)), 'nothing')!r}"
        )
    return {name: weights[name].detach().clone() for name in chosen}


def fingerprint(anchors: Mapping[str, Tensor]) -> str:
    """Return a hash of names, shapes, dtypes and values: equal for equal anchors, whatever device they are on."""
    digest = hashlib.sha256()
    for name in sorted(anchors):
        whole = getattr(anchors[name], "full_tensor", lambda name=name: anchors[name])()  # FSDP2 shards weights
        value = whole.detach().cpu().contiguous()
        digest.update(f"{name}:{tuple(value.shape)}:{value.dtype};".encode())
        size = value.numel() * value.element_size()
        if size:  # read in place: numpy may not be installed
            digest.update((ctypes.c_char * size).from_address(value.data_ptr()))
    return digest.hexdigest()


def aliases(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield (other name, first name) of every weight that two places of the model share."""
    first: dict[int, str] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        name = plain_name(name)
        if first.setdefault(id(weight), name) != name:
            yield name, first[id(weight)]
