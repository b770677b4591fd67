"""Atomic checkpoints: written to a temporary folder, synced, hashed, then renamed.

A checkpoint is a folder `step-00001000` with `model.safetensors`, `optimizer.pt` (tensors and plain data only, read
with `weights_only=True`), `state.json`, `ema.pt` if the run averages its weights, and `manifest.json`, which is written
last and lists size and SHA-256 of each file. A run killed at any moment leaves earlier checkpoints intact.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtsp.files.atomic_file import sync

FORMAT = 1
_MANIFEST = "manifest.json"
_FILES = ("model.safetensors", "optimizer.pt", "state.json")
_EMA = "ema.pt"
_LOG = logging.getLogger("mtsp")


class CheckpointError(ValueError):
    """Raised when a checkpoint cannot be used. The message names the file and the problem."""


class Checkpoint(NamedTuple):
    """The verified contents of a checkpoint; see :func:`save`."""

    path: Path
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    state: dict[str, Any]
    ema: dict[str, Any] | None = None
    """State of the averaged weights; None if the run does not average them."""


def save(
    folder: Path,
    step: int,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
    state: Mapping[str, Any],
    *,
    keep_last: int,
    ema: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint, delete all but the newest `keep_last` (at least 1), and return its path.

    `model` maps names to tensors, `optimizer` and `ema` are state dicts, and `state` is all other state as plain data.

    Raises:
        OSError: the checkpoint could not be written (no space, no permission). Earlier checkpoints are intact.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"the checkpoint of step {step} was not written to {folder}: {error.strerror}") from error
    for left in (*folder.glob(".tmp-step-*"), *folder.glob(".trash-step-*")):
        shutil.rmtree(left, ignore_errors=True)
    final = folder / f"step-{step:08d}"
    stage = folder / f".tmp-{final.name}-{os.getpid()}"
    try:
        stage.mkdir()
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in model.items()}, stage / "model.safetensors")
        torch.save(dict(optimizer), stage / "optimizer.pt")
        (stage / "state.json").write_text(json.dumps(dict(state), indent=1), encoding="utf-8")
        if ema is not None:
            torch.save(dict(ema), stage / _EMA)
        names = (*_FILES, _EMA) if ema is not None else _FILES
        files = {name: {"bytes": (stage / name).stat().st_size, "sha256": _hash(stage / name)} for name in names}
        manifest = {"format": FORMAT, "step": step, "files": files}
        (stage / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for path in (*stage.iterdir(), stage):
            sync(path)
        if final.exists():
            _remove(final)
        stage.rename(final)
        sync(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(stage, ignore_errors=True)
        free = shutil.disk_usage(folder).free / 2**20
        raise OSError(
            f"the checkpoint of step {step} was not written to {folder}: {error} ({free:,.0f} MiB free)"
        ) from error
    # There may be checkpoints of later steps, if the run was resumed from an earlier checkpoint.
    others = [path for path in checkpoints(folder) if path != final]
    for old in others[: max(0, len(others) + 1 - keep_last)]:
        _remove(old)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """Return the paths of all checkpoints in `folder`, oldest first, complete or not."""
    found = [p for p in folder.glob("step-*") if p.is_dir() and p.name.removeprefix("step-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def newest(folder: Path) -> Checkpoint | None:
    """Return the newest complete checkpoint, or None; log a warning for each damaged checkpoint that is skipped."""
    for path in reversed(checkpoints(folder)):
        try:
            return load(path)
        except CheckpointError as error:
            _LOG.warning("%s; trying the previous checkpoint", error)
    return None


def load(path: Path) -> Checkpoint:
    """Return the checkpoint at `path`, with every byte verified.

    Raises:
        CheckpointError: the checkpoint is missing, incomplete, changed since it was written, of another format, or
            contains objects other than tensors.
    """
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        names = (*_FILES, _EMA) if _EMA in manifest["files"] else _FILES
        files = {name: manifest["files"][name] for name in names}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a complete checkpoint: {_MANIFEST} cannot be read ({error})") from error
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path} has checkpoint format {manifest.get('format')}; this version reads {FORMAT}")
    for name, expected in files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != expected["bytes"] or _hash(file) != expected["sha256"]:
            raise CheckpointError(f"{file} is missing, truncated or changed since it was written")
    try:
        return Checkpoint(
            path,
            load_file(path / "model.safetensors"),
            torch.load(path / "optimizer.pt", "cpu", weights_only=True),
            json.loads((path / "state.json").read_text(encoding="utf-8")),
            torch.load(path / _EMA, "cpu", weights_only=True) if _EMA in files else None,
        )
    except Exception as error:
        raise CheckpointError(f"{path} cannot be loaded: {error}") from error


def _remove(path: Path) -> None:
    """Delete a checkpoint, renaming it first, so that a kill never leaves a partial checkpoint under its name."""
    trash = path.with_name(f".trash-{path.name}-{os.getpid()}")
    path.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
