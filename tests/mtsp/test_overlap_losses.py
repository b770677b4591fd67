"""Dice and Lovasz losses against numbers worked out by hand, and against segmentation_models_pytorch."""

import math
from collections.abc import Callable

import pytest
import torch
from segmentation_models_pytorch.losses import DiceLoss, LovaszLoss
from torch import Tensor

from mtsp.losses import LossSum, cross_entropy
from mtsp.overlap_losses import dice_loss, lovasz_loss
from mtsp.tasks import SegmentationConfig, Tasks
from mtsp.types import IGNORE, Batch, Outputs

Loss = Callable[[Tensor, Tensor], LossSum]
BOTH = pytest.mark.parametrize("loss", [dice_loss, lovasz_loss])

# logits (0, ln 3) of classes 0, 1: probabilities 1/4, 3/4 in each of three pixels
LOGITS = torch.tensor([0.0, math.log(3)]).view(1, 2, 1, 1).expand(1, 2, 1, 3)
MASK = torch.tensor([[[1, 0, IGNORE]]])


def _drawn(images: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(images, classes, 8, 8, generator=generator)
    return logits, torch.randint(0, classes, (images, 8, 8), generator=generator)


def test_dice_is_one_minus_twice_the_overlap_over_the_sum_of_both() -> None:
    total, count = dice_loss(LOGITS, MASK)
    # class 0: overlap 1/4, of 1/2 predicted and 1 true; class 1: overlap 3/4, of 3/2 predicted and 1 true
    assert total.item() == pytest.approx(((1 - 0.5 / 1.5) + (1 - 1.5 / 2.5)) / 2)
    assert count.item() == 1  # an image, not its pixels


def test_lovasz_weighs_the_errors_of_a_class_by_what_they_take_from_its_iou() -> None:
    total, count = lovasz_loss(LOGITS, MASK)
    # class 1, largest error first: 3/4 at the pixel of class 0 lowers the IoU from 1 to 1/2, then 1/4 from 1/2 to 0
    # class 0: 3/4 at its own pixel lowers the IoU from 1 to 0 at once, so the 1/4 at the other one costs nothing
    assert total.item() == pytest.approx(((3 / 4 * 1 / 2 + 1 / 4 * 1 / 2) + 3 / 4) / 2)
    assert count.item() == 1


def test_the_focal_loss_is_cross_entropy_times_a_power_of_what_is_missing_to_certainty() -> None:
    total, count = cross_entropy(LOGITS, MASK, class_balance=False, focal_gamma=2.0)
    assert total.item() == pytest.approx((1 / 4) ** 2 * math.log(4 / 3) + (3 / 4) ** 2 * math.log(4))
    assert count.item() == 2


@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_the_gradient_of_the_focal_loss_is_finite_at_unknown_and_certain_pixels(gamma: float) -> None:
    logits = torch.tensor([[0.0, 100.0, 0.0], [0.0, -100.0, 0.0]]).view(1, 2, 1, 3).requires_grad_()
    cross_entropy(logits, torch.tensor([[[0, 0, IGNORE]]]), class_balance=False, focal_gamma=gamma).total.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 0, 0, 0] < 0
    assert logits.grad[0, :, 0, 1:].flatten().tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(("loss", "theirs"), [(dice_loss, DiceLoss), (lovasz_loss, LovaszLoss)])
def test_an_image_that_has_all_classes_has_the_loss_of_segmentation_models_pytorch(loss: Loss, theirs: type) -> None:
    logits, mask = _drawn(1)
    mask[0, :2] = IGNORE
    expected = theirs("multiclass", ignore_index=IGNORE)(logits, mask)
    torch.testing.assert_close(loss(logits, mask).total, expected)


@BOTH
def test_classes_that_an_image_lacks_have_no_part_in_its_mean(loss: Loss) -> None:
    logits, mask = _drawn(1)
    wider = torch.cat([logits, torch.full((1, 300, 8, 8), -1e4)], 1)  # class 255 is that of unknown pixels
    mask[0, 0] = IGNORE
    torch.testing.assert_close(loss(wider, mask).total, loss(logits, mask).total)


@BOTH
def test_what_the_network_says_of_unknown_pixels_does_not_count(loss: Loss) -> None:
    logits, mask = _drawn(1)
    mask[0, 0] = IGNORE
    other = logits.clone()
    other[0, :, 0] = 50 * torch.arange(24.0).view(3, 8)
    logits.requires_grad_()
    total = loss(logits, mask).total
    assert torch.equal(total, loss(other, mask).total)
    total.backward()
    assert logits.grad is not None
    assert logits.grad[0, :, 0].count_nonzero() == 0
    assert logits.grad[0, :, 1:].count_nonzero() > 100


@BOTH
def test_micro_batches_add_up_to_the_whole_batch(loss: Loss) -> None:
    logits, mask = _drawn(3)
    mask[1][mask[1] == 2] = 0  # this image lacks class 2
    mask[2] = IGNORE  # and this one has no known pixel
    whole = loss(logits, mask)
    parts = [loss(logits[i : i + 1], mask[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(sum(part.total for part in parts), whole.total)
    assert [part.count.item() for part in parts] == [1, 1, 0]
    assert whole.count.item() == 2
    assert parts[2].total.item() == 0


@BOTH
def test_the_loss_falls_to_nothing_as_the_network_learns_the_mask(loss: Loss) -> None:
    _, mask = _drawn(2)
    logits = torch.zeros(2, 3, 8, 8).scatter_(1, mask[:, None], 20.0)
    assert loss(logits, mask).total.item() < 1e-6
    assert loss(-logits, mask).total.item() > 1.9  # of two images, 1 at most each


@BOTH
def test_a_class_that_the_network_lacks_is_refused(loss: Loss) -> None:
    with pytest.raises(ValueError, match="the mask has class 2, the network has classes 0 to 1"):
        loss(LOGITS, torch.tensor([[[0, 1, 2]]]))


def test_weights_select_the_losses_of_segmentation() -> None:
    section = SegmentationConfig(weight=0.0, focal_loss=2.0, dice_loss=0.5, lovasz_loss=0.25, class_balance=False)
    tasks = Tasks(segmentation=section)
    assert tasks.names == ["segmentation_focal", "segmentation_dice", "segmentation_lovasz"]
    batch = Batch(name=["a"], frame=torch.zeros(1, 3, 1, 3), mask=MASK)
    sums = {name: total.item() for name, total in tasks.sums(Outputs(mask_logits=LOGITS), batch).items()}
    focal = (1 / 4) ** 2 * math.log(4 / 3) + (3 / 4) ** 2 * math.log(4)
    assert sums == pytest.approx(
        {"segmentation_focal": 2 * focal, "segmentation_dice": 0.5 * 8 / 15, "segmentation_lovasz": 0.25 * 5 / 8}
    )
    assert tasks.integer_counts(batch) == {"segmentation_focal": 2, "segmentation_dice": 1, "segmentation_lovasz": 1}
