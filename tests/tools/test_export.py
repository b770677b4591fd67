"""Files that the export program writes, and the script beside them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file

from models.export import Parity
from models.pretrained.load_trained import load_trained
from mtsp.files.tensors import read_tensors
from tests.finished_run import ANCHOR, CLASSES, finished_run
from tools.build import read_experiment
from tools.export import main, parity_table


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return finished_run(tmp_path / "insects")


def test_the_script_beside_the_onnx_file_computes_what_pytorch_does(run: Path, tmp_path: Path) -> None:
    assert main([str(run)]) == 0
    frame = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    np.save(tmp_path / "frame.npy", frame)
    script = run / "export" / "infer.py"
    told = subprocess.run(
        [sys.executable, script, "frame.npy"], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    assert told.strip() == f"label_logits (1, 3) {json.dumps(CLASSES)}"
    model = load_trained(read_experiment(run / "experiment.yaml"), run / "weights.safetensors").eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(frame).permute(2, 0, 1)[None] / 255)["label_logits"].numpy()
    np.testing.assert_allclose(np.load(tmp_path / "label_logits.npy"), expected, atol=1e-4)
    imports = [line.split()[1] for line in script.read_text().splitlines() if line.startswith(("import", "from"))]
    assert imports == ["sys", "pathlib", "numpy", "onnxruntime"]


def test_the_metadata_names_classes_anchor_and_network(run: Path, tmp_path: Path) -> None:
    assert main([str(run), "--out", str(tmp_path / "out")]) == 0
    notes = {entry.key: entry.value for entry in onnx.load(tmp_path / "out" / "network.onnx").metadata_props}
    assert json.loads(notes["classes"]) == CLASSES
    assert notes["anchor"] == ANCHOR
    assert json.loads(notes["model"])["backbone"] == "test_resnet"


def test_a_program_of_torch_export_is_loaded_without_mtsp(run: Path) -> None:
    assert main([str(run), "--to", "torch_export", "--size", "66x77"]) == 0
    extra = {"classes": "", "anchor": ""}
    program = torch.export.load(run / "export" / "network.pt2", extra_files=extra)
    assert json.loads(extra["classes"]) == CLASSES
    assert program.module()(torch.rand(3, 3, 66, 77))[0].shape == (3, 3)


def test_safetensors_hold_the_same_weights(run: Path) -> None:
    assert main([str(run), "--to", "safetensors"]) == 0
    path = run / "export" / "network.safetensors"
    assert json.loads(read_tensors(path)[1]["model"])["classes"] == 3
    ours, theirs = load_file(path), load_file(run / "weights.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "name the folder of a run that has ended" in capsys.readouterr().err


def test_an_export_that_differs_is_not_written(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("models.export.TOLERANCE", -1.0)
    assert main([str(run), "--to", "torch_export", "--size", "66x77"]) == 1
    assert "differs from PyTorch by more than" in capsys.readouterr().err
    assert not list((run / "export").iterdir())


def test_the_table_of_differences_has_a_row_for_each_output(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Parity((1, 8, 8), {"mask_logits": 2e-7, "flow": 3e-6})]
    monkeypatch.setattr("tools.export.checked", lambda *_: (b"", found))
    rows = parity_table(["demo.yaml", "model.flow={name: spynet}"], "onnx").splitlines()[2:]
    assert rows == ["| demo | segflow, spynet | mask_logits | 2.0e-07 |", "| demo | segflow, spynet | flow | 3.0e-06 |"]
