"""SegFlow against the released network's shapes, sums and constants, and its modern form on real tensors."""

import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import Tensor, nn

from models import AnyModel
from models.encoders.build import build
from models.flow.flownets import FlowNetSConfig
from models.segflow.decoders import PyramidHead, ScoreHead, bilinear_kernel
from models.segflow.network import SegFlow, SegFlowConfig
from mtsp.config import ConfigError, parse
from mtsp.losses import cross_entropy

torch.set_num_threads(1)
TINY = FlowNetSConfig(width=0.0625)


def small(**changes: object) -> SegFlow:
    torch.manual_seed(0)
    values = {"name": "segflow", "encoder": "tu-efficientnet_lite0", "width": 16, "flow_width": 8, "flow": TINY}
    return SegFlowConfig(**(values | changes)).build()  # pyright: ignore[reportArgumentType]


def on_meta(mode: str) -> SegFlow:
    with torch.device("meta"):
        return SegFlowConfig(name="segflow", mode=mode).build()  # pyright: ignore[reportArgumentType]


def inputs_of(head: nn.Module) -> list[int]:
    assert isinstance(head, ScoreHead)
    return [score.in_channels for score in (head.score5, head.score4, head.score3)]


@pytest.mark.parametrize("mode", ["released", "paper"])
def test_shapes_and_channel_sums_at_480x854_are_the_released_ones(mode: str) -> None:
    network = on_meta(mode)
    frame = torch.empty(1, 3, 480, 854, device="meta")
    features = network.segmentation.encode(frame)
    assert [tuple(f.shape[1:]) for f in features] == [(256, 120, 213), (512, 60, 107), (1024, 30, 54), (2048, 15, 27)]
    outputs = network(frame, frame)
    assert outputs["mask_logits"].shape == (1, 2, 480, 854)
    assert outputs["flow"].shape == (1, 2, 480, 854)
    assert tuple(outputs["flow_pyramid"][0].shape[-2:]) == (128, 224)  # the frame as 512x896
    assert inputs_of(network.segmentation.head) == [2818, 1410, 706]
    head = network.segmentation.head
    assert isinstance(head, ScoreHead)
    assert [sum(p.numel() for p in s.parameters()) for s in (head.score5, head.score4, head.score3)] == [
        5638,
        2822,
        1414,
    ]


def test_released_leaves_out_the_flow_head_and_paper_has_it() -> None:
    released, paper = on_meta("released"), on_meta("paper")
    assert released.flow is not None
    assert paper.flow is not None
    assert released.flow.head is None
    assert paper.flow.head is not None
    assert inputs_of(paper.flow.head) == [2818, 1410, 706]


def test_score_heads_start_at_zero_so_that_the_first_loss_is_the_published_one() -> None:
    head = ScoreHead((512, 1024, 2048), (194, 386, 770), 2, crops=(4, 2, 1))
    encoder = [torch.rand(1, c, h, w) for c, h, w in ((512, 60, 107), (1024, 30, 54), (2048, 15, 27))]
    motion = [torch.rand(1, c, h, w) for c, h, w in ((194, 64, 112), (386, 32, 56), (770, 16, 28))]
    logits = head(encoder, motion)[..., :480, :854]
    assert logits.shape == (1, 2, 480, 854)
    assert torch.equal(logits.softmax(1), torch.full_like(logits, 0.5))
    total = cross_entropy(logits, torch.ones(1, 480, 854).long(), class_balance=False, reduction="sum").total
    assert total.item() == pytest.approx(409_920 * math.log(2))


def test_the_score_heads_cuts_and_factors_are_the_released_ones() -> None:
    """One flow pixel and one encoder pixel per level, followed to the score map that they enter."""
    head = ScoreHead((1, 1, 1), (1, 1, 1), 1, crops=(4, 2, 1))
    for score in (head.score3, head.score4, head.score5):
        nn.init.ones_(score.weight)
    motion = [torch.zeros(1, 1, h, w) for h, w in ((64, 112), (32, 56), (16, 28))]
    for features, offset in zip(motion, (4, 2, 1), strict=True):
        features[0, 0, offset + 3, offset + 5] = 1
    encoder = [torch.full((1, 1, h, w), 7.0) for h, w in ((60, 107), (30, 54), (15, 27))]
    for level, scale in enumerate((0.0001, 0.01, 1.0)):
        joined = head._joined(level, encoder[level], motion)
        assert joined.shape[1:] == (2, *encoder[level].shape[2:])
        assert joined[0, 0, 0, 0].item() == pytest.approx(7 * scale)
        assert joined[0, 1].nonzero().tolist() == [[3, 5]]


