"""A function, or a whole program, in two processes of one group."""

import faulthandler
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

SECONDS = 240
"""How long two processes may take, and how long one waits for the other."""

_RAISED = 101


def run(folder: Path, function: Callable[..., None], *arguments: object) -> None:
    """Call function(rank, *arguments) in two processes that meet in `folder`, which is made; both must reach its end.

    Raises:
        AssertionError: a process raised, left early with whatever code, was ended by a signal, or hangs. The other is
            ended then, for it may wait for the first in vain.
    """
    folder.mkdir()
    context = multiprocessing.get_context("forkserver")  # which has imported everything, see conftest.py
    processes = [context.Process(target=_one, args=(rank, folder, function, arguments)) for rank in (0, 1)]
    for process in processes:
        process.start()
    running = {process.sentinel: process for process in processes}
    problems: list[str] = []
    while running and not problems:
        ended = [running.pop(sentinel) for sentinel in wait(list(running), SECONDS) if isinstance(sentinel, int)]
        problems = [problem for process in ended if (problem := _problem(folder, processes.index(process), process))]
        if not ended:
            problems = [f"{len(running)} of two processes did not end within {SECONDS} s"]
    for process in running.values():
        process.kill()
        process.join()
    assert not problems, "\n".join(problems)


def program(rank: int, main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> None:
    """Call a program's main as torchrun does, for :func:`run`; it must return 0."""
    os.environ |= {"ACCELERATE_USE_CPU": "true", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    code = main(arguments)
    assert code == 0, f"the program ended with code {code}"


def _problem(folder: Path, rank: int, process: BaseProcess) -> str:
    """Return what is wrong with a process that ended, or nothing."""
    process.join()
    where = (folder / f"where-{rank}").read_text() if (folder / f"where-{rank}").exists() else ""
    if process.exitcode == _RAISED:
        return f"process {rank} raised\n{where}"
    if process.exitcode or not (folder / f"done-{rank}").exists():
        return f"process {rank} ended with code {process.exitcode} before its end\n{where}"
    return ""


def _one(rank: int, folder: Path, function: Callable[..., None], arguments: tuple[object, ...]) -> None:
    """Be one of the two.

    It leaves at once, and the group is not taken down: all has been judged or written, and what follows would only
    be a test of gloo's own end.
    """
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": str(rank), "WORLD_SIZE": "2"}
    where = (folder / f"where-{rank}").open("w")
    faulthandler.enable(where)  # for a signal; an exception follows below
    try:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=SECONDS)
        )
        function(rank, *arguments)
        if torch.distributed.is_initialized():  # a program may take its group down
            torch.distributed.barrier()
    except Exception:
        traceback.print_exc(file=where)
        where.flush()
        os._exit(_RAISED)
    (folder / f"done-{rank}").touch()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
