"""How the benchmarks measure: programs that take turns, medians, memory, and the machine beside the numbers."""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

Program = Callable[[], object]
Clock = Callable[[], float]

_SHORT = 0.5
"""Seconds."""


def medians(programs: Mapping[str, Program], rounds: int, *, clock: Clock = time.perf_counter) -> dict[str, float]:
    """Return the median seconds of each program; they take turns, after one round that does not count.

    Turns make whatever else the machine does meet all programs alike. A short program runs twice in its turn, and the
    second time counts: the threads of the program before may still be spinning during the first, and its data fill the
    caches. `time.process_time` as the clock counts CPU seconds, which other programs on the machine slow down less, but
    adds up those of several threads.
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
    """Let :func:`peak_memory` count from now on."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif (file := Path("/proc/self/clear_refs")).exists():
        file.write_text("5")  # of proc(5): resets VmHWM


def peak_memory() -> int:
    """Return the most bytes that this process has had on the GPU, or without one in memory."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # Linux hands `ru_maxrss` on from parent to child: there it says nothing about the child
        return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def machine() -> str:
    """Return the processor, how many cores this process may use, and the GPU if there is one, in one line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name or platform.processor() or platform.machine()}, {cores} cores{_gpu()}"


def _gpu() -> str:
    import torch

    return f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
