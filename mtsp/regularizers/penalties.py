"""Penalties of the -SP family: values, gradients, and the updates of decoupled and proximal steps.

Throughout, d = w - w0 is the displacement; without an anchor, w0 = 0. After Li, Grandvalet and Davoine,
"Explicit inductive bias for transfer learning with convolutional networks", ICML 2018, section 3, and the
authors' code. The caller multiplies by the strengths.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

Mode = Literal["auto", "coupled", "decoupled", "proximal"]
StepFraction = float | Tensor
"""Learning rate times strength. A tensor if the learning rate is a tensor."""


class WeightBlock(NamedTuple):
    """Weights that are pulled in the same way, with their anchors: this process's shards, outside autograd."""

    weights: list[Tensor]
    anchors: list[Tensor] | None  # None: pulled to zero
    fisher: list[Tensor] | None  # diagonal of the Fisher information
    rows: int  # dimension of the output channels

    def displacements(self) -> list[Tensor]:
        """Return the displacement d of each weight, in new memory."""
        if self.anchors is None:
            return [weight.clone() for weight in self.weights]
        return list(torch._foreach_sub(self.weights, self.anchors))

    def divided(self, groups: int) -> "WeightBlock":
        """Return the same weights, each cut into `groups` slices along its first dimension."""
        anchors, fisher = (None if v is None else divided(v, groups) for v in (self.anchors, self.fisher))
        return WeightBlock(divided(self.weights, groups), anchors, fisher, self.rows)


class Penalty(ABC):
    """Penalty on the displacements of weights. Subclasses define `value`, `gradients` and `move`.

    The defaults of the class variables are for a smooth penalty that treats each entry separately.
    """

    modes: ClassVar[tuple[Mode, ...]] = ("decoupled", "coupled", "proximal")
    """Possible modes. `auto` selects the first one, except that SGD uses coupled, if possible, instead of decoupled."""
    step_limited: ClassVar[bool] = False
    """Whether the gradient grows with the distance, so that too long an explicit step overshoots the anchor."""
    by_row: ClassVar[bool] = False
    """Whether each output channel is treated as a whole, so that shards must contain whole channels."""
    uses_fisher: ClassVar[bool] = False
    """Whether the penalty needs the Fisher information."""
    proportional: ClassVar[bool] = False
    """Whether each step of the pull alone reduces every distance by the same fraction, so that the strength can be set
    as a pace."""

    @abstractmethod
    def value(self, block: WeightBlock) -> Tensor:
        """Return the penalty summed over the weights, a scalar. The weights are float64."""

    @abstractmethod
    def gradients(self, block: WeightBlock) -> list[Tensor]:
        """Return the gradient with respect to each weight, in new memory."""

    @abstractmethod
    def move(self, block: WeightBlock, fraction: StepFraction, *, proximal: bool) -> None:
        """Update the weights in place: by an explicit step of length `fraction`, or by the proximal operator."""


_KINKED: tuple[Mode, ...] = ("proximal", "coupled")


class SquaredDistance(Penalty):
    """L2-SP, which is L2 if there are no anchors: 1/2 ||d||^2."""

    step_limited = True
    proportional = True

    def value(self, block: WeightBlock) -> Tensor:
        """Return 1/2 sum d^2."""
        return 0.5 * _total([d.square().sum() for d in block.displacements()])

    def gradients(self, block: WeightBlock) -> list[Tensor]:
        """Return d."""
        return block.displacements()

    def move(self, block: WeightBlock, fraction: StepFraction, *, proximal: bool) -> None:
        """Multiply the distance by 1 - fraction; proximal: by 1 / (1 + fraction)."""
        if proximal:
            fraction = fraction / (1 + fraction)
        if block.anchors is None:
            _scaled(block.weights, 1 - fraction)
        elif isinstance(fraction, Tensor):
            fractions = [fraction.to(block.weights[0].dtype)] * len(block.weights)
            torch._foreach_lerp_(block.weights, block.anchors, fractions)
        else:
            torch._foreach_lerp_(block.weights, block.anchors, fraction)


