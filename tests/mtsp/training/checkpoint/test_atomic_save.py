"""A checkpoint is whole or not there, whatever happens while it is written."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mtsp.training.checkpoint import atomic_save, storage
from mtsp.training.checkpoint.atomic_save import save
from mtsp.training.checkpoint.storage import CheckpointError, checkpoints, load, newest


def saved(folder: Path, step: int, keep_last: int = 2, ema: dict[str, Any] | None = None) -> Path:
    model = {"weight": torch.full((2, 3), float(step)), "count": torch.tensor(step)}
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "name": "a"}]}
    return save(folder, step, model, optimizer, {"step": step, "batches": {"a": 3}}, keep_last=keep_last, ema=ema)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    found = load(saved(tmp_path, 7))
    assert torch.equal(found.model["weight"], torch.full((2, 3), 7.0))
    assert found.state == {"step": 7, "batches": {"a": 3}}
    assert found.optimizer["param_groups"] == [{"lr": 0.1, "name": "a"}]
    assert found.ema is None
    averaged = load(saved(tmp_path, 8, ema={"updates": 8, "averages": {"weight": torch.ones(2)}})).ema
    assert averaged is not None
    assert averaged["updates"] == 8
    assert torch.equal(averaged["averages"]["weight"], torch.ones(2))


def test_the_newest_are_kept_by_number(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        saved(tmp_path, step)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000020", "step-00000100"]


@pytest.mark.parametrize(
    "listed", [None, [], {}, {"model.safetensors": {}}, {"state.json": {"bytes": 1, "sha256": ""}}]
)
def test_a_manifest_that_lists_too_little_is_refused_though_its_own_hash_is_right(tmp_path: Path, listed: Any) -> None:
    path = saved(tmp_path, 1) / "manifest.json"
    manifest = {"format": storage.FORMAT, "step": 1, "files": listed}
    path.write_text(json.dumps(manifest | {"sha256": storage.seal(manifest)}))
    with pytest.raises(CheckpointError, match=r"step-00000001/manifest.json does not list"):
        load(path.parent)


def test_the_folder_of_a_run_that_was_moved_is_not_created_again(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"step 4 was not written to .*gone/checkpoints: No such file or directory"):
        saved(tmp_path / "gone" / "checkpoints", 4)
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("file", ["model.safetensors", "state.json", "manifest.json"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path, file: str) -> None:
    path = saved(tmp_path, 1) / file
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match=file):
        load(path.parent)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "state.json", "ema.pt", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated to nothing", "half", "one byte changed", "missing"])
def test_a_damaged_checkpoint_is_detected_and_the_one_before_is_used(
    tmp_path: Path, file: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, 1)
    path = saved(tmp_path, 2, ema={"updates": 2}) / file
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        content[len(content) // 2] ^= 0x10
        cut = {"truncated to nothing": 0, "half": len(content) // 2, "one byte changed": len(content)}[damage]
        path.write_bytes(content[:cut])
    with pytest.raises(CheckpointError, match="step-00000002"):
        load(path.parent)
    found = newest(tmp_path)
    assert found is not None
    assert found.state["step"] == 1
    assert "trying the previous checkpoint" in caplog.text


def test_every_bit_of_a_manifest_is_checked(tmp_path: Path) -> None:
    path = saved(tmp_path, 1, ema={"updates": 1}) / "manifest.json"
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                load(path.parent)
            except CheckpointError:
                continue
            assert json.loads(bytes(damaged)) == json.loads(whole)  # a space between two values became another


@pytest.mark.parametrize("text", [b"[" * 200_000, b"[]", b"1", b'{"format": 2}', b'{"a": ' + b"9" * 5000, b"\xff"])
def test_a_manifest_that_is_no_manifest_is_passed_over(tmp_path: Path, text: bytes) -> None:
    saved(tmp_path, 1)
    (saved(tmp_path, 2) / "manifest.json").write_bytes(text)
    found = newest(tmp_path)
    assert found is not None
    assert found.state["step"] == 1


def test_a_pickle_that_executes_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Attack:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(marker),)

    path = saved(tmp_path / "run", 1)
    (path / "optimizer.pt").write_bytes(pickle.dumps(Attack()))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["optimizer.pt"] = {
        "bytes": (path / "optimizer.pt").stat().st_size,
        "sha256": storage.hash_of(path / "optimizer.pt"),
    }
    del manifest["sha256"]
    manifest["sha256"] = storage.seal(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load(path)
    assert not marker.exists()


def test_a_failed_save_leaves_the_checkpoint_before_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 1)

    def full(*arguments: Any, **keywords: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"step 2 was not written .*No space left.*; it needs 0\.0 MiB, and"):
        saved(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["model.weight", "optimizer.state.0.momentum_buffer"])
def test_a_state_that_is_not_finite_is_not_saved(tmp_path: Path, value: float, place: str) -> None:
    saved(tmp_path, 1)
    model = {"weight": torch.tensor([0.0, value if place == "model.weight" else 1.0])}
    momentum = torch.tensor([value if place != "model.weight" else 1.0])
    with pytest.raises(FloatingPointError, match=f"step 2 is not saved: {place} is not finite"):
        save(tmp_path, 2, model, {"state": {0: {"momentum_buffer": momentum}}}, {"step": 2}, keep_last=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_all_files_of_a_checkpoint_have_the_mode_that_the_umask_gives(tmp_path: Path) -> None:
    (tmp_path / "any").touch()
    modes = {file.stat().st_mode for file in saved(tmp_path / "run", 1).iterdir()}
    assert modes == {(tmp_path / "any").stat().st_mode}


def test_a_kill_while_a_checkpoint_is_replaced_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step was saved twice once, and the only checkpoint was deleted before the new one had its name."""
    first = saved(tmp_path, 1, keep_last=1)
    content = {file.name: file.read_bytes() for file in first.iterdir()}
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self.name.startswith(".tmp-"):
            raise KeyboardInterrupt  # as a kill: nothing is cleaned up
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            saved(tmp_path, 1, keep_last=1)
    assert not first.exists()
    atomic_save.recover(tmp_path)
    assert {file.name: file.read_bytes() for file in first.iterdir()} == content
    assert list(tmp_path.iterdir()) == [first]


