"""Create the Accelerator, check that all processes joined the group, and say what is wrong if one leaves it."""

import faulthandler
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import Accelerator

from mtsp.config import ConfigError


def make_accelerator(precision: str, timeout: float | None = None) -> Accelerator:
    """Return the Accelerator of this process.

    Args:
        precision: `auto`, `fp32`, `bf16` or `fp16`.
        timeout: number of seconds that a process waits for the others; None: torch's default.

    Raises:
        ConfigError: fewer processes joined the group than the launcher started, or fp16 was requested on a CPU.
    """
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    mixed = {"fp32": "no", "auto": "bf16" if computes_bf16() else "no"}.get(precision, precision)
    if mixed == "fp16" and not torch.cuda.is_available():
        raise ConfigError("train.precision: fp16 needs a GPU; use bf16 or fp32")
    # Which weights get a gradient depends on the step's labels and frozen branches. Unless DDP looks for unused
    # weights, it waits for their gradients and raises at the next step. Training turns this off where all get one.
    ddp = DistributedDataParallelKwargs(find_unused_parameters=True, gradient_as_bucket_view=True)
    group = InitProcessGroupKwargs(timeout=None if timeout is None else timedelta(seconds=timeout))
    accelerator = Accelerator(mixed_precision=mixed, kwargs_handlers=[ddp, group])
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise ConfigError(
            f"{started} processes were started, but this one is {accelerator.process_index + 1} of "
            f"{accelerator.num_processes}: to use torchrun without GPUs, set ACCELERATE_USE_CPU=true"
        )
    return accelerator


@contextmanager
def other_processes_may_fail(accelerator: Accelerator) -> Iterator[None]:
    """Within the context, turn torch's error about a process that left the group or is silent into a short one.

    Raises:
        ConnectionAbortedError: another process ended. That process says why.
        TimeoutError: a process did not answer in time. The stacks of this process are printed.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in text:
            raise
        place = f"process {accelerator.process_index} of {accelerator.num_processes}"
        if "timed out" in text or "timeout" in text:
            faulthandler.dump_traceback(all_threads=True)
            raise TimeoutError(
                f"{place}: another process did not answer within train.timeout; above is where this one waited"
            ) from error
        raise ConnectionAbortedError(f"{place} stops because another process ended") from error


def computes_bf16() -> bool:
    """Return whether the hardware supports bf16: a GPU that does, or a CPU with AMX."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.cpu.get_cpu_capability() == "AMX" or torch.cpu._is_amx_tile_supported()
