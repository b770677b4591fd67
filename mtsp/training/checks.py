"""Check the settings of a run, and a few samples of its data, before it starts.

Mistakes that would make all results wrong are reported as warnings or errors.
"""

import hashlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtsp.batches import evaluating, first_sample, without_computing
from mtsp.config import ConfigError
from mtsp.evaluation.classes import align, class_names
from mtsp.evaluation.tta import Tta
from mtsp.indices import evenly_spaced
from mtsp.text import first_names
from mtsp.training.experiment import AnyExperiment
from mtsp.types import IGNORE, Batch, Examples

SAMPLES = 12
"""Number of samples to check in each data entry, evenly spaced and decoded as for evaluation."""

_OTHER_SIZES = (224, 256, 299, 384, 512)
"""Sides of the square frames that are tried to find sizes that work."""

_LOG = logging.getLogger("mtsp")


def open_data(experiment: AnyExperiment, names: Collection[str], problems: Sequence[str] = ()) -> dict[str, Examples]:
    """Return data entries of the experiment after checking that their files exist.

    Nothing is decoded, so that all missing files are told at once, before anything that takes long.

    Args:
        experiment: the resolved config.
        names: names of the entries.
        problems: lines about other missing files, such as weights.

    Raises:
        ConfigError: files of any entry are missing, or there are `problems`: a line for each.
    """
    data: dict[str, Examples] = {}
    found = list(problems)
    for name in (name for name in experiment.data if name in names):
        try:
            data[name] = experiment.data[name].build()
        except (ValueError, OSError) as error:
            found.append(f"data.{name}: {error}")
    if found:
        raise ConfigError("\n".join(found))
    return data


def missing_fisher(experiment: AnyExperiment) -> list[str]:
    """Return a line if the regularizer's file of Fisher information is missing."""
    file = getattr(experiment.regularizer, "fisher", None)
    if file is None or Path(file).is_file():
        return []
    hint = f"write it with python tools/fisher.py --config THIS --out {file}"
    return [f"regularizer.fisher: no file {Path(file).absolute()}; {hint}"]


def with_classes(experiment: AnyExperiment, data: Mapping[str, Examples]) -> AnyExperiment:
    """Return the experiment with `model.classes` as many as the data that it trains on have, if it is null.

    Raises:
        ConfigError: these data have no classes.
    """
    if getattr(experiment.model, "classes", 0) is not None:
        return experiment
    trained = [data[name] for name in experiment.train.entries if name in data]
    classes = next((len(names) for one in trained if (names := class_names(one))), 0)
    if not classes and any(one.kind == "video" for one in trained):
        classes = 2
    if not classes:
        raise ConfigError("model.classes is null, but the data to train on have no classes; set their number")
    return experiment.model_copy(update={"model": experiment.model.model_copy(update={"classes": classes})})


def align_classes(experiment: AnyExperiment, data: Mapping[str, Examples]) -> dict[str, Examples]:
    """Return the data entries with their labels renumbered to the classes that are learned, matched by name.

    The learned classes are those of the first training entry. Other entries may lack some of them, or list them in
    another order.

    Raises:
        ConfigError: an entry has a class that is not learned, or the network predicts a different number of classes.
    """
    wanted = getattr(experiment.model, "classes", None)
    if videos := [name for name, examples in data.items() if examples.kind == "video" and wanted not in (None, 2)]:
        raise ConfigError(
            f"data.{videos[0]} is a data set of videos, with masks of object and background, but model.classes is "
            f"{wanted}; set model.classes=2, or score each class with data.{videos[0]}.dataset.kind=images"
        )
    trained = [name for name in experiment.train.entries if name in data]
    first = next((name for name in [*trained, *data] if class_names(data[name])), None)
    if first is None:
        return dict(data)
    classes = class_names(data[first])
    if wanted is not None and len(classes) != wanted:
        raise ConfigError(
            f"model.classes is {wanted}, but data.{first} has {len(classes)} classes: {first_names(classes)}; set "
            f"model.classes={len(classes)}, or check that its folder has all classes"
        )
    for name, examples in data.items():
        if lacking := [other for other in classes if other not in class_names(examples) and class_names(examples)]:
            _LOG.info("data.%s lacks %d of %d classes: %s", name, len(lacking), len(classes), first_names(lacking))
    return {name: align(f"data.{name}", examples, classes, f"data.{first}") for name, examples in data.items()}


