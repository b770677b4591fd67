"""Neighbors of the -SP family: pulls that choose when or where to act, and a bound instead of a pull."""

from collections.abc import Mapping
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mtsp.regularizers.base import Anchored
from mtsp.regularizers.buckets import Bucket, local, parts, summed
from mtsp.regularizers.hook import Attachment
from mtsp.regularizers.penalties import Mode, RowBall, Share, SquaredDistance


class _AfterTheStep(SquaredDistance):
    """Moves where the step has been made, by what it was."""

    modes: tuple[Mode, ...] = ("decoupled", "decoupled")
    proportional: ClassVar[bool] = False


class _Selective(Attachment):
    """Notes before the step where it was, and takes back what led away."""

    def act_before(self, buckets: list[Bucket]) -> None:
        """Note slopes and distances."""
        for bucket in _with_anchors(buckets):
            bucket.noted = []
            for near, gradients, weights in parts(bucket, whole=True):
                displacements = near.displacements()
                slopes = [(g * d).sum() for g, d in zip(gradients, displacements, strict=True)]
                bucket.noted.append(summed(torch.stack([torch.stack(slopes), _squares(displacements)]), weights[0]))

    def act_after(self, buckets: list[Bucket]) -> None:
        """Compare with what was noted, and move."""
        self.move([bucket for bucket in buckets if not bucket.shared], proximal=False)
        for bucket in _with_anchors(buckets):
            for (near, _, weights), (slopes, before) in zip(parts(bucket, whole=True), bucket.noted, strict=True):
                displacements = near.displacements()
                after = summed(_squares(displacements), weights[0])
                further = torch.where(after > before, 1 - (before / after).sqrt(), 0.0)
                shares = torch.where(slopes > 0, (bucket.strength * further).clamp(max=1.0), 0.0)
                for weight, d, share in zip(near.weights, displacements, shares.to(near.weights[0].dtype), strict=True):
                    weight.sub_(d * share)

    def step_share(self, bucket: Bucket) -> Share:
        """Return learning rate times strength of new weights; that of the others does not depend on the rate."""
        return 0.0 if bucket.shared else super().step_share(bucket)


class SPD(Anchored):
    """Selective projection decay: pull a tensor back by what a step took it further away, and only where it helps.

    If <g, w - w0> > 0 before the step, then after it w moves towards w0 by the share alpha * r of the way, at most all
    of it, with r = max(0, 1 - ||w - w0|| before / ||w - w0|| after). alpha does not depend on the learning rate; beta
    does, as everywhere, and is decoupled. The selection is a number on the device for each tensor: nothing waits for a
    GPU; where FSDP2 shards the weights, two small sums over the processes per block.

    After Tian et al., "Rethinking weight decay for robust fine-tuning of foundation models", NeurIPS 2024. Departures:
    works with any optimizer, and alpha * r stops at 1. Arguments and errors: :class:`Anchored`.
    """

    form = _AfterTheStep()
    attachment = _Selective


class _Cautious(Attachment):
    """Pulls where the update has gone the same way."""

    def act_before(self, buckets: list[Bucket]) -> None:
        """Wait: the update that a pull is to agree with is not made yet."""

    def act_after(self, buckets: list[Bucket]) -> None:
        """Move the entries that agree."""
        for bucket in buckets:
            share = self.share_made(bucket)
            sign = -1 if self.optimizer.param_groups[bucket.group].get("maximize") else 1
            for near, gradients, weights in parts(bucket, whole=True):
                displacements = near.displacements()
                updates = [
                    _update(self.optimizer, weight, gradient, sign)
                    for weight, gradient in zip(weights, gradients, strict=True)
                ]
                for weight, d, update in zip(near.weights, displacements, updates, strict=True):
                    weight.sub_((torch.where(update * d > 0, d, 0.0) * share).to(weight.dtype))


class CautiousL2SP(Anchored):
    """Cautious decoupled L2-SP: pull only the entries that the optimizer's own update moves the same way.

    After the step, w moves by lr * alpha of the way to w0 wherever update and w - w0 have the same sign, the update
    being the first moment of Adam, the buffer of momentum, or the gradient. New weights decay to zero likewise, with
    beta. Cautious weight decay (arXiv 2510.12402) around an anchor. Arguments and errors: :class:`Anchored`.
    """

    form = _AfterTheStep()
    new_form = _AfterTheStep()
    attachment = _Cautious


class _Bound(Attachment):
    """Projects after the step, whatever its length."""

    def step_share(self, bucket: Bucket) -> Share:
        """Return the radius, which the learning rate does not change."""
        return bucket.strength if bucket.shared else super().step_share(bucket)

    def share_made(self, bucket: Bucket) -> Share:
        """Return the radius here too: a step that is not made leaves all within it."""
        return bucket.strength if bucket.shared else super().share_made(bucket)


class MARS(Anchored):
    """MARS projection: after every step, bound how far each output channel may be from its anchor.

    d_row = w_row - w0_row becomes d_row / max(1, ||d_row||_1 / radius). No pull inside the bound; the radius has the
    unit of the weights and does not depend on the learning rate. New weights decay to zero with beta, proximally.

    After Gouk, Hospedales and Pontil, "Distance-based regularisation of deep networks for fine-tuning", ICLR 2021.
    Departure: normalization layers are left alone, where the authors' code bounds gamma / sigma too.

    Args:
        model, anchors, beta, every, anchor_dtype, offload: as :class:`Anchored`.
        radius: of all channels, or by name prefix.

    Raises:
        ValueError: as :class:`Anchored`, or the radius is not positive.
    """

    form = RowBall()
    attachment = _Bound

    def __init__(
        self,
        model: nn.Module,
        *,
        anchors: Mapping[str, Tensor] | None,
        radius: float | Mapping[str, float],
        beta: float | Mapping[str, float] = 0.0,
        every: bool = False,
        anchor_dtype: torch.dtype | None = None,
        offload: bool = False,
    ) -> None:
        radii = radius.values() if isinstance(radius, Mapping) else [radius]
        if any(not isinstance(r, Real) or not float(r) > 0 for r in radii):
            raise ValueError(f"the radius must be above 0, got {radius}; freeze what may not move")
        super().__init__(
            model,
            anchors=anchors,
            alpha=radius,
            beta=beta,
            every=every,
            anchor_dtype=anchor_dtype,
            offload=offload,
        )


def _with_anchors(buckets: list[Bucket]) -> list[Bucket]:
    return [bucket for bucket in buckets if bucket.shared]


def _squares(tensors: list[Tensor]) -> Tensor:
    return torch.stack([tensor.float().square().sum() for tensor in tensors])


def _update(optimizer: Any, weight: Tensor, gradient: Tensor, sign: int) -> Tensor:
    state = optimizer.state.get(weight, {})
    for moment in ("exp_avg", "momentum_buffer"):
        if state.get(moment) is not None:
            return local(state[moment])
    return gradient * sign
