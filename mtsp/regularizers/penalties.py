"""The penalties of the -SP family: their values, their gradients, and the moves that replace the gradients.

d = w - w0 throughout; without an anchor, w0 = 0. After Li, Grandvalet and Davoine, "Explicit inductive bias for
transfer learning with convolutional networks", ICML 2018, section 3, and the authors' code; strengths are left out.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

Mode = Literal["auto", "coupled", "decoupled", "proximal"]
Share = float | Tensor
"""How far one step moves: learning rate times strength. A tensor where the learning rate is one."""


class Near(NamedTuple):
    """Weights that are pulled alike, beside what they are pulled to: this process's part of each, without autograd."""

    weights: list[Tensor]
    anchors: list[Tensor] | None  # None: pulled to zero
    importance: list[Tensor] | None  # the diagonal of the Fisher information
    rows: int  # the dimension of the output channels

    def displacements(self) -> list[Tensor]:
        """Return d of each weight, in new memory."""
        if self.anchors is None:
            return [weight.clone() for weight in self.weights]
        return list(torch._foreach_sub(self.weights, self.anchors))

    def divided(self, groups: int) -> "Near":
        """Return the same weights in so many slices each, along their first dimension."""
        anchors, importance = (None if v is None else divided(v, groups) for v in (self.anchors, self.importance))
        return Near(divided(self.weights, groups), anchors, importance, self.rows)


class Penalty(Protocol):
    """One member of the family."""

    modes: tuple[Mode, ...]
    """Where it can act. `auto` is the first, or for SGD the second."""
    stiff: bool
    """Whether the gradient grows with the distance, so that an explicit step that is too long overshoots."""
    by_row: bool
    """Whether it looks at output channels as wholes, so that a shard must hold whole ones."""
    weighs: bool
    """Whether it needs the Fisher information."""
    proportional: ClassVar[bool]
    """Whether the pull alone takes the same share of every distance away in each step, so that it has a pace."""

    def value(self, near: Near) -> Tensor:
        """Return the sum over the weights, a scalar. Called with float64."""
        ...

    def gradients(self, near: Near) -> list[Tensor]:
        """Return the gradient at each weight, in new memory."""
        ...

    def move(self, near: Near, share: Share, *, proximal: bool) -> None:
        """Move the weights in place: one explicit step of length `share`, or where its proximal operator says."""
        ...


class SquaredDistance:
    """L2-SP, and L2 without anchors: 1/2 ||d||^2."""

    modes: tuple[Mode, ...] = ("decoupled", "coupled", "proximal")
    stiff = True
    by_row = False
    weighs = False
    proportional: ClassVar[bool] = True

    def value(self, near: Near) -> Tensor:
        """Return 1/2 sum d^2."""
        return 0.5 * _total([d.square().sum() for d in near.displacements()])

    def gradients(self, near: Near) -> list[Tensor]:
        """Return d."""
        return near.displacements()

    def move(self, near: Near, share: Share, *, proximal: bool) -> None:
        """Go the share of the way, or share / (1 + share) of it."""
        if proximal:
            share = share / (1 + share)
        dtype = near.weights[0].dtype
        if near.anchors is None:
            torch._foreach_mul_(near.weights, (1 - share).to(dtype) if isinstance(share, Tensor) else 1 - share)
        elif isinstance(share, Tensor):
            torch._foreach_lerp_(near.weights, near.anchors, [share.to(dtype)] * len(near.weights))
        else:
            torch._foreach_lerp_(near.weights, near.anchors, share)