def require_whole_images(experiment: AnyExperiment, entries: Mapping[str, Any]) -> None:
    """Check that the test-time augmentation `multi_crop` gets whole images, not cropped or resized ones.

    Raises:
        ConfigError: an entry is resized. Papers report ten crops of the whole image, not ten crops of a crop.
    """
    resized = [name for name, entry in entries.items() if entry.size is not None]
    if experiment.evaluation.tta.name == "multi_crop" and resized:
        raise ConfigError(
            f"evaluation.tta: crops are cut from whole images, but data.{resized[0]} is resized first; set "
            f"data.{resized[0]}.size=null data.{resized[0]}.crop_pct=null"
        )


def try_sizes(experiment: AnyExperiment, network: nn.Module, data: Mapping[str, Examples]) -> None:
    """Run the network without computing on frames of every size that training and evaluation will use.

    The sizes are those of a few samples of each entry; test-time augmentation makes its own of them.

    Raises:
        ConfigError: the network does not take frames of one of these sizes; the message names sizes that work.
    """
    for name in sorted(data.keys() & set(experiment.train.entries)):
        batch = first_sample(data[name])
        _try(network, f"data.{name}, in training", batch["frame"].shape, "next_frame" in batch)
    tta = experiment.evaluation.tta.build()
    with evaluating(network):
        for name in experiment.evaluation.data:
            sizes = {}
            for index in evenly_spaced(len(data[name]), SAMPLES):
                batch = data[name][index]
                sizes.setdefault((batch["frame"].shape, "next_frame" in batch), batch)
            for batch in sizes.values():
                _try_tta(network, f"data.{name}, in evaluation", tta, batch)


def _try_tta(network: nn.Module, place: str, tta: Tta, batch: Batch) -> None:
    """Run the augmentation with a network that only looks at the sizes of frames."""
    predicted: dict[tuple[Any, ...], Any] = {}

    def shaped(frame: Tensor, next_frame: Tensor | None) -> Any:
        key = (frame.shape, next_frame is not None)
        if key not in predicted:
            outputs = _try(network, place, frame.shape[1:], next_frame is not None)
            predicted[key] = {name: torch.zeros(len(frame), *x.shape[1:]) for name, x in outputs.items()}
        return predicted[key]

    images = Batch(name=batch["name"], frame=batch["frame"][None])
    if "next_frame" in batch:
        images["next_frame"] = batch["next_frame"][None]
    tta(shaped, images)


def _try(network: nn.Module, place: str, size: tuple[int, ...], pair: bool) -> Any:
    frame = torch.zeros(2, *size)  # two, because batch normalization refuses one
    try:
        return without_computing(network, frame, *([frame] if pair else []))
    except ValueError as error:  # networks of this package say what to do
        raise ConfigError(f"{place}: {error}") from error
    except (RuntimeError, AssertionError, IndexError, TypeError) as error:
        why = " ".join(str(error).split())[:160]
        others = [other for other in _OTHER_SIZES if _works(network, (size[0], other, other), pair)]
        instead = f"sizes that work are {', '.join(f'{side}x{side}' for side in others)}" if others else "use another"
        raise ConfigError(
            f"{place}: the network does not take frames of {size[-2]}x{size[-1]} ({why}); {instead}"
        ) from error


def _works(network: nn.Module, size: tuple[int, ...], pair: bool) -> bool:
    frame = torch.zeros(2, *size)
    try:
        without_computing(network, frame, *([frame] if pair else []))
    except Exception:  # whatever a network raises for sizes that it does not take
        return False
    return True


def check_samples(experiment: AnyExperiment, data: Mapping[str, Examples]) -> dict[str, dict[str, Any]]:
    """Check a few samples of each data entry; warn once about each oddity, and return the entries' fingerprints.

    Returns:
        For each entry, the number of samples, a digest of all sample ids, and a digest of the sizes and labels of the
        checked samples. A resumed run must have the same fingerprints.

    Raises:
        ConfigError: no sample of an entry has a known label.
    """
    found = {}
    for name, examples in data.items():
        samples = [examples[i] for i in evenly_spaced(len(examples), SAMPLES)]
        for line in _oddities(samples):
            _LOG.warning("data.%s: %s", name, line)
        if unknown := _unknown(samples):
            _require_some_known(name, examples, unknown, len(samples))
        elif line := _known_pixels(samples):
            _LOG.info("data.%s: %s", name, line)
        found[name] = fingerprint(examples, samples)
    for line in _doubtful_settings(experiment, data):
        _LOG.warning("%s", line)
    return found


