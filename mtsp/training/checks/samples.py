"""Check a few samples of each data entry: warn about oddities, and notice on resume that the data have changed."""

import hashlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mtsp.config import ConfigError
from mtsp.indices import evenly_spaced
from mtsp.training.checks.held_out import trained_on
from mtsp.training.checks.settings import doubtful_settings
from mtsp.training.experiment import AnyExperiment
from mtsp.types import IGNORE, Batch, Examples

SAMPLES = 12
"""Number of samples to check in each data entry, evenly spaced and decoded as for evaluation."""

_LOG = logging.getLogger("mtsp")


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
    for line in (*trained_on(experiment, data), *doubtful_settings(experiment, data)):
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