class ImportantDistance:
    """L2-SP-Fisher: 1/2 sum F d^2, F being the diagonal of the Fisher information."""

    modes: tuple[Mode, ...] = ("proximal", "proximal", "coupled")
    stiff = True
    by_row = False
    weighs = True
    proportional: ClassVar[bool] = False

    def value(self, near: Near) -> Tensor:
        """Return 1/2 sum F d^2."""
        weighted = zip(near.displacements(), _importance(near), strict=True)
        return 0.5 * _total([(f * d.square()).sum() for d, f in weighted])

    def gradients(self, near: Near) -> list[Tensor]:
        """Return F d."""
        gradients = near.displacements()
        torch._foreach_mul_(gradients, _importance(near))
        return gradients

    def move(self, near: Near, share: Share, *, proximal: bool) -> None:
        """Set w = (w + share F w0) / (1 + share F), whatever F: it cannot overshoot."""
        for weight, d, f in zip(near.weights, near.displacements(), _importance(near), strict=True):
            strength = f * share
            weight.sub_((d * (strength / (1 + strength))).to(weight.dtype))


class AbsoluteDistance:
    """L1-SP: ||d||_1. The gradient is the paper's sub-gradient, 0 at the kink."""

    modes: tuple[Mode, ...] = ("proximal", "proximal", "coupled")
    stiff = False
    by_row = False
    weighs = False
    proportional: ClassVar[bool] = False

    def value(self, near: Near) -> Tensor:
        """Return sum |d|."""
        return _total([d.abs().sum() for d in near.displacements()])

    def gradients(self, near: Near) -> list[Tensor]:
        """Return sign(d)."""
        gradients = near.displacements()
        torch._foreach_sign_(gradients)
        return gradients

    def move(self, near: Near, share: Share, *, proximal: bool) -> None:
        """Shrink every |d| by the share: a weight that is nearer than that becomes its anchor, bit for bit."""
        for weight, anchor, d in zip(near.weights, _anchors(near), near.displacements(), strict=True):
            shrunk = weight - d.sign() * share
            weight.copy_(torch.where(d.abs() <= share, anchor, shrunk.to(weight.dtype)))


class RowDistance:
    """GL-SP: sum over output channels of sqrt(p) ||d_row||, p being the weights of a channel.

    The gradient is 0 at d = 0, the kink at the very start. The authors smooth it by 1e-16 under the root, which is
    nothing in float16.
    """

    modes: tuple[Mode, ...] = ("proximal", "proximal", "coupled")
    stiff = False
    by_row = True
    weighs = False
    proportional: ClassVar[bool] = False

    def value(self, near: Near) -> Tensor:
        """Return sum sqrt(p) ||d_row||."""
        flat = [by_row(d, near.rows) for d in near.displacements()]
        return _total([d.shape[1] ** 0.5 * d.norm(dim=1).sum() for d in flat])

    def gradients(self, near: Near) -> list[Tensor]:
        """Return sqrt(p) d_row / ||d_row||."""
        gradients = near.displacements()
        for gradient in gradients:
            d = by_row(gradient, near.rows)
            norm = norms(d)
            factor = torch.where(norm > 0, d.shape[1] ** 0.5 / norm, 0.0)
            gradient.mul_(back(factor, gradient, near.rows))
        return gradients

    def move(self, near: Near, share: Share, *, proximal: bool) -> None:
        """Shrink ||d_row|| by share sqrt(p): a channel that is nearer than that becomes its anchor, bit for bit."""
        for weight, anchor, displacement in zip(near.weights, _anchors(near), near.displacements(), strict=True):
            d = by_row(displacement, near.rows)
            norm = norms(d)
            kept = torch.where(norm > 0, 1 - share * d.shape[1] ** 0.5 / norm, 0.0)
            _shrink_rows(weight, anchor, displacement, kept, near.rows)


