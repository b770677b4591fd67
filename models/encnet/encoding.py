"""The Encoding layer: residuals of an image's features to learned codewords, summed over its pixels.

After Zhang, Dana et al., "Context Encoding for Semantic Segmentation", CVPR 2018 (arXiv:1803.08904), section 3.1, and
"Deep TEN: Texture Encoding Network", CVPR 2017 (arXiv:1612.02844). Letters: B batch, D channels, N pixels, K codewords.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

NEGLIGIBLE = 1e-20
"""Assignments below this are set to zero: denormal numbers make a CPU's matrix products 8 times slower, and a sum over
1e5 pixels loses less than its rounding, in float64 too."""


class Encoding(nn.Module):
    """Residuals of features to codewords, weighted by soft assignment and summed over pixels: E in equation 1.

    With d the squared distance of pixel i to codeword k, the assignment is softmax over k of scale_k * d, and
    E_k = sum over i of assignment_ik * (x_i - codeword_k): a sum, so twice the pixels give twice E. The minus sign of
    the paper's exp(-s * d) is in `scale`, which starts negative and may become anything, as in the authors' code.

    Computed in float32 even under autocast, because E is a sum over thousands of pixels.

    Args:
        channels: D, the number of features.
        codewords: K, the number of codewords.
    """

    def __init__(self, channels: int, codewords: int) -> None:
        super().__init__()
        bound = (channels * codewords) ** -0.5
        self.codewords = nn.Parameter(torch.empty(codewords, channels).uniform_(-bound, bound))
        self.scale = nn.Parameter(torch.empty(codewords).uniform_(-1, 0))

    def forward(self, features: Tensor) -> Tensor:
        """Return E, BKD, float32 (float64 of float64).

        Args:
            features: BDHW or BDN, any float type, channels_last or not (never copied into the other layout).
        """
        return encode(features.flatten(2).transpose(1, 2), self.codewords, self.scale)

    def extra_repr(self) -> str:
        """Return the sizes for `print`."""
        return f"channels={self.codewords.shape[1]}, codewords={self.codewords.shape[0]}"


def encode(x: Tensor, codewords: Tensor, scale: Tensor) -> Tensor:
    """Return E, BKD, of features `x`, BND, to `codewords`, KD, with `scale`, K. Its gradients are exact.

    The BNKD tensor of residuals is never made: distances are |x|^2 - 2 x.c + |c|^2 and E is A'X - (sum_i A) C, both
    matrix products. The mean codeword is first subtracted from features and codewords. This changes neither distances
    nor E, but prevents cancellation in float32: with a common offset of 20, distances would be wrong by 0.3. Gradients
    of gradients are not implemented.
    """
    return _Encode.apply(x, codewords, scale)  # pyright: ignore[reportReturnType]


class _Encode(torch.autograd.Function):
    """Saves the unchanged features and the two BNK tensors; autograd would save three more of size BND."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codewords: Tensor, scale: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            centered, words = _centered(x, codewords)
            scale = scale.to(words.dtype)
            distances = torch.matmul(centered, words.t()).mul_(-2)
            distances.add_(_squared_norm(centered)).add_(words.square().sum(1))
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
    """Return features and codewords minus the mean codeword, in float32 (float64 of float64)."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, codewords.dtype), torch.float32)
    codewords = codewords.to(dtype)
    mean = codewords.mean(0)
    return x - mean, codewords - mean


def _squared_norm(x: Tensor) -> Tensor:
    """Return the squared norms, BN1, of `x`, BND, without a second BND tensor."""
    return torch.linalg.vector_norm(x, dim=2, keepdim=True).square_()


def _laid_out_as(like: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return the product of `a`, BNJ, and `b`, BJD, in the memory layout of `like`, BND."""
    if like.stride(2) == 1:
        return torch.bmm(a, b)
    return torch.bmm(b.transpose(1, 2), a.transpose(1, 2)).transpose(1, 2)
