"""FlowNetS against the published table: shapes, parameter counts, units."""

import pytest
import torch
from torch import nn

from models.flow.flownets import FlowNetS, FlowNetSConfig

torch.set_num_threads(1)
SMALL = FlowNetSConfig(width=0.0625)  # 4 to 64 channels


def count(network: nn.Module, end: str = "") -> int:
    return sum(p.numel() for name, p in network.named_parameters() if name.endswith(end))


@pytest.fixture(scope="module")
def published() -> FlowNetS:
    with torch.device("meta"):
        return FlowNetS(FlowNetSConfig())


def test_parameters_are_as_many_as_published(published: FlowNetS) -> None:
    biases = {
        stem: sum(p.numel() for name, p in published.named_parameters() if name.startswith(stem) and "bias" in name)
        for stem in ("deconv", "predict_flow", "upsampled_flow")
    }
    assert biases == {"deconv": 960, "predict_flow": 10, "upsampled_flow": 8}
    assert count(published) == 38_675_536 + 960 + 10 + 8


def test_batch_norm_replaces_the_biases_of_convolutions_only() -> None:
    with torch.device("meta"):
        network = FlowNetS(FlowNetSConfig(batch_norm=True))
    # each of the 5 376 convolution channels has a scale and a shift instead of a bias
    channels = 64 + 128 + 2 * 256 + 4 * 512 + 2 * 1024
    assert channels == 4800
    assert count(network) == 38_676_514 + channels
    assert sum(isinstance(m, nn.BatchNorm2d) for m in network.modules()) == 10


def test_shapes_at_the_resized_frame_are_those_of_the_table(published: FlowNetS) -> None:
    frame = torch.empty(1, 3, 512, 896, device="meta")
    motion = published(frame, frame)
    assert [tuple(flow.shape) for flow in motion.pyramid] == [
        (1, 2, 128, 224),
        (1, 2, 64, 112),
        (1, 2, 32, 56),
        (1, 2, 16, 28),
        (1, 2, 8, 14),
    ]
    assert tuple(motion.features[0].shape) == (1, 194, 128, 224)
    assert tuple(motion.features[1].shape) == (1, 386, 64, 112)
    assert tuple(motion.features[2].shape) == (1, 770, 32, 56)
    assert published.get_parameter("predict_flow5.weight").shape[1] == 1026  # concat5


def test_a_smaller_network_keeps_the_table_in_proportion() -> None:
    network = FlowNetS(FlowNetSConfig(width=0.25))
    assert network.get_parameter("conv6_1.0.weight").shape == (256, 256, 3, 3)
    assert network.decoder_channels == {5: 258, 4: 194, 3: 98, 2: 50}


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (20, 30)])
def test_any_size_gives_maps_of_a_quarter_rounded_up(size: tuple[int, int]) -> None:
    frame = torch.rand(1, 3, *size)
    pyramid = FlowNetS(SMALL)(frame, frame).pyramid
    expected = [tuple(-(-side // stride) for side in size) for stride in (4, 8, 16, 32, 64)]
    assert [tuple(flow.shape[-2:]) for flow in pyramid] == expected


def constant(sizes: str, u: float, v: float) -> FlowNetS:
    """A network whose predictions are (u, v) before their unit, at every scale."""
    network = FlowNetS(SMALL.model_copy(update={"sizes": sizes}))
    for level in (2, 3, 4, 5, 6):
        predictor = network.get_submodule(f"predict_flow{level}")
        assert isinstance(predictor, nn.Conv2d)
        assert predictor.bias is not None
        nn.init.zeros_(predictor.weight)
        predictor.bias.data = torch.tensor([u, v])
    return network


def test_the_unit_of_20_pixels_is_applied_once_at_every_scale() -> None:
    frame = torch.rand(1, 3, 64, 64)
    for flow in constant("crop", 0.5, -0.25)(frame, frame).pyramid:
        assert torch.equal(flow, torch.tensor([10.0, -5.0]).view(1, 2, 1, 1).expand_as(flow))


def test_flow_has_the_precision_of_float32_inside_autocast() -> None:
    frame = torch.rand(1, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        pyramid = FlowNetS(SMALL)(frame, frame).pyramid
    assert {flow.dtype for flow in pyramid} == {torch.float32}


def test_resizing_scales_the_flow_back_to_the_frame() -> None:
    frame = torch.rand(1, 3, 60, 100)  # seen as 64x128
    flow = constant("resize", 1.0, 1.0)(frame, frame).pyramid[0]
    assert flow.shape == (1, 2, 16, 32)
    torch.testing.assert_close(flow[0, :, 0, 0], torch.tensor([20 * 100 / 128, 20 * 60 / 64]))


def test_the_mean_is_subtracted_per_frame_and_channel() -> None:
    network = FlowNetS(SMALL)
    network.mean.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]))
    ones = torch.ones(1, 3, 2, 2)
    seen = network._normalized(ones, ones)
    torch.testing.assert_close(seen[0, :, 0, 0], torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]))


def test_own_means_are_of_both_frames_of_each_pair() -> None:
    network = FlowNetS(SMALL)
    network.own_mean.fill_(True)
    dark, bright = torch.zeros(2, 3, 2, 2), torch.ones(2, 3, 2, 2)
    bright[1] = 0.5
    seen = network._normalized(dark, bright)
    torch.testing.assert_close(seen[:, :, 0, 0], torch.tensor([[-0.5] * 3 + [0.5] * 3, [-0.25] * 3 + [0.25] * 3]))


def test_normalization_and_unit_are_saved_with_the_weights() -> None:
    assert {"mean", "own_mean", "div_flow"} <= FlowNetS(SMALL).state_dict().keys()


def test_as_a_network_its_flow_is_as_large_as_the_frame_and_the_pyramid_is_for_training() -> None:
    network = SMALL.build()
    frame = torch.rand(1, 3, 33, 50)
    outputs = network(frame, frame)
    assert outputs["flow"].shape == (1, 2, 33, 50)
    assert len(outputs["flow_pyramid"]) == 5
    assert set(network.eval()(frame)) == {"flow"}
    assert all(name.startswith("flow.network.") for name, _ in network.named_parameters())
