"""Help benchmarks parse options, time programs in turn, measure peak memory, describe the machine, and make tables."""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from rich.box import SIMPLE
from rich.table import Table

from mtsp.command_line import at_least_one
from mtsp.distributed.processors import processors

Program = Callable[[], object]
Clock = Callable[[], float]

_SHORT = 0.5  # seconds


def parser(description: str | None, *, rounds: int, quick: str) -> argparse.ArgumentParser:
    """Return a parser with `--rounds` and `--quick`, which all benchmarks have.

    `rounds` is the default of `--rounds`, and `quick` is the help text of `--quick`.
    """
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    help_of_rounds = "number of turns of each program; the median is shown (default: %(default)s)"
    made.add_argument("--rounds", type=at_least_one, default=rounds, help=help_of_rounds)
    made.add_argument("--quick", action="store_true", help=quick)
    return made


def medians(programs: Mapping[str, Program], rounds: int, *, clock: Clock = time.perf_counter) -> dict[str, float]:
    """Return the median seconds of each program. They take turns, and the first round does not count.

    Because they take turns, other load on the machine affects all programs alike. A short program runs twice in its
    turn, and only its second run counts: during the first, threads of the previous program may still be spinning, and
    the caches contain its data. With `clock=time.process_time`, CPU seconds are measured: other processes disturb them
    less, but they add up over threads.
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
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif (file := Path("/proc/self/clear_refs")).exists():
        file.write_text("5")  # resets VmHWM, see proc(5)


def peak_memory() -> int:
    """Return this process's peak memory in bytes; if there is a GPU, its peak GPU memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # a child inherits `ru_maxrss` from its parent on Linux
        return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def machine() -> str:
    """Return one line that describes processor, usable cores, GPU (if any), and torch."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    cores = processors()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    threads = f"{torch.get_num_threads()} threads; torch {torch.__version__}"
    return f"{name or platform.processor() or platform.machine()}, {cores} cores{gpu}, {threads}"


def table(title: str, *columns: str) -> Table:
    """Return an empty table: the first column is text, all other columns are numbers."""
    drawn = Table(title=title, box=SIMPLE, title_justify="left")
    for place, column in enumerate(columns):
        drawn.add_column(column, justify="right" if place else "left")
    return drawn


def compared(
    title: str,
    seconds: Mapping[str, float],
    ours: str,
    targets: Mapping[str, str],
    against: Mapping[str, str] | None = None,
    missing: Sequence[str] = (),
) -> Table:
    """Return a table of each program's milliseconds, and its ratio to the time of the program named `ours`.

    `targets` are the smallest ratios that mtsp should reach. `against` names the program to compare with instead of
    `ours`, for programs with another input. `missing` are names of libraries that are not installed.
    """
    drawn = table(title, "program", "ms", "over ours", "target")
    for name, spent in seconds.items():
        base = seconds[(against or {}).get(name, ours)]
        drawn.add_row(name, f"{spent * 1e3:.2f}", f"{spent / base:.2f}", targets.get(name, ""))
    for name in missing:
        drawn.add_row(name, "-", "not installed", targets.get(name, ""))
    return drawn
