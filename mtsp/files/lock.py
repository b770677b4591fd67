"""Lock a run's folder, so that only one run at a time writes to it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mtsp.config import ConfigError


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Create the run's folder and lock it within the context; the lock also ends when the process ends or is killed."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = (run_dir / ".lock").open("a+")
    except OSError as error:
        raise OSError(f"{run_dir} cannot be written: {error.strerror}; choose another --run-dir") from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.stat(run_dir / ".lock")  # the file is gone if another run has just ended: then it locks nothing
        except OSError as error:
            raise ConfigError(f"{run_dir} is in use by another run; choose another --run-dir") from error
        try:
            yield
        finally:
            (run_dir / ".lock").unlink(missing_ok=True)
            with suppress(OSError):
                run_dir.rmdir()  # only if nothing was written: the run failed before its start
