"""Keep decoded samples in shared memory, where all workers of a training process find them."""

import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from data.types import DataError, Labels, SampleDataset
from mtsp.indices import evenly_spaced
from mtsp.types import Kind, Sample

_MEASURED = 16
_SHARED_MEMORY = Path("/dev/shm")


class CachedDataset:
    """A data set whose samples are decoded once: a :class:`data.types.SampleDataset`.

    Every sample has a slot of its own, as large as the largest of 16 samples spread over the data set. Workers fill the
    slots as they read, without a lock: two that fill a slot at once write the same bytes. Samples beyond `limit`, and
    samples that are larger than a slot, are decoded each time.

    Args:
        dataset: data set of decoded samples.
        limit: largest number of bytes of the cache. No more is reserved than all samples need.

    Raises:
        DataError: the machine has less shared memory than that.
    """

    def __init__(self, dataset: SampleDataset, limit: int) -> None:
        self.dataset = dataset
        self.kind: Kind = dataset.kind
        self.ids: Sequence[str] = dataset.ids
        self.classes: tuple[str, ...] = tuple(getattr(dataset, "classes", ()))
        measured = evenly_spaced(len(dataset), _MEASURED)
        self.slot = max((len(_packed(dataset, index)) for index in measured), default=0)
        self.slots = min(len(dataset), limit // self.slot) if self.slot else 0
        _require_free(self.slots * self.slot)
        self._bytes = torch.empty(self.slots * self.slot, dtype=torch.uint8).share_memory_()
        self._lengths = torch.zeros(self.slots, dtype=torch.int64).share_memory_()  # 0: the slot is empty

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        if index >= self.slots:
            return self.dataset[index]
        slot = self._bytes[index * self.slot : (index + 1) * self.slot].numpy()
        if length := int(self._lengths[index]):
            return pickle.loads(slot[:length].data)
        sample = self.dataset[index]
        packed = pickle.dumps(sample, protocol=5)
        if len(packed) <= self.slot:
            slot[: len(packed)] = memoryview(packed)
            self._lengths[index] = len(packed)  # last: a reader that sees a length finds all bytes
        return sample

    def labels(self, index: int) -> Labels:
        """Return the labels of example `index`."""
        return self.dataset.labels(index)


def _packed(dataset: SampleDataset, index: int) -> bytes:
    try:
        return pickle.dumps(dataset[index], protocol=5)
    except (DataError, OSError):  # raised again, with its place in the run, when the sample is drawn
        return b""


def _require_free(size: int) -> None:
    """Raise DataError if the machine's shared memory is too small; to write beyond its end would kill the process."""
    if not _SHARED_MEMORY.is_dir():  # macOS takes shared memory from all memory
        return
    if size > (free := shutil.disk_usage(_SHARED_MEMORY).free):
        raise DataError(
            f"a cache of {size / 1e9:.2f} GB does not fit into {_SHARED_MEMORY}, where {free / 1e9:.2f} GB are free; "
            "lower or leave out `cache`, or give the container more shared memory (docker run --shm-size)"
        )
