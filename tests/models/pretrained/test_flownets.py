"""Published FlowNetS checkpoints, rebuilt in their exact key layouts, into the flow branch here."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models.flow.flownets import FlowNetS
from models.pretrained.load import load_branch
from tests.models.pretrained.published import flow_network, flownets_file, saved, segflow

torch.set_num_threads(1)
PINARD = (0.411, 0.432, 0.45)


@pytest.mark.parametrize(("tensors", "own_mean"), [(33, False), (42, True), (63, False)])
def test_each_flownets_layout_loads_whole_with_its_own_normalization(
    tmp_path: Path, tensors: int, own_mean: bool
) -> None:
    network = flow_network(batch_norm=tensors == 63)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.ones_(parameter)  # must not stay
    file = flownets_file(tensors)
    container = {"epoch": 3, "arch": "flownets", "state_dict": file, "best_EPE": 1.9, "div_flow": 20}
    loaded = load_branch(network, "flow", saved(tmp_path / "flownets.pth.tar", container))
    state = network.state_dict()
    for key, value in file.items():
        assert torch.equal(state[f"flow.network.{key}"], value), key
    absent = [k for k in state if k.endswith(".bias") and k.removeprefix("flow.network.") not in file]
    assert len(absent) == {33: 13, 42: 4, 63: 13}[tensors]  # 4 deconvolutions, 5 predictions, 4 upsamplers
    assert not any(state[key].any() for key in absent)
    assert loaded.fresh == loaded.left_out == []
    assert {f"flow.network.{key}" for key in file} <= set(loaded.names)
    assert network.get_buffer("flow.network.own_mean").item() is own_mean
    if not own_mean:
        torch.testing.assert_close(network.get_buffer("flow.network.mean"), torch.tensor(PINARD * 2))
    assert f"{tensors} tensors" in loaded.description
    assert ("[0.45, 0.432, 0.411]" in loaded.description) is not own_mean  # what it may be as well


def test_a_mean_that_is_given_is_of_both_frames_and_told(tmp_path: Path) -> None:
    """FlowNetPytorch's present code trains with the mean of FlyingChairs; nothing in its files shows it."""
    network = flow_network()
    chairs = (0.45, 0.432, 0.411)
    file = saved(tmp_path / "checkpoint.pth.tar", {"epoch": 3, "arch": "flownets", "state_dict": flownets_file(33)})
    loaded = load_branch(network, "flow", file, mean=chairs)
    torch.testing.assert_close(network.get_buffer("flow.network.mean"), torch.tensor(chairs * 2))
    assert "; mean (0.45, 0.432, 0.411) as the config says; " in loaded.description
    nvidia = saved(tmp_path / "nvidia.pth.tar", {"state_dict": flownets_file(42)})
    load_branch(network, "flow", nvidia)
    assert network.get_buffer("flow.network.own_mean").item()
    load_branch(network, "flow", nvidia, mean=chairs)
    assert not network.get_buffer("flow.network.own_mean").item()
    with pytest.raises(ValueError, match="branch 'flow' does not normalize frames by a std; leave out std"):
        load_branch(network, "flow", file, std=(1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("name", "fields"), [("flownets-things.ckpt", {}), ("renamed.pth", {"pytorch-lightning_version": "2.0"})]
)
def test_flownets_of_ptlflow_is_not_taken_for_nvidias(tmp_path: Path, name: str, fields: dict[str, str]) -> None:
    """The names are the same, but each frame is normalized by its own mean."""
    file = saved(tmp_path / name, {"state_dict": flownets_file(42), **fields})
    with pytest.raises(ValueError, match=r"its 42 tensors are named as by NVIDIA and ptlflow; Lightning"):
        load_branch(flow_network(), "flow", file)


@pytest.mark.parametrize("name", ["flownets_from_caffe.pth", "renamed.pth"])
def test_flownets_from_caffe_takes_bgr_and_is_turned_round(tmp_path: Path, name: str) -> None:
    network = flow_network()
    file = flownets_file(33)
    load_branch(network, "flow", saved(tmp_path / name, {"arch": "flownets", "state_dict": file}))
    frame, next_frame = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
    inner = network.flow.network
    assert isinstance(inner, FlowNetS)
    seen = inner._normalized(frame, next_frame)
    ours = network.get_submodule("flow.network.conv1.0")(seen)
    bgr = torch.cat([frame.flip(1), next_frame.flip(1)], dim=1) - torch.tensor(PINARD * 2).view(1, 6, 1, 1)
    theirs = nn.functional.conv2d(bgr, file["conv1.0.weight"], file["conv1.0.bias"], stride=2, padding=3)
    torch.testing.assert_close(ours, theirs)


def test_a_prefix_of_dataparallel_is_stripped_and_a_numpy_error_is_read(tmp_path: Path) -> None:
    network = flow_network()
    file = {f"module.{key}": value for key, value in flownets_file(33).items()}
    container = {"epoch": 1, "state_dict": file, "best_EPE": np.float64(1.95), "div_flow": 10}
    load_branch(network, "flow", saved(tmp_path / "flownets.pth", container))
    assert torch.equal(network.get_parameter("flow.network.conv6_1.0.bias"), file["module.conv6_1.0.bias"])
    assert network.get_buffer("flow.network.div_flow").item() == 10


@pytest.mark.parametrize(
    ("batch_norm", "tensors", "message"),
    [
        (False, 63, "FlowNetS with batch norm; set flow.batch_norm=true"),
        (True, 33, "FlowNetS with no batch norm; set flow.batch_norm=false"),
    ],
)
def test_the_variant_that_a_file_needs_is_named(tmp_path: Path, batch_norm: bool, tensors: int, message: str) -> None:
    path = saved(tmp_path / "f.pth", flownets_file(tensors))
    with pytest.raises(ValueError, match=message):
        load_branch(flow_network(batch_norm=batch_norm), "flow", path)


def test_flownets_with_a_tensor_too_few_or_too_many_or_of_another_shape_is_refused(tmp_path: Path) -> None:
    file = flownets_file(33)
    few = {key: value for key, value in file.items() if key != "conv4_1.0.bias"}
    with pytest.raises(ValueError, match=r"1 tensors are missing, as conv4_1.0.bias"):
        load_branch(flow_network(), "flow", saved(tmp_path / "few.pth", few))
    with pytest.raises(ValueError, match="FlowNetS has no conv7"):
        load_branch(flow_network(), "flow", saved(tmp_path / "many.pth", file | {"conv7.0.weight": torch.ones(1)}))
    with pytest.raises(ValueError, match=r"conv2.0.weight has shape \(3,\), expected \(8, 4, 5, 5\)"):
        load_branch(flow_network(), "flow", saved(tmp_path / "shape.pth", file | {"conv2.0.weight": torch.ones(3)}))
    stacked = file | {"conv1.0.weight": torch.ones(4, 12, 7, 7)}
    with pytest.raises(ValueError, match="conv1 takes 12 channels, like a refining FlowNetS in a stack; expected 6"):
        load_branch(flow_network(), "flow", saved(tmp_path / "stacked.pth", stacked))


def test_released_mode_overwrites_the_flow_upsamplers_after_loading(tmp_path: Path) -> None:
    path = saved(tmp_path / "f.pth", flownets_file(33))
    weights = {}
    for mode in ("released", "modern"):
        network = segflow(mode=mode)
        load_branch(network, "flow", path)
        weights[mode] = network.get_parameter("flow.network.upsampled_flow6_to_5.weight")
    assert weights["released"][0, 0, 1, 1].item() == 0.75**2
    assert torch.equal(weights["released"][0, 1], weights["modern"][0, 1])
    assert not torch.equal(weights["released"][0, 0], weights["modern"][0, 0])
