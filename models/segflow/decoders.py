"""SegFlow's decoders on the features of both branches: sums of score maps, a feature pyramid, or context encoding."""

import math
from collections.abc import Sequence
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import on_grid
from models.encnet.encoding import Context, EncModule

SCALES = (1e-4, 1e-2, 1.0)
"""Factors on the encoder maps at strides 8, 16, 32 before they are concatenated with the flow features."""


class ScoreHead(nn.Module):
    """SegFlow's decoder: a 1x1 convolution per level gives score maps, which are enlarged and summed, coarse to fine.

    Encoder and flow features are concatenated at strides 8, 16 and 32. The convolutions start at zero.

    With `crops`, as released: factors on the encoder maps are fixed, bilinear deconvolutions are fixed and have no
    padding, and maps that are larger than the maps they join are cropped, which shifts the two streams by up to 43
    pixels. Without `crops`: flow features lie on the encoder's grid, factors are learned, and maps are enlarged
    without a shift.

    Args:
        encoder: numbers of channels of the encoder's maps at strides 8, 16, 32.
        motion: numbers of channels of the flow features at these strides, or the first of them; empty without a flow
            branch.
        channels: number of score maps.
        crops: first row and column of the crops from the flow features at strides 8, 16, 32; None: no crops.
    """

    scales: Tensor
    up2: Tensor
    up8: Tensor

    def __init__(
        self, encoder: Sequence[int], motion: Sequence[int], channels: int, *, crops: tuple[int, int, int] | None
    ) -> None:
        super().__init__()
        self.crops = crops
        inputs = [a + b for a, b in zip_longest(encoder, motion, fillvalue=0)]
        self.score3, self.score4, self.score5 = (nn.Conv2d(count, channels, 1) for count in inputs)
        for score in (self.score3, self.score4, self.score5):
            _zero(score)
        if crops is None:
            self.scales = nn.Parameter(torch.tensor(SCALES))
        else:
            self.register_buffer("scales", torch.tensor(SCALES), persistent=False)
            self.register_buffer("up2", bilinear_kernel(channels, 2), persistent=False)
            self.register_buffer("up8", bilinear_kernel(channels, 8), persistent=False)

    def forward(self, encoder: Sequence[Tensor], motion: Sequence[Tensor]) -> Tensor:
        """Return score maps: with `crops` at stride 1, a few pixels too large at the lower right; else at stride 8.

        Args:
            encoder: BChw at strides 8, 16, 32 (additional maps may precede them).
            motion: BChw at strides 8, 16, 32 or the first of them, on the encoder's grid, or larger and then cropped;
                empty without a flow branch.
        """
        score3, score4, score5 = (
            score(self._joined(level, encoder[level - 3], motion))
            for level, score in enumerate((self.score3, self.score4, self.score5))
        )
        if self.crops is None:
            score4 = score4 + on_grid(score5, score4)
            return score3 + on_grid(score4, score3)
        score4 = score4 + _cut(_enlarged(score5, self.up2), score4, 2)
        score3 = score3 + _cut(_enlarged(score4, self.up2), score3, 2)
        return _enlarged(score3, self.up8)[..., 8:, 8:]

    def _joined(self, level: int, encoder: Tensor, motion: Sequence[Tensor]) -> Tensor:
        encoder = encoder * self.scales[level]
        if level >= len(motion):
            return encoder
        offset = self.crops[level] if self.crops else 0
        return torch.cat([encoder, _cut(motion[level], encoder, offset)], dim=1)


