"""The Accelerator of a process."""

import os

import torch
from accelerate import Accelerator

from mtsp.config import ConfigError


def make_accelerator(precision: str) -> Accelerator:
    """Return the Accelerator of this process.

    Args:
        precision: `auto`, `fp32`, `bf16` or `fp16`.

    Raises:
        ConfigError: the launcher started more processes than found each other, or fp16 is asked of a CPU.
    """
    from accelerate.utils import DistributedDataParallelKwargs

    mixed = {"fp32": "no", "auto": "bf16" if computes_bf16() else "no"}.get(precision, precision)
    if mixed == "fp16" and not torch.cuda.is_available():
        raise ConfigError("train.precision: fp16 needs a GPU; use bf16 or fp32 here")
    # Which weights a step reaches depends on its labels: without a mask the segmentation head has no gradient, and a
    # held branch never has one. DDP that does not look for them waits for their gradients and raises at the next step.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(mixed_precision=mixed, kwargs_handlers=[unused])
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise ConfigError(
            f"{started} processes were started, but this one is {accelerator.process_index + 1} of "
            f"{accelerator.num_processes}: without GPUs set ACCELERATE_USE_CPU=true for torchrun"
        )
    return accelerator


def computes_bf16() -> bool:
    """Return whether bf16 is computed in hardware here: a GPU that has it, or a CPU with AMX."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.cpu.get_cpu_capability() == "AMX" or torch.cpu._is_amx_tile_supported()
