"""The small PWC-Net: warping, cost volume, shapes; what its shipped weights find."""

import math

import pytest
import torch
import torch.nn.functional as F

from models.flow.branch import warped
from models.flow.pwcnet import PwcNet, PwcNetConfig, compared, relative_motion

torch.set_num_threads(1)
SMALL = PwcNetConfig(name="pwcnet", features=(4, 4, 4, 4, 4, 4), estimator=(8, 8, 8), radius=2)


def test_the_cost_volume_compares_every_cell_with_its_neighbors() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 5, 6, 9, dtype=torch.float64), torch.randn(2, 5, 6, 9, dtype=torch.float64)
    found = compared(first, second, radius=2)
    assert found.shape == (2, 25, 6, 9)
    one, other = (x - x.mean((1, 2, 3), keepdim=True) for x in (first, second))
    one, other = (x / (x.square().mean((1, 2, 3), keepdim=True) + 1e-5).sqrt() for x in (one, other))
    dx, dy = 1, -2
    expected = (one[0, :, 4, 3] * other[0, :, 4 + dy, 3 + dx]).sum() / math.sqrt(5)
    assert found[0, (dy + 2) * 5 + dx + 2, 4, 3] == pytest.approx(float(expected), abs=1e-12)
    assert found[0, 0, 0, 0] == 0  # the neighbor lies outside


def test_warping_by_whole_cells_is_a_shift() -> None:
    features = torch.arange(2 * 4 * 5, dtype=torch.float32).view(1, 2, 4, 5)
    flow = torch.zeros(1, 2, 4, 5)
    flow[:, 0], flow[:, 1] = 2, -1  # fetched from two cells to the right, one above
    expected = F.pad(features, [0, 2, 1, 0])[..., :4, 2:]
    assert torch.allclose(warped(features, flow, outside="zeros"), expected, atol=1e-5)


def test_relative_motion_tells_an_object_from_a_moving_camera() -> None:
    flow = torch.full((1, 2, 4, 5), 7.0)
    assert relative_motion(flow).abs().max() < 0.01  # the camera alone
    flow[:, 0, 0, 0] += 20.0  # one of 20 cells moves: 19 to the right of the mean, the others 1 to the left
    found = relative_motion(flow)
    typical = math.sqrt((19**2 + 19 * 1**2) / 20) + 0.5
    assert found[0, :, 0, 0].tolist() == pytest.approx([19 / typical, 0, 19 / typical], abs=1e-4)
    assert found[0, :, 3, 3].tolist() == pytest.approx([-1 / typical, 0, 1 / typical], abs=1e-4)


def test_shapes_and_units_of_odd_frames() -> None:
    network = PwcNet(SMALL)
    frame = torch.rand(1, 3, 100, 150)
    motion = network(frame, frame)
    assert [tuple(x.shape[-2:]) for x in motion.pyramid] == [(25, 38), (13, 19), (7, 10), (4, 5), (2, 3)]
    assert [tuple(x.shape[-2:]) for x in motion.features] == [(25, 38), (13, 19), (7, 10)]
    assert [x.shape[1] for x in motion.features] == list(network.exchanged_channels) == [13, 13, 13]
    assert not motion.flow.any()  # a new network predicts no motion
    with torch.no_grad():
        assert network.predict.bias is not None
        network.predict.bias[0] = 1.0  # a step of one cell to the right at each stride
    assert torch.allclose(network(frame, frame).flow[:, 0], torch.tensor(64.0 + 32 + 16 + 8 + 4))


def test_the_brightness_of_a_pair_does_not_matter() -> None:
    torch.manual_seed(0)
    network = PwcNet(SMALL)
    torch.nn.init.normal_(network.predict.weight, std=0.01)
    pair = torch.rand(2, 1, 3, 64, 64) * 0.5
    dark, bright = (network(*frames).flow for frames in (pair, pair + 0.3))
    assert dark.abs().max() > 0.1
    assert torch.allclose(dark, bright, atol=1e-3)