class FisherDistance(Penalty):
    """L2-SP-Fisher: 1/2 sum F d^2, where F is the diagonal of the Fisher information."""

    modes = _KINKED
    step_limited = True
    uses_fisher = True

    def value(self, block: WeightBlock) -> Tensor:
        """Return 1/2 sum F d^2."""
        weighted = zip(block.displacements(), _fisher(block), strict=True)
        return 0.5 * _total([(f * d.square()).sum() for d, f in weighted])

    def gradients(self, block: WeightBlock) -> list[Tensor]:
        """Return F d."""
        gradients = block.displacements()
        torch._foreach_mul_(gradients, _fisher(block))
        return gradients

    def move(self, block: WeightBlock, fraction: StepFraction, *, proximal: bool) -> None:
        """Set w = (w + fraction F w0) / (1 + fraction F), which cannot overshoot for any F."""
        for weight, d, f in zip(block.weights, block.displacements(), _fisher(block), strict=True):
            strength = f * fraction
            weight.sub_((d * (strength / (1 + strength))).to(weight.dtype))


class AbsoluteDistance(Penalty):
    """L1-SP: ||d||_1. The gradient is the subgradient of the paper, which is 0 at d = 0."""

    modes = _KINKED

    def value(self, block: WeightBlock) -> Tensor:
        """Return sum |d|."""
        return _total([d.abs().sum() for d in block.displacements()])

    def gradients(self, block: WeightBlock) -> list[Tensor]:
        """Return sign(d)."""
        gradients = block.displacements()
        torch._foreach_sign_(gradients)
        return gradients

    def move(self, block: WeightBlock, fraction: StepFraction, *, proximal: bool) -> None:
        """Reduce every |d| by `fraction`; weights within `fraction` of their anchor are set to it, bit for bit."""
        for weight, anchor, d in zip(block.weights, _anchors(block), block.displacements(), strict=True):
            shrunk = weight - d.sign() * fraction
            weight.copy_(torch.where(d.abs() <= fraction, anchor, shrunk.to(weight.dtype)))


class RowDistance(Penalty):
    """GL-SP: sum over output channels of sqrt(p) ||d_row||, where p is the number of weights of a channel.

    The gradient is 0 at d = 0, where training starts and the penalty has a kink. The authors add 1e-16 under the root
    instead, which float16 rounds to zero.
    """

    modes = _KINKED
    by_row = True

    def value(self, block: WeightBlock) -> Tensor:
        """Return sum sqrt(p) ||d_row||."""
        flat = [by_row(d, block.rows) for d in block.displacements()]
        return _total([d.shape[1] ** 0.5 * d.norm(dim=1).sum() for d in flat])

    def gradients(self, block: WeightBlock) -> list[Tensor]:
        """Return sqrt(p) d_row / ||d_row||."""
        gradients = block.displacements()
        for gradient in gradients:
            d = by_row(gradient, block.rows)
            norm = norms(d)
            factor = torch.where(norm > 0, d.shape[1] ** 0.5 / norm, 0.0)
            gradient.mul_(back(factor, gradient, block.rows))
        return gradients

    def move(self, block: WeightBlock, fraction: StepFraction, *, proximal: bool) -> None:
        """Reduce ||d_row|| by fraction sqrt(p); channels nearer than this are set to their anchor, bit for bit."""
        for weight, anchor, displacement in zip(block.weights, _anchors(block), block.displacements(), strict=True):
            d = by_row(displacement, block.rows)
            norm = norms(d)
            kept = torch.where(norm > 0, 1 - fraction * d.shape[1] ** 0.5 / norm, 0.0)
            _shrink_rows(weight, anchor, displacement, kept, block.rows)


