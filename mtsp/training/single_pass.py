"""One pass over training images, in the same batches on any number of processes."""

import math
from bisect import bisect_right
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import numpy as np
from accelerate import Accelerator
from torch.utils.data import ConcatDataset

from mtsp.batches import collate, to_device
from mtsp.training.stream import Shard, micro_batches
from mtsp.types import Batch, Examples, Kind


class Concatenated(ConcatDataset[Batch]):
    """Several data sets, one after the other."""

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
        """Images per round."""
        return self.batch * self.accelerator.num_processes

    def images_of(self, rounds: int) -> int:
        """Return the number of images in the first `rounds` rounds."""
        return min(self.images, rounds * self.size)

    def batches(self, start: int) -> Generator[tuple[int, Batch], None, None]:
        """Yield (number, batch) of this process from round `start` on, with batches numbered over all processes."""
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
