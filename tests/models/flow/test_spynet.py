"""SPyNet against its published recipe, written down again here, and with its real weights on real pairs."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.flow.flying_chairs import FlyingChairsConfig
from data.flow.sintel import SintelConfig
from models.flow.branch import Motion, warped
from models.flow.spynet import SPyNet, SPyNetConfig
from models.pretrained.load import load_branch
from mtsp.losses import multiscale_epe
from mtsp.types import Sample

torch.set_num_threads(1)
DATA = Path(os.environ.get("MTSP_DATA", ""))
real_data = pytest.mark.skipif("MTSP_DATA" not in os.environ, reason="MTSP_DATA names no folder of real data")
NONE: np.ndarray = np.zeros((0, 0, 0), np.float32)
CONVS = [(0, 8, 32), (2, 32, 64), (4, 64, 32), (6, 32, 16), (8, 16, 2)]  # layer, channels in, channels out


def published_file(level: str = "netBasic", convs: str = "{}") -> dict[str, Tensor]:
    """A checkpoint by the keys of the ports, with small random values."""
    torch.manual_seed(0)
    file = {}
    for number in range(6):
        for index, channels_in, channels_out in CONVS:
            key = f"{level}.{number}.{level}.{convs.format(index)}"
            file[f"{key}.weight"] = torch.randn(channels_out, channels_in, 7, 7) * (channels_in * 49) ** -0.5
            file[f"{key}.bias"] = torch.randn(channels_out) * 0.1
    return file


def recipe(file: dict[str, Tensor], frame: Tensor, next_frame: Tensor) -> Tensor:
    """The published network for frames of sides that 32 divides."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    images = [((frame - mean) / std, (next_frame - mean) / std)]
    for _ in range(5):
        images.append((F.avg_pool2d(images[-1][0], 2), F.avg_pool2d(images[-1][1], 2)))
    flow = torch.zeros(len(frame), 2, frame.shape[2] // 64, frame.shape[3] // 64)
    for level, (first, second) in enumerate(reversed(images)):
        height, width = first.shape[-2:]
        if level:
            flow = F.interpolate(flow, (height, width), mode="bilinear", align_corners=True) * 2
        else:
            flow = torch.zeros(len(frame), 2, height, width)
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        grid = torch.stack([(x + flow[:, 0]) * 2 / (width - 1) - 1, (y + flow[:, 1]) * 2 / (height - 1) - 1], dim=3)
        fetched = F.grid_sample(second, grid, padding_mode="border", align_corners=True)
        out = torch.cat([first, fetched, flow], dim=1)
        for index in (0, 2, 4, 6, 8):
            key = f"netBasic.{level}.netBasic.{index}"
            out = F.conv2d(out if index == 0 else out.relu(), file[f"{key}.weight"], file[f"{key}.bias"], padding=3)
        flow = flow + out
    return flow


def test_flow_is_that_of_the_published_recipe(tmp_path: Path) -> None:
    file = published_file()
    torch.save(file, tmp_path / "spynet.pth")
    network = SPyNetConfig(name="spynet").build()
    loaded = load_branch(network, "flow", tmp_path / "spynet.pth")
    assert loaded.fresh == loaded.left_out == []
    frame, next_frame = torch.rand(2, 1, 3, 64, 96)
    with torch.no_grad():
        ours, theirs = network.eval()(frame, next_frame)["flow"], recipe(file, frame, next_frame)
    assert theirs.abs().max() > 1
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("level", "convs"), [("moduleBasic", "{}"), ("basic_module", "{}.conv")])
def test_files_of_other_ports_load_into_the_same_layers(tmp_path: Path, level: str, convs: str) -> None:
    file = published_file(level, convs)
    if level == "basic_module":  # mmediting numbers the convolutions 0 to 4 and stores the normalization
        file = {
            key.replace(f".{index}.conv", f".{index // 2}.conv"): value
            for index in (0, 2, 4, 6, 8)
            for key, value in file.items()
            if f".{index}.conv" in key
        } | {"mean": torch.zeros(1, 3, 1, 1), "std": torch.ones(1, 3, 1, 1)}
    torch.save({"state_dict": file}, tmp_path / "f.pth")
    network = SPyNetConfig(name="spynet").build()
    load_branch(network, "flow", tmp_path / "f.pth")
    expected = published_file()
    for name, value in network.get_submodule("flow.network.levels").named_parameters():
        level, rest = name.split(".", 1)
        assert torch.equal(value, expected[f"netBasic.{level}.netBasic.{rest}"]), name


