"""EncNet's heads: the context module (whose SE head predicts which classes are present) and the auxiliary head.

After Zhang, Dana et al., "Context Encoding for Semantic Segmentation", CVPR 2018 (arXiv:1803.08904), and the code that
its authors released. Layers keep PyTorch's own initialization, as theirs do.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import conv_norm_relu, resized
from models.encnet.encoding import Encoding
from models.encnet.jpu import JointPyramidUpsampling
from models.pretrained.encnet import encnet_layout
from models.pretrained.layouts import Layout, WeightsFile

Dropout = Literal["channel", "element"]
PIXELS = 60 * 60
"""Pixels of the feature map in the published training: crops of 480x480 at stride 8."""


class Context(NamedTuple):
    """Output of :class:`EncModule`."""

    features: Tensor  # BCHW
    se_logits: Tensor | None  # BK, for mtsp.losses.se_loss


class EncModule(nn.Module):
    """The context encoding module: scales the channels of a map by an encoding of all of it (figure 2 of the paper).

    A map F is projected, encoded, normalized over the codewords, rectified and averaged over them to one vector e of
    `channels`. The result is F * (1 + sigmoid(gate(e))) with the unprojected F, so each channel is scaled by 1 to 2.
    The SE head predicts from e which classes are in the image. The authors' final ReLU is left out: F comes from one.

    Args:
        channels: of F.
        codewords: K of :class:`models.encnet.encoding.Encoding`.
        classes: number of classes that the SE head predicts; None: no SE head.
        first_release: as the code of June 2018, closest in time to the paper: no projection, a sum over codewords.
        size_invariant: scale E as if the map had 60x60 pixels, as in the published training. E is a sum over pixels,
            and running statistics do not normalize it: a larger image saturates the gate. Not published.
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
        """Return the scaled features, BCHW, and in training the logits of the SE head, BK.

        Args:
            features: BCHW, 0 or more.
        """
        encoded = self.encoding(self.project(features))
        if self.size_invariant:
            encoded = encoded * (PIXELS / features[0, 0].numel())
        encoded = F.relu(self.norm(encoded))  # float32: rows of E reach from 1e3 down to below epsilon
        encoded = encoded.sum(1) if self.first_release else encoded.mean(1)
        se_logits = self.se_head(encoded) if self.se_head is not None and self.training else None
        gate = 1 + torch.sigmoid(self.gate(encoded))
        return Context(features * gate[:, :, None, None].to(features.dtype), se_logits)


class HeadOutputs(NamedTuple):
    """Predictions at the resolution of the feature maps; the last two in training only, and only with such a head."""

    mask_logits: Tensor  # BKhw
    se_logits: Tensor | None  # BK
    aux_mask_logits: Tensor | None  # BKhw


class EncHead(nn.Module):
    """All of EncNet but the encoder: 17.9 M parameters on ResNet-50 with 59 classes and lateral maps.

    Args:
        encoder: channels of the encoder's maps at levels 4, 8, 16, 32.
        classes: number of classes of the mask.
        width: channels inside.
        lateral: join the maps of levels 8 and 16, as published for PASCAL.
        jpu: replace the coarsest map by a :class:`JointPyramidUpsampling` of levels 8, 16 and 32.
        se_head: predict which classes are present.
        aux_head: predict the mask a second time, from level 16.
        dropout: drop whole channels, as in the published checkpoints, or elements, as in the authors' last code.
        rate: dropout rate.
        first_release: see :class:`EncModule`, as `codewords` and `size_invariant`.
    """

    task_layers = ("classify.", "context.se_head.", "aux_head.")
    """Layers that weights of another task may lack, or have for other classes; they then stay as initialized."""

    def __init__(
        self,
        encoder: Sequence[int],
        classes: int,
        *,
        width: int,
        codewords: int,
        lateral: bool,
        jpu: bool,
        se_head: bool,
        aux_head: bool,
        dropout: Dropout,
        rate: float,
        first_release: bool,
        size_invariant: bool,
    ) -> None:
        super().__init__()
        _, fine, middle, coarse = encoder
        self.jpu = JointPyramidUpsampling((fine, middle, coarse), width) if jpu else None
        if self.jpu is None:
            self.reduce = conv_norm_relu(coarse, width, 3)
        else:
            self.reduce = conv_norm_relu(self.jpu.channels, width, 1)
        self.lateral = self.join = None
        if lateral:
            self.lateral = nn.ModuleList([conv_norm_relu(channels, width, 1) for channels in (fine, middle)])
            self.join = conv_norm_relu(3 * width, width, 3)
        self.context = EncModule(
            width,
            codewords,
            classes if se_head else None,
            first_release=first_release,
            size_invariant=size_invariant,
        )
        self.drop = _dropout(dropout, rate)
        self.classify = nn.Conv2d(width, classes, 1)
        self.aux_head = AuxiliaryHead(middle, classes, dropout=dropout, rate=rate) if aux_head else None

    def forward(self, features: Sequence[Tensor]) -> HeadOutputs:
        """Return predictions at the resolution of the last map, or of level 8 with a JPU.

        Args:
            features: BChw at levels 4, 8, 16, 32, none coarser than the output stride.
        """
        fine, middle, coarse = features[1:]
        x = self.reduce(coarse if self.jpu is None else self.jpu(fine, middle, coarse))
        if self.lateral is not None and self.join is not None:
            sides = [resized(side(below), x) for side, below in zip(self.lateral, (fine, middle), strict=True)]
            x = self.join(torch.cat([x, *sides], dim=1))
        context: Context = self.context(x)
        logits = self.classify(self.drop(context.features))
        auxiliary = self.aux_head(middle) if self.aux_head is not None and self.training else None
        return HeadOutputs(logits, context.se_logits, auxiliary)

    def published_layout(self, file: WeightsFile) -> Layout:
        """Return how an EncNet of PyTorch-Encoding or FastFCN fits; see :mod:`models.pretrained.encnet`."""
        return encnet_layout(self, self.task_layers, file)


class AuxiliaryHead(nn.Module):
    """A small fully convolutional head on the encoder's level 16, for the auxiliary loss."""

    def __init__(self, channels: int, classes: int, *, dropout: Dropout, rate: float) -> None:
        super().__init__()
        self.reduce = conv_norm_relu(channels, channels // 4, 3)
        self.drop = _dropout(dropout, rate)
        self.classify = nn.Conv2d(channels // 4, classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits, BKhw, of features, BChw."""
        return self.classify(self.drop(self.reduce(features)))


def _dropout(kind: Dropout, rate: float) -> nn.Module:
    return nn.Dropout2d(rate) if kind == "channel" else nn.Dropout(rate)