class FisherRowDistance(Penalty):
    """GL-SP-Fisher: sum over output channels of sqrt(p) sqrt(sum F d^2)."""

    modes = _KINKED
    by_row = True
    uses_fisher = True

    def value(self, block: WeightBlock) -> Tensor:
        """Return sum sqrt(p) sqrt(sum F d^2)."""
        pairs = zip(block.displacements(), _fisher(block), strict=True)
        squares = [by_row(f * d.square(), block.rows) for d, f in pairs]
        return _total([square.shape[1] ** 0.5 * square.sum(1).sqrt().sum() for square in squares])

    def gradients(self, block: WeightBlock) -> list[Tensor]:
        """Return sqrt(p) F d / sqrt(sum F d^2), or 0 for 0 / 0."""
        gradients = block.displacements()
        for gradient, fisher in zip(gradients, _fisher(block), strict=True):
            d, f = by_row(gradient, block.rows), by_row(fisher, block.rows)
            norm = (_wide(f) * _wide(d).square()).sum(1).sqrt()
            factor = torch.where(norm > 0, d.shape[1] ** 0.5 / norm, 0.0)
            gradient.mul_(fisher).mul_(back(factor, gradient, block.rows))
        return gradients

    def move(self, block: WeightBlock, fraction: StepFraction, *, proximal: bool) -> None:
        """Apply the proximal operator, solved per channel by Newton's method.

        With s = fraction sqrt(p) and t the root of sum F d^2 / (t + s F)^2 = 1, d becomes d / (1 + s F / t). If
        sum d^2 / F <= s^2 over all F > 0, every d with F > 0 becomes 0.
        """
        for weight, anchor, displacement, fisher in zip(
            block.weights, _anchors(block), block.displacements(), _fisher(block), strict=True
        ):
            d, f = by_row(displacement, block.rows).double(), by_row(fisher, block.rows).double()
            shifts = f * fraction * d.shape[1] ** 0.5
            t = _root(f * d.square(), shifts)[:, None]
            kept = torch.where(shifts > 0, t / (t + shifts), 1.0)
            moved = by_row(weight, block.rows) - ((1 - kept) * d).to(weight.dtype)
            rows = torch.where(kept == 0, by_row(anchor, block.rows), moved)
            weight.copy_(_unrowed(rows, weight, block.rows))


class DirectionDistance(Penalty):
    """Filter-direction L2-SP: 1/2 ||w_row - (projection of w_row on w0_row)||^2, for layers before a normalization.

    Normalization removes the length of a filter, so only the direction of the filter affects the output. The pull turns
    each filter back to its pretrained direction and does not change its length otherwise. After the authors'
    segmentation code (PSPNet-TF-Reproduce, model/pspnet_mg.py, mode 3). A filter with an anchor of zero is pulled to
    zero.
    """

    step_limited = True
    by_row = True

    def value(self, block: WeightBlock) -> Tensor:
        """Return half the sum of the squared components orthogonal to the anchors."""
        return 0.5 * _total([d.square().sum() for d in self.gradients(block)])

    def gradients(self, block: WeightBlock) -> list[Tensor]:
        """Return w - (<w, w0> / ||w0||^2) w0 for each output channel."""
        return [self._across(w, a, block.rows) for w, a in zip(block.weights, _anchors(block), strict=True)]

    def move(self, block: WeightBlock, fraction: StepFraction, *, proximal: bool) -> None:
        """Multiply the component orthogonal to the anchor by 1 - fraction; proximal: by 1 / (1 + fraction)."""
        if proximal:
            fraction = fraction / (1 + fraction)
        torch._foreach_sub_(block.weights, _scaled(self.gradients(block), fraction))

    @staticmethod
    def _across(weight: Tensor, anchor: Tensor, rows: int) -> Tensor:
        # <w, w0> / ||w0||^2 = 1 + <d, w0> / ||w0||^2; computed from d, the result is exactly 0 at w = w0.
        displacement = weight - anchor
        d, w0 = _wide(by_row(displacement, rows)), _wide(by_row(anchor, rows))
        square = w0.square().sum(1)
        along = torch.where(square > 0, (d * w0).sum(1) / square, 0.0)
        return displacement - back(along, weight, rows).to(anchor.dtype) * anchor


