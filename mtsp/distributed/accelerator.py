"""Create the Accelerator, and check that all processes joined the group."""

import os

import torch
from accelerate import Accelerator

from mtsp.config import ConfigError


def make_accelerator(precision: str) -> Accelerator:
    """Return the Accelerator of this process; `precision` is `auto`, `fp32`, `bf16` or `fp16`.

    Raises:
        ConfigError: fewer processes joined the group than the launcher started, or fp16 was requested on a CPU.
    """
    from accelerate.utils import DistributedDataParallelKwargs

    mixed = {"fp32": "no", "auto": "bf16" if computes_bf16() else "no"}.get(precision, precision)
    if mixed == "fp16" and not torch.cuda.is_available():
        raise ConfigError("train.precision: fp16 needs a GPU; use bf16 or fp32")
    # Which weights get a gradient depends on the step's labels and frozen branches. Unless DDP looks for unused
    # weights, it waits for their gradients and raises at the next step.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(mixed_precision=mixed, kwargs_handlers=[unused])
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise ConfigError(
            f"{started} processes were started, but this one is {accelerator.process_index + 1} of "
            f"{accelerator.num_processes}: to use torchrun without GPUs, set ACCELERATE_USE_CPU=true"
        )
    return accelerator


def computes_bf16() -> bool:
    """Return whether the hardware supports bf16: a GPU that does, or a CPU with AMX."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.cpu.get_cpu_capability() == "AMX" or torch.cpu._is_amx_tile_supported()