def test_files_of_another_depth_or_network_are_refused(tmp_path: Path) -> None:
    file = published_file()
    network = SPyNetConfig(name="spynet").build()
    torch.save({k: v for k, v in file.items() if not k.startswith("netBasic.5")}, tmp_path / "five.pth")
    with pytest.raises(ValueError, match=r"like SPyNet .*; expected 60 tensors, the first that differs is levels.5.0"):
        load_branch(network, "flow", tmp_path / "five.pth")
    torch.save({"upsampled_flow6_to_5.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"it looks like FlowNetS .*SPyNet has no upsampled_flow6_to_5.weight"):
        load_branch(network, "flow", tmp_path / "other.pth")


def test_warping_fetches_along_the_flow_and_repeats_the_border() -> None:
    x = torch.arange(12.0).view(1, 1, 3, 4)
    flow = torch.zeros(1, 2, 3, 4)
    flow[:, 0] = 1  # every pixel looks one column to the right
    expected = torch.tensor([[1.0, 2, 3, 3], [5, 6, 7, 7], [9, 10, 11, 11]])
    torch.testing.assert_close(warped(x, flow, outside="border")[0, 0], expected)
    flow[:, 1] = -0.5
    torch.testing.assert_close(warped(x, flow, outside="border")[0, 0, 1], torch.tensor([3.0, 4, 5, 5]))


def test_shapes_strides_and_parameters_are_as_said() -> None:
    network = SPyNet()
    assert sum(p.numel() for p in network.parameters()) == 1_440_300
    frame = torch.rand(1, 3, 64, 96)
    motion = network(frame, frame)
    assert [tuple(x.shape[1:]) for x in motion.features] == [(50, 8, 12), (50, 4, 6), (50, 2, 3)]
    assert [tuple(x.shape[-2:]) for x in motion.pyramid] == [(64 // s, 96 // s) for s in (1, 2, 4, 8, 16, 32)]


def test_frames_of_any_size_are_scaled_up_and_the_flow_is_scaled_back() -> None:
    """A network that predicts nothing but its last bias: (1, 1) px of the scaled frame, 64x96 for 40x90."""
    network = SPyNetConfig(name="spynet").build()
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    last = network.get_parameter("flow.network.levels.5.8.bias")
    last.data.fill_(1)
    outputs = network(torch.rand(1, 3, 40, 90), torch.rand(1, 3, 40, 90))
    assert outputs["flow"].shape == (1, 2, 40, 90)
    torch.testing.assert_close(outputs["flow"][0, :, 7, 7], torch.tensor([90 / 96, 40 / 64]))
    assert set(network.eval()(torch.rand(1, 3, 32, 32))) == {"flow"}


def test_the_pyramid_fits_the_multiscale_loss_in_pixels_of_the_frame() -> None:
    """Every level's own flow of 1 px of its cells adds up: 1 at the coarsest is 32 px of the frame there."""
    network = SPyNet()
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    network.get_parameter("levels.0.8.bias").data.fill_(1)
    frame = torch.rand(1, 3, 32, 64)
    pyramid = network(frame, frame).pyramid
    for flow in pyramid:
        torch.testing.assert_close(flow, torch.full_like(flow, 32))
    loss = multiscale_epe(pyramid, torch.full((1, 2, 32, 64), 29.0), weights=(1.0,) * 6, scale=1.0)
    # 32x64 + 16x32 + 8x16 + 4x8 + 2x4 + 1x2 cells are wrong by (3, 3)
    assert loss.total.item() == pytest.approx(2730 * 18**0.5, rel=1e-5)


def test_bfloat16_convolutions_leave_the_flow_in_float32() -> None:
    network = SPyNet()
    frame, next_frame = torch.rand(2, 1, 3, 64, 64)
    exact = network(frame, next_frame).flow
    with torch.autocast("cpu", torch.bfloat16):
        motion = network(frame, next_frame)
    assert motion.flow.dtype == torch.float32
    assert (motion.flow - exact).abs().max() < 0.05


def error(sample: Sample, network: Callable[..., Any]) -> float:
    """The mean end-point error of a pair with dense flow, in pixels."""
    frames = (
        np.ascontiguousarray(image.transpose(2, 0, 1)[None])
        for image in (sample["frame"], sample.get("next_frame", NONE))
    )
    with torch.inference_mode():
        flow = network(*(torch.from_numpy(frame).float() / 255 for frame in frames))
    flow = flow.flow if isinstance(flow, Motion) else flow
    return float(np.linalg.norm(flow[0].permute(1, 2, 0).numpy() - sample.get("flow", NONE), axis=2).mean())


@real_data
def test_the_real_weights_reach_their_published_error_on_real_pairs() -> None:
    file = DATA / "weights" / "spynet-sintel-final.pth"
    network = SPyNetConfig(name="spynet").build().eval()
    load_branch(network, "flow", file)
    sintel = SintelConfig(name="sintel", root=DATA / "MPI-Sintel", passes=("clean",), split="all").build()
    assert error(sintel[0], network.flow.network) == pytest.approx(0.17, abs=0.005)
    pair = FlyingChairsConfig(name="flying_chairs", root=DATA / "FlyingChairs_release").build()[1]
    weights = torch.load(file, weights_only=True)
    by_recipe = error(pair, lambda *frames: recipe(weights, *frames))
    assert error(pair, network.flow.network) == pytest.approx(by_recipe, abs=1e-4)
    assert by_recipe < 0.3 * np.linalg.norm(pair.get("flow", NONE), axis=2).mean()
