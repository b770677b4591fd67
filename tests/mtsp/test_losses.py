"""Losses against numbers worked out by hand, and against loops over pixels."""

import math
from typing import Literal

import pytest
import torch
from torch import Tensor

from mtsp.losses import (
    cross_entropy,
    end_point_error,
    label_cross_entropy,
    multiscale_epe,
    se_loss,
    sequence_loss,
)
from mtsp.tasks import ClassificationConfig, FlowConfig, SegmentationConfig, Tasks
from mtsp.types import IGNORE, Batch, Outputs


def test_cross_entropy_is_the_sum_over_known_pixels_and_their_number() -> None:
    # logits (0, ln 3) of classes 0, 1: probabilities 1/4, 3/4
    logits = torch.tensor([0.0, math.log(3)]).view(1, 2, 1, 1).expand(1, 2, 1, 3)
    total, count = cross_entropy(logits, torch.tensor([[[0, 1, IGNORE]]]), class_balance=False)
    assert total.item() == pytest.approx(math.log(4) + math.log(4 / 3))
    assert count.item() == 2  # not 3


def test_uniform_logits_of_a_released_frame_give_the_published_magnitude() -> None:
    total, count = cross_entropy(
        torch.zeros(1, 2, 480, 854), torch.zeros(1, 480, 854).long(), class_balance=False, reduction="sum"
    )
    assert count.item() == 1
    assert total.item() == pytest.approx(409_920 * math.log(2))


def test_a_balanced_pixel_weighs_one_minus_the_share_of_its_class_in_its_own_frame() -> None:
    mask = torch.tensor([[[1, 0, 0, 0]], [[1, 1, 0, IGNORE]]])
    total, count = cross_entropy(torch.zeros(2, 2, 1, 4), mask, class_balance=True)
    # frame 0: 1 pixel of weight 3/4, 3 of 1/4; frame 1: 2 of 1/3, 1 of 2/3, one unknown. Each costs ln 2.
    assert total.item() == pytest.approx((3 / 4 + 3 / 4 + 2 / 3 + 2 / 3) * math.log(2))
    assert count.item() == 7


def test_the_balanced_gradient_is_the_plain_one_times_the_weight() -> None:
    logits = torch.randn(1, 2, 1, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mask = torch.tensor([[[1, 0, 0, 0]]])
    (plain,) = torch.autograd.grad(cross_entropy(logits, mask, class_balance=False).total, logits)
    (balanced,) = torch.autograd.grad(cross_entropy(logits, mask, class_balance=True).total, logits)
    torch.testing.assert_close(balanced, plain * torch.tensor([0.75, 0.25, 0.25, 0.25]))


@pytest.mark.parametrize("balanced", [False, True])
def test_a_frame_without_a_known_pixel_adds_nothing_and_keeps_gradients_finite(balanced: bool) -> None:
    logits = torch.zeros(1, 2, 2, 2, requires_grad=True)
    total, count = cross_entropy(logits, torch.full((1, 2, 2), IGNORE), class_balance=balanced)
    total.backward()
    assert total.item() == 0
    assert count.item() == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros(1, 2, 2, 2))


def test_a_frame_of_one_class_has_no_balanced_loss() -> None:
    assert cross_entropy(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2).long(), class_balance=True).total.item() == 0


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, mask = torch.randn(3, 2, 4, 4, generator=generator), torch.randint(0, 2, (3, 4, 4), generator=generator)
    mask[0, :3] = IGNORE  # a mean of means would count the rest of frame 0 four times
    whole = cross_entropy(logits, mask, class_balance=True)
    parts = [cross_entropy(logits[i : i + 1], mask[i : i + 1], class_balance=True) for i in range(3)]
    torch.testing.assert_close(sum(part.total for part in parts), whole.total)
    assert sum(part.count.item() for part in parts) == whole.count.item() == 36


