"""Checks made before a run starts: of its settings, and of a first look at a few samples of its data.

What would make every number wrong is said or refused.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mtsp.config import ConfigError
from mtsp.evaluation.classes import align, class_names
from mtsp.text import first_names
from mtsp.training.experiment import AnyExperiment
from mtsp.types import IGNORE, Batch, Examples

SAMPLES = 12
"""So many samples of each data entry, evenly spaced, are looked at, decoded as they are evaluated."""

_LOG = logging.getLogger("mtsp")


def align_classes(experiment: AnyExperiment, data: Mapping[str, Examples]) -> dict[str, Examples]:
    """Return the data entries with labels in the order of the classes that are learned, matched by name.

    Those are the classes of the first entry that is trained on. Others may lack some of them, or list them in another
    order.

    Raises:
        ConfigError: an entry has a class that is not learned, or the network predicts another number of classes.
    """
    wanted = getattr(experiment.model, "classes", None)
    if videos := [name for name, examples in data.items() if examples.kind == "video" and wanted not in (None, 2)]:
        raise ConfigError(
            f"data.{videos[0]} is a data set of videos, whose masks are object or background, but model.classes is "
            f"{wanted}; set model.classes=2, or score each class with data.{videos[0]}.dataset.kind=images"
        )
    trained = [name for stage in experiment.train.stages for name in stage.batch_size if name in data]
    first = next((name for name in [*trained, *data] if class_names(data[name])), None)
    if first is None:
        return dict(data)
    classes = class_names(data[first])
    if wanted is not None and len(classes) != wanted:
        raise ConfigError(
            f"model.classes is {wanted}, but data.{first} has {len(classes)} classes: {first_names(classes)}; set "
            f"model.classes={len(classes)}, or see whether its folder lacks classes"
        )
    for name, examples in data.items():
        if lacking := [other for other in classes if other not in class_names(examples) and class_names(examples)]:
            _LOG.info("data.%s lacks %d of %d classes: %s", name, len(lacking), len(classes), first_names(lacking))
    return {name: align(f"data.{name}", examples, classes, f"data.{first}") for name, examples in data.items()}


def require_whole_images(experiment: AnyExperiment, entries: Mapping[str, Any]) -> None:
    """Check that tta `multi_crop` gets whole images, not cropped or resized ones.

    Raises:
        ConfigError: an entry is resized. Ten crops of a crop are not the ten crops that papers report.
    """
    resized = [name for name, entry in entries.items() if entry.size is not None]
    if experiment.evaluation.tta.name == "multi_crop" and resized:
        raise ConfigError(
            f"evaluation.tta: crops are cut from whole images, but data.{resized[0]} is resized first; set "
            f"data.{resized[0]}.size=null data.{resized[0]}.crop_pct=null"
        )


def look(experiment: AnyExperiment, data: Mapping[str, Examples]) -> dict[str, dict[str, Any]]:
    """Look at the data entries of a run; warn once of each thing that is odd, and return their fingerprints.

    Returns:
        For each entry the number of its samples, and digests of their ids and of the looked-at sizes and labels: what
        a resumed run must find again.

    Raises:
        ConfigError: not one sample of an entry has a label that is known anywhere.
    """
    found = {}
    for name, examples in data.items():
        samples = [examples[i] for i in _spread(len(examples))]
        for line in oddities(samples):
            _LOG.warning("data.%s: %s", name, line)
        if unknown := _unknown(samples):
            _require_some_known(name, examples, unknown, len(samples))
        elif line := _known_pixels(samples):
            _LOG.info("data.%s: %s", name, line)
        found[name] = fingerprint(examples, samples)
    for line in settings_to_doubt(experiment, data):
        _LOG.warning("%s", line)
    return found


def fingerprint(examples: Examples, samples: list[Batch] | None = None) -> dict[str, Any]:
    """Return how many samples there are, and digests of their ids and of the sizes and labels of a few of them."""
    if samples is None:
        samples = [examples[i] for i in _spread(len(examples))]
    ids = hashlib.sha256("\n".join(getattr(examples, "ids", ())).encode())
    contents = hashlib.sha256()
    for batch in samples:
        for key, value in sorted(batch.items()):
            if isinstance(value, Tensor):
                contents.update(f"{key} {tuple(value.shape)}".encode())
                if key in ("mask", "label"):
                    contents.update(value.contiguous().numpy().tobytes())
    return {"samples": len(examples), "ids": ids.hexdigest(), "sizes and labels": contents.hexdigest()}


def other_data(now: Mapping[str, Mapping[str, Any]], then: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each entry that is not what it was when its fingerprint was taken."""
    lines = []
    for name in sorted(now.keys() & then.keys()):
        ours, theirs = now[name], then[name]
        if ours["samples"] != theirs["samples"]:
            lines.append(f"data.{name} has {ours['samples']:,} samples, and had {theirs['samples']:,}")
        else:
            odd = [key for key in theirs if ours.get(key) != theirs[key]]
            lines += [f"data.{name} has other {' and '.join(odd)} than it had"] if odd else []
    return lines


