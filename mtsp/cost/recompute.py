"""Trade time for memory: compute the activations of repeated blocks anew in the backward pass."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def repeated_blocks(network: nn.Module) -> list[str]:
    """Return the names of the blocks that a network repeats, such as the residual blocks of a ResNet.

    A block is one of at least two modules of the same class in an `nn.Sequential` or `nn.ModuleList`, and has at least
    two layers with weights. Blocks inside blocks are left out.
    """
    found: list[str] = []
    for name, module in network.named_modules():
        if not isinstance(module, (nn.Sequential, nn.ModuleList)) or any(name.startswith(f"{b}.") for b in found):
            continue
        kinds = [type(child) for child in module]
        found += [
            f"{name}.{place}".removeprefix(".")
            for place, child in module.named_children()
            if kinds.count(type(child)) > 1 and sum(1 for layer in child.modules() if layer._parameters) > 1
        ]
    return found


def recompute_blocks(network: nn.Module) -> int:
    """Let the backward pass recompute what is inside the repeated blocks; return the number of blocks.

    Only the inputs of the blocks are kept. Gradients, weights and the statistics of batch normalization stay the same
    to the bit: recomputing does not update statistics, and draws the same random numbers. Names do not change.
    """
    blocks = [network.get_submodule(name) for name in repeated_blocks(network)]
    for block in blocks:
        contexts: Any = partial(_contexts, block)
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)
    return len(blocks)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _statistics_kept(block)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    kept = [
        (buffer, buffer.clone())
        for layer in block.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training
        for buffer in layer.buffers()
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)
