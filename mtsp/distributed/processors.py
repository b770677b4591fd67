"""Count processors."""

import os


def processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processors_per_process() -> int:
    """Return the number of processors of this machine for each training process that torchrun started on it."""
    return max(1, processors() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
