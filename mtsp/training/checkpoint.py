"""Checkpoints that are whole or not there: staged in a temporary folder, synced, hashed, and renamed into place.

A checkpoint is a folder `step-00001000` with `model.safetensors`, `optimizer.pt` (tensors and plain data only, read
with `weights_only=True`), `state.json`, of a run that averages its weights `ema.pt`, and `manifest.json`, which
holds the size and SHA-256 of the others and is written last. A run killed at any moment leaves the checkpoints before
it untouched.
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

from mtsp.files.atomic import sync

FORMAT = 1
_MANIFEST = "manifest.json"
_FILES = ("model.safetensors", "optimizer.pt", "state.json")
_EMA = "ema.pt"
_LOG = logging.getLogger("mtsp")


class CheckpointError(ValueError):
    """A checkpoint cannot be used: the message names the file and what is wrong with it."""


class Checkpoint(NamedTuple):
    """What a checkpoint holds, verified; as :func:`save` took it."""

    path: Path
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    state: dict[str, Any]
    ema: dict[str, Any] | None = None
    """None: the run keeps no average of its weights."""


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
    """Write the checkpoint of `step` into `folder`, then keep it and the newest others, `keep_last` in all; return its
    path.

    Args:
        folder: of this run's checkpoints.
        step: optimizer steps done.
        model: tensors by name.
        optimizer: its state_dict.
        state: everything else, as plain data for JSON.
        keep_last: how many checkpoints stay, at least 1. Older ones go only after this one is in place.
        ema: state_dict of the average of the weights, if there is one.

    Raises:
        OSError: it could not be written (no space, no permission). What was there before is untouched.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"the checkpoint of step {step} was not written to {folder}: {error.strerror}") from error
    _sweep(folder)
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
    others = [path for path in checkpoints(folder) if path != final]  # a run may have gone back to before some of them
    for old in others[: max(0, len(others) + 1 - keep_last)]:
        _remove(old)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, oldest first, whole or not."""
    found = [p for p in folder.glob("step-*") if p.is_dir() and p.name.removeprefix("step-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def newest(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint that is whole, or None; say which were passed over and why."""
    for path in reversed(checkpoints(folder)):
        try:
            return load(path)
        except CheckpointError as error:
            _LOG.warning("%s; trying the one before", error)
    return None


def load(path: Path) -> Checkpoint:
    """Return the checkpoint at `path`, every byte of it verified.

    Raises:
        CheckpointError: it is missing, incomplete, changed, of another format, or holds more than tensors.
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
        optimizer = _load_tensors(path / "optimizer.pt")
        return Checkpoint(
            path,
            load_file(path / "model.safetensors"),
            optimizer,
            json.loads((path / "state.json").read_text(encoding="utf-8")),
            # Before it had a file of its own, it was kept beside the optimizer's state.
            _load_tensors(path / _EMA) if _EMA in files else optimizer.pop("average", None),
        )
    except Exception as error:
        raise CheckpointError(f"{path} cannot be loaded: {error}") from error


def _load_tensors(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def _remove(path: Path) -> None:
    """Rename first, so that a kill in the middle never leaves half a checkpoint under its name."""
    trash = path.with_name(f".trash-{path.name}-{os.getpid()}")
    path.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def _sweep(folder: Path) -> None:
    for left in (*folder.glob(".tmp-step-*"), *folder.glob(".trash-step-*")):
        shutil.rmtree(left, ignore_errors=True)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
