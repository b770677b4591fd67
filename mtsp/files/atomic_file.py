"""Write files atomically: after a kill, a file has its old content or its new content, never a part of it."""

import os
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file. Readers see the old content or the new content, never a part, even if the process is killed."""
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
