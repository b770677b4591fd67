"""RandAugment, random erasing, mixup and CutMix of labeled images."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.augment.augment import AugmentConfig
from data.augment.labeled import draw_mix, erase
from data.files.images import write_image
from data.prepared import DataConfig
from mtsp.config import ConfigError, parse
from mtsp.tasks import ClassificationConfig, Tasks
from mtsp.training.sample_stream import Shard, micro_batches
from mtsp.types import Sample

ALL = {"crop": [32, 32], "rand_augment": "rand-m9-n2-mstd0.5-inc1", "erase": 0.5, "mixup": 0.2, "cutmix": 1.0}


def _image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


def _augmented(seed: int, **settings: Any) -> Sample:
    augmentation = AugmentConfig(**settings).build()
    return augmentation(Sample(name="a", frame=_image(), label=1), np.random.default_rng(seed))


def test_rand_augment_depends_on_the_generator_of_the_sample_alone() -> None:
    first = [_augmented(seed, rand_augment="rand-m9-n2-mstd0.5-inc1")["frame"] for seed in range(6)]
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    expected = random.random(), np.random.random()  # noqa: NPY002
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    second = [_augmented(seed, rand_augment="rand-m9-n2-mstd0.5-inc1")["frame"] for seed in range(6)]
    assert (random.random(), np.random.random()) == expected  # noqa: NPY002
    assert all(map(np.array_equal, first, second))
    assert sum(not np.array_equal(image, _image()) for image in first) >= 3  # each of two changes is made by halves


@pytest.mark.parametrize("policy", ["rand-m9-foo", "augmix-m3", "rand-m", "rand-n2x", "original"])
def test_a_policy_that_timm_would_read_otherwise_is_refused(policy: str) -> None:
    with pytest.raises(ValueError, match="rand_augment"):
        AugmentConfig(rand_augment=policy)


def test_one_rectangle_of_2_to_33_percent_is_erased() -> None:
    for seed in range(30):
        image = np.zeros((60, 80, 3), np.uint8)
        erase(image, np.random.default_rng(seed))
        rows, columns = map(np.flatnonzero, (image.sum((1, 2)), image.sum((0, 2))))
        area = (rows[-1] + 1 - rows[0]) * (columns[-1] + 1 - columns[0])
        assert 0.01 < area / (60 * 80) <= 1 / 3  # sides are rounded down
        inside = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert 100 < inside.mean() < 155
    assert np.array_equal(_augmented(0, erase=0.0)["frame"], _image())


def test_the_weight_of_cutmix_is_the_area_that_is_left() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_mix(0.0, 1.0, (32, 48), rng) for _ in range(400)]
    for weight, top, bottom, left, right in drawn:
        assert 0 <= top <= bottom <= 32
        assert 0 <= left <= right <= 48
        assert weight == pytest.approx(1 - (bottom - top) * (right - left) / (32 * 48))
    # a rectangle of half the area on average loses what its random center puts outside: 1 - 1/2 * E[...] > 1/2
    assert 0.55 < np.mean([mix[0] for mix in drawn]) < 0.75


def test_mixup_draws_a_weight_from_its_distribution_and_both_alternate() -> None:
    rng = np.random.default_rng(0)
    weights = np.array([draw_mix(0.2, 0.0, (32, 32), rng) for _ in range(2000)])
    assert not weights[:, 1:].any()
    assert weights[:, 0].mean() == pytest.approx(0.5, abs=0.03)
    assert weights[:, 0].var() == pytest.approx(1 / 4 / 1.4, abs=0.01)  # of Beta(a, a): 1 / (4 (2 a + 1))
    both = np.array([draw_mix(0.2, 1.0, (32, 32), rng) for _ in range(2000)])
    assert (both[:, 2] > 0).mean() == pytest.approx(0.5, abs=0.05)


@pytest.fixture
def colors(tmp_path: Path) -> DataConfig:
    rng = np.random.default_rng(0)
    for index in range(7):
        (tmp_path / f"{index % 3}").mkdir(exist_ok=True)
        write_image(tmp_path / f"{index % 3}" / f"{index}.png", rng.integers(0, 256, (40, 40, 3), np.uint8))
    return parse(DataConfig, {"dataset": {"name": "image_folder", "root": str(tmp_path)}, "augment": ALL})


def _streamed(data: DataConfig, shard: Shard, workers: int = 0) -> list[dict[str, Any]]:
    tasks = Tasks(classification=ClassificationConfig())
    stream = micro_batches(
        data.build(), batch_size=8, start=1, seed=(3,), shard=shard, collate=tasks.collate, workers=workers
    )
    batches: list[Any] = [next(stream) for _ in range(2 * shard.accumulate)]
    stream.close()
    return batches


def test_mixed_batches_are_the_same_on_any_number_of_processes_micro_batches_and_workers(colors: DataConfig) -> None:
    """Two global batches of eight, which are more than the seven images, divided into pairs at the smallest."""
    whole = _streamed(colors, Shard())
    assert 0 < whole[0]["label_weight"].min() < whole[0]["label_weight"].max() <= 1
    assert whole[0]["counts"] == {"classification": 8}
    split = [_streamed(colors, Shard(rank, 2, accumulate=2)) for rank in range(2)]
    for number, batch in enumerate(whole):
        parts = [split[rank][2 * number + micro] for micro in range(2) for rank in range(2)]
        for key in ("frame", "label", "other_label", "label_weight"):
            assert torch.equal(torch.cat([part[key] for part in parts]), batch[key]), key
    for batch, again in zip(whole, _streamed(colors, Shard(), workers=2), strict=True):
        assert torch.equal(batch["frame"], again["frame"])


def test_a_pair_that_would_be_divided_is_refused(colors: DataConfig) -> None:
    with pytest.raises(ValueError, match=r"a micro-batch has 1; let train\.stages batch_size be a multiple of 2 x"):
        _streamed(colors, Shard(processes=8))


@pytest.mark.parametrize("key", ["rand_augment", "erase", "mixup", "cutmix"])
def test_masks_and_flow_are_not_mixed(key: str) -> None:
    dataset = {"name": "mask_folder", "frames": "a", "masks": "b", "classes": ["x", "y"]}
    with pytest.raises(ConfigError, match=f"`augment.{key}` is for labeled images; mask_folder has other labels"):
        parse(DataConfig, {"dataset": dataset, "augment": {key: ALL[key]}})
