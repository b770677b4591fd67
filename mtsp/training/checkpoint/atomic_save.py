"""Save a checkpoint so that a kill at any moment leaves a complete one: the new one, or those before it.

The files are written to a folder under a temporary name, flushed to the disk, and renamed. The next save, or the
resumed run, cleans up what a killed save left behind.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mtsp.files.atomic_file import sync
from mtsp.training.checkpoint.storage import (
    EMA,
    FILES,
    FORMAT,
    MANIFEST,
    checkpoints,
    hash_of,
    name_of,
    seal,
    step_of,
)

_LOG = logging.getLogger("mtsp")


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
        _write(stage, step, model, optimizer, state, ema)
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
    _delete_older(folder, final, keep_last, keeps)
    return final


def _write(
    stage: Path,
    step: int,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
    state: Mapping[str, Any],
    ema: Mapping[str, Any] | None,
) -> None:
    """Write all files of a checkpoint to a temporary folder, the manifest last, and flush them to the disk."""
    stage.mkdir()
    (stage / "state.json").write_text(json.dumps(dict(state), indent=1), encoding="utf-8")
    save_file({name: tensor.contiguous() for name, tensor in model.items()}, stage / "model.safetensors")
    (stage / "model.safetensors").chmod((stage / "state.json").stat().st_mode)  # safetensors writes for the owner
    torch.save(dict(optimizer), stage / "optimizer.pt")
    if ema is not None:
        torch.save(dict(ema), stage / EMA)
    names = (*FILES, EMA) if ema is not None else FILES
    files = {name: {"bytes": (stage / name).stat().st_size, "sha256": hash_of(stage / name)} for name in names}
    manifest = {"format": FORMAT, "step": step, "files": files}
    manifest["sha256"] = seal(manifest)
    (stage / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in (*stage.iterdir(), stage):
        sync(path)


def _delete_older(folder: Path, final: Path, keep_last: int, keeps: Callable[[int], bool]) -> None:
    """Delete all checkpoints but the `keep_last` newest and those that `keeps` names; `final` counts as the newest.

    There may be checkpoints of later steps, if the run was resumed from an earlier checkpoint.
    """
    others = [path for path in checkpoints(folder) if path != final]
    for old in others[: max(0, len(others) + 1 - keep_last)]:
        if not keeps(step_of(old)):
            _remove(old)


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


def _remove(path: Path) -> None:
    """Delete a checkpoint, renaming it first, so that a kill never leaves a partial checkpoint under its name."""
    trash = path.with_name(f".trash-{path.name}-{os.getpid()}")
    path.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def _tensors(tree: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of nested dicts and lists, each with its keys as a name."""
    if isinstance(tree, Tensor):
        yield name, tree
    elif isinstance(tree, Mapping | list | tuple):
        for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from _tensors(value, f"{name}.{key}" if name else str(key))
