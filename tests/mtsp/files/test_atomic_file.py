"""Files are replaced whole; what is no file is not replaced."""

import os
from pathlib import Path

import pytest

from mtsp.files.atomic_file import write_atomically


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(pipe, b"results")
    assert os.read(reader, 100) == b"results"
    os.close(reader)
    assert pipe.is_fifo()


def test_a_device_is_written_to_and_stays_a_device() -> None:
    write_atomically(Path("/dev/null"), b"results")
    assert Path("/dev/null").is_char_device()


def test_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=f"is a folder; name a file: '{tmp_path}'"):
        write_atomically(tmp_path, b"results")