def test_the_loss_is_float32_inside_autocast() -> None:
    logits = torch.full((1, 2, 64, 64), 0.1, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        total = cross_entropy(logits, torch.zeros(1, 64, 64).long(), class_balance=False).total
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(4096 * math.log(2), rel=1e-6)  # bfloat16 would be off by up to 1 in 256


@pytest.mark.parametrize("wrong", [2, 254, -1])
def test_a_class_that_the_network_does_not_have_is_named(wrong: int) -> None:
    with pytest.raises(ValueError, match=rf"class {wrong}, the network has classes 0 to 1"):
        cross_entropy(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, wrong]]]), class_balance=False)


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2, 4, 4\) do not fit a mask of shape \(1, 2, 2\)"):
        cross_entropy(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 2).long(), class_balance=False)


def test_the_published_rate_is_translated_by_the_number_of_pixels() -> None:
    """SegFlow's solver file has 1e-9, for a sum over frames of 480 x 854: for the mean 1e-9 * 480 * 854 = 4.0992e-4."""
    logits, mask = torch.randn(1, 2, 480, 854, requires_grad=True), torch.randint(2, (1, 480, 854))

    def step(rate: float, reduction: Literal["mean", "sum"]) -> Tensor:
        total, count = cross_entropy(logits, mask, class_balance=True, reduction=reduction)
        return rate * torch.autograd.grad(total / count, logits)[0]

    torch.testing.assert_close(step(1e-9, "sum"), step(4.0992e-4, "mean"), rtol=1e-6, atol=0)


def test_end_point_error_sums_known_pixels_only() -> None:
    truth = torch.zeros(1, 2, 1, 3)
    truth[..., 2] = math.nan  # unknown pixels may hold anything
    flow = torch.tensor([[[[3.0, 0.0, 7.0]], [[4.0, 2.0, 7.0]]]], requires_grad=True)
    total, count = end_point_error(flow, truth, torch.tensor([[[True, True, False]]]))
    total.backward()
    assert total.item() == pytest.approx(5 + 2)
    assert count.item() == 2
    torch.testing.assert_close(flow.grad, torch.tensor([[[[0.6, 0.0, 0.0]], [[0.8, 1.0, 0.0]]]]))


def test_the_gradient_at_zero_error_is_zero() -> None:
    flow = torch.zeros(1, 2, 2, 2, requires_grad=True)
    end_point_error(flow, torch.zeros(1, 2, 2, 2)).total.backward()
    assert flow.grad is not None
    assert torch.equal(flow.grad, torch.zeros(1, 2, 2, 2))


def test_a_flow_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2, 4, 4\) does not fit a truth of shape \(1, 2, 8, 8\)"):
        end_point_error(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 8, 8))


def zeros(height: int, width: int, frames: int = 1) -> list[Tensor]:
    return [torch.zeros(frames, 2, math.ceil(height / s), math.ceil(width / s)) for s in (4, 8, 16, 32, 64)]


def test_the_multiscale_loss_of_a_constant_flow_is_pixels_times_weights() -> None:
    truth = torch.zeros(3, 2, 64, 128)
    truth[:, 0], truth[:, 1] = 12, 16  # 20 pixels: one unit
    total, count = multiscale_epe(zeros(64, 128, frames=3), truth)
    # a frame has 16 * 32 = 512 pixels at stride 4, then 128, 32, 8, 2
    per_frame = 512 * 0.005 + 128 * 0.01 + 32 * 0.02 + 8 * 0.08 + 2 * 0.32
    assert count.item() == 3
    assert total.item() == pytest.approx(3 * per_frame)


def test_the_multiscale_gradient_is_the_weight_over_the_scale() -> None:
    pyramid = [x.requires_grad_() for x in zeros(64, 64)]
    truth = torch.zeros(1, 2, 64, 64)
    truth[:, 0] = -10
    multiscale_epe(pyramid, truth).total.backward()
    for flow, weight in zip(pyramid, (0.005, 0.01, 0.02, 0.08, 0.32), strict=True):
        assert flow.grad is not None
        torch.testing.assert_close(
            flow.grad[:, 0], torch.full_like(flow.grad[:, 0], weight / 20)
        )  # downhill: smaller u
        assert not flow.grad[:, 1].any()


