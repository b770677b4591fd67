"""Losses of the overlap of classes: Dice and Lovasz-Softmax, for each image by itself.

Both are the mean over the classes that an image has, so a batch is a sum over its images and can be divided among
micro-batches and processes. segmentation_models_pytorch takes them over a whole batch, and its Dice loss counts classes
that are absent as solved. Letters: B batch, K classes, H and W pixels.
"""

import torch
from torch import Tensor

from mtsp.losses import LossSum, checked_mask, known_image_count


def dice_loss(logits: Tensor, mask: Tensor) -> LossSum:
    """Return 1 - 2 |p y| / (|p| + |y|) of each class, where p is its softmax probability and y is 1 in its pixels.

    Milletari et al., "V-Net" (3DV 2016), without squares in the denominator. Only known pixels count. `count` is the
    number of images with a known pixel.

    Args:
        logits: BKHW.
        mask: BHW of integers in [0, K), or IGNORE.

    Raises:
        ValueError: sizes differ, or a class is outside [0, K).
    """
    mask, known = checked_mask(logits, mask)
    with torch.autocast(logits.device.type, enabled=False):
        probability = torch.where(known[:, None], logits.float().softmax(1), 0.0)
        truth = _one_hot(mask, known, logits.shape[1])
        pixels = truth.sum((2, 3))
        overlap = torch.where(truth, probability, 0.0).sum((2, 3))
        losses = 1 - 2 * overlap / (probability.sum((2, 3)) + pixels).clamp(min=1e-7)
        return _mean_over_present(losses, pixels > 0, mask)


def lovasz_loss(logits: Tensor, mask: Tensor) -> LossSum:
    """Return the Lovasz-Softmax loss, a convex surrogate of 1 - IoU of each class.

    Berman et al., "The Lovasz-Softmax loss" (CVPR 2018), equation 9 and algorithm 1, with the classes that are present.
    Only known pixels count. `count` is the number of images with a known pixel. On a GPU it waits for the classes of
    the batch, and sorts the pixels once for each. Arguments and errors are those of :func:`dice_loss`.
    """
    mask, known = checked_mask(logits, mask)
    with torch.autocast(logits.device.type, enabled=False):
        probability = logits.float().softmax(1)
        present = _one_hot(mask, known, logits.shape[1]).any(3).any(2)
        losses = probability.new_zeros(present.shape)
        for k in present.any(0).nonzero().flatten().tolist():
            truth = ((mask == k) & known).flatten(1).float()
            error = (truth - probability[:, k].flatten(1)).abs()
            error = torch.where(known.flatten(1), error, -1.0)  # sorted behind all known pixels
            error, order = error.sort(1, descending=True)
            truth = truth.gather(1, order)
            hits = truth.sum(1, keepdim=True) - truth.cumsum(1)
            jaccard = 1 - hits / (truth.sum(1, keepdim=True) + (1 - truth).cumsum(1))
            weights = torch.cat([jaccard[:, :1], jaccard.diff(dim=1)], 1)
            losses[:, k] = (error.clamp(min=0) * weights).sum(1)
        return _mean_over_present(losses, present, mask)


def _one_hot(mask: Tensor, known: Tensor, classes: int) -> Tensor:
    """Return BKHW bool: whether a known pixel has the class."""
    return (mask[:, None] == torch.arange(classes, device=mask.device).view(-1, 1, 1)) & known[:, None]


def _mean_over_present(losses: Tensor, present: Tensor, mask: Tensor) -> LossSum:
    """Return the sum over images of the mean of BK `losses` over the classes that are present."""
    means = torch.where(present, losses, 0.0).sum(1) / present.sum(1).clamp(min=1)
    return LossSum(means.sum(), known_image_count(mask).float())
