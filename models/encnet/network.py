"""EncNet: semantic segmentation with a dilated encoder and an encoding of the context of the whole image.

After Zhang, Dana et al., "Context Encoding for Semantic Segmentation", CVPR 2018 (arXiv:1803.08904), and its
authors' code (PyTorch-Encoding), version v0.5.0, which gave the published results.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.blocks import ClassesConfig, conv_norm_relu, resized
from models.encnet.encoding import EncModule
from models.encnet.jpu import JointPyramidUpsampling
from models.encoders.encoded import Encoded
from models.encoders.names import EncoderName
from models.encoders.pyramids import Pyramid
from models.encoders.sizes import Size
from models.pretrained.encnet import encnet_layout
from models.pretrained.layouts import Layout, WeightsFile
from mtsp.types import Outputs


class EncNetConfig(ClassesConfig):
    """Config of :class:`EncNet`. The defaults give the network of the published PASCAL-Context results."""

    name: Literal["encnet"]

    encoder: EncoderName = "resnet50s"
    """Encoder name, see :class:`models.encoders.encoded.Encoded`. `resnet50s` and `resnet101s` have three 3x3
    convolutions in their stem, as in the published networks; `resnet50` is torchvision's."""

    image_size: Size | None = None
    """Height and width of the largest frames, for encoders that are built for one size (Hiera, CoAtNet); null: the
    published size."""

    pyramid: Pyramid | None = None
    """Feature pyramid of a plain vision transformer: `simple` (ViTDet's, from the last map) or `dpt` (DPT's, from four
    depths). null: `simple`; other encoders have their own maps at four strides."""

    classes: int | None = Field(default=59, gt=1, lt=1 << 16)
    """Number of classes of the mask, including background if it is a class; null: as many as the data have."""

    output_stride: Literal[8, 16, 32] | None = None
    """Stride of the coarsest map; later stages are dilated (a plain vision transformer needs no dilation). null: 8, or
    32 with `jpu`."""

    jpu: bool = False
    """Use FastFCN's Joint Pyramid Upsampling instead of dilation."""

    width: int = Field(default=512, gt=0)
    """Number of channels in the head."""

    codewords: int = Field(default=32, gt=0)
    """Number of codewords of the Encoding layer."""

    lateral: bool = True
    """Use earlier encoder maps in the head too, as in the published networks for PASCAL, but not ADE20K and
    Cityscapes."""

    se_head: bool = True
    """Predict which classes are in the image, for the SE loss (:func:`mtsp.losses.se_loss`)."""

    aux_head: bool = True
    """Add a second head on the encoder's level 16, for the auxiliary loss."""

    dropout: Literal["channel", "element"] = "channel"
    """Kind of dropout. `channel`: drop whole channels, as the published checkpoints. `element`: drop single values, as
    the authors' later code."""

    dropout_rate: float = Field(default=0.1, ge=0, lt=1)
    """Dropout rate before each layer that predicts a mask."""

    first_release: bool = False
    """Use the context module as first released in June 2018, without projection: see :class:`EncModule`."""

    size_invariant: bool = False
    """Make the context independent of the image's size: see :class:`EncModule`. Not published."""

    @model_validator(mode="after")
    def _fits(self) -> "EncNetConfig":
        if self.jpu and self.output_stride in (8, 16):
            raise ValueError(
                f"jpu needs an encoder without dilation: leave out output_stride={self.output_stride} or jpu"
            )
        return self

    def build(self) -> "EncNet":
        """Return the network with newly initialized weights."""
        return EncNet(self)


class EncNet(nn.Module):
    """EncNet with two branches: `backbone` is the pretrained encoder, and `head` has all other layers.

    Departures from the authors' code: normalization is part of the network (frames are RGB in [0, 1]), and with an
    output stride of 16 or 32, where the encoder's maps differ in size, lateral maps are resized to the coarsest.
    """

    branches: tuple[str, ...] = ("backbone", "head")

    def __init__(self, config: EncNetConfig) -> None:
        super().__init__()
        self.backbone = Encoded(
            config.encoder,
            output_stride=config.output_stride or (32 if config.jpu else 8),
            image_size=config.image_size,
            pyramid=config.pyramid,
        )
        self.head = EncHead(self.backbone.encoder_channels, config)

    def forward(self, frame: Tensor, next_frame: Tensor | None = None) -> Outputs:
        """Predict the mask of `frame`; in training also predict its classes (SE head) and a mask from earlier features.

        Args:
            frame: B3HW, RGB in [0, 1], of any size. The published networks were trained on 480x480.
            next_frame: ignored.
        """
        predicted = self.head(self.backbone.encode(frame))
        outputs = Outputs(mask_logits=resized(predicted.mask_logits, frame))
        if predicted.se_logits is not None:
            outputs["se_logits"] = predicted.se_logits
        if predicted.aux_mask_logits is not None:
            outputs["aux_mask_logits"] = resized(predicted.aux_mask_logits, frame)
        return outputs


