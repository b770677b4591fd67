"""What people do wrong ends in one clear line and a non-zero exit code, and nothing that was written is lost."""

import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.files.flow_formats.flo import read_flo, write_flo
from data.files.masks import write_mask
from mtsp.training.checkpoint import atomic_save, storage
from tools.train import main

ROOT = Path(__file__).resolve().parents[2]
CHAIRS, FRAMES, MASKS = "chairs/data", "DAVIS/JPEGImages/480p/clip-0000", "DAVIS/Annotations/480p/clip-0000"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def world(values: dict[str, Any], synthetic: Path, tmp_path: Path) -> dict[str, Any]:
    """An experiment of three steps on a copy of the data, and a run of two of them, saved, that it would go on with."""
    shutil.copytree(synthetic, tmp_path / "data")
    text = json.dumps(values).replace(str(synthetic), str(tmp_path / "data"))
    values = json.loads(text)
    values["train"] |= {"steps": 2, "save_every": 1, "stages": [{"steps": 1, "batch_size": {"davis": 9, "chairs": 6}}]}
    values["data"]["davis"]["augment"] = None
    values["evaluation"] = {"data": [], "at_start": False}
    return values


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def edit(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text()))


class Executes:
    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


def unknown_key(values: dict[str, Any], root: Path) -> None:
    values["train"]["stepz"] = 3


def wrong_type(values: dict[str, Any], root: Path) -> None:
    values["train"]["clip"] = True


def zero_steps(values: dict[str, Any], root: Path) -> None:
    values["train"]["steps"] = 0


def missing_folder(values: dict[str, Any], root: Path) -> None:
    values["data"]["davis"]["dataset"]["root"] = str(root / "nowhere")


def missing_frame(values: dict[str, Any], root: Path) -> None:
    (root / FRAMES / "00001.jpg").unlink()


def mask_without_frame(values: dict[str, Any], root: Path) -> None:
    (root / "DAVIS/ImageSets/480p/train.txt").write_text("clip-0000\n")
    shutil.copy(root / MASKS / "00001.png", root / MASKS / "00007.png")


def truncated_png(values: dict[str, Any], root: Path) -> None:
    truncate(root / MASKS / "00001.png")


def truncated_jpeg(values: dict[str, Any], root: Path) -> None:
    truncate(root / FRAMES / "00001.jpg")


def truncated_flo(values: dict[str, Any], root: Path) -> None:
    truncate(root / CHAIRS / "00002_flow.flo")


def truncated_pfm(values: dict[str, Any], root: Path) -> None:
    """Sintel and the Scene Flow data are read by the same reader; here it is a Monkaa of one scene."""
    from data.synthetic.clips import SyntheticConfig
    from data.synthetic.writers import write_scene_flow

    write_scene_flow(SyntheticConfig(clips=1, frames=2, height=64, width=96, objects=(1, 1)), root / "Monkaa")
    for path in (root / "Monkaa").rglob("*.pfm"):
        truncate(path)
    values["data"]["chairs"]["dataset"] = {"name": "monkaa", "root": str(root / "Monkaa"), "split": "all"}


def nan_flow(values: dict[str, Any], root: Path) -> None:
    path = root / CHAIRS / "00002_flow.flo"
    flow = read_flo(path)
    content = bytearray(path.read_bytes())
    content[12:16] = np.float32(np.nan).tobytes()  # after the magic number, the width and the height
    path.write_bytes(content)
    assert flow.shape == (64, 96, 2)


def wrong_mask_size(values: dict[str, Any], root: Path) -> None:
    write_mask(root / MASKS / "00001.png", np.zeros((32, 48), np.uint8))


def empty_split(values: dict[str, Any], root: Path) -> None:
    (root / "DAVIS/ImageSets/480p/train.txt").write_text("\n")


def split_that_leaves(values: dict[str, Any], root: Path) -> None:
    edit(root / "DAVIS/ImageSets/480p/train.txt", lambda text: text + "/../a.jpg /../a.png\n")


def weights_of_another_network(values: dict[str, Any], root: Path) -> None:
    torch.save({"state_dict": {"backbone.layer9.weight": torch.zeros(3, 3)}}, root / "weights.pth")
    values["branches"]["segmentation"]["weights"] = str(root / "weights.pth")


def pickle_that_executes(values: dict[str, Any], root: Path) -> None:
    (root / "weights.pth").write_bytes(pickle.dumps(Executes(), protocol=2))
    values["branches"]["segmentation"]["weights"] = str(root / "weights.pth")


def no_anchor(values: dict[str, Any], root: Path) -> None:
    values["regularizer"]["name"] = "l2sp"


def unknown_encoder(values: dict[str, Any], root: Path) -> None:
    values["model"]["encoder"] = "tu-test_eficientnet"


def odd_size(values: dict[str, Any], root: Path) -> None:
    values["model"] |= {"mode": "paper", "encoder": "tu-test_efficientnet"}


