"""Lock a run's folder, so that only one run at a time writes to it."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
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
        except OSError as error:
            raise ConfigError(f"{run_dir} is in use by another run; choose another --run-dir") from error
        yield
