"""Read every file of a data set and list what is wrong: missing, damaged, odd in size or value, or another number of
them than was published.
"""

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from pydantic import ValidationError

from data.classification.datasets import PUBLISHED as LABELED
from data.classification.datasets import miscounted_classes
from data.files.images import DataError
from data.files.listing import SampleDataset
from data.flow.flying_chairs import FlyingChairsConfig
from data.flow.kitti import KittiConfig
from data.flow.middlebury import MiddleburyConfig
from data.flow.scene_flow import DrivingConfig, FlyingThingsConfig, MonkaaConfig
from data.flow.sintel import SintelConfig
from data.segmentation.mask_images import Ade20kConfig, CamVidConfig, CityscapesConfig, PascalVocConfig
from data.segmentation.pascal_context import PUBLISHED, PascalContextConfig
from data.video.davis import DavisConfig
from mtsp.config import Config
from mtsp.types import IGNORE, Sample


class Known(NamedTuple):
    """A data set that can be verified: how to read all of it, and the published number of examples of each split."""

    config: type[Config]
    splits: dict[str, int | None]  # None: the releases state no number that could be confirmed
    settings: dict[str, Any]


_BOTH = {"cameras": ("left", "right")}
DATASETS: dict[str, Known] = {
    "davis": Known(DavisConfig, {"train": 2079, "val": 1376}, {"next_frame": False}),
    "flying_chairs": Known(FlyingChairsConfig, {"train": 22232, "val": 640}, {}),
    "monkaa": Known(MonkaaConfig, {"train": None, "val": None}, _BOTH),
    "driving": Known(DrivingConfig, {"train": None, "val": None}, _BOTH),
    "flying_things": Known(FlyingThingsConfig, {"train": None, "val": None}, _BOTH),
    "sintel": Known(SintelConfig, {"all": 2 * 1041}, {}),  # clean and final
    "kitti": Known(KittiConfig, {"all": 200}, {}),
    "middlebury": Known(MiddleburyConfig, {"val": 8}, {}),
    "pascal_context": Known(PascalContextConfig, {**PUBLISHED}, {}),
    "pascal_voc": Known(PascalVocConfig, {"train": 1464, "val": 1449}, {}),
    "ade20k": Known(Ade20kConfig, {"train": 20210, "val": 2000}, {}),
    "cityscapes": Known(CityscapesConfig, {"train": 2975, "val": 500}, {}),
    "camvid": Known(CamVidConfig, {"train": 367, "val": 101, "test": 233}, {}),
    **{name: Known(published.config, {**published.splits}, {}) for name, published in LABELED.items()},
}

_DAVIS_TRAIN = (
    "bear 82 bmx-bumps 90 boat 75 breakdance-flare 71 bus 80 car-turn 80 dance-jump 60 dog-agility 25 drift-turn 64 "
    "elephant 80 flamingo 80 hike 80 hockey 75 horsejump-low 60 kite-walk 80 lucia 70 mallard-fly 70 mallard-water 80 "
    "motocross-bumps 60 motorbike 43 paragliding 70 rhino 90 rollerblade 35 scooter-gray 75 soccerball 48 stroller 91 "
    "surf 55 swing 60 tennis 70 train 80"
)
_DAVIS_VAL = (
    "blackswan 50 bmx-trees 80 breakdance 84 camel 90 car-roundabout 75 car-shadow 40 cows 104 dance-twirl 90 dog 60 "
    "drift-chicane 52 drift-straight 50 goat 90 horsejump-high 50 kite-surf 50 libby 49 motocross-jump 40 "
    "paragliding-launch 80 parkour 100 scooter-black 43 soapbox 99"
)


def _table(text: str) -> dict[str, int]:
    words = text.split()
    return {name: int(count) for name, count in zip(words[::2], words[1::2], strict=True)}


DAVIS_FRAMES = {"train": _table(_DAVIS_TRAIN), "val": _table(_DAVIS_VAL)}
"""Frames of each of the 50 sequences of DAVIS 2016: the challenge site's and the 2017 db_info.yaml's, which agree."""


class Report(NamedTuple):
    """What was found."""

    counts: dict[str, int]  # examples of each split
    problems: list[str]  # a line each, with the file or the name of the example


