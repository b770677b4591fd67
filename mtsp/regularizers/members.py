"""The regularizers by name: first penalties on the distance to the anchors, then methods that act selectively."""

from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from mtsp.regularizers.base import Regularizer
from mtsp.regularizers.buckets import Bucket, blocks, local, some_rows, summed
from mtsp.regularizers.hook import Attachment
from mtsp.regularizers.penalties import (
    AbsoluteDistance,
    DirectionDistance,
    FisherDistance,
    FisherRowDistance,
    RowBall,
    RowDistance,
    SquaredDistance,
    StepFraction,
)


class L2SP(Regularizer):
    """L2-SP: alpha/2 ||w_S - w_S0||^2 + beta/2 ||w_N||^2 over weights S with an anchor w_S0 and new weights N.

    Build it after the pretrained weights are loaded, attach it to the optimizer, and train as always::

        regularizer = L2SP(model, anchors=anchors, alpha=0.1, beta=0.01)
        regularizer.attach(optimizer)

    With `zero=True` it is L2: weight decay with two strengths. The default mode is coupled for SGD and decoupled for
    all other optimizers. On a fused SGD, the weight decay of the kernel computes part of the pull. For arguments and
    errors, see :class:`Regularizer`.
    """

    shared_penalty = SquaredDistance()


class L1SP(Regularizer):
    """L1-SP: alpha ||w_S - w_S0||_1 + beta/2 ||w_N||^2.

    Proximal by default: weights that the data does not move stay at their anchor, bit for bit. The paper uses a
    subgradient (`mode="coupled"`), which makes weights oscillate about the anchor without reaching it; the authors
    explain the results of L1-SP by this (ICLR 2018 text, section 4.3.2). For arguments and errors, see
    :class:`Regularizer`.
    """

    shared_penalty = AbsoluteDistance()


class GLSP(Regularizer):
    """GL-SP: alpha sum_g sqrt(p_g) ||w_g - w_g0||_2 + beta/2 ||w_N||^2 over output channels g with p_g weights.

    Proximal by default: channels that the data does not move stay at their anchor, bit for bit. The paper's form is
    `mode="coupled"`. New weights have a squared penalty, as in the authors' code. For arguments and errors, see
    :class:`Regularizer`.
    """

    shared_penalty = RowDistance()


class L2SPFisher(Regularizer):
    """L2-SP-Fisher: alpha/2 sum_j F_j (w_j - w_j0)^2 + beta/2 ||w_N||^2, F the diagonal of the Fisher information.

    Proximal by default: the implicit step w = (w + s F w0) / (1 + s F), where s is learning rate times alpha, is stable
    for every F. The paper's form is `mode="coupled"`; it is refused if s times the largest F is above 1. `alpha` is
    comparable with the alpha of L2-SP if F has mean 1, as returned by
    :func:`mtsp.fisher.estimate.diagonal_fisher`. `fisher` must contain every weight that has an anchor. For arguments
    and errors, see :class:`Regularizer`.
    """

    shared_penalty = FisherDistance()


class GLSPFisher(Regularizer):
    """GL-SP-Fisher: alpha sum_g sqrt(p_g) (sum_{j in g} F_j (w_j - w_j0)^2)^1/2 + beta/2 ||w_N||^2.

    Proximal by default, solved per channel by Newton's method in float64, which costs several times as much as other
    regularizers. The paper's form is `mode="coupled"`. For arguments and errors, see :class:`Regularizer`.
    """

    shared_penalty = FisherRowDistance()


class DirectionSP(Regularizer):
    """Filter-direction L2-SP: alpha/2 of the squared part of each filter across its anchor + beta/2 ||w_N||^2.

    For convolutions followed by a normalization layer: filters are pulled to their pretrained direction, and their
    length is free. The default mode is coupled for SGD and decoupled for all other optimizers. For the source, see
    :class:`mtsp.regularizers.penalties.DirectionDistance`; for arguments and errors, :class:`Regularizer`.
    """

    shared_penalty = DirectionDistance()


class _AfterStep(SquaredDistance):
    """Squared distance for regularizers that act after the step and depend on the optimizer's update."""

    modes = ("decoupled",)
    proportional = False


class _Selective(Attachment):
    """Measure distances before the step; after it, undo part of any motion away from the anchor."""

    def act_before(self, buckets: list[Bucket]) -> None:
        """Measure the slopes of the loss along the displacements, and the squared distances."""
        for bucket in (bucket for bucket in buckets if bucket.shared):
            bucket.pre_step = []
            for block in blocks(bucket, whole=True):
                displacements = block.values.displacements()
                slopes = [(g * d).sum() for g, d in zip(block.gradients, displacements, strict=True)]
                sums = torch.stack([torch.stack(slopes), _squares(displacements)])
                bucket.pre_step.append(summed(sums, block.parameters[0]))

    def act_after(self, buckets: list[Bucket]) -> None:
        """Compare distances with the measurements before the step, and pull weights back."""
        self.move([bucket for bucket in buckets if not bucket.shared], proximal=False)
        for bucket in (bucket for bucket in buckets if bucket.shared):
            for block, (slopes, before) in zip(blocks(bucket, whole=True), bucket.pre_step, strict=True):
                weights, displacements = block.values.weights, block.values.displacements()
                after = summed(_squares(displacements), block.parameters[0])
                further = torch.where(after > before, 1 - (before / after).sqrt(), 0.0)
                fractions = torch.where(slopes > 0, (bucket.strength * further).clamp(max=1.0), 0.0)
                for weight, d, fraction in zip(weights, displacements, fractions.to(weights[0].dtype), strict=True):
                    weight.sub_(d * fraction)

    def step_fraction(self, bucket: Bucket) -> StepFraction:
        """Return learning rate times strength for new weights, and 0 for pretrained ones, which do not use it."""
        return 0.0 if bucket.shared else super().step_fraction(bucket)


