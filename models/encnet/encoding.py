"""The Encoding layer, which sums residuals between features and codewords, and the context module that uses it.

After Zhang, Dana et al., "Context Encoding for Semantic Segmentation", CVPR 2018 (arXiv:1803.08904), section 3.1, and
"Deep TEN: Texture Encoding Network", CVPR 2017 (arXiv:1612.02844). Letters: B batch, D channels, N pixels, K codewords.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.blocks import conv_norm_relu

NEGLIGIBLE = 1e-20
"""Assignments below this value are set to zero, because denormal numbers make matrix products on a CPU 8 times slower.
The error in a sum over 1e5 pixels is below the rounding error, in float64 too."""

PIXELS = 60 * 60
"""Number of pixels of the feature map in the published training: crops of 480x480 at stride 8."""


class Encoding(nn.Module):
    """Sum residuals of D-channel features to K codewords over pixels, weighted by soft assignment (E in equation 1).

    With d the squared distance of pixel i to codeword k, the assignment is softmax over k of scale_k * d, and
    E_k = sum over i of assignment_ik * (x_i - codeword_k): a sum, so twice as many pixels give twice E. The minus sign
    of the paper's exp(-s * d) is in `scale`, which starts negative and may become anything, as in the authors' code.

    Computed in float32 even under autocast, because E is a sum over thousands of pixels.
    """

    def __init__(self, channels: int, codewords: int) -> None:
        super().__init__()
        bound = (channels * codewords) ** -0.5
        self.codewords = nn.Parameter(torch.empty(codewords, channels).uniform_(-bound, bound))
        self.scale = nn.Parameter(torch.empty(codewords).uniform_(-1, 0))

    def forward(self, features: Tensor) -> Tensor:
        """Return E, BKD, in float32 (float64 for float64 features), of BDHW or BDN features in any float type and
        layout."""
        return encode(features.flatten(2).transpose(1, 2), self.codewords, self.scale)

    def extra_repr(self) -> str:
        """Return the sizes for `print`."""
        return f"channels={self.codewords.shape[1]}, codewords={self.codewords.shape[0]}"


class Context(NamedTuple):
    """Output of :class:`EncModule`."""

    features: Tensor  # BCHW
    se_logits: Tensor | None  # BK, for mtsp.losses.se_loss


class EncModule(nn.Module):
    """The context encoding module, which scales the channels of a map by an encoding of the map (figure 2 of the
    paper).

    A map F is projected and encoded; the encodings are normalized per codeword, rectified, and averaged over the
    codewords to a vector e of size `channels`. The result is F * (1 + sigmoid(gate(e))) with the unprojected F, so each
    channel is scaled by 1 to 2. The SE head predicts from e which classes are in the image. The authors' final ReLU is
    left out, because F is the output of a ReLU.

    Args:
        channels: number of channels of F.
        codewords: number of codewords, K of :class:`Encoding`.
        classes: number of classes that the SE head predicts; None: no SE head.
        first_release: as in the code of June 2018, the closest to the paper: no projection, a sum over codewords.
        size_invariant: scale E as if the map had 60x60 pixels, as in the published training. E is a sum over pixels
            that running statistics do not rescale, so a larger image saturates the gate. Not published.
    """

    def __init__(
        self, channels: int, codewords: int, classes: int | None, *, first_release: bool, size_invariant: bool
    ) -> None:
        super().__init__()
        self.first_release = first_release
        self.size_invariant = size_invariant
        self.project = nn.Identity() if first_release else conv_norm_relu(channels, channels, 1)
        self.encoding = Encoding(channels, codewords)
        self.norm = nn.BatchNorm1d(codewords)
        self.gate = nn.Linear(channels, channels)
        self.se_head = None if classes is None else nn.Linear(channels, classes)

    def forward(self, features: Tensor) -> Context:
        """Scale nonnegative features, BCHW; in training also return the logits of the SE head, BK."""
        encoded = self.encoding(self.project(features))
        if self.size_invariant:
            encoded = encoded * (PIXELS / features[0, 0].numel())
        encoded = F.relu(self.norm(encoded))  # in float32, since rows of E range from below epsilon to 1e3
        encoded = encoded.sum(1) if self.first_release else encoded.mean(1)
        se_logits = self.se_head(encoded) if self.se_head is not None and self.training else None
        gate = 1 + torch.sigmoid(self.gate(encoded))
        return Context(features * gate[:, :, None, None].to(features.dtype), se_logits)


def encode(x: Tensor, codewords: Tensor, scale: Tensor) -> Tensor:
    """Return E, BKD, from features `x` (BND), `codewords` (KD) and `scale` (K). Its gradients are exact.

    The BNKD tensor of residuals is never created: distances are |x|^2 - 2 x.c + |c|^2 and E is A'X - (sum_i A) C, both
    matrix products. The mean codeword is first subtracted from features and codewords. This changes neither distances
    nor E, but prevents cancellation in float32: with a common offset of 20, distances would be wrong by 0.3. Gradients
    of gradients are not implemented.
    """
    return _Encode.apply(x, codewords, scale)  # pyright: ignore[reportReturnType]


class _Encode(torch.autograd.Function):
    """Saves the unchanged features and two BNK tensors for backward; autograd would save three more BND tensors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codewords: Tensor, scale: Tensor) -> Tensor:
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
            centered, words = _centered(x, codewords)
            scale = scale.to(words.dtype)
            distances = torch.matmul(centered, words.t()).mul_(-2)
            squared_norms = torch.linalg.vector_norm(centered, dim=2, keepdim=True).square_()  # without a BND tensor
            distances.add_(squared_norms).add_(words.square().sum(1))
            assigned = torch.softmax(distances * scale, dim=2)
            assigned = torch.where(assigned < NEGLIGIBLE, 0, assigned)
            ctx.save_for_backward(x, codewords, scale, assigned, distances)
            return torch.bmm(assigned.transpose(1, 2), centered) - assigned.sum(1).unsqueeze(2) * words

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, codewords, scale, assigned, distances = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            centered, words = _centered(x, codewords)
            to_assigned = torch.matmul(centered, gradient.transpose(1, 2)) - (gradient * words).sum(2).unsqueeze(1)
            mean = (assigned * to_assigned).sum(2, keepdim=True)
            to_logits = to_assigned.sub_(mean).mul_(assigned)
            to_scale = (to_logits * distances).sum((0, 1))
            to_distances = to_logits.mul_(scale)
            to_x = to_codewords = None
            if ctx.needs_input_grad[1]:
                pulled = torch.bmm(to_distances.transpose(1, 2), centered).sum(0)
                pulled -= to_distances.sum((0, 1)).unsqueeze(1) * words
                to_codewords = -2 * pulled - (assigned.sum(1).unsqueeze(2) * gradient).sum(0)
            if ctx.needs_input_grad[0]:
                factors = torch.cat([assigned, to_distances.mul(-2)], dim=2)
                values = torch.cat([gradient, words.expand_as(gradient)], dim=1)
                to_x = _laid_out_as(centered, factors, values)
                to_x.addcmul_(centered, to_distances.sum(2, keepdim=True), value=2)
                to_x = to_x.to(x.dtype)
        return to_x, to_codewords, to_scale


def _centered(x: Tensor, codewords: Tensor) -> tuple[Tensor, Tensor]:
    """Return features and codewords minus the mean codeword, in float32 (float64 for float64)."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, codewords.dtype), torch.float32)
    codewords = codewords.to(dtype)
    mean = codewords.mean(0)
    return x - mean, codewords - mean


def _laid_out_as(like: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return the product of `a`, BNJ, and `b`, BJD, in the memory layout of `like`, BND."""
    if like.stride(2) == 1:
        return torch.bmm(a, b)
    return torch.bmm(b.transpose(1, 2), a.transpose(1, 2)).transpose(1, 2)
