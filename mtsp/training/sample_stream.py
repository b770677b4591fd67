"""Make training batches as a pure function of (seed, step): equal on any number of processes, workers, and on resume.

A stream takes samples from an endless sequence: one permutation of the data set after another, each seeded by (seed,
epoch). Sample g of the sequence is entry g % length of permutation g // length, augmented with a random generator that
is seeded by (seed, epoch, index). Global batch t is samples t*B .. t*B + B - 1, divided among the processes. The only
state is t. Resuming with Accelerate's own data loader changes samples or augmentations (huggingface/accelerate#2016).
"""

import itertools
import math
import multiprocessing
import os
import signal
import threading
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import ConcatDataset, DataLoader, Dataset, get_worker_info

from mtsp.batches import Failure, Packed, collate, packed, to_device, unpacked
from mtsp.training.signals import STOP
from mtsp.types import Batch, Examples, Kind


class Shard(NamedTuple):
    """One process's part of each global batch, and the number of micro-batches that it is split into."""

    rank: int = 0
    processes: int = 1
    accumulate: int = 1


def _positions(batch_size: int, start: int, shard: Shard) -> Iterator[list[int]]:
    """Yield this process's micro-batches as positions in the endless sequence, starting at global batch `start`."""
    rank, processes, accumulate = shard
    size = batch_size // (processes * accumulate)
    for batch in itertools.count(start):
        for micro in range(accumulate):
            first = batch * batch_size + (micro * processes + rank) * size
            yield list(range(first, first + size))


class _AugmentedSamples(Dataset[Batch | Failure]):
    """A data set indexed by position in the endless sequence; it returns augmented samples."""

    def __init__(self, examples: Examples, seed: Sequence[int], workers: int = 0) -> None:
        self.examples, self.seed = examples, tuple(seed)
        self.reading = multiprocessing.get_context("forkserver").RawArray("q", [-1] * workers)
        """Index of the last sample that each worker process began to read."""
        self.permutation: tuple[int, np.ndarray] | None = None

    def __getitem__(self, position: int) -> Batch | Failure:
        epoch, place = divmod(position, len(self.examples))
        if self.permutation is None or self.permutation[0] != epoch:
            order = np.random.default_rng([*self.seed, 0, epoch]).permutation(len(self.examples))
            self.permutation = (epoch, order)
        index = int(self.permutation[1][place])
        if (worker := get_worker_info()) is not None:
            self.reading[worker.id] = index
        try:
            return self.examples.train_sample(index, np.random.default_rng([*self.seed, 1, epoch, index]))
        except (ValueError, OSError) as error:
            return Failure(str(error))


def _begin_worker(worker: int) -> None:
    """Use one thread, ignore signals, and exit with the parent; otherwise the fork server keeps orphans alive."""
    import cv2

    for number in STOP:  # another part of the program may have started the fork server
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)

    def end_with_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _start_fork_server() -> None:
    """Start the server that workers are forked from, with the signals in `STOP` blocked in it and in the workers.

    A terminal and torchrun send these signals to all processes of a run. The main process finishes its step, saves and
    stops. It needs the workers until then, and ends them itself.
    """
    from multiprocessing import forkserver, resource_tracker

    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    try:
        resource_tracker.ensure_running()  # it inherits what is blocked, and unblocks SIGINT and SIGTERM here
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
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
    channels_last: bool = False,
    timeout: float = 0.0,
) -> Generator[Batch, None, None]:
    """Yield this process's micro-batches endlessly, `shard.accumulate` per global batch, starting at batch `start`.

    Args:
        examples: the data set, not empty.
        batch_size: number of samples in a global batch, over all processes and micro-batches.
        start: number of global batches that this stream has already yielded.
        seed: seeds the order and every augmentation; must differ between streams.
        shard: this process's part of each global batch.
        collate: combines samples into a batch.
        workers: number of processes that decode and augment; with 0, the calling process does.
        pin_memory: use pinned memory, for faster copies to a GPU.
        channels_last: return images in channels_last memory format.
        timeout: number of seconds to wait for a batch from the worker processes; 0: without limit.

    Raises:
        ValueError: the batch cannot be divided evenly, or (while iterating) a sample cannot be read, or a worker
            process was killed or does not answer.
    """
    shares = shard.processes * shard.accumulate
    if batch_size % shares:
        raise ValueError(
            f"a global batch of {batch_size} cannot be divided among {shard.processes} processes x {shard.accumulate} "
            f"micro-batches; use a multiple of {shares}"
        )
    if workers:
        _start_fork_server()
    samples = _AugmentedSamples(examples, seed, workers)
    loader = DataLoader(
        samples,
        batch_sampler=_positions(batch_size, start, shard),
        collate_fn=partial(_collate, collate, channels_last, workers > 0),
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_begin_worker if workers else None,
        multiprocessing_context="forkserver" if workers else None,
        prefetch_factor=2 if workers else None,
        timeout=timeout if workers else 0,
    )
    before = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)  # torch's handler raises wherever the main process is, not in next()
    try:
        while True:
            try:
                batch = next(batches)
            except (RuntimeError, ConnectionError) as error:  # of a dead worker's tensors, it is the latter
                if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader"):
                    raise
                raise ValueError(_lost_worker(batches, samples)) from error
            if isinstance(batch, Failure):
                raise ValueError(batch.message)
            yield unpacked(batch)
    finally:
        if workers:
            _end_workers(batches)


