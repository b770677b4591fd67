"""Batches are a function of (seed, step), not of processes, workers, accumulation or resuming."""

import multiprocessing
import os
import signal
from itertools import islice

import numpy as np
import pytest
import torch

from mtsp.batches import collate
from mtsp.files.read_ahead import read_ahead
from mtsp.training.sample_stream import Shard, micro_batches
from mtsp.types import Batch, Kind


class Numbers:
    """Example i: the number i, and a random number from its own generator."""

    kind: Kind = "labeled"

    def __init__(self, length: int, bad: int | None = None, deadly: int | None = None) -> None:
        self.length, self.bad, self.deadly = length, bad, deadly
        self.ids = [f"frame{index}" for index in range(length)]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Batch:
        raise AssertionError("training draws")

    def train_sample(self, index: int, rng: np.random.Generator) -> Batch:
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if index == self.bad:
            raise ValueError(f"frame{index}.png is truncated")
        return {"name": [str(index)], "frame": torch.tensor([index, rng.random()])}  # pyright: ignore[reportReturnType]


def values(
    length: int, shard: Shard, start: int, count: int, batch_size: int = 4, workers: int = 0
) -> list[torch.Tensor]:
    stream = micro_batches(
        Numbers(length), batch_size=batch_size, start=start, seed=[3], shard=shard, collate=collate, workers=workers
    )
    return [batch["frame"] for batch in islice(stream, count)]


def test_every_example_comes_once_per_epoch_in_a_new_order_and_with_new_randomness() -> None:
    drawn = torch.cat(values(6, Shard(), 0, 3, batch_size=4))  # 12 samples: two epochs of 6
    first, second = drawn[:6], drawn[6:]
    assert sorted(first[:, 0].tolist()) == sorted(second[:, 0].tolist()) == [0, 1, 2, 3, 4, 5]
    assert first[:, 0].tolist() != second[:, 0].tolist()
    assert len(set(drawn[:, 1].tolist())) == 12


@pytest.mark.parametrize(("processes", "accumulate"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_processes_and_micro_batches_share_the_same_global_batch(processes: int, accumulate: int) -> None:
    whole = values(10, Shard(), 0, 5)
    parts = [values(10, Shard(rank, processes, accumulate), 0, 5 * accumulate) for rank in range(processes)]
    for step, batch in enumerate(whole):
        shared = [parts[rank][step * accumulate + m] for rank in range(processes) for m in range(accumulate)]
        assert sorted(map(tuple, torch.cat(shared).tolist())) == sorted(map(tuple, batch.tolist()))


def test_a_resumed_stream_goes_on_with_the_same_samples() -> None:
    assert all(map(torch.equal, values(7, Shard(), 0, 9)[5:], values(7, Shard(), 5, 4)))


def test_worker_processes_change_nothing() -> None:
    assert all(map(torch.equal, values(7, Shard(), 2, 4), values(7, Shard(), 2, 4, workers=2)))


def test_a_dataset_smaller_than_a_batch_repeats_itself_with_other_augmentations() -> None:
    (batch,) = values(2, Shard(), 0, 1)
    assert sorted(batch[:, 0].tolist()) == [0, 0, 1, 1]
    assert len(set(batch[:, 1].tolist())) == 4


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_sample_is_one_line(workers: int) -> None:
    stream = micro_batches(
        Numbers(4, bad=2), batch_size=4, start=0, seed=[0], shard=Shard(), collate=collate, workers=workers
    )
    with pytest.raises(ValueError, match=r"^frame2.png is truncated$"):
        next(stream)


def test_a_batch_that_cannot_be_divided_evenly_is_refused() -> None:
    with pytest.raises(ValueError, match=r"6 cannot be divided among 2 processes x 2 .*; use a multiple of 4"):
        next(micro_batches(Numbers(9), batch_size=6, start=0, seed=[0], shard=Shard(0, 2, 2), collate=collate))


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_what_is_read_ahead_comes_in_order_and_its_error_at_its_turn(threads: int) -> None:
    asked: list[int] = []

    def read(index: int) -> str:
        asked.append(index)
        if index == 9:
            raise ValueError("nine")
        return str(index)

    read_ones = read_ahead(read, [4, 2, 8, 6, 9, 1, 3, 5], threads=threads, ahead=2)
    assert [next(read_ones) for _ in range(4)] == ["4", "2", "8", "6"]
    with pytest.raises(ValueError, match="nine"):
        next(read_ones)
    # Two beyond that may have been asked for by then, without threads none.
    assert set(asked) <= {4, 2, 8, 6, 9} | ({1, 3} if threads else set())


def test_samples_that_differ_in_labels_or_sizes_are_named() -> None:
    one: Batch = {"name": ["a"], "frame": torch.zeros(3, 4, 4)}  # pyright: ignore[reportAssignmentType]
    labeled: Batch = {"name": ["b"], "frame": torch.zeros(3, 4, 4), "mask": torch.zeros(4, 4)}  # pyright: ignore[reportAssignmentType]
    wide: Batch = {"name": ["c"], "frame": torch.zeros(3, 4, 5)}  # pyright: ignore[reportAssignmentType]
    with pytest.raises(ValueError, match="a and b cannot share a batch: only one of them has mask"):
        collate([one, labeled])
    with pytest.raises(ValueError, match=r"a and c .* their frame has sizes \(3, 4, 4\) and \(3, 4, 5\)"):
        collate([one, one, wide])


def test_the_sample_that_a_killed_worker_was_reading_is_named_and_the_handler_of_its_end_is_not_torchs() -> None:
    """Torch's handler would raise in the middle of a step."""
    before = signal.getsignal(signal.SIGCHLD)
    stream = micro_batches(
        Numbers(6, deadly=4), batch_size=6, start=0, seed=[3], shard=Shard(), collate=collate, workers=1
    )
    with pytest.raises(ValueError, match="a data worker was ended by SIGKILL; the last that it read is sample frame4;"):
        next(stream)
    assert signal.getsignal(signal.SIGCHLD) == before


class Hanging(Numbers):
    """Reading example 4 stops the worker, as a dead network disk does."""

    def train_sample(self, index: int, rng: np.random.Generator) -> Batch:
        if index == 4:
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().train_sample(index, rng)


def test_closing_a_stream_ends_a_worker_that_hangs_before_it_is_waited_for() -> None:
    """Its stream is not the one that fails: another one's worker was stopped, too."""
    before = set(multiprocessing.active_children())
    stream = micro_batches(
        Numbers(6), batch_size=2, start=0, seed=[3], shard=Shard(), collate=collate, workers=1, timeout=60
    )
    next(stream)
    (worker,) = set(multiprocessing.active_children()) - before
    os.kill(worker.pid or 0, signal.SIGSTOP)
    stream.close()
    worker.join(10)
    assert not worker.is_alive()


def test_a_worker_that_hangs_is_named_and_killed_so_that_the_run_can_end() -> None:
    before = set(multiprocessing.active_children())
    examples = Hanging(6)
    stream = micro_batches(
        examples, batch_size=6, start=0, seed=[3], shard=Shard(), collate=collate, workers=1, timeout=1
    )
    with pytest.raises(ValueError, match="the data workers do not answer; they are reading sample frame4"):
        next(stream)
    stream.close()
    for worker in set(multiprocessing.active_children()) - before:
        worker.join(10)
        assert not worker.is_alive()
