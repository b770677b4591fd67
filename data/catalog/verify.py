"""Verify a data set: read every file and report missing or damaged files, wrong sizes, values and numbers."""

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from pydantic import ValidationError

from data.catalog.datasets import DATASETS, Row
from data.types import DataError, DatasetConfig, SampleDataset
from mtsp.indices import evenly_spaced
from mtsp.text import first_names
from mtsp.types import IGNORE, Sample


class ClassCounts(NamedTuple):
    """Number of pixels or images of each class in a split or entry."""

    names: tuple[str, ...]
    examples: list[int]  # number of examples of each class, or with a pixel of it
    pixels: list[int]  # number of pixels of each class; empty for labels of whole images


class Report(NamedTuple):
    """Result of :func:`verify`."""

    counts: dict[str, int]  # number of examples of each split or entry
    problems: list[str]  # one line per problem, with the file or the name of the example
    classes: dict[str, ClassCounts]  # of each split or entry that has classes


def verify(
    name: str,
    root: Path,
    *,
    published: bool = True,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Report:
    """Read a whole data set with its own class; return the numbers of examples and the problems.

    A split with missing files is not read; it is reported as one problem that names the first ten missing files.
    Raises ValueError if `settings` do not fit the config, or `workers` is below 1.

    Args:
        name: a key of :data:`data.catalog.datasets.DATASETS` that has `splits`.
        root: the `root` of the data set's config.
        published: compare the numbers with the published ones; use False for a partial data set.
        workers: number of processes that read; 1: read in this process.
        progress: called with (number of examples read, total number of examples).
        settings: other values of the data set's config, for example `resolution` of DAVIS.
    """
    row = DATASETS[name]
    try:
        entries = {
            split: row.config(**{"name": name, "root": root, "split": split, **row.settings, **settings})
            for split in row.splits
        }
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    return verify_entries(entries, row=row if published else None, workers=workers, progress=progress)


def verify_entries(
    entries: Mapping[str, DatasetConfig],
    *,
    row: Row | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Read all examples of several data sets; return their numbers, the problems, and how often each class occurs.

    Args:
        entries: configs of the data sets, by names for the report.
        row: published numbers to compare with, where `entries` are the splits of a published data set.
        workers: number of processes that read; 1: read in this process.
        progress: called with (number of examples read, total number of examples).
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    counts: dict[str, int] = {}
    problems: list[str] = []
    tasks: list[tuple[DatasetConfig, int]] = []
    owners: list[str] = []
    names: dict[str, tuple[str, ...]] = {}
    for entry, config in entries.items():
        try:
            dataset = config.build()
        except DataError as error:
            counts[entry] = 0
            problems.append(f"{entry}: {error}")
            continue
        counts[entry] = len(dataset)
        tasks += [(config, index) for index in range(len(dataset))]
        owners += [entry] * len(dataset)
        names[entry] = _class_names(config, dataset)
        if row is not None:
            problems += _miscounted(row, entry, dataset)
        if config.kind == "pairs":
            problems += _unexplained(entry, dataset)
    pixels = {entry: np.zeros((2, len(classes)), np.int64) for entry, classes in names.items()}
    for done, (owner, (found, seen)) in enumerate(zip(owners, _read_all(tasks, workers), strict=True), start=1):
        problems += found
        if len(seen) == len(names[owner]):
            pixels[owner] += [seen > 0, seen]
        if progress is not None:
            progress(done, len(tasks))
    classes = {
        entry: ClassCounts(
            names[entry], table[0].tolist(), [] if entries[entry].kind == "labeled" else table[1].tolist()
        )
        for entry, table in pixels.items()
        if names[entry]
    }
    return Report(counts, problems, classes)


def _class_names(config: DatasetConfig, dataset: SampleDataset) -> tuple[str, ...]:
    if config.kind == "video" and getattr(config, "masks", "") is not None:
        return ("background", "object")
    return tuple(getattr(dataset, "classes", ()))


def find_faults(sample: Sample, classes: int | None = None) -> list[str]:
    """Return the faults of one decoded example, one line each.

    Args:
        sample: the example.
        classes: number of classes of its mask, without IGNORE; None if unknown.
    """
    size = sample["frame"].shape[:2]
    faults = [
        f"{key} is {'x'.join(map(str, value.shape[:2]))}, but the frame is {'x'.join(map(str, size))}"
        for key, value in sample.items()
        if isinstance(value, np.ndarray) and value.shape[:2] != size
    ]
    if "mask" in sample and classes is not None:
        ids = np.flatnonzero(np.bincount(sample["mask"].reshape(-1), minlength=256))
        if wrong := [int(i) for i in ids if i >= classes and i != IGNORE]:
            faults.append(f"the mask has ids {wrong}, but there are only {classes} classes")
    if "flow" in sample:
        if not np.isfinite(sample["flow"]).all():
            faults.append("the flow is NaN or infinite somewhere")
        elif (share := _far_share(sample["flow"], sample.get("flow_valid"))) > 0.5:
            faults.append(f"{100 * share:.0f} % of the flow is longer than the frame's diagonal")
        if "flow_valid" in sample and not sample["flow_valid"].any():
            faults.append("the flow is known nowhere")
    return faults


PAIRS = 20
"""Number of evenly spaced pairs of a split that are warped by their flow."""


_READINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "swapped dx and dy": lambda flow: flow[..., ::-1],
    "the opposite sign of dx": lambda flow: flow * (-1, 1),
    "the opposite sign of dy": lambda flow: flow * (1, -1),
    "the opposite sign: it may lead from the next frame to this one, or the frames are swapped": lambda flow: -flow,
    "half its length": lambda flow: flow / 2,
    "twice its length": lambda flow: flow * 2,
    "a twentieth of its length": lambda flow: flow / 20,
    "20 times its length": lambda flow: flow * 20,
    "its units as widths and heights of the image": lambda flow: flow * (flow.shape[1], flow.shape[0]),
    "its units as half widths and heights of the image": lambda flow: flow * (flow.shape[1] / 2, flow.shape[0] / 2),
    "its columns in reverse order": lambda flow: flow[:, ::-1],
    "its rows in reverse order": lambda flow: flow[::-1],
}
"""Other meanings that stored flow may have, each with a function that returns the flow in pixels from it."""

BETTER = 0.8
"""A reading explains a pair better than its flow if the frames then differ by less than this share."""


def _unexplained(split: str, dataset: SampleDataset) -> Iterator[str]:
    """Yield the problems of a split's flow, after warping some pairs by it.

    There is a line for each other reading of the flow that explains pairs better, one for pairs that no reading
    explains, and one if the flow of all pairs is zero.
    """
    found: dict[str, list[str]] = {}
    looked, moving, known = 0, 0, 0
    for index in evenly_spaced(len(dataset), PAIRS):
        try:
            sample = dataset[index]
        except DataError:  # reported when all examples are read
            continue
        if "flow" in sample and (valid := sample.get("flow_valid", np.True_)).any():
            known += 1
            moving += bool((sample["flow"].any(-1) & valid).any())
        if "flow" in sample and _far_share(sample["flow"], sample.get("flow_valid")) > 0.5:  # reported, too
            continue
        if (errors := warping_errors(sample)) is not None:
            looked += 1
            best = min(_READINGS, key=errors.__getitem__)
            if errors[best] < BETTER * min(errors["given"], errors["zero"]):
                found.setdefault(f"with {best}, the flow explains the frames better", []).append(sample["name"])
            elif errors["given"] > errors["zero"]:
                found.setdefault("the flow does not explain the frames", []).append(sample["name"])
    if known and not moving:
        yield f"{split}: the flow of all {known} pairs checked is zero"
    for what, names in found.items():
        yield f"{split}: {what} in {len(names)} of {looked} pairs checked: {first_names(names)}"


def warping_errors(sample: Sample) -> dict[str, float] | None:
    """Return the mean difference between a frame and the next frame, fetched along the flow, for readings of the flow.

    The keys are `given` (the flow as it is), `zero` (no flow) and those of `_READINGS`. Differences are over the pixels
    with known flow that differ between the frames; there are none where the flow is zero in a static image.
    Returns None if there are fewer than 100 such pixels.
    """
    if "flow" not in sample or "next_frame" not in sample:
        return None
    flow, frame = sample["flow"], sample["frame"].astype(np.float32)
    following = sample["next_frame"].astype(np.float32)
    height, width = flow.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    counts = sample.get("flow_valid", np.ones((height, width), bool)) & (np.abs(frame - following).mean(axis=2) > 1)
    if counts.sum() < 100:
        return None

    def difference(read: np.ndarray) -> float:
        to_x, to_y = x + read[..., 0].astype(np.float32), y + read[..., 1].astype(np.float32)
        warped = cv2.remap(following, to_x, to_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return float(np.abs(frame[counts] - warped[counts]).mean())

    readings = {"given": flow, "zero": 0 * flow} | {name: read(flow) for name, read in _READINGS.items()}
    return {name: difference(read) for name, read in readings.items()}


def _far_share(flow: np.ndarray, valid: np.ndarray | None) -> float:
    lengths = np.hypot(flow[..., 0], flow[..., 1])
    lengths = lengths if valid is None else lengths[valid]
    return float((lengths > np.hypot(*flow.shape[:2])).mean()) if lengths.size else 0.0


def _miscounted(row: Row, split: str, dataset: SampleDataset) -> Iterator[str]:
    """Yield a line for each number (of frames, examples, classes) in a split that differs from the published one."""
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


_datasets: dict[DatasetConfig, SampleDataset] = {}  # built once per process: listing files is slow


def _read(task: tuple[DatasetConfig, int]) -> tuple[list[str], np.ndarray]:
    """Return the problems of one example, and the number of pixels of each class, or 1 for the class of the image."""
    config, index = task
    if config not in _datasets:
        _datasets[config] = config.build()
    dataset = _datasets[config]
    classes = len(_class_names(config, dataset))
    seen = np.zeros(classes, np.int64)
    try:
        sample = dataset[index]
    except DataError as error:
        return [str(error)], seen
    if "mask" in sample and classes:
        seen = np.bincount(sample["mask"].reshape(-1), minlength=classes)[:classes]
    elif "label" in sample:
        seen[sample["label"]] = 1
    return [f"{sample['name']}: {fault}" for fault in find_faults(sample, classes or None)], seen


def _read_all(tasks: list[tuple[DatasetConfig, int]], workers: int) -> Iterator[tuple[list[str], np.ndarray]]:
    _datasets.clear()  # the disk may have changed since the last call
    if workers == 1:
        yield from map(_read, tasks)
        return
    # Use spawn: a child forked from a process with threads (rich's progress bar, OpenCV's pool) may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,))
    try:
        yield from pool.map(_read, tasks, chunksize=16)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
