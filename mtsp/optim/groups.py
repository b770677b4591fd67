"""Parameter groups: one for each branch and module with its own learning rate, and for each depth under layer decay."""

from collections.abc import Container, Iterator, Mapping
from typing import Any

from torch import nn

from mtsp.anchors import penalized

_CONTAINERS = (nn.Sequential, nn.ModuleList)


def parameter_groups(
    model: nn.Module, rates: Mapping[str, float], scales: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Return the parameter groups, with name, parameters, and learning rate (as `lr` and `full_lr`).

    Args:
        model: the network.
        rates: learning rates by branch (`backbone`) and by module inside a branch (`backbone.layer4`). A parameter is
            in the group of the longest prefix of its name.
        scales: factors of the learning rate by name of the parameter, see :func:`depth_scales`; else 1.

    Raises:
        ValueError: a parameter belongs to no branch and would never be trained, or a module has no parameters.
    """
    scales = scales or {}
    groups: dict[tuple[str, float], dict[str, Any]] = {(name, 1.0): _group(name, lr) for name, lr in rates.items()}
    used = set()
    for name, parameter in model.named_parameters():
        prefix = longest_prefix(name, rates)
        if prefix is None:
            raise ValueError(f"weight {name} belongs to none of the branches {', '.join(rates)}")
        used |= {found for found in rates if name.startswith(f"{found}.")}
        scale = scales.get(name, 1.0)
        groups.setdefault((prefix, scale), _group(prefix, rates[prefix] * scale))["params"].append(parameter)
    if unused := [prefix for prefix in rates if "." in prefix and prefix not in used]:
        branch, _, module = unused[0].partition(".")
        children = [name for name, _ in model.get_submodule(branch).named_children()]
        raise ValueError(
            f"branches.{branch}.modules.{module}: no weight's name begins with it; {branch} has the modules "
            f"{', '.join(children)}"
        )
    return [group for group in groups.values() if group["params"]]


def longest_prefix(name: str, prefixes: Container[str]) -> str | None:
    """Return the longest of these prefixes that is the name of a module around the weight `name`, or None."""
    prefix = name
    while prefix and prefix not in prefixes:
        prefix = prefix.rpartition(".")[0]
    return prefix or None


def depth_scales(model: nn.Module, branch: str, decay: float, pretrained: Container[str]) -> dict[str, float]:
    """Return the factors of layer-wise learning-rate decay by the names of a branch's weights.

    Of the n pretrained blocks of the branch, in the order of the network, block i (from 0) has the factor
    decay ** (n - i); new blocks, such as a head, have 1. A block is a member of the network's sequences (a residual
    block, a transformer's layer) or a layer outside them. Normalization layers, class tokens and position embeddings
    outside all blocks belong to the block before them, or to the first. For plain ViTs and ResNets, these are the
    groups of timm.

    Args:
        model: the network.
        branch: name of a module of it.
        decay: factor from block to block, at most 1.
        pretrained: names of the weights that have an anchor.
    """
    matrices = set(penalized(model))
    blocks: list[list[str]] = [[]]  # the first is of weights before any block
    for names in _blocks(model.get_submodule(branch), f"{branch}."):
        if matrices.isdisjoint(names):
            blocks[-1] += names
        else:
            blocks.append(names)
    first, *blocks = blocks
    depths = [block for block in blocks if any(name in pretrained for name in block)]
    if depths:
        depths[0] += first
    return {name: decay ** (len(depths) - i) for i, block in enumerate(depths) for name in block}


def _group(name: str, lr: float) -> dict[str, Any]:
    return {"name": name, "params": [], "lr": lr, "full_lr": lr}


def _blocks(module: nn.Module, path: str) -> Iterator[list[str]]:
    """Yield the names of the weights of each block, in the order of the network."""
    if not isinstance(module, _CONTAINERS) and not any(map(_is_sequence, module.modules())):
        yield [path + name for name, _ in module.named_parameters()]
        return
    if own := [path + name for name, _ in module.named_parameters(recurse=False)]:
        yield own
    for name, child in module.named_children():
        yield from _blocks(child, f"{path}{name}.")


def _is_sequence(module: nn.Module) -> bool:
    """Return whether this is a sequence of blocks, not of single layers."""
    return isinstance(module, _CONTAINERS) and any(True for child in module.children() for _ in child.children())