def _end_workers(batches: Any) -> None:
    """End the worker processes, also those that hang: they ignore SIGTERM, and Python would wait for them for ever."""
    processes = batches._workers
    batches._shutdown_workers()
    for process in processes:
        if process.is_alive():
            process.kill()


def _lost_worker(batches: Any, samples: _AugmentedSamples) -> str:
    """Return what is known about worker processes that died or do not answer."""
    ids = getattr(samples.examples, "ids", range(len(samples.examples)))
    processes = batches._workers
    for process in processes:
        process.join(1.0 / len(processes))  # one that was just killed may not have ended yet
    ended = [number for number, process in enumerate(processes) if not process.is_alive()]
    names = ", ".join(f"sample {ids[samples.reading[number]]}" for number in ended or range(len(processes)))
    if not ended:
        return f"the data workers do not answer; they are reading {names}"
    code = processes[ended[0]].exitcode
    reason = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    hint = "; if memory ran out, use fewer train.workers" if code == -signal.SIGKILL else ""
    return f"a data worker {reason}; the last that it read is {names}{hint}"


def _collate(
    collate: Callable[[Sequence[Batch]], Batch], channels_last: bool, shared: bool, samples: list[Any]
) -> Packed | Failure:
    """Return the samples as a batch, laid out alike with and without workers, or the first failure among them."""
    if failures := [sample for sample in samples if isinstance(sample, Failure)]:
        return failures[0]
    try:
        return packed(collate(samples), channels_last=channels_last, shared=shared)
    except ValueError as error:
        return Failure(str(error))


class Concatenated(ConcatDataset[Batch]):
    """Several data sets, concatenated."""

    def __init__(self, parts: Sequence[Examples]) -> None:
        super().__init__(parts)  # pyright: ignore[reportArgumentType]
        self.parts = parts
        self.kind: Kind = parts[0].kind

    def train_sample(self, index: int, rng: np.random.Generator) -> Batch:
        """Return sample `index`, augmented."""
        part = bisect_right(self.cumulative_sizes, index)
        return self.parts[part].train_sample(index - (self.cumulative_sizes[part] - len(self.parts[part])), rng)


class SinglePass(NamedTuple):
    """A pass over images in rounds of one batch per process; the batches are the same on any number of processes."""

    examples: Examples
    accelerator: Accelerator
    images: int
    """Number of images to read, at most the size of the data set."""
    batch: int
    """Images per batch of one process."""
    seed: int
    workers: int

    @property
    def size(self) -> int:
        """Number of images per round, over all processes."""
        return self.batch * self.accelerator.num_processes

    def images_of(self, rounds: int) -> int:
        """Return the total number of images in the first `rounds` rounds."""
        return min(self.images, rounds * self.size)

    def batches(self, start: int) -> Generator[tuple[int, Batch], None, None]:
        """Yield (number, batch) of this process, starting at round `start`; batches are numbered over all processes."""
        index, processes = self.accelerator.process_index, self.accelerator.num_processes
        stream = micro_batches(
            self.examples,
            batch_size=self.size,
            start=start,
            seed=(self.seed,),
            shard=Shard(index, processes),
            collate=collate,
            workers=self.workers,
        )
        try:
            for number in range(start * processes + index, math.ceil(self.images / self.batch), processes):
                read: Any = next(stream)
                batch: Any = {key: value[: self.images - number * self.batch] for key, value in read.items()}
                yield number, to_device(batch, self.accelerator.device, channels_last=False)
        finally:
            stream.close()