class PyramidHead(nn.Module):
    """A feature pyramid over both branches' features, with output at stride 4.

    A departure from SegFlow, whose sums of two-channel score maps lose most of the encoder's information and use no
    features at stride 4. Each level of the encoder is projected to `width` channels and normalized (which replaces the
    fixed factors), concatenated with the projected flow features at strides 8, 16 and 32, and merged from coarse to
    fine by 3x3 convolutions. GroupNorm makes it independent of the batch size and of frozen batch-norm statistics.

    Args:
        encoder: numbers of channels of the encoder's maps at strides 4, 8, 16, 32.
        motion: numbers of channels of the flow features at strides 8, 16, 32, or the first of them; empty without a
            flow branch.
        channels: number of channels of the output.
        width: number of channels inside; a multiple of 8.
        zero: initialize the last layer so that the output is zero.
    """

    def __init__(self, encoder: Sequence[int], motion: Sequence[int], channels: int, *, width: int, zero: bool) -> None:
        super().__init__()
        joined = [2 * width if 1 <= level <= len(motion) else width for level in range(4)]
        self.lateral = nn.ModuleList([_block(count, width, 1) for count in encoder])
        self.exchange = nn.ModuleList([_block(count, width, 1) for count in motion])
        self.context = nn.Conv2d(joined[3], width, 1)  # applied to the mean over the image
        self.merge = nn.ModuleList(
            [_block(count + (width if level < 3 else 0), width, 3) for level, count in enumerate(joined)]
        )
        self.predict = nn.Conv2d(width, channels, 1)
        if zero:
            _zero(self.predict)

    def forward(self, encoder: Sequence[Tensor], motion: Sequence[Tensor]) -> Tensor:
        """Return the output, BChw at stride 4.

        Args:
            encoder: BChw at strides 4, 8, 16, 32.
            motion: BChw at strides 8, 16, 32 or the first of them, on the encoder's grid.
        """
        levels = [lateral(features) for lateral, features in zip(self.lateral, encoder, strict=True)]
        for level, (exchange, features) in enumerate(zip(self.exchange, motion, strict=True), start=1):
            levels[level] = torch.cat([levels[level], exchange(features)], dim=1)
        x = self.merge[3](levels[3]) + self.context(levels[3].mean((2, 3), keepdim=True))
        for level in (2, 1, 0):
            x = self.merge[level](torch.cat([on_grid(x, levels[level]), levels[level]], dim=1))
        return self.predict(x)


class ContextHead(nn.Module):
    """EncNet's context module on the fused features of SegFlow's feature pyramid, with output at stride 4.

    For videos with many classes: an encoding of the whole frame, of appearance and motion, scales the channels before
    the classes are predicted, and the SE head predicts which classes are in the frame. Features are encoded as if the
    map had 60x60 pixels, because the frames of videos have many sizes. See :class:`models.encnet.encoding.EncModule`.

    Args:
        encoder: numbers of channels of the encoder's maps at strides 4, 8, 16, 32.
        motion: numbers of channels of the flow features, as for :class:`PyramidHead`.
        classes: number of classes of the mask.
        width: number of channels inside; a multiple of 8.
        codewords: number of codewords.
    """

    def __init__(
        self, encoder: Sequence[int], motion: Sequence[int], classes: int, *, width: int, codewords: int
    ) -> None:
        super().__init__()
        self.pyramid = PyramidHead(encoder, motion, width, width=width, zero=False)
        self.context = EncModule(width, codewords, classes, first_release=False, size_invariant=True)
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, encoder: Sequence[Tensor], motion: Sequence[Tensor]) -> Context:
        """Return logits, BKhw at stride 4, and in training the logits of the SE head, BK."""
        encoded: Context = self.context(F.relu(self.pyramid(encoder, motion)))
        return Context(self.classify(encoded.features), encoded.se_logits)


def bilinear_kernel(channels: int, factor: int) -> Tensor:
    """Return the weight, C1kk with k = 2 * factor, of a grouped deconvolution that enlarges maps by `factor`."""
    place = torch.arange(2 * factor, dtype=torch.float32)
    tent = 1 - (place - (factor - 0.5)).abs() / factor
    return torch.outer(tent, tent).expand(channels, 1, -1, -1).contiguous()


def _enlarged(x: Tensor, kernel: Tensor) -> Tensor:
    return F.conv_transpose2d(x, kernel.to(x.dtype), stride=kernel.shape[-1] // 2, groups=x.shape[1])


def _zero(conv: nn.Conv2d) -> None:
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)


def _block(channels_in: int, channels_out: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(conv, nn.GroupNorm(math.gcd(8, channels_out), channels_out), nn.ReLU(inplace=True))


def _cut(x: Tensor, like: Tensor, offset: int) -> Tensor:
    height, width = like.shape[-2:]
    return x[..., offset : offset + height, offset : offset + width]
