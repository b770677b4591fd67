"""A network that is shared and loaded again computes the same; what has changed on the way is refused."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from models.hub import from_pretrained
from models.pretrained.files import locate
from models.pretrained.load import load_branch
from models.pretrained.load_trained import load_trained
from mtsp.integrations.hub import fetch, push, write_folder
from tests.finished_run import ANCHOR, CLASSES, finished_run
from tools.build import missing_weights, read_experiment


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return finished_run(tmp_path / "insects")


@pytest.fixture
def folder(run: Path, tmp_path: Path) -> Path:
    return write_folder(run, tmp_path / "shared")


def test_a_shared_network_computes_the_same(run: Path, folder: Path) -> None:
    before = load_trained(read_experiment(run / "experiment.yaml"), run / "weights.safetensors").eval()
    after = from_pretrained(folder)
    frame = torch.rand(2, 3, 64, 80)
    with torch.no_grad():
        assert torch.equal(before(frame)["label_logits"], after(frame)["label_logits"])


def test_the_folder_holds_what_others_need_and_no_place_of_this_machine(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "classes.json", "experiment.yaml", "results.json", "weights.safetensors",
    }  # fmt: skip
    assert json.loads((folder / "classes.json").read_text()) == CLASSES
    assert "secret" not in (folder / "experiment.yaml").read_text() + (folder / "README.md").read_text()


def test_the_card_tells_of_the_run(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    for part in (
        "pipeline_tag: image-classification",
        "Classes: ant, bee, cat",
        "Data: train (image_folder)",
        "Steps: 10 with sgd, learning rate 0.02",
        "Regularizer: l2sp, alpha 0.1, beta 0.01",
        "Seed: 7 (one run)",
        ANCHOR,
        "| backbone | imagenet | 0.1 | 0.125 |",
        "| head | none | - | - |",
        "| test | top1 | 0.75 |",
    ):
        assert part in text, part


@pytest.mark.parametrize("name", ["weights.safetensors", "experiment.yaml", "classes.json", "results.json"])
def test_a_changed_byte_is_refused(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"{name} (is damaged|has changed)"):
        from_pretrained(folder)


def test_the_card_may_be_edited(folder: Path) -> None:
    (folder / "README.md").write_text("Trained on ants of my garden.")
    from_pretrained(folder)


def test_a_folder_without_a_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no weights\.safetensors"):
        from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="name the folder of a run that has ended"):
        write_folder(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="no such folder, and networks on the Hub are named OWNER/NAME"):
        from_pretrained("nowhere")


def test_a_branch_starts_from_a_shared_folder(run: Path, folder: Path) -> None:
    model = read_experiment(run / "experiment.yaml").model.build()
    load_branch(model, "backbone", str(folder))
    expected = from_pretrained(folder).state_dict()
    assert all(
        torch.equal(value, expected[f"backbone.{name}"])
        for name, value in model.get_submodule("backbone").state_dict().items()
    )


def test_a_branch_starts_from_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def download(repo: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repo, revision))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert locate("hub:someone/insects@v2") == folder / "weights.safetensors"
    assert fetch("someone/insects") == folder
    assert asked == [("someone/insects", "v2"), ("someone/insects", None)]


def test_a_failed_download_is_one_line(monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    def fail(*args: Any, **kwargs: Any) -> str:
        raise RuntimeError("no\nnetwork")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ValueError, match="hub:someone/insects cannot be downloaded: no network"):
        fetch("hub:someone/insects")
    experiment = read_experiment(run / "experiment.yaml", ["branches.backbone.weights=hub:someone/insects"])
    assert missing_weights(experiment) == [
        "branches.backbone.weights: hub:someone/insects cannot be downloaded: no network"
    ]


def test_push_uploads_the_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Api:
        def create_repo(self, repo: str, private: bool, exist_ok: bool) -> None:
            calls.append((repo, private, exist_ok))

        def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> None:
            calls.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert push(run, "someone/insects").endswith("/someone/insects")
    names = ["README.md", "classes.json", "experiment.yaml", "results.json", "weights.safetensors"]
    assert calls == [("someone/insects", True, True), ("someone/insects", names)]