def test_a_coarse_pixel_is_the_mean_of_its_known_pixels_and_unknown_if_most_are() -> None:
    truth = torch.full((1, 2, 4, 8), math.nan)
    valid = torch.zeros(1, 4, 8, dtype=torch.bool)
    valid[:, :2, :4] = True  # half of the left cell
    truth[:, 0, 0, :4], truth[:, 0, 1, :4], truth[:, 1, :2, :4] = 10.0, 30.0, 0.0  # mean 20
    valid[:, 0, 4:] = True  # a quarter of the right cell
    truth[:, :, 0, 4:] = 1000.0
    flow = torch.zeros(1, 2, 1, 2)
    assert multiscale_epe([flow], truth, valid, weights=[1.0]).total.item() == pytest.approx(1.0)  # 20 / 20, one cell


def test_cells_that_reach_past_an_odd_frame_average_what_is_inside() -> None:
    truth = torch.zeros(1, 2, 5, 6)
    truth[:, 0, 4, 4:] = 40.0  # the whole of the last cell, of which 1x2 pixels are inside
    total = multiscale_epe([torch.zeros(1, 2, 2, 2)], truth, weights=[1.0]).total
    assert total.item() == pytest.approx(2.0, abs=1e-5)  # 40 / 20 in one cell


def test_cells_that_do_not_fit_the_frame_span_it_evenly() -> None:
    truth = torch.full((1, 2, 60, 100), 0.0)
    truth[:, 1] = 20.0  # FlowNetS at 64x128 has 16x32 cells at stride 4; 60x100 pixels would have 15x25
    assert multiscale_epe([torch.zeros(1, 2, 16, 32)], truth, weights=[1.0]).total.item() == pytest.approx(512)


def test_a_pyramid_needs_a_weight_per_scale() -> None:
    with pytest.raises(ValueError, match="2 scales need as many weights, got 5"):
        multiscale_epe(zeros(64, 64)[:2], torch.zeros(1, 2, 64, 64))


def test_presence_asks_which_classes_an_image_has_however_many_pixels_of_them() -> None:
    mask = torch.tensor([[[0, 0, 2, IGNORE]], [[1, 1, 1, 1]]])  # classes 0 and 2; class 1
    logits = torch.tensor([[0.0, math.log(3), 0.0], [0.0, math.log(3), 0.0]])  # probabilities 1/2, 3/4, 1/2
    total, count = se_loss(logits, mask)
    first = (math.log(2) + math.log(4) + math.log(2)) / 3  # class 1 is absent: -ln(1 - 3/4)
    second = (math.log(2) + math.log(4 / 3) + math.log(2)) / 3
    assert total.item() == pytest.approx(first + second)
    assert count.item() == 2


def test_presence_of_an_image_without_a_known_pixel_says_nothing() -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    mask = torch.full((2, 1, 2), IGNORE)
    mask[1] = 1
    total, count = se_loss(logits, mask)
    total.backward()
    assert (total.item(), count.item()) == (pytest.approx(math.log(2)), 1)
    assert logits.grad is not None
    assert logits.grad.tolist() == [[0, 0, 0], [pytest.approx(1 / 6), pytest.approx(-1 / 6), pytest.approx(1 / 6)]]


def test_labels_cost_their_cross_entropy_and_smoothing_spreads_a_share_of_it() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    total, count = label_cross_entropy(logits, torch.tensor([0, 1]))
    assert (total.item(), count.item()) == (pytest.approx(math.log(4) + math.log(4 / 3)), 2)
    smoothed, _ = label_cross_entropy(logits[:1], torch.tensor([0]), smoothing=0.2)  # targets 0.9 and 0.1
    assert smoothed.item() == pytest.approx(0.9 * math.log(4) + 0.1 * math.log(4 / 3))