class ImportantRowDistance:
    """GL-SP-Fisher: sum over output channels of sqrt(p) sqrt(sum F d^2)."""

    modes: tuple[Mode, ...] = ("proximal", "proximal", "coupled")
    stiff = False
    by_row = True
    weighs = True
    proportional: ClassVar[bool] = False

    def value(self, near: Near) -> Tensor:
        """Return sum sqrt(p) sqrt(sum F d^2)."""
        rows = [
            (by_row(d, near.rows), by_row(f, near.rows))
            for d, f in zip(near.displacements(), _importance(near), strict=True)
        ]
        return _total([d.shape[1] ** 0.5 * (f * d.square()).sum(1).sqrt().sum() for d, f in rows])

    def gradients(self, near: Near) -> list[Tensor]:
        """Return sqrt(p) F d / sqrt(sum F d^2), 0 where that is 0 / 0."""
        gradients = near.displacements()
        for gradient, importance in zip(gradients, _importance(near), strict=True):
            d, f = by_row(gradient, near.rows), by_row(importance, near.rows)
            norm = (_wide(f) * _wide(d).square()).sum(1).sqrt()
            factor = torch.where(norm > 0, d.shape[1] ** 0.5 / norm, 0.0)
            gradient.mul_(importance).mul_(back(factor, gradient, near.rows))
        return gradients

    def move(self, near: Near, share: Share, *, proximal: bool) -> None:
        """Apply the proximal operator, solved per channel by Newton's method.

        With s = share sqrt(p) and t the root of sum F d^2 / (t + s F)^2 = 1, d becomes d / (1 + s F / t); where
        sum d^2 / F <= s^2 over F > 0, every d with F > 0 becomes 0.
        """
        for weight, anchor, displacement, importance in zip(
            near.weights, _anchors(near), near.displacements(), _importance(near), strict=True
        ):
            d, f = by_row(displacement, near.rows).double(), by_row(importance, near.rows).double()
            shifts = f * share * d.shape[1] ** 0.5
            t = _root(f * d.square(), shifts)[:, None]
            kept = torch.where(shifts > 0, t / (t + shifts), 1.0)
            moved = by_row(weight, near.rows) - ((1 - kept) * d).to(weight.dtype)
            rows = torch.where(kept == 0, by_row(anchor, near.rows), moved)
            weight.copy_(_unrowed(rows, weight, near.rows))


class Turning:
    """Filter-direction L2-SP: 1/2 ||w_row - its part along w0_row||^2, for weights that a normalization layer follows.

    Such a layer takes the length of a filter away, so only a turn away from the pretrained filter changes what the
    network computes, and only that is pulled back: to the pretrained direction, at the length the filter has. After the
    authors' segmentation code (PSPNet-TF-Reproduce, model/pspnet_mg.py, mode 3). A filter whose anchor is zero has no
    direction and is pulled to zero.
    """

    modes: tuple[Mode, ...] = ("decoupled", "coupled", "proximal")
    stiff = True
    by_row = True
    weighs = False
    proportional: ClassVar[bool] = False

    def value(self, near: Near) -> Tensor:
        """Return 1/2 sum of the squared turned parts."""
        return 0.5 * _total([turned.square().sum() for turned in self.gradients(near)])

    def gradients(self, near: Near) -> list[Tensor]:
        """Return w - (<w, w0> / ||w0||^2) w0, by output channel."""
        return [self._turned(w, a, near.rows) for w, a in zip(near.weights, _anchors(near), strict=True)]

    def move(self, near: Near, share: Share, *, proximal: bool) -> None:
        """Take the share of the turned part away, or share / (1 + share) of it."""
        if proximal:
            share = share / (1 + share)
        torch._foreach_sub_(near.weights, _scaled(self.gradients(near), share))

    @staticmethod
    def _turned(weight: Tensor, anchor: Tensor, rows: int) -> Tensor:
        # About the anchor, <w, w0> / ||w0||^2 = 1 + <d, w0> / ||w0||^2: at w = w0 nothing is left of rounding.
        displacement = weight - anchor
        d, w0 = _wide(by_row(displacement, rows)), _wide(by_row(anchor, rows))
        square = w0.square().sum(1)
        along = torch.where(square > 0, (d * w0).sum(1) / square, 0.0)
        return displacement - back(along, weight, rows).to(anchor.dtype) * anchor