def test_checkpoints_that_are_kept_for_another_reason_do_not_count(tmp_path: Path) -> None:
    model = {"weight": torch.ones(1)}
    for step in range(1, 9):
        save(tmp_path, step, model, {}, {"step": step}, keep_last=2, keeps=lambda step: step in (2, 4))
    assert [storage.step_of(path) for path in checkpoints(tmp_path)] == [2, 4, 7, 8]


_SAVER = """
import sys, torch
from pathlib import Path
from mtsp.training.checkpoint.atomic_save import save
from mtsp.training.checkpoint.storage import newest
folder = Path(sys.argv[1])
found = newest(folder)
step = found.state["step"] if found else 0
while True:
    step += 1
    tensors = {str(i): torch.full((40_000,), float(step)) for i in range(8)}
    save(folder, step, tensors, {"state": {}, "step": torch.tensor(step)}, {"step": step}, keep_last=1)
    print(step, flush=True)
"""


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """Kills with SIGKILL, from 0 to 14 ms after a save, of a process that does nothing but save and keeps one."""
    told = 0
    for attempt in range(8):
        process = subprocess.Popen([sys.executable, "-c", _SAVER, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        for _ in range(1 + attempt % 3):
            told = int(process.stdout.readline())
        moment = time.monotonic() + 0.002 * attempt
        while time.monotonic() < moment:
            pass
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        found = newest(tmp_path)
        assert found is not None
        assert found.state["step"] >= told  # what was said to be saved is there
        values = {tensor.unique().item() for tensor in found.model.values()}
        assert values == {float(found.state["step"])}  # never the tensors of one step and the state of another
    assert told >= 8