@pytest.mark.parametrize("wrong", [-1, 2, IGNORE])
def test_a_label_that_the_network_does_not_know_is_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match=f"the label has class {wrong}, the network has classes 0 to 1"):
        label_cross_entropy(torch.zeros(1, 2), torch.tensor([wrong]))


def test_a_task_weighs_its_main_auxiliary_and_presence_losses() -> None:
    tasks = Tasks(
        segmentation=SegmentationConfig(weight=2.0, class_balance=False, aux_loss=0.5, se_loss=0.25),
        classification=ClassificationConfig(aux_loss=0.4),
    )
    batch = Batch(name=["a"], frame=torch.zeros(1, 3, 1, 2), mask=torch.tensor([[[1, IGNORE]]]))
    maps, scores = torch.zeros(1, 2, 1, 2), torch.zeros(1, 2)
    outputs = Outputs(mask_logits=maps, aux_mask_logits=maps, se_logits=scores)
    sums = {name: total.item() / math.log(2) for name, total in tasks.sums(outputs, batch).items()}
    assert sums == pytest.approx({"segmentation": 2.0, "segmentation_aux": 0.5, "segmentation_se": 0.25})
    assert {k: v.item() for k, v in tasks.counts(batch).items()} == dict.fromkeys(sums, 1)  # one known pixel, one image
    labeled = Batch(name=["b"], frame=torch.zeros(1, 3, 1, 2), label=torch.tensor([1]))
    outputs = Outputs(label_logits=scores, aux_label_logits=scores)
    sums = {name: total.item() / math.log(2) for name, total in tasks.sums(outputs, labeled).items()}
    assert sums == pytest.approx({"classification": 1.0, "classification_aux": 0.4})
    assert tasks.names == [
        "segmentation", "segmentation_aux", "segmentation_se", "classification", "classification_aux"
    ]  # fmt: skip


def test_the_sequence_loss_weighs_later_estimates_more_and_leaves_out_unknown_and_fast_pixels() -> None:
    truth = torch.tensor([[[[3.0, math.nan, 400.0, 0.0]], [[4.0, 0.0, 0.0, 0.0]]]])  # B2HW of four pixels
    valid = torch.tensor([[[True, False, True, True]]])
    first, second = torch.zeros(1, 2, 1, 4), torch.full((1, 2, 1, 4), 3.0)
    total, count = sequence_loss([first, second], truth, valid, decay=0.8)
    # first: (3 + 4) / 2 at pixel 0, nothing at pixel 3; second: (0 + 1) / 2 and (3 + 3) / 2
    assert total.item() == pytest.approx(0.8 * 3.5 + 0.5 + 3.0)
    assert count.item() == 2  # pixel 1 is unknown, pixel 2 too fast
    task = Tasks(flow=FlowConfig(weight=0.0, sequence=0.5))
    batch = Batch(name=["a"], frame=torch.zeros(1, 3, 1, 4), flow=truth, flow_valid=valid)
    assert task.counts(batch)["flow_sequence"].item() == 2
    assert task.sums(Outputs(flow_sequence=[first, second]), batch)["flow_sequence"].item() == pytest.approx(3.15)


def test_the_gradient_of_the_sequence_loss_is_finite_where_the_truth_is_nan() -> None:
    flow = torch.zeros(1, 2, 1, 2, requires_grad=True)
    truth = torch.tensor([[[[1.0, math.nan]], [[0.0, math.nan]]]])
    sequence_loss([flow], truth, torch.tensor([[[True, False]]])).total.backward()
    assert flow.grad is not None
    assert flow.grad.flatten().tolist() == [-0.5, 0.0, 0.0, 0.0]


def test_an_estimate_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"flow of shape \(1, 2, 1, 3\) does not fit a truth"):
        sequence_loss([torch.zeros(1, 2, 1, 3)], torch.zeros(1, 2, 1, 4))