def fingerprint(examples: Examples, samples: list[Batch] | None = None) -> dict[str, Any]:
    """Return the number of samples, a digest of their ids, and a digest of the sizes and labels of a few samples."""
    if samples is None:
        samples = [examples[i] for i in evenly_spaced(len(examples), SAMPLES)]
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
    """Return a line for each entry that has changed since its fingerprint was taken."""
    lines = []
    for name in sorted(now.keys() & then.keys()):
        ours, theirs = now[name], then[name]
        if ours["samples"] != theirs["samples"]:
            lines.append(f"data.{name} has {ours['samples']:,} samples, and had {theirs['samples']:,}")
        else:
            odd = [key for key in theirs if ours.get(key) != theirs[key]]
            lines += [f"data.{name} has other {' and '.join(odd)} than before"] if odd else []
    return lines


def _oddities(samples: list[Batch]) -> list[str]:
    """Return one line for each oddity in the checked samples of an entry."""
    checks: dict[str, Callable[[Batch], bool]] = {
        "frames look like label maps: gray, with few different values; are images and masks swapped?": _is_label_map,
        "flow is longer than the frame's diagonal almost everywhere; is its unit or file format wrong?": _is_far,
    }
    lines = []
    for text, check in checks.items():
        if places := [batch["name"][0] for batch in samples if check(batch)]:
            lines.append(f"{text} ({len(places)} of {len(samples)} checked samples, such as {places[0]})")
    return lines


def _doubtful_settings(experiment: AnyExperiment, data: Mapping[str, Examples]) -> list[str]:
    """Return one line for each setting that is allowed but is probably a mistake."""
    lines = []
    sizes: dict[str, int] = {}
    for stage in experiment.train.stages:
        for name, size in stage.batch_size.items():
            sizes[name] = max(size, sizes.get(name, 0))
    lines += [
        f"train.stages: a batch has {size} samples of data.{name}, which has only {len(data[name])}: samples repeat"
        for name, size in sizes.items()
        if name in data and size > len(data[name])
    ]
    limit = 1.0 if experiment.optimizer.name == "sgd" else 0.1
    lines += [
        f"learning rate {rate:g} of {branch}: more than {limit:g} is rarely intended with {experiment.optimizer.name}"
        for branch, rate in experiment.learning_rates().items()
        if rate > limit
    ]
    if experiment.train.precision in ("bf16", "fp16") and not torch.cuda.is_available():
        lines.append(
            f"train.precision is {experiment.train.precision}, but there is no GPU here: training on the CPU is slow"
        )
    return lines


def _unknown(samples: list[Batch]) -> list[str]:
    return [batch["name"][0] for batch in samples if _known_fraction(batch) == 0]


def _known_fraction(batch: Batch) -> float | None:
    """Return the fraction of pixels with a known label, in [0, 1]; None without pixel labels.

    If the batch has both a mask and flow, the larger of the two fractions is returned.
    """
    fractions = []
    if "mask" in batch:
        fractions.append(float((batch["mask"] != IGNORE).float().mean()))
    if "flow" in batch:
        valid = batch.get("flow_valid")
        fractions.append(1.0 if valid is None else float(valid.float().mean()))
    return max(fractions) if fractions else None


def _require_some_known(name: str, examples: Examples, unknown: list[str], looked: int) -> None:
    if len(unknown) == looked and not any(_known_fraction(examples[i]) for i in range(len(examples))):
        raise ConfigError(
            f"data.{name}: none of its {len(examples):,} samples (such as {unknown[0]}) has a known label: nothing "
            "can be learned or evaluated with it"
        )
    _LOG.warning(
        "data.%s: %d of %d checked samples have no known label and have no effect, such as %s",
        name, len(unknown), looked, unknown[0],
    )  # fmt: skip


def _known_pixels(samples: list[Batch]) -> str:
    masks = [batch["mask"] for batch in samples if "mask" in batch]
    total = sum(mask.numel() for mask in masks)
    known = sum(int((mask != IGNORE).sum()) for mask in masks)
    return f"{100 * known / total:.1f} % of pixels in {len(masks)} checked masks are labeled" if known < total else ""


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