def verify(
    name: str,
    root: Path,
    *,
    published: bool = True,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Report:
    """Read all of the data set `name` at `root` through its own class, and return what is wrong with it.

    A split whose files are not all there counts as one problem, with the first ten of them, and is not read.

    Args:
        name: a key of :data:`DATASETS`.
        root: as `root` of its config.
        published: compare the number of examples, for DAVIS of each sequence, with the published ones.
        workers: processes that read; 1 reads in this one.
        progress: called with (examples read, examples in all).
        settings: other values of its config, such as DAVIS's `resolution`.

    Raises:
        ValueError: `settings` do not fit its config, or `workers` is below 1.
    """
    if workers < 1:
        raise ValueError(f"at least one process must read, got workers={workers}")
    known = DATASETS[name]
    counts: dict[str, int] = {}
    problems: list[str] = []
    tasks: list[tuple[Config, int]] = []
    for split, expected in known.splits.items():
        config = _config(known, {"name": name, "root": root, "split": split, **known.settings, **settings})
        try:
            dataset = _build(config)
        except DataError as error:
            counts[split] = 0
            problems.append(f"{split}: {error}")
            continue
        counts[split] = len(dataset)
        tasks += [(config, index) for index in range(len(dataset))]
        if published:
            problems += [*_miscounted(name, split, dataset, expected), *miscounted_classes(name, split, dataset)]
    for done, found in enumerate(_read_all(tasks, workers), start=1):
        problems += found
        if progress is not None:
            progress(done, len(tasks))
    return Report(counts, problems)


def find_faults(sample: Sample, classes: int | None = None) -> list[str]:
    """Return what is wrong with one decoded example, each in a few words; nothing if it is as `Sample` says.

    Args:
        sample: decoded.
        classes: the mask's ids are 0 to `classes` - 1, or IGNORE; None: any.
    """
    size = sample["frame"].shape[:2]
    faults = [
        f"{key} is {'x'.join(map(str, value.shape[:2]))}, the frame {'x'.join(map(str, size))}"
        for key, value in sample.items()
        if isinstance(value, np.ndarray) and value.shape[:2] != size
    ]
    if "mask" in sample and classes is not None:
        ids = np.flatnonzero(np.bincount(sample["mask"].reshape(-1), minlength=256))
        if wrong := [int(i) for i in ids if i >= classes and i != IGNORE]:
            faults.append(f"the mask has ids {wrong}, there are {classes} classes")
    if "flow" in sample:
        if not np.isfinite(sample["flow"]).all():
            faults.append("the flow is NaN or infinite somewhere")
        if "flow_valid" in sample and not sample["flow_valid"].any():
            faults.append("the flow is known nowhere")
    return faults


def _config(known: Known, values: dict[str, Any]) -> Config:
    try:
        return known.config(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{values['name']}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _build(config: Any) -> SampleDataset:
    return config.build()  # every member of DATASETS has it


def _miscounted(name: str, split: str, dataset: SampleDataset, expected: int | None) -> Iterator[str]:
    if name == "davis":
        found = Counter(example.rpartition("/")[0] for example in dataset.ids)
        for sequence in sorted(found.keys() | DAVIS_FRAMES[split].keys()):
            have, published = found.get(sequence, 0), DAVIS_FRAMES[split].get(sequence, 0)
            if have != published:
                yield f"{split}: {sequence} has {have} frames, published are {published}"
    elif expected is not None and len(dataset) != expected:
        yield f"{split}: {len(dataset):,} examples, published are {expected:,}"


_datasets: dict[Config, SampleDataset] = {}  # of this process, each listed from disk once


def _read(task: tuple[Config, int]) -> list[str]:
    """Return the problems of one example."""
    config, index = task
    if config not in _datasets:
        _datasets[config] = _build(config)
    dataset = _datasets[config]
    try:
        sample = dataset[index]
    except DataError as error:
        return [str(error)]
    return [
        f"{sample['name']}: {fault}" for fault in find_faults(sample, 2 if isinstance(config, DavisConfig) else None)
    ]


def _read_all(tasks: list[tuple[Config, int]], workers: int) -> Iterator[list[str]]:
    _datasets.clear()  # the disk may have changed since the last call
    if workers == 1:
        yield from map(_read, tasks)
        return
    # spawn: a forked child of a process with threads (rich's bar, OpenCV's pool) may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,))
    try:
        yield from pool.map(_read, tasks, chunksize=16)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
