"""Helpers of the benchmarks: medians of programs that take turns, peak memory, and a description of the machine."""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

Program = Callable[[], object]
Clock = Callable[[], float]

_SHORT = 0.5  # seconds


def medians(programs: Mapping[str, Program], rounds: int, *, clock: Clock = time.perf_counter) -> dict[str, float]:
    """Return the median seconds of each program. They take turns, and the first round does not count.

    By taking turns, all programs suffer alike from whatever else runs on the machine. A short program runs twice in its
    turn, and the second time counts: during the first, threads of the program before may still be spinning and its data
    fill the caches. With `time.process_time` as the clock, CPU seconds are counted, which other processes disturb less,
    but which add up over threads.
    """
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds + 1):
        for name, program in programs.items():
            if seconds[name] and seconds[name][-1] < _SHORT:
                program()
            start = clock()
            program()
            seconds[name].append(clock() - start)
    return {name: statistics.median(spent[1:]) for name, spent in seconds.items()}


def forget_peak() -> None:
    """Restart the measurement of :func:`peak_memory`."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif (file := Path("/proc/self/clear_refs")).exists():
        file.write_text("5")  # resets VmHWM, see proc(5)


def peak_memory() -> int:
    """Return the peak of this process's memory in bytes, on the GPU if there is one."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # a child inherits `ru_maxrss` from its parent on Linux
        return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def machine() -> str:
    """Describe the processor, the cores that this process may use, and the GPU, if any, in one line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name or platform.processor() or platform.machine()}, {cores} cores{_gpu()}"


def _gpu() -> str:
    import torch

    return f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