class HeadOutputs(NamedTuple):
    """Predictions at the resolution of the feature maps. The last two are None at evaluation or without their head."""

    mask_logits: Tensor  # BKhw
    se_logits: Tensor | None  # BK
    aux_mask_logits: Tensor | None  # BKhw


class EncHead(nn.Module):
    """All layers of EncNet except the encoder: 17.9 M parameters on ResNet-50 with 59 classes and lateral maps.

    Layers keep PyTorch's own initialization, as in the authors' code.

    Args:
        encoder: numbers of channels of the encoder's maps at levels 4, 8, 16, 32.
        config: config of the network.
    """

    task_layers = ("classify.", "context.se_head.", "aux_head.")
    """Layers that may be missing or have other shapes in weights of another task; they then stay as initialized."""

    def __init__(self, encoder: Sequence[int], config: EncNetConfig) -> None:
        super().__init__()
        _, fine, middle, coarse = encoder
        width = config.width
        self.jpu = JointPyramidUpsampling((fine, middle, coarse), width) if config.jpu else None
        if self.jpu is None:
            self.reduce = conv_norm_relu(coarse, width, 3)
        else:
            self.reduce = conv_norm_relu(self.jpu.channels, width, 1)
        self.lateral = self.join = None
        if config.lateral:
            self.lateral = nn.ModuleList([conv_norm_relu(channels, width, 1) for channels in (fine, middle)])
            self.join = conv_norm_relu(3 * width, width, 3)
        self.context = EncModule(
            width,
            config.codewords,
            config.class_count if config.se_head else None,
            first_release=config.first_release,
            size_invariant=config.size_invariant,
        )
        self.drop = _dropout(config)
        self.classify = nn.Conv2d(width, config.class_count, 1)
        self.aux_head = AuxiliaryHead(middle, config) if config.aux_head else None

    def forward(self, features: Sequence[Tensor]) -> HeadOutputs:
        """Return predictions at the resolution of the last map, or of level 8 with a JPU.

        Args:
            features: BChw maps at levels 4, 8, 16, 32, with strides of at most the output stride.
        """
        fine, middle, coarse = features[1:]
        x = self.reduce(coarse if self.jpu is None else self.jpu(fine, middle, coarse))
        if self.lateral is not None and self.join is not None:
            sides = [resized(side(below), x) for side, below in zip(self.lateral, (fine, middle), strict=True)]
            x = self.join(torch.cat([x, *sides], dim=1))
        x, se_logits = self.context(x)
        logits = self.classify(self.drop(x))
        auxiliary = self.aux_head(middle) if self.aux_head is not None and self.training else None
        return HeadOutputs(logits, se_logits, auxiliary)

    def published_layout(self, file: WeightsFile) -> Layout:
        """Map the tensors of an EncNet of PyTorch-Encoding or FastFCN to the head; see
        :mod:`models.pretrained.encnet`."""
        return encnet_layout(self, self.task_layers, file)


class AuxiliaryHead(nn.Sequential):
    """A small fully convolutional head on the encoder's level 16, for the auxiliary loss: BChw to logits BKhw."""

    def __init__(self, channels: int, config: EncNetConfig) -> None:
        super().__init__()
        self.reduce = conv_norm_relu(channels, channels // 4, 3)
        self.drop = _dropout(config)
        self.classify = nn.Conv2d(channels // 4, config.class_count, 1)


def _dropout(config: EncNetConfig) -> nn.Module:
    return (nn.Dropout2d if config.dropout == "channel" else nn.Dropout)(config.dropout_rate)