class RowBall(Penalty):
    """MARS: bound the sum of |d| over each output channel instead of penalizing it. `fraction` is the bound."""

    modes = ("proximal",)
    by_row = True

    def value(self, block: WeightBlock) -> Tensor:
        """Return 0, because nothing is penalized within the bound."""
        return torch.zeros((), dtype=block.weights[0].dtype, device=block.weights[0].device)

    def gradients(self, block: WeightBlock) -> list[Tensor]:
        """Return zeros."""
        return [torch.zeros_like(weight) for weight in block.weights]

    def move(self, block: WeightBlock, fraction: StepFraction, *, proximal: bool) -> None:
        """Scale d of each channel that exceeds the bound down to the bound."""
        for weight, d in zip(block.weights, block.displacements(), strict=True):
            sums = _wide(by_row(d, block.rows)).abs().sum(1)
            weight.sub_(back((1 - fraction / sums).clamp(min=0.0).nan_to_num(0.0), weight, block.rows) * d)


def divided(tensors: list[Tensor], groups: int) -> list[Tensor]:
    """Return `groups` slices of each tensor along its first dimension, in order and without copying."""
    return [part for tensor in tensors for part in tensor.chunk(groups)] if groups > 1 else tensors


def by_row(tensor: Tensor, rows: int) -> Tensor:
    """Return `tensor` as a matrix with one row per output channel; `rows` is their dimension."""
    moved = tensor.movedim(rows, 0) if tensor.dim() > 1 else tensor
    return moved.flatten(1) if moved.dim() > 1 else moved.reshape(-1, 1)


def back(factor: Tensor, like: Tensor, rows: int) -> Tensor:
    """Return `factor`, one number per output channel, reshaped to broadcast against `like`."""
    shape = [1] * like.dim()
    if shape:
        shape[rows if like.dim() > 1 else 0] = -1
    return factor.to(like.dtype).reshape(shape)


def norms(rows: Tensor) -> Tensor:
    """Return the L2 norm of each row, in float32 or float64."""
    return torch.linalg.vector_norm(_wide(rows), dim=1)


def _unrowed(rows: Tensor, like: Tensor, dimension: int) -> Tensor:
    if like.dim() < 2:
        return rows.reshape(like.shape)
    return rows.reshape(like.movedim(dimension, 0).shape).movedim(0, dimension)


def _shrink_rows(weight: Tensor, anchor: Tensor, d: Tensor, kept: Tensor, rows: int) -> None:
    gone = back(kept <= 0, weight, rows).bool()
    weight.copy_(torch.where(gone, anchor, weight - back(1 - kept, weight, rows) * d))


def _root(squares: Tensor, shifts: Tensor) -> Tensor:
    """Solve sum squares / (t + shifts)^2 = 1 for t > 0 in each row; 0 where there is no solution.

    The sum decreases and is convex in t, so Newton's method on 1 - 1 / sqrt(sum) reaches the root from below.
    """
    positive = squares > 0
    t = (squares.sum(1).sqrt() - shifts.amax(1)).clamp(min=0.0)
    for _ in range(20):
        places = t[:, None] + shifts
        terms = torch.where(positive, squares / places.square(), 0.0)
        total, slope = terms.sum(1), torch.where(positive, terms / places, 0.0).sum(1)
        t = t + torch.where(total > 1, (total.sqrt() - 1) * total / slope, 0.0)
    return t


def _fisher(block: WeightBlock) -> list[Tensor]:
    assert block.fisher is not None
    return block.fisher


def _anchors(block: WeightBlock) -> Sequence[Tensor]:
    return block.anchors if block.anchors is not None else [torch.zeros_like(weight) for weight in block.weights]


def _scaled(tensors: list[Tensor], fraction: StepFraction) -> list[Tensor]:
    torch._foreach_mul_(tensors, fraction.to(tensors[0].dtype) if isinstance(fraction, Tensor) else fraction)
    return tensors


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _total(blocks: list[Tensor]) -> Tensor:
    return torch.stack(blocks).sum()
