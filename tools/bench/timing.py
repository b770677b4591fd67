"""How the benchmarks measure: programs that take turns, medians, and the machine beside the numbers."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

Program = Callable[[], object]
Clock = Callable[[], float]


def medians(programs: Mapping[str, Program], rounds: int, *, clock: Clock = time.perf_counter) -> dict[str, float]:
    """Return the median seconds of each program; they take turns, after one round that does not count.

    Turns make whatever else the machine does meet all programs alike. `time.process_time` as the clock counts CPU
    seconds, which other programs on the machine slow down less, but adds up those of several threads.
    """
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds + 1):
        for name, program in programs.items():
            start = clock()
            program()
            seconds[name].append(clock() - start)
    return {name: statistics.median(spent[1:]) for name, spent in seconds.items()}


def machine() -> str:
    """Return the processor, how many cores this process may use, and the GPU if there is one, in one line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name or platform.processor() or platform.machine()}, {cores} cores{_gpu()}"


def _gpu() -> str:
    import torch

    return f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