class SPD(Regularizer):
    """Selective projection decay: pull a tensor back in proportion to the distance that a step added, if that helps.

    If <g, w - w0> > 0 before the step, then w moves towards w0 after the step, by the fraction min(1, alpha * r) of the
    distance, where r = max(0, 1 - ||w - w0|| before / ||w - w0|| after). The effect of alpha does not depend on the
    learning rate; beta is multiplied by it, as in all regularizers, and is decoupled. The selection is made on the
    device, so nothing waits for a GPU; if FSDP2 shards the weights, it costs two small all-reduce calls per block.

    After Tian et al., "Rethinking weight decay for robust fine-tuning of foundation models", NeurIPS 2024. Departures:
    it works with any optimizer, and alpha * r is limited to 1. For arguments and errors, see :class:`Regularizer`.
    """

    shared_penalty = _AfterStep()
    attachment = _Selective


class _Cautious(Attachment):
    """Pull only the entries that the optimizer's update moved towards the anchor."""

    def act_before(self, buckets: list[Bucket]) -> None:
        """Do nothing: the optimizer's update is not known yet."""

    def act_after(self, buckets: list[Bucket]) -> None:
        """Pull the entries that the update moved in the direction of the pull."""
        for bucket in buckets:
            fraction = self.applied_fraction(bucket)
            sign = -1 if self.optimizer.param_groups[bucket.group].get("maximize") else 1
            for block in blocks(bucket, whole=True):
                pairs = zip(block.values.weights, block.values.displacements(), strict=True)
                for (weight, d), parameter, gradient in zip(pairs, block.parameters, block.gradients, strict=True):
                    update = _update(self.optimizer, parameter, gradient, sign, block.kept)
                    weight.sub_((torch.where(update * d > 0, d, 0.0) * fraction).to(weight.dtype))


class CautiousL2SP(Regularizer):
    """Cautious decoupled L2-SP: pull only the entries that the optimizer's update moves in the same direction.

    After the step, each entry for which the subtracted update and w - w0 have the same sign moves by the fraction
    lr * alpha of its distance. The update is Adam's first moment, the momentum buffer, or else the gradient. New
    weights decay to zero in the same way, with beta. This is cautious weight decay (arXiv 2510.12402) around an anchor.
    For arguments and errors, see :class:`Regularizer`.
    """

    shared_penalty = _AfterStep()
    new_penalty = _AfterStep()
    attachment = _Cautious


class _Bound(Attachment):
    """Project weights onto the bound after the step."""

    def step_fraction(self, bucket: Bucket) -> StepFraction:
        """Return the radius, which does not depend on the learning rate."""
        return bucket.strength if bucket.shared else super().step_fraction(bucket)

    def applied_fraction(self, bucket: Bucket) -> StepFraction:
        """Return the radius even if a step is skipped: all weights are then within it already."""
        return bucket.strength if bucket.shared else super().applied_fraction(bucket)


class MARS(Regularizer):
    """MARS projection: after every step, bound how far each output channel may be from its anchor.

    d_row = w_row - w0_row becomes d_row / max(1, ||d_row||_1 / radius). There is no pull inside the bound. The radius
    has the unit of the weights and does not depend on the learning rate. New weights decay to zero with strength
    beta, by a proximal step.

    After Gouk, Hospedales and Pontil, "Distance-based regularisation of deep networks for fine-tuning", ICLR 2021.
    Departure: normalization layers are not bounded, while the authors' code also bounds gamma / sigma.

    Args:
        model, anchors, beta, every, anchor_dtype, offload: see :class:`Regularizer`.
        radius: one bound for all channels, or bounds by name prefix.

    Raises:
        ValueError: see :class:`Regularizer`; or the radius is not positive.
    """

    shared_penalty = RowBall()
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
            raise ValueError(f"the radius must be above 0, got {radius}; freeze weights that must not move")
        super().__init__(
            model,
            anchors=anchors,
            alpha=radius,
            beta=beta,
            every=every,
            anchor_dtype=anchor_dtype,
            offload=offload,
        )


def _squares(tensors: list[Tensor]) -> Tensor:
    return torch.stack([tensor.float().square().sum() for tensor in tensors])


def _update(optimizer: Any, weight: Tensor, gradient: Tensor, sign: int, kept: Tensor | None) -> Tensor:
    state = optimizer.state.get(weight, {})
    for moment in ("exp_avg", "momentum_buffer"):
        if state.get(moment) is not None:
            return some_rows(local(state[moment]), kept)
    return gradient * sign
