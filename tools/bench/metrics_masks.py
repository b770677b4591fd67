"""Measure metrics of masks for :mod:`tools.bench.metrics`: confusion matrices and DAVIS's J and F.

Each program's result is compared with mtsp's before it is timed. Class maps consist of cells with borders; 10 % of the
predicted pixels are wrong, and 5 % are ignored.
"""

import math
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, cast
from unittest import mock

import cv2
import numpy as np
import torch
from rich.table import Table
from segmentation_models_pytorch.metrics import get_stats

from mtsp.metrics import ConfusionMatrix, confusion, region_and_boundary
from mtsp.metrics import region_boundary as boundary
from tools.bench.timing import Program, compared, medians

CLASSES, IGNORE = 60, 255


def tables(rounds: int, quick: bool, threads: int) -> list[Table]:
    """Measure confusion matrices of labels and of scores, and J and F of two kinds of masks; `quick`: small arrays."""
    cv2.setNumThreads(threads)
    rng = np.random.default_rng(0)
    side, images = (96, 4) if quick else (480, 16)
    frames, height, width = (4, 120, 214) if quick else (80, 480, 854)
    return [
        labels_table(rng, images, side, rounds),
        scores_table(rng, 2 if quick else 4, side, rounds),
        davis_table("one object", moving_object(frames, height, width), rounds, ("20x", "8x")),
        davis_table("ragged masks", ragged(rng, frames // 2, height, width), rounds, ("15x", "5x")),
    ]


def labels_table(rng: np.random.Generator, images: int, side: int, rounds: int) -> Table:
    """Time confusion matrices of predicted labels, BHW int64 and uint8."""
    truth = class_maps(rng, images, side)
    prediction = np.where(rng.random(truth.shape) < 0.1, rng.integers(0, CLASSES, truth.shape), truth)
    truth[rng.random(truth.shape) < 0.05] = IGNORE
    small, small_truth = prediction.astype(np.uint8), truth.astype(np.uint8)
    ours, theirs = torch.from_numpy(prediction), torch.from_numpy(truth)
    whole = ConfusionMatrix(CLASSES)
    stats = partial(get_stats, mode="multiclass", ignore_index=IGNORE, num_classes=CLASSES)
    programs: dict[str, Program] = {
        "mtsp, int64": lambda: confusion(prediction, truth, CLASSES),
        "mtsp, uint8": lambda: confusion(small, small_truth, CLASSES),
        "mtsp ConfusionMatrix.update, uint8": lambda: whole.update(small, small_truth),
        "one read, int64": lambda: (ours.sum(), theirs.sum()),
        "numpy bincount, int64": lambda: by_bincount(prediction, truth),
        "numpy bincount, uint8": lambda: by_bincount(small, small_truth),
        "torch bincount, int64": lambda: by_torch_bincount(ours, theirs),
        "smp get_stats, int64": lambda: stats(cast(Any, ours), cast(Any, theirs)),
    }
    targets = {"numpy bincount, int64": "5x", "numpy bincount, uint8": "10x"}
    against = {name: "mtsp, uint8" for name in programs if name.endswith("uint8")}
    installed = find_spec("torchmetrics") is not None
    if installed:
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        for name, check in (("defaults", True), ("validate_args=False", False)):
            programs[f"torchmetrics, {name}, int64"] = lambda check=check: multiclass_confusion_matrix(
                ours, theirs, CLASSES, ignore_index=IGNORE, validate_args=check
            )
        targets["torchmetrics, defaults, int64"] = "30x"
    expected = confusion(prediction, truth, CLASSES)[:, :CLASSES]
    for name, program in programs.items():
        if "bincount" in name or "torchmetrics" in name:
            np.testing.assert_array_equal(np.asarray(program()), expected, err_msg=name)
    title = f"Confusion counts of {images} x {side} x {side} labels, {CLASSES} classes"
    missing = [] if installed else ["torchmetrics"]
    return compared(title, medians(programs, rounds), "mtsp, int64", targets, against, missing)


def scores_table(rng: np.random.Generator, images: int, side: int, rounds: int) -> Table:
    """Time confusion matrices of class scores, BKHW float32, bfloat16 and channels_last."""
    truth = class_maps(rng, images, side).astype(np.uint8)
    scores = torch.from_numpy(rng.normal(size=(images, CLASSES, side, side)).astype(np.float32))
    half, last = scores.bfloat16(), scores.contiguous(memory_format=torch.channels_last)
    programs: dict[str, Program] = {
        "mtsp": lambda: confusion(scores, truth, CLASSES),
        "mtsp, bfloat16": lambda: confusion(half, truth, CLASSES),
        "mtsp, channels_last": lambda: confusion(last, truth, CLASSES),
        "one read": lambda: scores.sum(),
        "one read, bfloat16": lambda: half.sum(),
        "argmax, numpy bincount": lambda: by_bincount(scores.argmax(1).numpy(), truth),
        "max, numpy bincount": lambda: by_bincount(scores.max(1).indices.numpy(), truth),
        "max, numpy bincount, channels_last": lambda: by_bincount(last.max(1).indices.numpy(), truth),
    }
    expected = confusion(scores, truth, CLASSES)[:, :CLASSES]
    np.testing.assert_array_equal(programs["argmax, numpy bincount"](), expected)
    targets = {"argmax, numpy bincount": "10x", "one read": "1/1.7"}
    against = {"one read, bfloat16": "mtsp, bfloat16", "max, numpy bincount, channels_last": "mtsp, channels_last"}
    title = f"Confusion counts of {images} x {CLASSES} x {side} x {side} class scores"
    return compared(title, medians(programs, rounds), "mtsp", targets, against)


def davis_table(
    what: str, masks: tuple[np.ndarray, np.ndarray], rounds: int, targets: tuple[str, str], bound: float = 0.008
) -> Table:
    """Time J and F of the frames of a video, NHW bool."""
    pairs = list(zip(*masks, strict=True))
    peer, plain = "official 2017 formulation", "mtsp without numba"
    programs: dict[str, Program] = {
        "mtsp": lambda: [region_and_boundary(*pair, bound) for pair in pairs],
        plain: lambda: without_numba(programs["mtsp"]),
        peer: lambda: [official(*pair, bound) for pair in pairs],
        "one read": lambda: [mask.any() for mask in (masks[0].view(np.uint8) == 2, masks[1].view(np.uint8) == 2)],
    }
    expected = programs["mtsp"]()
    for name in (plain, peer):
        assert programs[name]() == expected, name
    seconds = medians(programs, rounds)
    title = "J and F of {} frames of {} x {}, ".format(*masks[0].shape) + what
    drawn = compared(title, seconds, "mtsp", {peer: f"{targets[0]} ({targets[1]} without numba)"})
    drawn.caption = f"official over mtsp without numba: {seconds[peer] / seconds[plain]:.1f}x, target {targets[1]}"
    return drawn


def by_bincount(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return a K x K confusion matrix in the usual way: `bincount` of one index for each known pixel."""
    known = truth < CLASSES
    cells = CLASSES * truth[known].astype(int) + prediction[known]
    return np.bincount(cells, minlength=CLASSES**2).reshape(CLASSES, CLASSES)


def by_torch_bincount(prediction: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return the same as :func:`by_bincount`, computed in torch."""
    known = truth < CLASSES
    return torch.bincount(CLASSES * truth[known] + prediction[known], minlength=CLASSES**2).reshape(CLASSES, CLASSES)


def official(prediction: np.ndarray, truth: np.ndarray, bound: float) -> tuple[float, float]:
    """Return J and F of HW bool masks with the operations of the official 2017 code: whole images, `cv2.dilate`."""
    shared, either = np.sum(prediction & truth), np.sum(prediction | truth)
    region = float(shared / either) if either else 1.0
    radius = math.ceil(bound * np.linalg.norm(truth.shape))
    ys, xs = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = (ys**2 + xs**2 <= radius**2).astype(np.uint8)
    ours, theirs = official_edges(prediction), official_edges(truth)
    near_ours, near_theirs = (cv2.dilate(edges.astype(np.uint8), disk) for edges in (ours, theirs))
    matched, found = theirs * near_ours, ours * near_theirs
    our_count, their_count = np.sum(ours), np.sum(theirs)
    if not our_count or not their_count:
        return region, float(our_count == their_count)
    precision, recall = np.sum(found) / float(our_count), np.sum(matched) / float(their_count)
    return region, float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def official_edges(mask: np.ndarray) -> np.ndarray:
    """Return where a pixel differs from its right, lower or lower-right neighbor, using one shifted image for each."""
    right, below, across = np.zeros_like(mask), np.zeros_like(mask), np.zeros_like(mask)
    right[:, :-1], below[:-1], across[:-1, :-1] = mask[:, 1:], mask[1:], mask[1:, 1:]
    edges = mask ^ right | mask ^ below | mask ^ across
    edges[-1], edges[:, -1] = mask[-1] ^ right[-1], mask[:, -1] ^ below[:, -1]
    edges[-1, -1] = False
    return edges


def without_numba(program: Callable[[], Any]) -> Any:
    """Return the result of `program` when numba is not available."""
    with mock.patch.object(boundary, "_kernel", return_value=None):
        return program()


def class_maps(rng: np.random.Generator, images: int, side: int) -> np.ndarray:
    """Return BHW int64 class maps: cells around random points, each cell of one class."""
    maps = np.empty((images, side, side), np.int64)
    ys, xs = np.mgrid[:side, :side]
    for map_ in maps:
        points = rng.integers(0, side, (40, 2))
        distances = [(ys - y) ** 2 + (xs - x) ** 2 for y, x in points]
        map_[:] = rng.integers(0, CLASSES, 40)[np.argmin(distances, axis=0)]
    return maps


def moving_object(frames: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return predictions and truths, NHW bool: a blob that wobbles across the image, predicted 5 pixels off."""
    ys, xs = np.mgrid[:height, :width]
    truths = np.empty((frames, height, width), np.bool_)
    for i, mask in enumerate(truths):
        y, x = ys - height * (0.5 + 0.1 * math.sin(i / 9)), xs - width * (0.3 + 0.4 * i / frames)
        turn = np.arctan2(y, x)
        mask[:] = np.hypot(y, x) < height * (0.2 + 0.03 * np.sin(5 * turn + i / 5) + 0.02 * np.sin(11 * turn - i / 3))
    return np.roll(truths, (3, -4), (1, 2)), truths


def ragged(rng: np.random.Generator, frames: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return predictions and truths, NHW bool: smooth noise cut in half, with boundaries all over the image."""
    noise = rng.normal(size=(frames, height, width)).astype(np.float32)
    truths = np.stack([cv2.GaussianBlur(image, (0, 0), 4) > 0 for image in noise])
    return np.roll(truths, (3, -4), (1, 2)), truths