class RowBall:
    """MARS: no penalty, but a bound on the absolute sum of each output channel's d. `share` is the bound."""

    modes: tuple[Mode, ...] = ("proximal", "proximal")
    stiff = False
    by_row = True
    weighs = False
    proportional: ClassVar[bool] = False

    def value(self, near: Near) -> Tensor:
        """Return 0: within the bound everything is free."""
        return torch.zeros((), dtype=near.weights[0].dtype, device=near.weights[0].device)

    def gradients(self, near: Near) -> list[Tensor]:
        """Return zeros."""
        return [torch.zeros_like(weight) for weight in near.weights]

    def move(self, near: Near, share: Share, *, proximal: bool) -> None:
        """Scale each channel's d back to the bound, if it is beyond."""
        for weight, d in zip(near.weights, near.displacements(), strict=True):
            sums = _wide(by_row(d, near.rows)).abs().sum(1)
            weight.sub_(back((1 - share / sums).clamp(min=0.0).nan_to_num(0.0), weight, near.rows) * d)


def divided(tensors: list[Tensor], groups: int) -> list[Tensor]:
    """Return the slices of each tensor along its first dimension, one behind another; they share its memory."""
    return [part for tensor in tensors for part in tensor.chunk(groups)] if groups > 1 else tensors


def by_row(tensor: Tensor, rows: int) -> Tensor:
    """Return the weights of each output channel as a row; one number per channel where there are no more."""
    moved = tensor.movedim(rows, 0) if tensor.dim() > 1 else tensor
    return moved.reshape(moved.shape[0] if moved.dim() else 1, -1)


def back(factor: Tensor, like: Tensor, rows: int) -> Tensor:
    """Return one number per output channel in the shape that multiplies `like`."""
    shape = [1] * like.dim()
    if shape:
        shape[rows if like.dim() > 1 else 0] = -1
    return factor.to(like.dtype).reshape(shape)


def norms(rows: Tensor) -> Tensor:
    """Return the length of each row, in float32 at least."""
    return torch.linalg.vector_norm(_wide(rows), dim=1)


def _unrowed(rows: Tensor, like: Tensor, dimension: int) -> Tensor:
    if like.dim() < 2:
        return rows.reshape(like.shape)
    return rows.reshape(like.movedim(dimension, 0).shape).movedim(0, dimension)


def _shrink_rows(weight: Tensor, anchor: Tensor, d: Tensor, kept: Tensor, rows: int) -> None:
    gone = back(kept <= 0, weight, rows).bool()
    weight.copy_(torch.where(gone, anchor, weight - back(1 - kept, weight, rows) * d))


def _root(squares: Tensor, shifts: Tensor) -> Tensor:
    """The t > 0 with sum squares / (t + shifts)^2 = 1 in each row, or 0 where there is none.

    The sum falls and is convex in t, so Newton's method on 1 - 1 / sqrt(sum) climbs to the root from below.
    """
    concerned = squares > 0
    t = (squares.sum(1).sqrt() - shifts.amax(1)).clamp(min=0.0)
    for _ in range(20):
        places = t[:, None] + shifts
        terms = torch.where(concerned, squares / places.square(), 0.0)
        total, slope = terms.sum(1), torch.where(concerned, terms / places, 0.0).sum(1)
        t = t + torch.where(total > 1, (total.sqrt() - 1) * total / slope, 0.0)
    return t


def _importance(near: Near) -> list[Tensor]:
    assert near.importance is not None
    return near.importance


def _anchors(near: Near) -> Sequence[Tensor]:
    return near.anchors if near.anchors is not None else [torch.zeros_like(weight) for weight in near.weights]


def _scaled(tensors: list[Tensor], share: Share) -> list[Tensor]:
    torch._foreach_mul_(tensors, share.to(tensors[0].dtype) if isinstance(share, Tensor) else share)
    return tensors


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _total(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum()
