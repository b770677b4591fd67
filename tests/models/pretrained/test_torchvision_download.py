"""Weights that torchvision downloads; its cache holds constructed files of their names, so nothing is downloaded."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torchvision.models import get_model, get_model_weights

from models.classifier import Classifier, ClassifierConfig
from models.flow.raft import RAFTConfig
from models.pretrained.load import load_branch
from models.segflow.network import SegFlow, SegFlowConfig

torch.set_num_threads(1)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def put(cache: Path, name: str, weights: str) -> nn.Module:
    """Torchvision's network with random weights, also as the file of its published `weights`."""
    torch.manual_seed(0)
    network = get_model(name, weights=None)
    torch.save(network.state_dict(), cache / Path(get_model_weights(name)[weights].url).name)
    return network


def segflow() -> SegFlow:
    torch.manual_seed(1)
    flow = RAFTConfig(name="raft", size="small", iterations=1)
    return SegFlowConfig(name="segflow", encoder="resnet18", width=8, flow_width=8, flow=flow).build()


def test_both_branches_of_segflow_start_from_torchvisions_downloads(cache: Path) -> None:
    resnet, raft = put(cache, "resnet18", "IMAGENET1K_V1"), put(cache, "raft_small", "C_T_V2")
    network = segflow()
    for branch, theirs, prefix in (("segmentation", resnet, "encoder"), ("flow", raft, "network")):
        loaded = load_branch(network, branch, "torchvision")
        for name, weight in theirs.named_parameters():
            if not name.startswith("fc."):
                assert torch.equal(network.get_parameter(f"{branch}.{prefix}.{name}"), weight), name
                assert f"{branch}.{prefix}.{name}" in loaded.names
        assert all(".head." in name for name in loaded.fresh)
    torch.testing.assert_close(network.segmentation.mean, torch.tensor((0.485, 0.456, 0.406)))


def test_a_name_chooses_among_the_published_weights(cache: Path) -> None:
    theirs = put(cache, "raft_small", "C_T_V1")
    network = segflow()
    loaded = load_branch(network, "flow", "torchvision:C_T_V1")
    assert "torchvision's Raft_Small_Weights.C_T_V1 of raft_small" in loaded.description
    name, weight = next(theirs.named_parameters())
    assert torch.equal(network.get_parameter(f"flow.network.{name}"), weight)


def test_a_classifier_loads_them_too(cache: Path) -> None:
    theirs = put(cache, "resnet18", "IMAGENET1K_V1")
    for backbone in ("resnet18", "torchvision:resnet18"):
        network = Classifier(ClassifierConfig(name="classifier", backbone=backbone, classes=3))
        load_branch(network, "backbone", "torchvision")
        assert torch.equal(network.get_parameter("backbone.network.conv1.weight"), theirs.get_parameter("conv1.weight"))


def test_weights_that_torchvision_does_not_have_are_told_without_a_download() -> None:
    network = segflow()
    with pytest.raises(
        ValueError, match=r"branches.flow.weights: torchvision has no weights 'C_T_V3' of raft_small; did"
    ):
        load_branch(network, "flow", "torchvision:C_T_V3")
    other = SegFlowConfig(name="segflow", encoder="tu-test_efficientnet", width=8, flow=None).build()
    with pytest.raises(ValueError, match="torchvision has no network 'test_efficientnet'; give a file, or imagenet"):
        load_branch(other, "segmentation", "torchvision")
    with pytest.raises(ValueError, match="imagenet is not a source for raft_small; give torchvision, torchvision:NAME"):
        load_branch(network, "flow", "imagenet")


def test_a_download_that_fails_names_the_file_and_its_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fails)
    with pytest.raises(ValueError, match="cannot be downloaded") as error:
        load_branch(segflow(), "flow", "torchvision")
    url = "https://download.pytorch.org/models/raft_small_C_T_V2-01064c6d.pth"
    why = "<urlopen error Name or service not known>"
    assert str(error.value) == f"branches.flow.weights: {url} cannot be downloaded ({why}); put that file into {cache}"
