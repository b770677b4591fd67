"""Digests of files' bytes, remembered in a file so that those that did not change are not read again."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

_AT_ONCE = 256  # files between two writes of the index: what an interruption loses
_SETTLED = 2_000_000_000  # ns; a file that is younger may change again within one tick of the file system's clock


class _Entry(NamedTuple):
    """What is known of a file. A copy that keeps its time has another inode, a rewrite that keeps it another ctime."""

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    digest: str


def digests(
    paths: Sequence[Path], index: Path, threads: int, progress: Callable[[int], None] = lambda done: None
) -> list[str]:
    """Return the SHA-256 of each file's bytes; of one that cannot be read the empty string.

    Args:
        paths: the files.
        index: what was found before, a line of JSON for each file; new ones are added at its end.
        threads: that read.
        progress: called with the number of files done.

    Raises:
        OSError: the index cannot be read or written.
    """
    known = _read(index)
    found: list[str] = []
    with ThreadPoolExecutor(threads, thread_name_prefix="digest") as pool:
        for first in range(0, len(paths), _AT_ONCE):
            entries = list(pool.map(lambda path: _entry(path, known), paths[first : first + _AT_ONCE]))
            _add(index, [entry for entry in entries if entry is not None and _is_new(entry, known)])
            found += ["" if entry is None else entry.digest for entry in entries]
            progress(len(found))
    return found


def _entry(path: Path, known: dict[str, _Entry]) -> _Entry | None:
    """Return what is known of a file now, or None if it cannot be read."""
    try:
        stat = path.stat()
        place = str(path.absolute())
        seen = (place, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        before = known.get(place)
        if before is not None and before[:-1] == seen:
            return before
        with path.open("rb") as file:
            return _Entry(*seen, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError:
        return None


def _is_new(entry: _Entry, known: dict[str, _Entry]) -> bool:
    return known.get(entry.path) != entry and time.time_ns() - max(entry.mtime_ns, entry.ctime_ns) > _SETTLED


def _read(index: Path) -> dict[str, _Entry]:
    """Return the index; a line that a kill cut off, or of another form, is passed over, and the last one counts."""
    known: dict[str, _Entry] = {}
    if index.is_file():
        for line in index.read_bytes().splitlines():
            try:
                entry = _Entry(*json.loads(line))
            except (ValueError, TypeError):
                continue
            if isinstance(entry.path, str) and isinstance(entry.digest, str) and len(entry.digest) == 64:
                known[entry.path] = entry
    return known


def _add(index: Path, entries: Sequence[_Entry]) -> None:
    if entries:
        index.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(f"\n{json.dumps(entry)}" for entry in entries)  # a cut-off last line stays a line of its own
        descriptor = os.open(index, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        with os.fdopen(descriptor, "ab", buffering=0) as file:
            file.write(lines.encode())
