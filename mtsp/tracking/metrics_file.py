"""Write `metrics.jsonl` so that a kill loses nothing, truncate it on resume, and read it."""

import errno
import itertools
import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtsp.files.atomic_file import write_atomically

METRICS = "metrics.jsonl"

_LOG = logging.getLogger("mtsp")


class MetricsFile:
    """`metrics.jsonl`, open for appending. Raises OSError if it cannot be written.

    A resumed run drops the lines after `resume_step`, and lines of that step whose names begin with one of `again`,
    which it will log again. A new run (None) renames a file that is not empty to
    `metrics.1.jsonl`, or uses the next free number.
    """

    def __init__(self, path: Path, resume_step: int | None, again: tuple[str, ...] = ()) -> None:
        self._path = path
        try:
            if resume_step is not None:
                _drop_after(path, resume_step, again)
            elif path.is_file() and path.stat().st_size:
                _move_aside(path)
            # Unbuffered: each line is one write, which raises at once if the disk is full.
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise cannot_write(path, error) from error

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Write one line. Raises OSError if the disk is full, or the file is no longer there."""
        if not self._path.exists():  # the open file would take the line, wherever it is now
            reason = "moved or deleted while the run writes to it; restore the folder and continue with --resume auto"
            raise FileNotFoundError(errno.ENOENT, reason, str(self._path))
        row = {"step": step, "time": round(time.time(), 3)}
        assert not row.keys() & values.keys(), "`step` and `time` are reserved"
        row |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        try:
            while line:  # a nearly full disk stores part of the line; then the next write raises
                line = line[self._file.write(line) :]
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the lines of a `metrics.jsonl` as dicts, with NaN for null.

    An incomplete last line is ignored: the run may still be writing it, or was killed.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a line is not a JSON object of numbers with a `step`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; name a run folder that tools/train.py wrote")
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        row = _parse(line)
        if row is None:
            raise ValueError(f"{path}, line {number}: not a JSON object of numbers with a `step`: {line[:60]!r}")
        rows.append({key: math.nan if value is None else value for key, value in row.items()})
    return rows


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:  # includes invalid UTF-8
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        return None
    return row if all(value is None or isinstance(value, int | float) for value in row.values()) else None


def cannot_write(path: Path, error: OSError) -> OSError:
    """Return an OSError that names the file and the reason."""
    reason = error.strerror or error
    return OSError(error.errno, f"cannot write: {reason}; lines written before are kept", str(path))


def _drop_after(path: Path, step: int, again: tuple[str, ...]) -> None:
    """Keep the complete lines up to `step`, except those that will be logged again. The file is replaced atomically."""
    if not path.exists():
        _LOG.warning("%s is missing: the curves of the resumed run begin at step %d", path, step)
        return
    old = path.read_bytes()
    lines = [line for line in old.split(b"\n") if line]
    rows = [(line, _parse(line)) for line in lines]
    new = b"".join(line + b"\n" for line, row in rows if row is not None and _is_kept(row, step, again))
    if new != old:
        broken = sum(row is None for _, row in rows)
        later = len(lines) - broken - new.count(b"\n")
        _LOG.info("%s: dropped %d lines after step %d and %d broken ones", path, later, step, broken)
        write_atomically(path, new)


def _is_kept(row: Mapping[str, Any], step: int, again: tuple[str, ...]) -> bool:
    return row["step"] < step or (row["step"] == step and not any(name.startswith(again) for name in row))


def _move_aside(path: Path) -> None:
    names = (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in itertools.count(1))
    aside = next(name for name in names if not name.exists())
    path.rename(aside)
    _LOG.warning("%s contains the curves of an earlier run; renamed it to %s", path, aside.name)
