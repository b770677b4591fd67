"""A network from outside this repository: what its branches need so that weights load into them."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.pretrained.layouts import Layout, LayoutError, WeightsFile
from models.pretrained.load import load_branch


class Trunk(nn.Module):
    """A branch that says nothing about published weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)


class Renamed(Trunk):
    """A branch that knows a published file whose convolution is called `stem`, without a norm."""

    def published_layout(self, file: WeightsFile) -> Layout:
        if "stem.weight" not in file.tensors:
            raise LayoutError("expected a stem")
        used = {key.replace("stem.", "conv."): value for key, value in file.tensors.items()}
        return Layout(used, [], {}, "a file with a stem")

    def download(self, source: str) -> Layout:
        assert source == "imagenet"
        tensors = {"stem.weight": torch.ones(4, 3, 3, 3), "stem.bias": torch.ones(4)}
        return self.published_layout(WeightsFile(tensors))


class Classes(nn.Module):
    """A branch whose last layer depends on the task."""

    task_layers = ("last.",)

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(4, 4, 1)
        self.last = nn.Conv2d(4, classes, 1)


class Network(nn.Module):
    """Two branches and no relation to ours."""

    branches = ("trunk", "classes")

    def __init__(self, trunk: Trunk, classes: int = 2) -> None:
        super().__init__()
        self.trunk = trunk
        self.classes = Classes(classes)


def saved(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path


def test_a_file_with_the_branchs_own_names_loads(tmp_path: Path) -> None:
    """The state dict of the branch alone, or of a whole network; all of one branch, nothing of the other."""
    source, network = Network(Trunk()), Network(Trunk())
    for state in (source.trunk.state_dict(), source.state_dict()):
        network = Network(Trunk())
        loaded = load_branch(network, "trunk", saved(tmp_path / "w.safetensors", state))
        assert torch.equal(network.trunk.conv.weight, source.trunk.conv.weight)
        assert not torch.equal(network.classes.mix.weight, source.classes.mix.weight)
        assert sorted(loaded.names) == sorted(f"trunk.{key}" for key in source.trunk.state_dict())
        assert loaded.fresh == []


def test_layers_of_another_task_stay_new(tmp_path: Path) -> None:
    """A file for 5 classes into a network for 2, and a file without the last layer."""
    state = Network(Trunk(), classes=5).state_dict()
    short = {key: value for key, value in state.items() if not key.startswith("classes.last.")}
    for tensors in (state, short):
        loaded = load_branch(Network(Trunk()), "classes", saved(tmp_path / "w.safetensors", tensors))
        assert sorted(loaded.names) == ["classes.mix.bias", "classes.mix.weight"]
        assert loaded.fresh == ["classes.last.weight", "classes.last.bias"]


def test_loading_by_own_names_is_strict(tmp_path: Path) -> None:
    state = Trunk().state_dict()
    short = {key: value for key, value in state.items() if key != "norm.bias"}
    for tensors, message in [
        (short, "1 tensors are missing, as norm.bias"),
        (state | {"more": torch.zeros(1)}, "nothing here is called more"),
        (state | {"conv.bias": torch.zeros(3)}, r"conv.bias has shape \(3,\), expected \(4,\)"),
    ]:
        network = Network(Trunk())
        before = network.trunk.conv.weight.clone()
        with pytest.raises(ValueError, match=message):
            load_branch(network, "trunk", saved(tmp_path / "w.safetensors", tensors))
        assert torch.equal(network.trunk.conv.weight, before)


def test_a_branch_can_know_other_names_and_a_download(tmp_path: Path) -> None:
    stem = {"stem.weight": torch.full((4, 3, 3, 3), 2.0), "stem.bias": torch.zeros(4)}
    network = Network(Renamed())
    loaded = load_branch(network, "trunk", saved(tmp_path / "w.safetensors", stem))
    assert sorted(loaded.names) == ["trunk.conv.bias", "trunk.conv.weight"]
    assert loaded.fresh == ["trunk.norm.weight", "trunk.norm.bias"]
    assert bool((network.trunk.conv.weight == 2).all())
    load_branch(network, "trunk", "imagenet")
    assert bool((network.trunk.conv.weight == 1).all())


def test_a_branch_that_does_not_know_a_file_says_what_it_can_do(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.safetensors", {"layer4.0.conv1.weight": torch.zeros(1)})
    with pytest.raises(
        ValueError,
        match=r"ResNet of torchvision .*expected names of this branch, as 'conv.weight', or .* published_layout",
    ):
        load_branch(Network(Trunk()), "trunk", file)
    with pytest.raises(ValueError, match="expected a stem"):
        load_branch(Network(Renamed()), "trunk", file)
    with pytest.raises(ValueError, match="branch 'trunk' has no weights to download; give a file instead of imagenet"):
        load_branch(Network(Trunk()), "trunk", "imagenet")
