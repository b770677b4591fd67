"""A cache returns the samples that were decoded, decodes each once, and keeps to its size."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from data import cache
from data.cache import CachedDataset
from data.prepared import DataConfig, to_tensors
from data.types import DataError, Labels
from mtsp.batches import collate
from mtsp.config import ConfigError, parse
from mtsp.training.sample_stream import Shard, micro_batches
from mtsp.types import Batch, Kind, Sample


class Counted:
    """Samples of noise; `decoded` counts, over all processes, how often each has been decoded."""

    kind: Kind = "images"
    classes = ("background", "object")

    def __init__(self, sides: list[int]) -> None:
        self.sides, self.ids = sides, [str(index) for index in range(len(sides))]
        self.decoded = multiprocessing.get_context("forkserver").Array("i", len(sides), lock=True)

    def __len__(self) -> int:
        return len(self.sides)

    def __getitem__(self, index: int) -> Sample:
        self.decoded[index] += 1
        rng, side = np.random.default_rng(index), self.sides[index]
        frame = rng.integers(0, 256, (side, side, 3), np.uint8)
        return Sample(name=self.ids[index], frame=frame, mask=rng.integers(0, 2, (side, side), np.uint8))

    def labels(self, index: int) -> Labels:
        return Labels(name=self.ids[index], mask=np.zeros((1, 1), np.uint8))


def assert_same(ours: Sample, theirs: Sample) -> None:
    assert ours.keys() == theirs.keys()
    assert ours["name"] == theirs["name"]
    for key in ("frame", "mask"):
        np.testing.assert_array_equal(ours.get(key), theirs.get(key))  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_samples_are_equal_and_decoded_once() -> None:
    plain, cached = Counted([8, 8, 8]), CachedDataset(Counted([8, 8, 8]), 10_000)
    before = list(cached.dataset.decoded)  # pyright: ignore[reportAttributeAccessIssue]
    for _ in range(3):
        for index in range(3):
            assert_same(cached[index], plain[index])
    after = list(cached.dataset.decoded)  # pyright: ignore[reportAttributeAccessIssue]
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1, 1]


def test_a_caller_that_changes_a_sample_does_not_change_the_cache() -> None:
    cached = CachedDataset(Counted([8]), 10_000)
    cached[0]["frame"][:] = 0
    cached[0]["frame"][:] = 0
    assert_same(cached[0], Counted([8])[0])


def test_the_cache_takes_no_more_than_its_limit() -> None:
    one = CachedDataset(Counted([8]), 10_000).slot
    assert 8 * 8 * 4 < one < 8 * 8 * 4 + 400  # the pixels, and what pickle adds
    cached = CachedDataset(Counted([8] * 5), 3 * one + 1)
    assert cached.slots == 3
    for index in (4, 4):
        assert_same(cached[index], Counted([8] * 5)[index])
    assert CachedDataset(Counted([8] * 5), one - 1).slots == 0


def test_a_sample_larger_than_the_measured_ones_is_decoded_each_time() -> None:
    sides = [8] * 33  # every second one is measured
    sides[1] = 20
    cached = CachedDataset(Counted(sides), 10**6)
    for _ in range(2):
        assert_same(cached[1], Counted(sides)[1])
    assert cached.dataset.decoded[1] == 2  # pyright: ignore[reportAttributeAccessIssue]


def test_workers_share_the_cache() -> None:
    cached = CachedDataset(Counted([8] * 4), 10_000)
    examples = _Examples(cached)
    stream = micro_batches(examples, batch_size=4, start=0, seed=(0,), shard=Shard(), collate=collate, workers=1)
    names = [sorted(next(stream)["name"]) for _ in range(6)]
    stream.close()
    assert names == [["0", "1", "2", "3"]] * 6
    for index in range(4):  # found by this process, which has decoded each only to measure it
        cached[index]
    assert list(cached.dataset.decoded) == [2] * 4  # pyright: ignore[reportAttributeAccessIssue]


class _Examples:
    """The samples of a data set as batches, without augmentation."""

    kind: Kind = "images"

    def __init__(self, dataset: CachedDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Batch:
        return to_tensors(self.dataset[index])

    def train_sample(self, index: int, rng: np.random.Generator) -> Batch:
        return self[index]


def test_too_little_shared_memory_is_an_error_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100})())
    with pytest.raises(DataError, match=r"does not fit into .*, where 0\.00 GB are free; lower or leave out `cache`"):
        CachedDataset(Counted([8]), 10_000)


def test_a_config_names_the_size_with_its_unit() -> None:
    entry = {"dataset": {"name": "davis", "root": "inputs/DAVIS"}, "cache": "2GB"}
    assert parse(DataConfig, entry).cache == 2_000_000_000
    with pytest.raises(ConfigError, match="cache"):
        parse(DataConfig, entry | {"cache": "much"})
