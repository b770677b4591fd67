"""Read checkpoints, and verify every byte of them.

A checkpoint is a folder `step-00001000` with `model.safetensors`, `optimizer.pt` (tensors and plain data only, read
with `weights_only=True`), `state.json`, `ema.pt` if the run averages its weights, and `manifest.json`, which is written
last and lists size and SHA-256 of each file and the SHA-256 of its own content. It is written by
:mod:`mtsp.training.checkpoint.atomic_save`.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

FORMAT = 2
MANIFEST = "manifest.json"
_MANIFEST_BYTES = 1 << 16
FILES = ("model.safetensors", "optimizer.pt", "state.json")
EMA = "ema.pt"
_LOG = logging.getLogger("mtsp")


class CheckpointError(ValueError):
    """Raised when a checkpoint cannot be used. The message names the file and the problem."""


class Checkpoint(NamedTuple):
    """The verified contents of a checkpoint; see :func:`mtsp.training.checkpoint.atomic_save.save`."""

    path: Path
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    state: dict[str, Any]
    ema: dict[str, Any] | None = None
    """State of the averaged weights; None if the run does not average them."""


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
            same = file.is_file() and file.stat().st_size == expected["bytes"] and hash_of(file) == expected["sha256"]
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
            torch.load(path / EMA, "cpu", weights_only=True) if EMA in files else None,
        )
    except Exception as error:
        raise CheckpointError(f"{path} cannot be loaded: {error}") from error


def _read_manifest(path: Path) -> dict[str, Any]:
    """Return size and SHA-256 of each file, by name."""
    try:
        if not (path / MANIFEST).is_file():  # opening a pipe waits for ever
            raise OSError("there is no such regular file")
        with (path / MANIFEST).open("rb") as file:
            manifest = json.loads(file.read(_MANIFEST_BYTES))
        version, sealed = manifest["format"], manifest.pop("sha256", None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a complete checkpoint: {MANIFEST} cannot be read ({error})") from error
    if version != FORMAT:
        raise CheckpointError(f"{path} has checkpoint format {version!r}; this version reads {FORMAT}")
    if sealed != seal(manifest):
        raise CheckpointError(f"{path / MANIFEST} was changed since it was written")
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(
        isinstance(one, dict) and one.keys() == {"bytes", "sha256"} for one in files.values()
    ):
        raise CheckpointError(f"{path / MANIFEST} does not list files with their size and SHA-256")
    if missing := set(FILES) - files.keys():
        raise CheckpointError(f"{path / MANIFEST} does not list {', '.join(sorted(missing))}")
    return files


def seal(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a manifest without its own."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def hash_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
