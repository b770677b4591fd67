"""Write checkpoints atomically, read them, and delete those that are not kept.

A checkpoint is a folder `step-00001000` with `model.safetensors`, `optimizer.pt` (tensors and plain data only, read
with `weights_only=True`), `state.json`, `ema.pt` if the run averages its weights, and `manifest.json`, which is written
last and lists size and SHA-256 of each file and the SHA-256 of its own content. The folder is written under a temporary
name, synced and renamed. A run killed at any moment leaves earlier checkpoints intact.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtsp.files.atomic_file import sync

FORMAT = 2
_MANIFEST = "manifest.json"
_MANIFEST_BYTES = 1 << 16
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
    keeps: Callable[[int], bool] = lambda step: False,
    ema: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint, delete older ones, and return its path.

    The newest `keep_last` (at least 1) stay, and those of the steps for which `keeps` returns True. `model` maps names
    to tensors that share no memory, `optimizer` and `ema` are state dicts, and `state` is all other state as plain
    data.

    Raises:
        FloatingPointError: a tensor is NaN or infinite; nothing is written.
        OSError: the checkpoint could not be written (no space, no permission). Earlier checkpoints are intact.
    """
    whole = {"model": model, "optimizer": optimizer, "ema": ema}
    for name, tensor in _tensors(whole):
        if not tensor.isfinite().all():
            raise FloatingPointError(
                f"step {step} is not saved: {name} is not finite, so the run cannot go on from it; a lower learning "
                f"rate or train.clip may help"
            )
    try:
        folder.mkdir(exist_ok=True)  # the run's folder itself exists, unless somebody moved it
        recover(folder)
    except OSError as error:
        raise OSError(f"the checkpoint of step {step} was not written to {folder}: {error.strerror}") from error
    final = folder / name_of(step)
    stage = folder / f".tmp-{final.name}-{os.getpid()}"
    try:
        stage.mkdir()
        (stage / "state.json").write_text(json.dumps(dict(state), indent=1), encoding="utf-8")
        save_file({name: tensor.contiguous() for name, tensor in model.items()}, stage / "model.safetensors")
        (stage / "model.safetensors").chmod((stage / "state.json").stat().st_mode)  # safetensors writes for the owner
        torch.save(dict(optimizer), stage / "optimizer.pt")
        if ema is not None:
            torch.save(dict(ema), stage / _EMA)
        names = (*_FILES, _EMA) if ema is not None else _FILES
        files = {name: {"bytes": (stage / name).stat().st_size, "sha256": _hash(stage / name)} for name in names}
        manifest = {"format": FORMAT, "step": step, "files": files}
        manifest["sha256"] = _seal(manifest)
        (stage / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for path in (*stage.iterdir(), stage):
            sync(path)
        if final.exists():  # the run went back to an earlier checkpoint
            final.rename(folder / f".old-{final.name}")  # not deleted before the new one has its name
        stage.rename(final)
        sync(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(stage, ignore_errors=True)
        recover(folder)
        needed = sum(tensor.numel() * tensor.element_size() for _, tensor in _tensors(whole)) / 2**20
        free = shutil.disk_usage(folder).free / 2**20
        reason = "the disk is full" if free < needed else error
        raise OSError(
            f"the checkpoint of step {step} was not written to {folder}: {reason}; it needs {needed:,.1f} MiB, and "
            f"{free:,.1f} MiB are free"
        ) from error
    recover(folder)
    # There may be checkpoints of later steps, if the run was resumed from an earlier checkpoint.
    others = [path for path in checkpoints(folder) if path != final]
    for old in others[: max(0, len(others) + 1 - keep_last)]:
        if not keeps(step_of(old)):
            _remove(old)
    return final


def recover(folder: Path) -> None:
    """Clean up after a run that was killed while it saved; a checkpoint that was about to be replaced returns."""
    for old in folder.glob(".old-step-*"):
        final = folder / old.name.removeprefix(".old-")
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(final)
    for left in (*folder.glob(".tmp-step-*"), *folder.glob(".trash-step-*")):
        shutil.rmtree(left, ignore_errors=True)


def set_aside_after(folder: Path, step: int) -> None:
    """Rename checkpoints of later steps, so that none of them is the newest of a run that goes back to `step`."""
    for path in checkpoints(folder):
        if step_of(path) > step:
            aside = path.with_name(f"before-going-back-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            _LOG.warning("the run goes back to step %d: renamed %s to %s", step, path, aside.name)


def checkpoints(folder: Path) -> list[Path]:
    """Return the paths of all checkpoints in `folder`, oldest first, complete or not."""
    found = [p for p in folder.glob("step-*") if p.is_dir() and p.name.removeprefix("step-").isdecimal()]
    return sorted(found, key=step_of)


def name_of(step: int) -> str:
    """Return the name of the checkpoint of a step."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """Return the step in the name of a checkpoint."""
    return int(path.name.removeprefix("step-"))


def newest(folder: Path) -> Checkpoint | None:
    """Return the newest complete checkpoint, or None; log a warning for each damaged checkpoint that is skipped."""
    for path in reversed(checkpoints(folder)):
        try:
            return load(path)
        except CheckpointError as error:
            _LOG.warning("%s; trying the previous checkpoint", error)
    return None


def verify(path: Path) -> dict[str, int]:
    """Return the bytes of each file of the checkpoint at `path`, after comparing the file with its SHA-256.

    Raises:
        CheckpointError: the checkpoint is missing, incomplete, changed since it was written, or of another format.
    """
    files = _read_manifest(path)
    for name, expected in files.items():
        file = path / name
        try:
            same = file.is_file() and file.stat().st_size == expected["bytes"] and _hash(file) == expected["sha256"]
        except OSError:
            same = False
        if not same:
            raise CheckpointError(f"{file} is missing, truncated or changed since it was written")
    return {name: expected["bytes"] for name, expected in files.items()}


def load(path: Path) -> Checkpoint:
    """Return the checkpoint at `path`, with every byte verified.

    Raises:
        CheckpointError: as for :func:`verify`, or the checkpoint contains objects other than tensors.
    """
    files = verify(path)
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


def _read_manifest(path: Path) -> dict[str, Any]:
    """Return size and SHA-256 of each file, by name."""
    try:
        if not (path / _MANIFEST).is_file():  # opening a pipe waits for ever
            raise OSError("there is no such regular file")
        with (path / _MANIFEST).open("rb") as file:
            manifest = json.loads(file.read(_MANIFEST_BYTES))
        version, seal = manifest["format"], manifest.pop("sha256", None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a complete checkpoint: {_MANIFEST} cannot be read ({error})") from error
    if version != FORMAT:
        raise CheckpointError(f"{path} has checkpoint format {version!r}; this version reads {FORMAT}")
    if seal != _seal(manifest):
        raise CheckpointError(f"{path / _MANIFEST} was changed since it was written")
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(
        isinstance(one, dict) and one.keys() == {"bytes", "sha256"} for one in files.values()
    ):
        raise CheckpointError(f"{path / _MANIFEST} does not list files with their size and SHA-256")
    if missing := set(_FILES) - files.keys():
        raise CheckpointError(f"{path / _MANIFEST} does not list {', '.join(sorted(missing))}")
    return files


def _seal(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _tensors(tree: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of nested dicts and lists, each with its keys as a name."""
    if isinstance(tree, Tensor):
        yield name, tree
    elif isinstance(tree, Mapping | list | tuple):
        for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from _tensors(value, f"{name}.{key}" if name else str(key))


def _remove(path: Path) -> None:
    """Delete a checkpoint, renaming it first, so that a kill never leaves a partial checkpoint under its name."""
    trash = path.with_name(f".trash-{path.name}-{os.getpid()}")
    path.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
