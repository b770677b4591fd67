"""Write files atomically: after a kill, a file has its old content or its new content, never a part of it."""

import errno
import glob
import os
import shutil
import socket
import time
from pathlib import Path

_OLD = 24 * 3600  # seconds


def write_atomically(path: Path, data: bytes | bytearray) -> None:
    """Write a file. Readers see the old content or the new content, never a part, even if the process is killed.

    What killed processes left of the same file is removed. Devices and pipes, such as /dev/stdout, are written to; a
    rename would put a file in their place.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder; name a file", str(path))
    if path.exists() and (not path.is_file() or path.parent == Path("/dev")):  # /dev/stdout is a link
        path.write_bytes(data)
        return
    temporary = path.with_name(f".tmp-{path.name}-{socket.gethostname()}-{os.getpid()}")
    for left in path.parent.glob(f".tmp-{glob.escape(path.name)}-*"):
        if _is_left_behind(left):
            left.unlink(missing_ok=True)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path.parent).free
            raise OSError(error.errno, f"{len(data):,} bytes are needed, {free:,} are free", str(path)) from error
        raise
    except BaseException:  # such as Ctrl-C
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def _is_left_behind(temporary: Path) -> bool:
    """Return whether the process that writes a temporary file is gone, or, of another machine, silent for a day."""
    host, _, process = temporary.name.rpartition("-")
    try:
        if host.endswith(f"-{socket.gethostname()}") and process.isdecimal():
            os.kill(int(process), 0)
            return False
        return time.time() - temporary.stat().st_mtime > _OLD
    except ProcessLookupError:
        return True
    except OSError:  # of another user, or removed meanwhile
        return False


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
