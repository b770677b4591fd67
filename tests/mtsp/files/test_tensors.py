"""Weights carry the hash of their file: any change is refused, or changes no tensor. No temporary file stays behind."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mtsp.files.atomic_file import write_atomically
from mtsp.files.tensors import read_tensors, write_tensors
from mtsp.transfer.centroids import Centroids

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7), "c": torch.ones(3, dtype=torch.bfloat16)}


def test_tensors_and_metadata_come_back_and_other_programs_read_the_file(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", TENSORS, {"note": 'a "sha256":"' + "1" * 64 + '" inside'})
    tensors, notes = read_tensors(tmp_path / "a.safetensors")
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())
    assert notes["note"].startswith('a "sha256":"111')
    assert load_file(tmp_path / "a.safetensors").keys() == TENSORS.keys()


def test_equal_content_gives_equal_files(tmp_path: Path) -> None:
    notes = {f"note {i}": "é" * i for i in range(9)}
    write_tensors(tmp_path / "a", TENSORS, notes)
    write_tensors(tmp_path / "b", TENSORS, dict(reversed(notes.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_tensors(tmp_path / "a")[1] == notes


def test_a_file_of_another_program_has_no_hash_and_is_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    assert read_tensors(tmp_path / "a.safetensors")[0]["a"].tolist() == [1, 1]


def test_every_changed_byte_is_noticed_or_changes_no_tensor(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS, {"classes": '["cat"]'})
    whole = path.read_bytes()
    refused = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            tensors, notes = read_tensors(path)
        except ValueError:
            refused += 1
        else:  # a changed "sha256", or a digit of the hash that is none any more: nothing is left to compare with
            assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())
            assert notes["classes"] == '["cat"]'
    assert refused > len(whole) - 75


def test_class_means_are_checked_too(tmp_path: Path) -> None:
    path = tmp_path / "means.safetensors"
    Centroids(("cat", "dog"), np.ones((2, 3), np.float32), np.array([4, 5]), "by a test").save(path)
    assert Centroids.load(path).counts.tolist() == [4, 5]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"means\.safetensors is damaged: it does not have the SHA-256"):
        Centroids.load(path)


def test_what_a_killed_process_left_of_a_file_is_removed_by_the_next_one(tmp_path: Path) -> None:
    kill = "import os, sys; from pathlib import Path; from mtsp.files import atomic_file;"
    kill += "os.fsync = lambda _: os.kill(os.getpid(), 9); atomic_file.write_atomically(Path(sys.argv[1]), b'new')"
    path = tmp_path / "out [1].json"
    path.write_bytes(b"old")
    assert subprocess.run([sys.executable, "-c", kill, str(path)], check=False).returncode == -9
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
    ours = tmp_path / f".tmp-{path.name}-{socket.gethostname()}-{os.getppid()}"  # of a process that is alive
    theirs = tmp_path / f".tmp-{path.name}-elsewhere-1"  # of another machine
    for left in (ours, theirs):
        left.touch()
    write_atomically(path, b"new")
    assert {entry.name for entry in tmp_path.iterdir()} == {path.name, ours.name, theirs.name}
    os.utime(theirs, (0, 0))
    write_atomically(path, b"newer")
    assert {entry.name for entry in tmp_path.iterdir()} == {path.name, ours.name}


def full(*arguments: object) -> None:
    raise OSError(28, "No space left on device")


def stopped(*arguments: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("fault", "error"), [(full, OSError), (stopped, KeyboardInterrupt)])
def test_a_failed_write_leaves_the_old_file_alone_and_a_full_disk_says_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None], error: type[BaseException]
) -> None:
    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fault)
    with pytest.raises(error, match="1,000 bytes are needed" if fault is full else None):
        write_atomically(tmp_path / "a", bytes(1000))
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("a", b"old")]
