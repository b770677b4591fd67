"""Mean features of each class, summed up as the images stream by; an interrupted run goes on where it stopped."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mtsp.batches import Failure, collate
from mtsp.files.atomic import write_atomically
from mtsp.files.read_ahead import read_ahead
from mtsp.transfer.centroids import Centroids
from mtsp.types import Batch, Examples

Features = Callable[[Tensor], Tensor]
"""B3HW, RGB in [0, 1] -> BD, one vector for each image."""


@dataclass
class _Sums:
    """What has been summed up: enough to go on."""

    counts: Tensor  # C int64
    features: Tensor | None = None  # C x D float64; None: nothing yet, so that D is not known
    done: int = 0  # examples, from the first on; the ones passed over too
    passed_over: dict[int, str] = field(default_factory=dict)  # those of `done` that could not be read, and why

    def add(self, features: Tensor, labels: Tensor) -> None:
        if self.features is None:
            self.features = torch.zeros(len(self.counts), features.shape[1], dtype=torch.float64)
        self.features.index_add_(0, labels, features.double())
        self.counts += torch.bincount(labels, minlength=len(self.counts))

    def save(self, path: Path) -> None:
        """Write what is worth going on from."""
        from safetensors.torch import save

        if self.features is None or not self.done:
            return
        tensors = {"features": self.features, "counts": self.counts, "done": torch.tensor(self.done)}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, save(tensors, {"passed_over": json.dumps(list(self.passed_over.items()))}))

    @classmethod
    def load(cls, path: Path) -> "_Sums":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                passed_over = dict(json.loads((file.metadata() or {}).get("passed_over", "[]")))
                found = cls(*(file.get_tensor(name) for name in ("counts", "features")), passed_over=passed_over)
                found.done = int(file.get_tensor("done"))
            if (told := int(found.counts.sum()) + len(passed_over)) != found.done:
                raise ValueError(f"it tells of {told} images and says {found.done}")
            return found
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it to extract from the first image again") from error


def extract(
    features: Features,
    examples: Examples,
    classes: Sequence[str],
    kind: str,
    *,
    partial: Path | None = None,
    batch_size: int = 64,
    threads: int = 2,
    save_every: float = 60.0,
    progress: Callable[[int], None] = lambda done: None,
    passed_over: Callable[[str], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Centroids:
    """Return the mean features and the number of images of each class.

    Sums are float64, whatever precision the features are computed in. A run that goes on gives bit for bit what one
    that was not interrupted gives.

    Args:
        features: a network without its last layer, in evaluation mode, and whatever autocast it wants. Called without
            gradients.
        examples: images of one size, with their labels.
        classes: their names, by label.
        kind: what the features are, see :class:`mtsp.transfer.Centroids`.
        partial: where the sums are kept from time to time, and on any stop; read if it is there, and removed in the
            end. It must be another file for other examples or features. None: nothing is kept.
        batch_size: images that go through `features` at once.
        threads: that decode images. Decoding leaves Python's lock, so they need not be processes.
        save_every: seconds between two writes of `partial`.
        progress: called with the number of examples done.
        passed_over: called with the reason for each image that cannot be read, which is then left out, and at once
            for those that were left out before the stop; None: it is an error. Sums without such images are then begun
            anew if they can be read by now, and stay as they are if not.
        stop: asked after each batch; if true, the sums are kept and KeyboardInterrupt is raised.

    Raises:
        ValueError: an image cannot be read or has no label, features that are not B x D, or a class without images.
        FloatingPointError: features that are not finite; the message names the image.
    """
    sums = _Sums(torch.zeros(len(classes), dtype=torch.int64))
    if partial is not None and partial.is_file():
        sums = _begun(_Sums.load(partial), examples, passed_over)
    progress(sums.done)
    saved = time.monotonic()
    try:
        for samples in _read(examples, sums.done, batch_size, threads):
            failures = _failures(samples, sums.done, passed_over)
            if batch := [sample for sample in samples if not isinstance(sample, Failure)]:
                sums.add(*_vectors(features, collate(batch), len(classes)))
            sums.passed_over |= failures
            sums.done += len(samples)
            progress(sums.done)
            if stop():
                raise KeyboardInterrupt
            if partial is not None and time.monotonic() - saved > save_every:
                sums.save(partial)
                saved = time.monotonic()
    except BaseException:
        if partial is not None:
            sums.save(partial)
        raise
    if sums.features is None:
        raise ValueError(f"none of {len(examples)} images could be read")
    means = sums.features / sums.counts.clamp(min=1)[:, None]
    centroids = Centroids(tuple(classes), means.float().numpy(), sums.counts.numpy(), kind)
    if partial is not None:
        partial.unlink(missing_ok=True)
    return centroids


def _begun(sums: _Sums, examples: Examples, passed_over: Callable[[str], None] | None) -> _Sums:
    """Return what to go on from: without `passed_over`, nothing that an image is missing from."""
    if not sums.passed_over:
        return sums
    if passed_over is None:
        for index in sums.passed_over:
            _failures([_sample(examples, index)], index, None)
        return _Sums(torch.zeros_like(sums.counts))
    for message in sums.passed_over.values():
        passed_over(message)
    return sums


def _read(examples: Examples, start: int, batch_size: int, threads: int) -> Iterator[list[Batch | Failure]]:
    """Yield the examples from `start` on, a batch at a time, read two batches ahead."""
    indices = range(start, len(examples))
    with closing(
        read_ahead(lambda index: _sample(examples, index), indices, threads=threads, ahead=2 * batch_size)
    ) as samples:
        while batch := list(islice(samples, batch_size)):
            yield batch


def _sample(examples: Examples, index: int) -> Batch | Failure:
    try:
        return examples[index]
    except (ValueError, OSError) as error:
        return Failure(str(error))


def _failures(samples: list[Batch | Failure], first: int, passed_over: Callable[[str], None] | None) -> dict[int, str]:
    """Return why samples could not be read, by index; `first` is that of the first sample."""
    failures = {index: sample.message for index, sample in enumerate(samples, first) if isinstance(sample, Failure)}
    for message in failures.values():
        if passed_over is None:
            raise ValueError(message)
        passed_over(message)
    return failures


@torch.no_grad()
def _vectors(features: Features, batch: Batch, classes: int) -> tuple[Tensor, Tensor]:
    """Return the features and labels of a batch, on the CPU."""
    if "label" not in batch:
        raise ValueError(f"{batch['name'][0]} has no class; class means need a data set of labeled images")
    labels = batch["label"]
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"labels from {int(labels.min())} to {int(labels.max())} among {classes} classes")
    vectors = features(batch["frame"]).float().cpu()
    if vectors.ndim != 2 or len(vectors) != len(labels):
        raise ValueError(
            f"features of shape {tuple(vectors.shape)} for {len(labels)} images; expected a vector of each"
        )
    if not bool((finite := torch.isfinite(vectors).all(dim=1)).all()):
        raise FloatingPointError(f"the features of {batch['name'][int(np.argmin(finite.numpy()))]} are not finite")
    return vectors, labels