def test_faithful_upsamplers_are_fixed_bilinear_buffers() -> None:
    kernel = bilinear_kernel(2, 2)
    tent = torch.tensor([0.25, 0.75, 0.75, 0.25])
    assert torch.equal(kernel, torch.outer(tent, tent).expand(2, 1, 4, 4))
    eight = bilinear_kernel(1, 8)[0, 0]
    assert eight.shape == (16, 16)
    assert eight[7, 8].item() == pytest.approx((15 / 16) ** 2)
    # away from the border the deconvolution is the interpolation that PyTorch has
    x = torch.rand(1, 2, 6, 6)
    ours = F.conv_transpose2d(x, kernel, stride=2, padding=1, groups=2)
    theirs = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(ours[..., 2:-2, 2:-2], theirs[..., 2:-2, 2:-2])
    head = ScoreHead((1, 1, 1), (), 2, crops=(4, 2, 1))
    assert {name.split(".")[0] for name, _ in head.named_parameters()} == {"score3", "score4", "score5"}


def test_released_enlarges_flow_between_scales_bilinearly_on_the_diagonal_channels() -> None:
    network = small(mode="released")  # on a light encoder: faithful modes take any
    weight = network.get_parameter("flow.network.upsampled_flow4_to_3.weight")
    assert torch.equal(weight[0, 0], bilinear_kernel(1, 2)[0, 0])
    assert torch.equal(weight[1, 1], bilinear_kernel(1, 2)[0, 0])
    assert weight[0, 1].abs().max() > 0  # as initialized or loaded
    modern = small().get_parameter("flow.network.upsampled_flow4_to_3.weight")
    assert not torch.equal(modern[0, 0], bilinear_kernel(1, 2)[0, 0])


@pytest.mark.parametrize("mode", ["released", "paper"])
def test_faithful_modes_take_one_size_and_say_what_to_do(mode: str) -> None:
    frame = torch.empty(1, 3, 216, 384, device="meta")
    with pytest.raises(ValueError, match="takes frames of 480x854, got 216x384; resize them, or use mode modern"):
        on_meta(mode)(frame, frame)


