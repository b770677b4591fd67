"""Compute the mean features of each class in one pass over the images."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from mtsp.batches import Failure, collate
from mtsp.files.read_ahead import read_ahead
from mtsp.transfer.centroids import Centroids
from mtsp.types import Batch, Examples

Features = Callable[[Tensor], Tensor]
"""Function from images (B3HW, RGB in [0, 1]) to features (BD, one vector per image)."""


def extract(
    features: Features,
    examples: Examples,
    classes: Sequence[str],
    kind: str,
    *,
    batch_size: int = 64,
    workers: int = 2,
    progress: Callable[[int], None] = lambda done: None,
    skipped: Callable[[str], None] | None = None,
) -> Centroids:
    """Return the mean features and the number of images of each class, summed in float64.

    Args:
        features: network without its last layer, in eval mode; called without gradients.
        examples: images of equal size, with labels.
        classes: class names in the order of the labels.
        kind: description of the features; see :class:`mtsp.transfer.centroids.Centroids`.
        batch_size: number of images per call of `features`.
        workers: number of threads that decode images.
        progress: called with the number of examples processed so far.
        skipped: called with the error message of each image that cannot be read and is skipped; None: raise the error.

    Raises:
        ValueError: an image cannot be read or has no label, features are not B x D, or a class has no images.
        FloatingPointError: features are not finite; the message names the image.
    """
    sums: Tensor | None = None  # C x D float64
    counts = torch.zeros(len(classes), dtype=torch.int64)
    done = 0
    progress(0)
    for samples in _batches(examples, batch_size, workers):
        for failure in (sample for sample in samples if isinstance(sample, Failure)):
            if skipped is None:
                raise ValueError(failure.message)
            skipped(failure.message)
        if batch := [sample for sample in samples if not isinstance(sample, Failure)]:
            vectors, labels = _vectors(features, collate(batch), len(classes))
            if sums is None:
                sums = torch.zeros(len(classes), vectors.shape[1], dtype=torch.float64)
            sums.index_add_(0, labels, vectors.double())
            counts += torch.bincount(labels, minlength=len(classes))
        done += len(samples)
        progress(done)
    if sums is None:
        raise ValueError(f"none of {len(examples)} images could be read")
    means = sums / counts.clamp(min=1)[:, None]
    return Centroids(tuple(classes), means.float().numpy(), counts.numpy(), kind)


def _batches(examples: Examples, size: int, workers: int) -> Iterator[list[Batch | Failure]]:
    """Yield the examples in order, `size` at a time, read two batches ahead."""

    def sample(index: int) -> Batch | Failure:
        try:
            return examples[index]
        except (ValueError, OSError) as error:
            return Failure(str(error))

    with closing(read_ahead(sample, range(len(examples)), threads=workers, ahead=2 * size)) as samples:
        while batch := list(islice(samples, size)):
            yield batch


@torch.no_grad()
def _vectors(features: Features, batch: Batch, classes: int) -> tuple[Tensor, Tensor]:
    """Return the features and labels of a batch, on the CPU."""
    if "label" not in batch:
        raise ValueError(f"{batch['name'][0]} has no class; class means need a data set of labeled images")
    labels = batch["label"]
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"labels from {int(labels.min())} to {int(labels.max())} do not match {classes} class names")
    vectors = features(batch["frame"]).float().cpu()
    if vectors.ndim != 2 or len(vectors) != len(labels):
        raise ValueError(
            f"features of shape {tuple(vectors.shape)} for {len(labels)} images; expected one row per image"
        )
    if not bool((finite := torch.isfinite(vectors).all(dim=1)).all()):
        raise FloatingPointError(f"the features of {batch['name'][int(np.argmin(finite.numpy()))]} are not finite")
    return vectors, labels
