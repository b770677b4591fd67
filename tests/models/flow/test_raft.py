"""RAFT against torchvision's own network, and its padding, iterations and weights."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models.optical_flow import raft_large, raft_small

from models.flow.raft import RAFTConfig
from models.pretrained.load import load_branch
from mtsp.config import parse

torch.set_num_threads(1)
PUBLISHED = {"small": raft_small, "large": raft_large}
PARAMETERS = {"small": 990_162, "large": 5_257_536}  # as torchvision says


def saved(size: str, folder: Path) -> tuple[nn.Module, Path]:
    """Torchvision's network with random weights and batch statistics, and its file."""
    torch.manual_seed(0)
    theirs = PUBLISHED[size]()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)  # pyright: ignore[reportArgumentType]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # pyright: ignore[reportArgumentType]
    torch.save(theirs.state_dict(), folder / f"raft_{size}.pth")
    return theirs, folder / f"raft_{size}.pth"


@pytest.mark.parametrize("size", PUBLISHED)
def test_flow_is_torchvisions_to_the_bit(size: str, tmp_path: Path) -> None:
    theirs, path = saved(size, tmp_path)
    network = parse(RAFTConfig, {"name": "raft", "size": size, "iterations": 2, "eval_iterations": 3}).build()
    loaded = load_branch(network, "flow", path)
    assert loaded.fresh == loaded.left_out == []
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[size]
    frame, next_frame = torch.rand(2, 1, 3, 128, 136)
    with torch.no_grad():
        expected = theirs.eval()(2 * frame - 1, 2 * next_frame - 1, num_flow_updates=3)
        ours = network.eval()(frame, next_frame)
        assert expected[-1].abs().max() > 0.1
        assert torch.equal(ours["flow"], expected[-1])
        assert "flow_sequence" not in ours
        if size == "small":  # in training, large has statistics of the batch
            sequence = network.train()(frame, next_frame)["flow_sequence"]
            assert all(torch.equal(a, b) for a, b in zip(sequence, expected[:2], strict=True))


def test_gradients_are_torchvisions(tmp_path: Path) -> None:
    theirs, path = saved("small", tmp_path)
    network = RAFTConfig(name="raft", size="small", iterations=2).build()
    load_branch(network, "flow", path)
    frame, next_frame = torch.rand(2, 1, 3, 128, 128)
    network(frame, next_frame)["flow"].square().mean().backward()
    theirs(2 * frame - 1, 2 * next_frame - 1, num_flow_updates=2)[-1].square().mean().backward()
    for name, weight in theirs.named_parameters():
        ours = network.get_parameter(f"flow.network.{name}").grad
        torch.testing.assert_close(ours, weight.grad, msg=name)


def test_frames_of_any_size_are_padded_and_the_features_are_at_stride_8() -> None:
    network = RAFTConfig(name="raft", size="small", iterations=2, eval_iterations=1).network()
    frame, next_frame = torch.rand(2, 1, 3, 60, 133)
    motion = network(frame, next_frame)
    assert motion.flow.shape == (1, 2, 60, 133)
    assert [tuple(x.shape) for x in motion.features] == [(1, 98, 8, 17)]
    assert network.exchanged_channels == (98,)
    assert motion.pyramid == []
    assert len(motion.sequence) == 2
    assert torch.equal(motion.sequence[-1], motion.flow)
    padded = (nn.functional.pad(x, [0, 3, 0, 68], mode="replicate") for x in (frame, next_frame))
    assert torch.equal(network(*padded).flow[..., :60, :133], motion.flow)
    assert network.eval()(frame, next_frame).sequence == []


def test_bfloat16_convolutions_leave_the_flow_in_float32() -> None:
    network = RAFTConfig(name="raft", size="small", eval_iterations=2).network().eval()
    frame, next_frame = torch.rand(2, 1, 3, 128, 128)
    with torch.no_grad():
        exact = network(frame, next_frame).flow
        with torch.autocast("cpu", torch.bfloat16):
            found = network(frame, next_frame).flow
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < 0.05 * exact.abs().max() + 0.05


def test_no_correlations_are_kept_after_a_prediction() -> None:
    network = RAFTConfig(name="raft", size="small", eval_iterations=1).network().eval()
    network(torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128))
    assert network.corr_block.corr_pyramid == []


def test_the_file_of_the_other_size_is_refused(tmp_path: Path) -> None:
    _, path = saved("large", tmp_path)
    with pytest.raises(ValueError, match=r"RAFT of torchvision .*; expected torchvision's raft_small: \S+ is "):
        load_branch(RAFTConfig(name="raft", size="small").build(), "flow", path)