def oddities(samples: list[Batch]) -> list[str]:
    """Return what is odd about the looked-at samples of an entry, a line for each thing."""
    checks: dict[str, Callable[[Batch], bool]] = {
        "frames look like label maps: all gray, of few values; are images and masks mixed up?": _is_label_map,
        "flow is longer than the frame's diagonal almost everywhere; is the file of another unit or format?": _is_far,
    }
    lines = []
    for text, check in checks.items():
        if places := [batch["name"][0] for batch in samples if check(batch)]:
            lines.append(f"{text} ({len(places)} of {len(samples)} samples looked at, as {places[0]})")
    return lines


def settings_to_doubt(experiment: AnyExperiment, data: Mapping[str, Examples]) -> list[str]:
    """Return settings that a run can be started with and that hardly anybody means, a line each."""
    lines = []
    sizes: dict[str, int] = {}
    for stage in experiment.train.stages:
        for name, size in stage.batch_size.items():
            sizes[name] = max(size, sizes.get(name, 0))
    lines += [
        f"train.stages: a batch of {size} of data.{name}, which has {len(data[name])} samples: each comes several times"
        for name, size in sizes.items()
        if name in data and size > len(data[name])
    ]
    limit = 1.0 if experiment.optimizer.name == "sgd" else 0.1
    lines += [
        f"learning rate {rate:g} of {branch}: more than {limit:g} is hardly ever meant with {experiment.optimizer.name}"
        for branch, rate in experiment.learning_rates().items()
        if rate > limit
    ]
    if experiment.train.precision != "fp32" and not torch.cuda.is_available():
        lines.append(
            f"train.precision is {experiment.train.precision}, but there is no GPU here: this trains on the CPU, slowly"
        )
    return lines


def _spread(count: int) -> list[int]:
    wanted = min(count, SAMPLES)
    return [i * count // wanted for i in range(wanted)]


def _unknown(samples: list[Batch]) -> list[str]:
    return [batch["name"][0] for batch in samples if known_share(batch) == 0]


def known_share(batch: Batch) -> float | None:
    """Return the largest part of a label that is known, in [0, 1]; None if there is no label of pixels."""
    shares = []
    if "mask" in batch:
        shares.append(float((batch["mask"] != IGNORE).float().mean()))
    if "flow" in batch:
        valid = batch.get("flow_valid")
        shares.append(1.0 if valid is None else float(valid.float().mean()))
    return max(shares) if shares else None


def _require_some_known(name: str, examples: Examples, unknown: list[str], looked: int) -> None:
    if len(unknown) == looked and not any(known_share(examples[i]) for i in range(len(examples))):
        raise ConfigError(
            f"data.{name}: no label is known anywhere, in none of {len(examples):,} samples (as {unknown[0]}): nothing "
            "can be learned from it or measured on it"
        )
    _LOG.warning(
        "data.%s: %d of %d samples looked at have no known label at all and count for nothing, as %s",
        name, len(unknown), looked, unknown[0],
    )  # fmt: skip


def _known_pixels(samples: list[Batch]) -> str:
    masks = [batch["mask"] for batch in samples if "mask" in batch]
    total = sum(mask.numel() for mask in masks)
    known = sum(int((mask != IGNORE).sum()) for mask in masks)
    return f"{100 * known / total:.1f} % of the pixels of {len(masks)} masks looked at count" if known < total else ""


def _is_label_map(batch: Batch) -> bool:
    frame = batch["frame"]
    if not torch.equal(frame[0], frame[1]) or not torch.equal(frame[0], frame[2]):
        return False
    values = torch.unique((frame[0] * 255).round())
    return len(values) <= 32 and frame[0].numel() > 1000 and bool(len(values) > 1)


def _is_far(batch: Batch) -> bool:
    if "flow" not in batch:
        return False
    flow = batch["flow"]
    diagonal = (flow.shape[-2] ** 2 + flow.shape[-1] ** 2) ** 0.5
    valid = batch.get("flow_valid")
    lengths = flow.norm(dim=0)
    lengths = lengths if valid is None else lengths[valid]
    return bool(len(lengths)) and float((lengths > diagonal).float().mean()) > 0.9
