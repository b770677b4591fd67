"""Verify a data set: read every file and report missing or damaged ones, wrong sizes, values and counts."""

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from pydantic import ValidationError

from data.catalog.datasets import DATASETS, Row
from data.types import DataError, DatasetConfig, SampleDataset
from mtsp.types import IGNORE, Sample


class Report(NamedTuple):
    """Result of :func:`verify`."""

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
    """Read all of a data set through its own class, and return its counts and problems.

    A split with missing files is not read, and is one problem that names the first ten of them. Raises ValueError if
    `settings` do not fit the config, or `workers` is below 1.

    Args:
        name: a key of :data:`data.catalog.datasets.DATASETS` that has `splits`.
        root: the `root` of its config.
        published: compare the counts with the published ones; False for a part of a data set.
        workers: number of reading processes; 1: this process reads.
        progress: called with (examples read, examples in all).
        settings: other values of its config, for example `resolution` of DAVIS.
    """
    if workers < 1:
        raise ValueError(f"at least one process must read, got workers={workers}")
    row = DATASETS[name]
    counts: dict[str, int] = {}
    problems: list[str] = []
    tasks: list[tuple[DatasetConfig, int]] = []
    for split in row.splits:
        try:
            config = row.config(**{"name": name, "root": root, "split": split, **row.settings, **settings})
            dataset = config.build()
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        except DataError as error:
            counts[split] = 0
            problems.append(f"{split}: {error}")
            continue
        counts[split] = len(dataset)
        tasks += [(config, index) for index in range(len(dataset))]
        if published:
            problems += _miscounted(row, split, dataset)
        if row.kind == "pairs":
            problems += _unexplained(split, dataset)
    for done, found in enumerate(_read_all(tasks, workers), start=1):
        problems += found
        if progress is not None:
            progress(done, len(tasks))
    return Report(counts, problems)


def find_faults(sample: Sample, classes: int | None = None) -> list[str]:
    """Return what is wrong with one decoded example; `classes` of its mask, beside IGNORE, are None if unknown."""
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
        elif (share := _far_share(sample["flow"], sample.get("flow_valid"))) > 0.5:
            faults.append(f"{100 * share:.0f} % of the flow is longer than the frame's diagonal")
        if "flow_valid" in sample and not sample["flow_valid"].any():
            faults.append("the flow is known nowhere")
    return faults


PAIRS = 20
"""So many pairs of a split, evenly spaced, are warped by their flow."""


def _unexplained(split: str, dataset: SampleDataset) -> Iterator[str]:
    """Yield a line if the flow of most pairs explains their frames worse than none, and perhaps the reverse one well.

    A pair is looked at where its flow is known and longer than a pixel: the next frame, read where the flow leads, is
    to differ less from the frame than the next frame as it is.
    """
    count = min(len(dataset), PAIRS)
    worse: list[str] = []
    looked = swapped = 0
    for index in (i * len(dataset) // count for i in range(count)):
        try:
            sample = dataset[index]
        except DataError:  # reported when all are read
            continue
        if (errors := warping_errors(sample)) is not None:
            looked += 1
            still, there, back = errors
            if there > still:
                worse.append(sample["name"])
                swapped += back < still
    if len(worse) > looked / 2:
        hint = ": it explains the reverse direction; are the frames swapped?" if swapped > len(worse) / 2 else ""
        yield (
            f"{split}: the flow does not explain the frames in {len(worse)} of {looked} pairs looked at, as "
            f"{worse[0]}{hint}"
        )


def warping_errors(sample: Sample) -> tuple[float, float, float] | None:
    """Return how much the frames of a pair differ: as they are, warped by the flow, and with the frames swapped.

    The differences are medians over pixels whose flow is known and longer than a pixel, and leads into the image; None
    if there are fewer than 100.
    """
    if "flow" not in sample or "next_frame" not in sample:
        return None
    flow = sample["flow"]
    height, width = flow.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    to_x, to_y = x + flow[..., 0], y + flow[..., 1]
    counts = (np.hypot(flow[..., 0], flow[..., 1]) > 1) & (to_x >= 0) & (to_x < width) & (to_y >= 0) & (to_y < height)
    if "flow_valid" in sample:
        counts &= sample["flow_valid"]
    if counts.sum() < 100:
        return None
    frame, following = sample["frame"], sample["next_frame"]
    to_x, to_y = to_x.astype(np.float32), to_y.astype(np.float32)

    def difference(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.median(np.abs(one[counts].astype(np.float32) - other[counts]).mean(axis=1)))

    warped, reverse = (cv2.remap(image, to_x, to_y, cv2.INTER_LINEAR) for image in (following, frame))
    return difference(frame, following), difference(frame, warped), difference(following, reverse)


def _far_share(flow: np.ndarray, valid: np.ndarray | None) -> float:
    lengths = np.hypot(flow[..., 0], flow[..., 1])
    lengths = lengths if valid is None else lengths[valid]
    return float((lengths > np.hypot(*flow.shape[:2])).mean()) if lengths.size else 0.0


def _miscounted(row: Row, split: str, dataset: SampleDataset) -> Iterator[str]:
    """Yield a line for each count of a split that differs from the published one."""
    expected, sequences = row.splits[split], row.sequences.get(split)
    if sequences is not None:
        found = Counter(example.rpartition("/")[0] for example in dataset.ids)
        for sequence in sorted(found.keys() | sequences.keys()):
            have, published = found.get(sequence, 0), sequences.get(sequence, 0)
            if have != published:
                yield f"{split}: {sequence} has {have} frames, published are {published}"
    elif expected is not None and len(dataset) != expected:
        yield f"{split}: {len(dataset):,} examples, published are {expected:,}"
    if row.classes is not None and (classes := len(getattr(dataset, "classes", ()))) != row.classes:
        yield f"{split}: {classes:,} classes, published are {row.classes:,}"


_datasets: dict[DatasetConfig, SampleDataset] = {}  # built in this process, so that each lists its files once


def _read(task: tuple[DatasetConfig, int]) -> list[str]:
    """Return the problems of one example."""
    config, index = task
    if config not in _datasets:
        _datasets[config] = config.build()
    try:
        sample = _datasets[config][index]
    except DataError as error:
        return [str(error)]
    return [f"{sample['name']}: {fault}" for fault in find_faults(sample, 2 if config.kind == "video" else None)]


def _read_all(tasks: list[tuple[DatasetConfig, int]], workers: int) -> Iterator[list[str]]:
    _datasets.clear()  # the disk may have changed since the last call
    if workers == 1:
        yield from map(_read, tasks)
        return
    # spawn: a child forked from a process with threads (rich's bar, OpenCV's pool) may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,))
    try:
        yield from pool.map(_read, tasks, chunksize=16)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