def encoder_of_one_size(values: dict[str, Any], root: Path) -> None:
    values["model"]["encoder"] = "convit_tiny"
    values["data"]["davis_val"]["size"] = [250, 320]
    values["evaluation"]["data"] = ["davis_val"]


def mixed_sizes(values: dict[str, Any], root: Path) -> None:
    for pair in ("00001", "00002"):
        for end in ("img1.ppm", "img2.ppm", "flow.flo"):
            (root / CHAIRS / f"{pair}_{end}").unlink()
    from data.files.images import write_image

    for pair, side in (("00001", 64), ("00002", 32)):
        for end in ("img1.ppm", "img2.ppm"):
            write_image(root / CHAIRS / f"{pair}_{end}", np.zeros((side, 96, 3), np.uint8))
        write_flo(root / CHAIRS / f"{pair}_flow.flo", np.zeros((side, 96, 2), np.float32))


def unknown_data(values: dict[str, Any], root: Path) -> None:
    values["train"]["stages"][0]["batch_size"] = {"davs": 1}


def batch_that_cannot_be_shared(values: dict[str, Any], root: Path) -> None:
    values["train"]["accumulate"] = 4


def fp16_without_gpu(values: dict[str, Any], root: Path) -> None:
    values["train"]["precision"] = "fp16"


def half_a_config(values: dict[str, Any], root: Path) -> None:
    del values["optimizer"], values["tasks"]


MISTAKES = [
    (unknown_key, "train.stepz: unknown key; did you mean train.steps?"),
    (wrong_type, "train.clip: Input should be a valid number, got True"),
    (zero_steps, "train.steps: Input should be greater than 0, got 0"),
    (missing_folder, "nowhere: there is no such folder"),
    (missing_frame, "1 file (JPEGImages/480p/clip-0000/00001.jpg) missing"),
    (mask_without_frame, "1 file (JPEGImages/480p/clip-0000/00007.jpg) missing"),
    (truncated_png, "Annotations/480p/clip-0000/00001.png"),
    (truncated_jpeg, "JPEGImages/480p/clip-0000/00001.jpg"),
    (truncated_flo, "00002_flow.flo"),
    (truncated_pfm, ".pfm"),
    (nan_flow, "00002_flow.flo"),
    (wrong_mask_size, "00001.png has 32x48 pixels, but"),
    (empty_split, "train.txt: the split is empty"),
    (split_that_leaves, "is not a path inside"),
    (weights_of_another_network, "weights.pth does not fit branch 'segmentation'"),
    (pickle_that_executes, "weights.pth is a pickle that wants to run"),
    (no_anchor, "l2sp needs a branch with pretrained `weights`"),
    (unknown_encoder, "no encoder 'test_eficientnet'; did you mean test_efficientnet"),
    (odd_size, "takes frames of 480x854, got 64x96; resize them, or use mode modern"),
    (encoder_of_one_size, "data.davis_val, in evaluation: convit_tiny is built for frames of at most 224x224, got"),
    (mixed_sizes, "cannot share a batch: their"),
    (unknown_data, "train.stages.0.batch_size.davs: no such entry in `data`; there is davis"),
    (batch_that_cannot_be_shared, "a global batch of 9 cannot be divided among 1 processes x 4 micro-batches"),
    (fp16_without_gpu, "train.precision: fp16 needs a GPU"),
    (half_a_config, "optimizer: this required key is missing"),
]


def one_error(text: str) -> str:
    """The error, after checking that it is one line, or one line with indented ones that list its parts."""
    assert "Traceback" not in text, text
    lines = text.splitlines()
    places = [number for number, line in enumerate(lines) if line.startswith("error:")]
    assert len(places) == 1, text
    told = lines[places[0] :]
    assert all(line.startswith("  ") for line in told[1:]), text
    return "\n".join(told)


def failing(values: dict[str, Any], run_dir: Path, *more: str) -> int:
    path = run_dir.parent / "mistaken.yaml"
    path.write_text(json.dumps(values))
    return main(["--config", str(path), "--run-dir", str(run_dir), *more])


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """A folder with what an earlier run wrote: curves and two checkpoints."""
    run_dir = tmp_path / "ran"
    run_dir.mkdir()
    for step in (1, 2):
        tensors = {"segmentation.x": torch.full((3,), float(step))}
        atomic_save.save(run_dir / "checkpoints", step, tensors, {}, {"step": step}, keep_last=2)
    (run_dir / "metrics.jsonl").write_text('{"step": 2, "time": 1.0, "train/loss": 0.5}\n')
    return run_dir