@pytest.mark.parametrize("decoder", ["fpn", "scores"])
@pytest.mark.parametrize("size", [(64, 96), (67, 101)])
def test_modern_outputs_are_as_large_as_the_frame_whatever_its_size(decoder: str, size: tuple[int, int]) -> None:
    network = small(decoder=decoder)
    frame, next_frame = torch.rand(2, 3, *size), torch.rand(2, 3, *size)
    outputs = network(frame, next_frame)
    assert outputs["mask_logits"].shape == (2, 2, *size)
    assert outputs["flow"].shape == (2, 2, *size)
    quarters = [tuple(-(-side // stride) for side in size) for stride in (4, 8, 16, 32, 64)]
    assert [tuple(flow.shape[-2:]) for flow in outputs["flow_pyramid"]] == quarters
    assert "flow_pyramid" not in network.eval()(frame, next_frame)


@pytest.mark.parametrize("decoder", ["fpn", "scores"])
def test_modern_flow_is_flownets_own_until_the_head_learns(decoder: str) -> None:
    network = small(decoder=decoder).eval()
    assert network.flow is not None
    frame, next_frame = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        own = network.flow.network(frame, next_frame).pyramid[0]
        expected = F.interpolate(own, scale_factor=4, mode="bilinear", align_corners=False)
        torch.testing.assert_close(network(frame, next_frame)["flow"], expected)
    assert own.abs().max() > 0


def grads(network: SegFlow, loss: Tensor) -> dict[str, bool]:
    """Whether the loss reaches each part."""
    network.zero_grad()
    loss.backward()
    parts = ("segmentation.encoder", "segmentation.head", "flow.network", "flow.head")
    return {
        part: any(p.grad is not None and bool(p.grad.any()) for p in network.get_submodule(part).parameters())
        for part in parts
    }


@pytest.mark.parametrize("decoder", ["fpn", "scores"])
def test_each_task_reaches_both_branches(decoder: str) -> None:
    network = small(decoder=decoder)
    for name, parameter in network.named_parameters():
        if ".head." in name and parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.1)  # heads that start at zero pass nothing back in the first step
    frame, next_frame = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    reached = grads(network, network(frame, next_frame)["mask_logits"].square().sum())
    assert reached == {
        "segmentation.encoder": True,
        "segmentation.head": True,
        "flow.network": True,
        "flow.head": False,
    }
    reached = grads(network, network(frame, next_frame)["flow"].square().sum())
    assert reached == {
        "segmentation.encoder": True,
        "segmentation.head": False,
        "flow.network": True,
        "flow.head": True,
    }


def test_without_a_flow_branch_the_next_frame_does_not_matter() -> None:
    network = small(flow=None).eval()
    assert network.branches == ("segmentation",)
    frame = torch.rand(1, 3, 64, 64)
    outputs = network(frame, torch.rand(1, 3, 64, 64))
    assert set(outputs) == {"mask_logits"}
    assert torch.equal(outputs["mask_logits"], network(frame)["mask_logits"])


def test_with_a_flow_branch_the_mask_depends_on_the_motion() -> None:
    network = small().eval()
    frame = torch.rand(1, 3, 64, 64)
    still, moving = network(frame)["mask_logits"], network(frame, frame.roll(4, 3))["mask_logits"]
    assert (still - moving).abs().max() > 1e-4


def test_branch_names_are_the_prefixes_of_all_parameters() -> None:
    network = small()
    assert network.branches == ("segmentation", "flow")
    assert {name.split(".")[0] for name, _ in network.named_parameters()} == set(network.branches)
    assert {name for name, _ in network.named_children()} == set(network.branches)


def test_a_pyramid_heads_first_result_can_be_zero() -> None:
    head = PyramidHead((8, 8, 8, 8), (), 2, width=8, zero=True)
    assert not head([torch.rand(1, 8, s, s) for s in (16, 8, 4, 2)], []).any()


def test_an_encoder_that_does_not_exist_is_answered_with_the_nearest_names() -> None:
    with pytest.raises(ValueError, match="no encoder 'efficientnt_lite0'; did you mean efficientnet_lite0"):
        build("tu-efficientnt_lite0")
    with pytest.raises(ValueError, match="no encoder 'resnt18'; did you mean resnet18"):
        build("resnt18")


def test_an_encoder_without_the_four_strides_is_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"'levit_128s' has no feature maps at strides 4, 8, 16, 32 \(it has 16, 32, 64\); use resnet50",
    ):
        build("levit_128s")


def test_a_caffe_resnet_strides_in_its_first_convolution_and_pools_without_padding() -> None:
    encoder = build("resnet50_caffe").module
    assert encoder.get_submodule("layer2.0.conv1").stride == (2, 2)
    assert encoder.get_submodule("layer2.0.conv2").stride == (1, 1)
    assert [tuple(x.shape[1:]) for x in encoder(torch.rand(1, 3, 64, 70))] == [
        (256, 16, 17),  # torchvision's has 18 columns: 70 -> 35 -> 18
        (512, 8, 9),
        (1024, 4, 5),
        (2048, 2, 3),
    ]


def test_a_decoder_that_the_mode_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="mode paper does not support decoder fpn"):
        parse(SegFlowConfig, {"name": "segflow", "mode": "paper", "decoder": "fpn"})


def test_networks_are_chosen_by_name() -> None:
    adapter = TypeAdapter(AnyModel)
    assert isinstance(adapter.validate_python({"name": "segflow", "flow": None}), SegFlowConfig)
    assert adapter.validate_python({"name": "flownets", "width": 0.0625}).build().branches == ("flow",)
