"""Anchors: the reference weights w0 that fine-tuning is pulled towards, by parameter name."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

_INSIDE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_WEIGHTED = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def plain_name(name: str) -> str:
    """Return a parameter's name without what DDP, FSDP and torch.compile put into it."""
    for wrapper in _INSIDE:
        name = name.replace(wrapper, "")
    return name.removeprefix("module.")


def penalized(model: nn.Module) -> list[str]:
    """Return the names of the weights a regularizer acts on: weights of convolution and linear layers.

    Biases and normalization layers are left alone (section 5.1 of the paper). A weight that two layers share is named
    once, by its first name.
    """
    owners = {plain_name(name): module for name, module in model.named_modules()}
    chosen = []
    for name, _ in model.named_parameters():
        name = plain_name(name)
        owner, _, leaf = name.rpartition(".")
        if leaf == "weight" and isinstance(owners.get(owner), _WEIGHTED):
            chosen.append(name)
    return chosen


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
        value = anchors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tuple(value.shape)}:{value.dtype};".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def aliases(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield (other name, first name) of every weight that two places of the model share."""
    first: dict[int, str] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        name = plain_name(name)
        if first.setdefault(id(weight), name) != name:
            yield name, first[id(weight)]
