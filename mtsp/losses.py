"""Compute each loss as a sum and a count, so that means over several micro-batches and processes are exact.

The loss of a step is the sum of `total` over its micro-batches and processes, divided by the sum of `count`. A mean of
means would give a pixel in a batch with few known pixels more weight than a pixel in a batch with many. `count` depends
only on the labels (`mask_count` and others), so it is known before the network runs.

Logits may have any float type: losses are computed in float32, also inside autocast. On a CPU, a class outside [0, K)
raises ValueError; on a GPU this check would be slow and is omitted. Letters: B batch, K classes, H and W pixels.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mtsp.types import IGNORE

SCALE_WEIGHTS = (0.005, 0.01, 0.02, 0.08, 0.32)
"""Weights of the five flow scales in FlowNetS's Caffe training files, finest scale first."""


MAX_FLOW = 400.0
"""Pixels that move farther than this many pixels have no part in :func:`sequence_loss`, as in RAFT's training."""


class LossSum(NamedTuple):
    """A loss before the division `total / count`. Both are float32 scalars; only `total` has a gradient."""

    total: Tensor
    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]


def mask_count(mask: Tensor, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
    """Return the number that :func:`cross_entropy` averages over: known pixels for "mean", frames for "sum"."""
    return (mask != IGNORE).sum() if reduction == "mean" else image_count(mask)


def known_image_count(mask: Tensor) -> Tensor:
    """Return the number of images with at least one known pixel, which losses by image average over."""
    return (mask != IGNORE).flatten(1).any(1).sum()


def flow_count(truth: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the number that :func:`end_point_error` averages over: known pixels."""
    return torch.tensor(truth[:, 0].numel(), device=truth.device) if valid is None else valid.sum()


def sequence_count(truth: Tensor, valid: Tensor | None = None, *, max_flow: float = MAX_FLOW) -> Tensor:
    """Return the number that :func:`sequence_loss` averages over: known pixels that move by less than `max_flow`."""
    return _slow(truth, valid, max_flow).sum()


def image_count(labels: Tensor) -> Tensor:
    """Return the number of images, which all other losses average over."""
    return torch.tensor(len(labels), device=labels.device)


def cross_entropy(
    logits: Tensor,
    mask: Tensor,
    *,
    class_balance: bool,
    reduction: Literal["mean", "sum"] = "mean",
    focal_gamma: float = 0.0,
) -> LossSum:
    """Return the cross-entropy over the known pixels of a mask, or with `focal_gamma` the focal loss.

    With `class_balance`, a pixel of class c has weight 1 - n_c / N, where N is the number of known pixels in its frame
    and n_c the number of those with class c. With two classes, both then have equal total weight. The weights are not
    renormalized: in a frame with only one class they are all 0. SegFlow's authors weight the gradient, but report the
    unweighted loss.

    The loss for "sum" is larger than for "mean" by the number of pixels in a frame, so published learning rates differ
    by this factor. With frames of 480x854 = 409 920 pixels, 1e-9 for "sum" is 1e-9 * 409 920 = 4.1e-4 for "mean".

    Args:
        logits: BKHW.
        mask: BHW of integers in [0, K), or IGNORE.
        reduction: "mean" divides by the number of known pixels, ignoring weights; "sum" by the number of frames.
        focal_gamma: 0, or at least 1: a pixel whose class has probability p is weighted with (1 - p) ** focal_gamma,
            with softmax probabilities (Lin et al., "Focal Loss", ICCV 2017, section 3.2).

    Raises:
        ValueError: sizes differ, or a class is outside [0, K).
    """
    mask, known = checked_mask(logits, mask)
    with torch.autocast(logits.device.type, enabled=False):
        losses = F.cross_entropy(logits.float(), mask, ignore_index=IGNORE, reduction="none")
        if focal_gamma:
            losses = losses * (-torch.expm1(-losses)) ** focal_gamma
        if class_balance:
            losses = losses * _balance(mask, known, logits.shape[1])
        return LossSum(losses.sum(), mask_count(mask, reduction).float())


def checked_mask(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return a mask as integers of 64 bits, and BHW bool: where it is known. Raises as :func:`cross_entropy`."""
    if logits.shape[:1] + logits.shape[2:] != mask.shape:
        raise ValueError(f"logits of shape {tuple(logits.shape)} do not fit a mask of shape {tuple(mask.shape)}")
    known = mask != IGNORE
    _check_classes(mask, known, logits.shape[1], "mask")
    return mask.long(), known


def se_loss(logits: Tensor, mask: Tensor) -> LossSum:
    """Return EncNet's semantic encoding loss (SE-loss): a prediction of which classes the image contains.

    It is the binary cross-entropy of each class, averaged over the classes, as in Zhang et al., "Context Encoding for
    Semantic Segmentation" (CVPR 2018), section 3.1. `count` is the number of images with a known pixel. Logits are BK;
    the mask is BHW, in [0, K) or IGNORE. An image without a known pixel is ignored (the authors' code treats it as
    containing no class).

    Raises:
        ValueError: the batch sizes differ, or a class is outside [0, K).
    """
    if logits.ndim != 2 or len(logits) != len(mask):
        raise ValueError(f"se_logits of shape {tuple(logits.shape)} does not fit a mask of shape {tuple(mask.shape)}")
    classes = logits.shape[1]
    known = mask != IGNORE
    _check_classes(mask, known, classes, "mask")
    codes = torch.where(known, mask, classes).long().flatten(1)
    present = logits.new_zeros((len(mask), classes + 1), dtype=torch.float32).scatter_(1, codes, 1.0)[:, :classes]
    with torch.autocast(logits.device.type, enabled=False):
        losses = F.binary_cross_entropy_with_logits(logits.float(), present, reduction="none").mean(1)
    return LossSum(torch.where(known.flatten(1).any(1), losses, 0.0).sum(), known_image_count(mask).float())


def label_cross_entropy(
    logits: Tensor, label: Tensor, *, weight: Tensor | None = None, smoothing: float = 0.0
) -> LossSum:
    """Return the cross-entropy of image classes, with BK logits and B labels in [0, K).

    `count` is the number of images.
    `weight` is B factors of the losses of the images; of images that were mixed, the weight of this label.
    `smoothing` is the fraction of the target that is spread evenly over all classes (Szegedy et al., CVPR 2016).

    Raises:
        ValueError: sizes differ, or a class is outside [0, K).
    """
    if logits.ndim != 2 or logits.shape[:1] != label.shape:
        raise ValueError(f"logits of shape {tuple(logits.shape)} do not fit labels of shape {tuple(label.shape)}")
    _check_classes(label, torch.ones_like(label, dtype=torch.bool), logits.shape[1], "label")
    with torch.autocast(logits.device.type, enabled=False):
        reduction = "sum" if weight is None else "none"
        total = F.cross_entropy(logits.float(), label.long(), reduction=reduction, label_smoothing=smoothing)
        total = total if weight is None else torch.dot(total, weight)
    return LossSum(total, image_count(label).float())


def end_point_error(flow: Tensor, truth: Tensor, valid: Tensor | None = None, *, eps: float = 1e-12) -> LossSum:
    """Return the end-point error sqrt(du*du + dv*dv + eps), in pixels. `count` is the number of known pixels.

    `eps`, in square pixels, keeps the gradient finite where the error is zero. Larger values smooth small errors:
    FlowNet's Caffe loss uses 0.01 in units of 20 pixels, that is 4 square pixels. (`vector_norm` over two channels
    needs no eps but is 100 times slower on a CPU.)

    Args:
        flow: B2HW, predicted flow in pixels.
        truth: B2HW, ground truth in pixels.
        valid: BHW bool, where `truth` is known; None: everywhere. Unknown pixels may hold NaN.

    Raises:
        ValueError: sizes differ.
    """
    if flow.shape != truth.shape:
        raise ValueError(f"flow of shape {tuple(flow.shape)} does not fit a truth of shape {tuple(truth.shape)}")
    with torch.autocast(flow.device.type, enabled=False):
        truth, count = truth.float(), flow_count(truth, valid)
        if valid is None:
            valid = torch.ones_like(truth[:, 0], dtype=torch.bool)
        return LossSum(_error(flow.float(), truth, valid, eps).sum(), count.float())


def multiscale_epe(
    pyramid: Sequence[Tensor],
    truth: Tensor,
    valid: Tensor | None = None,
    *,
    weights: Sequence[float] = SCALE_WEIGHTS,
    eps: float = 1e-12,
    scale: float = 20.0,
) -> LossSum:
    """Return FlowNet's multi-scale training loss: end-point errors summed over pixels. `count` is the number of frames.

    After Dosovitskiy et al. (arXiv:1504.06852) and their Caffe files: end-point errors, in units of `scale` pixels, are
    summed over the pixels of each scale, and the sums are added with `weights`. `eps` is in the same units, squared;
    Caffe uses 0.01, which smooths errors below 2 pixels. The ground truth of a coarse pixel is the mean over the known
    pixels that it covers, and is unknown if more than half of these are unknown; Caffe uses a triangle-weighted mean
    over a wider window.

    Args:
        pyramid: predicted flows, B2hw each, finest first, in pixels of the frame's resolution.
        truth: B2HW, ground truth in pixels.
        valid: BHW bool, where `truth` is known; None: everywhere. Unknown pixels may hold NaN.
        weights: one per scale, finest first.

    Raises:
        ValueError: the numbers of scales and weights differ.
    """
    if len(pyramid) != len(weights):
        raise ValueError(f"{len(pyramid)} scales need as many weights, got {len(weights)}: {tuple(weights)}")
    with torch.autocast(truth.device.type, enabled=False):
        truth = truth.float()
        if valid is None:
            valid = torch.ones_like(truth[:, 0], dtype=torch.bool)
        total = truth.new_zeros(())
        for flow, weight in zip(pyramid, weights, strict=True):
            coarse, known = _shrunk(truth, valid, flow.shape[-2], flow.shape[-1])
            total = total + weight * _error(flow.float() / scale, coarse / scale, known, eps).sum()
        return LossSum(total, image_count(truth).float())


def sequence_loss(
    sequence: Sequence[Tensor],
    truth: Tensor,
    valid: Tensor | None = None,
    *,
    decay: float = 0.8,
    max_flow: float = MAX_FLOW,
) -> LossSum:
    """Return RAFT's loss of successive estimates, in pixels. `count` is the number of known, not too fast pixels.

    After Teed and Deng (arXiv:2003.12039), equation 7: the absolute error, averaged over dx and dy, is summed over the
    estimates with weight decay^(n - 1 - i) for estimate i of n. The authors divide by the number of all pixels, of
    which unknown pixels add nothing; here only the pixels that count are divided by.

    Args:
        sequence: predicted flows, B2HW each, best last, in pixels.
        truth: B2HW, ground truth in pixels.
        valid: BHW bool, where `truth` is known; None: everywhere. Unknown pixels may hold NaN.
        decay: weight of an estimate in proportion to that of the next.
        max_flow: pixels that move this far or farther, in pixels, are left out.

    Raises:
        ValueError: an estimate has another size than `truth`.
    """
    if odd := [tuple(flow.shape) for flow in sequence if flow.shape != truth.shape]:
        raise ValueError(f"flow of shape {odd[0]} does not fit a truth of shape {tuple(truth.shape)}")
    with torch.autocast(truth.device.type, enabled=False):
        truth = truth.float()
        used = _slow(truth, valid, max_flow)
        total = truth.new_zeros(())
        for flow in sequence:
            error = torch.where(used[:, None], flow.float() - truth, 0.0).abs().sum() / 2
            total = decay * total + error
        return LossSum(total, used.sum().float())


def _slow(truth: Tensor, valid: Tensor | None, max_flow: float) -> Tensor:
    """Return BHW bool: where the truth is known and its length is below `max_flow`; NaN is not."""
    slow = truth.float().square().sum(1) < max_flow**2
    return slow if valid is None else slow & valid


def _check_classes(labels: Tensor, known: Tensor, classes: int, what: str) -> None:
    if labels.device.type == "cpu" and bool((wrong := known & ((labels < 0) | (labels >= classes))).any()):
        raise ValueError(f"the {what} has class {int(labels[wrong][0])}, the network has classes 0 to {classes - 1}")


def _balance(mask: Tensor, known: Tensor, classes: int) -> Tensor:
    """Return BHW weights: 1 - n_c / N for the class c of each known pixel; arbitrary for unknown pixels."""
    codes = torch.where(known, mask, classes)  # count unknown pixels as an extra class
    frame = torch.arange(len(mask), device=mask.device).view(-1, 1, 1)
    counts = torch.bincount((codes + frame * (classes + 1)).flatten(), minlength=len(mask) * (classes + 1))
    counts = counts.view(len(mask), classes + 1).float()
    fraction = counts / counts[:, :classes].sum(1, keepdim=True).clamp(min=1)
    return 1 - fraction.gather(1, codes.flatten(1)).view_as(mask)


def _error(flow: Tensor, truth: Tensor, valid: Tensor, eps: float) -> Tensor:
    """Return BHW end-point errors, zero where not valid. Mask the input, not the result, because 0 * NaN is NaN."""
    difference = torch.where(valid[:, None], flow - truth, 0.0)
    u, v = difference.unbind(1)
    return torch.where(valid, (u * u + v * v + eps).sqrt(), 0.0)


def _shrunk(truth: Tensor, valid: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return B2hw means over the known pixels of each cell, and Bhw bool: whether at least half the cell is known."""
    full_height, full_width = truth.shape[-2:]
    cells = {2**k: (math.ceil(full_height / 2**k), math.ceil(full_width / 2**k)) for k in range(8)}
    stride = next((stride for stride, sides in cells.items() if sides == (height, width)), None)
    weight = valid[:, None].float()
    values = torch.cat([torch.where(valid[:, None], truth, 0.0), weight, torch.ones_like(weight)], dim=1)
    if stride is not None:
        values = F.pad(values, [0, width * stride - full_width, 0, height * stride - full_height])
        values = F.avg_pool2d(values, stride)
    else:  # FlowNetS scaled the frames to multiples of 64: its cells span the frame evenly
        values = F.adaptive_avg_pool2d(values, (height, width))
    known, inside = values[:, 2], values[:, 3]
    return values[:, :2] / known.clamp(min=1e-6)[:, None], known >= 0.5 * inside