@pytest.mark.parametrize(("mistake", "said"), MISTAKES, ids=[mistake.__name__ for mistake, _ in MISTAKES])
def test_a_mistake_is_one_clear_line(
    mistake: Callable[[dict[str, Any], Path], None],
    said: str,
    world: dict[str, Any],
    ran: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    mistake(world, tmp_path / "data")
    before = contents(ran)
    assert failing(world, tmp_path / "run") == 1
    assert said in one_error(capsys.readouterr().err)
    assert failing(world, ran) == 1  # where a run is already, which is not continued
    one_error(capsys.readouterr().err)
    after = contents(ran)
    assert {name: after[name] for name in before} == before
    assert not (tmp_path / "executed").exists()
    assert not list((tmp_path / "run").glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("mistake", "said"), [(truncated_jpeg, "clip-0000/00001.jpg"), (truncated_flo, "00002_flow.flo")]
)
def test_a_mistake_seen_by_a_worker_process_is_told_as_clearly(
    mistake: Callable[[dict[str, Any], Path], None],
    said: str,
    world: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mistake(world, tmp_path / "data")
    world["train"]["workers"] = 1
    assert failing(world, tmp_path / "run") == 1
    assert said in one_error(capsys.readouterr().err)


def test_odd_sizes_are_no_mistake_in_mode_modern(world: dict[str, Any], tmp_path: Path) -> None:
    world["data"]["davis"]["size"] = [51, 77]
    world["data"]["chairs"]["size"] = [33, 45]
    world["train"]["steps"] = 1
    assert failing(world, tmp_path / "run") == 0
    assert (tmp_path / "run" / "results.json").exists()


def test_a_checkpoint_of_another_network_is_not_resumed(
    world: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing(world, tmp_path / "run") == 0
    path = tmp_path / "run" / "checkpoints" / "step-00000002"
    found = storage.load(path)
    other = {name: value for name, value in found.model.items() if not name.startswith("flow.")}
    atomic_save.save(tmp_path / "other", 2, other, found.optimizer, found.state, keep_last=1)
    before = contents(tmp_path / "run")
    capsys.readouterr()
    assert failing(world, tmp_path / "run", "--resume", str(tmp_path / "other" / "step-00000002")) == 1
    assert "step-00000002 has another network:" in one_error(capsys.readouterr().err)
    world["model"]["width"] = 16
    assert failing(world, tmp_path / "run", "--resume", "auto") == 1
    assert "model.width: now 16, was 8" in one_error(capsys.readouterr().err)
    assert contents(tmp_path / "run") == before


def test_anchors_that_match_nothing_stop_the_run(
    world: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a renamed module would do to the anchors of a run, which must not go on without regularization."""
    from mtsp import anchors

    captured = anchors.capture
    world["regularizer"]["name"] = "l2sp"
    world["branches"]["flow"]["weights"] = str(tmp_path / "ran" / "weights.safetensors")
    assert (
        failing(
            {**world, "branches": {"segmentation": {}, "flow": {}}, "regularizer": {"name": "none"}}, tmp_path / "ran"
        )
        == 0
    )
    monkeypatch.setattr(
        anchors,
        "capture",
        lambda *given, **more: {f"old.{name}": value for name, value in captured(*given, **more).items()},
    )
    capsys.readouterr()
    assert failing(world, tmp_path / "run") == 1
    assert "anchors match no weight of the model, the first 'old.flow.network.conv1" in one_error(
        capsys.readouterr().err
    )


def test_a_place_that_cannot_be_written_is_named(
    world: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file where the folder should be: permissions do not stop the superuser, who runs some tests."""
    (tmp_path / "file").write_text("precious")
    assert failing(world, tmp_path / "file") == 1
    assert "file cannot be written: File exists; choose another --run-dir" in one_error(capsys.readouterr().err)
    world["tracking"]["images"] = 0
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("precious")
    assert failing(world, tmp_path / "run") == 1
    assert "the checkpoint of step 1 was not written to" in one_error(capsys.readouterr().err)
    assert (tmp_path / "file").read_text() == (tmp_path / "run" / "checkpoints").read_text() == "precious"


def test_a_full_disk_loses_nothing_that_was_saved(
    world: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit on the size of files stands for a disk that takes the curves but no more checkpoints."""
    world["train"]["steps"] = 1
    assert failing(world, tmp_path / "run") == 0
    before = contents(tmp_path / "run" / "checkpoints")
    world["train"]["steps"] = 2
    capsys.readouterr()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        assert failing(world, tmp_path / "run", "--resume", "auto") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "the checkpoint of step 2 was not written to" in one_error(capsys.readouterr().err)
    assert contents(tmp_path / "run" / "checkpoints") == before
    assert failing(world, tmp_path / "run", "--resume", "auto") == 0


def test_the_program_itself_exits_with_one_line(world: dict[str, Any], tmp_path: Path) -> None:
    nan_flow(world, tmp_path / "data")
    (tmp_path / "mistaken.yaml").write_text(json.dumps(world))
    command = [sys.executable, str(ROOT / "tools" / "train.py"), "--config", str(tmp_path / "mistaken.yaml")]
    done = subprocess.run([*command, "--run-dir", str(tmp_path / "run")], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "00002_flow.flo" in one_error(done.stderr)
    assert done.stdout == ""
