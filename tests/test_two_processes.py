"""A test of two processes passes only if both came to their end."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from tests import two_processes

InTwoProcesses = Callable[..., None]


def add(rank: int, folder: str) -> None:
    total = torch.tensor([rank + 1])
    torch.distributed.all_reduce(total)
    write(rank, folder, int(total))


def write(rank: int, folder: str, value: int) -> None:
    (Path(folder) / f"{rank}.txt").write_text(str(value))


def write_and_leave_with_code_3(rank: int, folder: str) -> None:
    write(rank, folder, 3)
    if rank == 1:
        os._exit(3)


def write_and_leave_as_if_all_were_well(rank: int, folder: str) -> None:
    write(rank, folder, 3)
    if rank == 1:
        os._exit(0)


def write_and_abort(rank: int, folder: str) -> None:
    write(rank, folder, 3)
    if rank == 0:
        os.kill(os.getpid(), signal.SIGABRT)


def raise_while_the_other_waits(rank: int, folder: str) -> None:
    write(rank, folder, 3)
    if rank == 1:
        raise KeyError("of rank 1")
    torch.distributed.barrier()


def wait_for_a_signal_that_never_comes(rank: int, folder: str) -> None:
    write(rank, folder, 3)
    if rank == 1:
        signal.pause()
    torch.distributed.barrier()


def say_what_it_was_told(arguments: Sequence[str]) -> int:
    """A program, whose arguments are a folder and the code that process 1 returns."""
    rank = int(os.environ["RANK"])
    Path(arguments[0], f"{rank}.txt").write_text(os.environ["WORLD_SIZE"])
    return int(arguments[1]) if rank == 1 else 0


def test_both_processes_are_of_one_group(in_two_processes: InTwoProcesses, tmp_path: Path) -> None:
    in_two_processes(add, str(tmp_path))
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["3", "3"]  # 1 + 2


@pytest.mark.parametrize(
    ("rank", "function", "message"),
    [
        (1, write_and_leave_with_code_3, "process 1 ended with code 3 before its end"),
        (1, write_and_leave_as_if_all_were_well, "process 1 ended with code 0 before its end"),
        (0, write_and_abort, r"process 0 ended with code -6 before its end[\s\S]*in write_and_abort"),
        (1, raise_while_the_other_waits, r"process 1 raised[\s\S]*KeyError: 'of rank 1'"),
    ],
)
def test_one_that_ends_otherwise_fails_the_test_though_it_has_written(
    in_two_processes: InTwoProcesses, tmp_path: Path, rank: int, function: InTwoProcesses, message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        in_two_processes(function, str(tmp_path))
    assert (tmp_path / f"{rank}.txt").read_text() == "3"


def test_processes_that_hang_are_ended(
    in_two_processes: InTwoProcesses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(two_processes, "SECONDS", 2)
    with pytest.raises(AssertionError, match="2 of two processes did not end within 2 s"):
        in_two_processes(wait_for_a_signal_that_never_comes, str(tmp_path))
    assert not multiprocessing.active_children()


def test_a_program_is_run_as_two_processes(in_two_processes: InTwoProcesses, tmp_path: Path) -> None:
    in_two_processes(two_processes.program, say_what_it_was_told, [str(tmp_path), "0"])
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["2", "2"]


def test_a_program_that_returns_another_code_fails_the_test(in_two_processes: InTwoProcesses, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"process 1 raised[\s\S]*the program ended with code 3"):
        in_two_processes(two_processes.program, say_what_it_was_told, [str(tmp_path), "3"])
