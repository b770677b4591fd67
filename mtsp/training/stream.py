"""Training batches as a pure function of (seed, step): the same on any number of processes and workers, and on resume.

A stream draws from an endless sequence of samples: permutation after permutation of the dataset, each f(seed, epoch).
Sample number g of the sequence is entry g % length of permutation g // length, augmented with a random generator that
is f(seed, epoch, index). Global batch t is samples t*B .. t*B + B - 1, of which each process takes its share. Nothing
is remembered but t. Accelerate's own resume replays other samples or other augmentations (huggingface/accelerate#2016).
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from mtsp.batches import Failure
from mtsp.types import Batch, Examples


class Shard(NamedTuple):
    """Which samples of each global batch are this process's, in how many micro-batches."""

    rank: int = 0
    processes: int = 1
    accumulate: int = 1


class _Positions(Sampler[list[int]]):
    """This process's micro-batches of places in the endless sequence, from global batch `start` on."""

    def __init__(self, batch_size: int, start: int, shard: Shard) -> None:
        self.batch_size, self.start, self.shard = batch_size, start, shard

    def __iter__(self) -> Iterator[list[int]]:
        rank, processes, accumulate = self.shard
        size = self.batch_size // (processes * accumulate)
        batch = self.start
        while True:
            for micro in range(accumulate):
                first = batch * self.batch_size + (micro * processes + rank) * size
                yield list(range(first, first + size))
            batch += 1


class _Drawn(Dataset[Batch | Failure]):
    """Places in the endless sequence -> augmented samples."""

    def __init__(self, examples: Examples, seed: Sequence[int]) -> None:
        self.examples, self.seed = examples, tuple(seed)
        self.permutation: tuple[int, np.ndarray] | None = None

    def __getitem__(self, position: int) -> Batch | Failure:
        epoch, place = divmod(position, len(self.examples))
        if self.permutation is None or self.permutation[0] != epoch:
            order = np.random.default_rng([*self.seed, 0, epoch]).permutation(len(self.examples))
            self.permutation = (epoch, order)
        index = int(self.permutation[1][place])
        try:
            return self.examples.train_sample(index, np.random.default_rng([*self.seed, 1, epoch, index]))
        except (ValueError, OSError) as error:
            return Failure(str(error))


def _begin_worker(worker: int) -> None:
    """One thread, deaf ears, and an end with the run: a fork server keeps the workers of a killed run alive."""
    import cv2

    for number in (signal.SIGINT, signal.SIGTERM):  # the fork server may be older than `_start_fork_server`
        signal.signal(number, signal.SIG_IGN)

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _start_fork_server() -> None:
    """Start what workers are forked from, deaf to Ctrl-C and SIGTERM, and so are they.

    A terminal and torchrun send these to every process of a run. The run's own process then saves and stops, for which
    it needs the workers once more; it ends them itself.
    """
    from multiprocessing import forkserver, resource_tracker

    resource_tracker.ensure_running()  # which would unblock the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def micro_batches(
    examples: Examples,
    *,
    batch_size: int,
    start: int,
    seed: Sequence[int],
    shard: Shard,
    collate: Callable[[Sequence[Batch]], Batch],
    workers: int = 0,
    pin_memory: bool = False,
) -> Generator[Batch, None, None]:
    """Yield this process's micro-batches for ever, `shard.accumulate` of them per global batch, from batch `start` on.

    Args:
        examples: the dataset; at least one example.
        batch_size: samples of a global batch, over all processes and micro-batches.
        start: the global batch to begin with: how many this stream has given before.
        seed: of the order and of every augmentation; one sequence of numbers for each stream.
        shard: this process's share.
        collate: samples -> a batch.
        workers: processes that decode and augment; 0 does it in this one.
        pin_memory: for faster copies to a GPU.

    Raises:
        ValueError: the batch cannot be shared out evenly, or (while iterating) a sample cannot be read; the message
            names the file.
    """
    shares = shard.processes * shard.accumulate
    if batch_size % shares:
        raise ValueError(
            f"a global batch of {batch_size} cannot be shared by {shard.processes} processes x {shard.accumulate} "
            f"micro-batches; use a multiple of {shares}"
        )
    if workers:
        _start_fork_server()
    loader = DataLoader(
        _Drawn(examples, seed),
        batch_sampler=_Positions(batch_size, start, shard),
        collate_fn=_Collate(collate),
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_begin_worker if workers else None,
        multiprocessing_context="forkserver" if workers else None,
        prefetch_factor=2 if workers else None,
    )
    for batch in loader:
        if isinstance(batch, Failure):
            raise ValueError(batch.message)
        yield batch


class _Collate:
    """Samples -> a batch, or the first failure among them."""

    def __init__(self, collate: Callable[[Sequence[Batch]], Batch]) -> None:
        self.collate = collate

    def __call__(self, samples: list[Any]) -> Batch | Failure:
        failures = [sample for sample in samples if isinstance(sample, Failure)]
        if failures:
            return failures[0]
        try:
            return self.collate(samples)
        except ValueError as error:
            return Failure(str(error))
