"""EncNet: semantic segmentation with a dilated encoder and an encoding of the whole image's context.

After Zhang, Dana et al., "Context Encoding for Semantic Segmentation", CVPR 2018 (arXiv:1803.08904), and the code of
its authors (PyTorch-Encoding), version v0.5.0, whose numbers are published.
"""

from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from models.blocks import resized
from models.encnet.heads import EncHead
from models.encoders.build import Encoded
from mtsp.config import Config
from mtsp.types import Outputs


class EncNetConfig(Config):
    """Config of :class:`EncNet`. The defaults are the network of the published PASCAL-Context numbers."""

    name: Literal["encnet"]

    encoder: str = "tu-resnet50s"
    """Any name that :mod:`models.encoders.build` knows. `tu-resnet50s` and `tu-resnet101s` have the three 3x3
    convolutions in their stem that the published networks have; `resnet50` is torchvision's."""

    classes: int = Field(default=59, gt=1, lt=256)
    """Number of classes of the mask, background included if it is one."""

    output_stride: Literal[8, 16, 32] | None = None
    """Stride of the coarsest map, kept by dilation. null: 8, or 32 with `jpu`."""

    jpu: bool = False
    """FastFCN's Joint Pyramid Upsampling in place of dilation."""

    width: int = Field(default=512, gt=0)
    """Channels in the head."""

    codewords: int = Field(default=32, gt=0)
    """Number of codewords of the Encoding layer."""

    lateral: bool = True
    """Join earlier maps of the encoder in the head: published for PASCAL, not for ADE20K and Cityscapes."""

    se_head: bool = True
    """Predict which classes are in the image, for the SE loss (:func:`mtsp.losses.se_loss`)."""

    aux_head: bool = True
    """A second head on the encoder's level 16, for the auxiliary loss."""

    dropout: Literal["channel", "element"] = "channel"
    """Kind of dropout. `channel`: whole channels, as the published checkpoints. `element`: single values, as the
    authors' later code."""

    dropout_rate: float = Field(default=0.1, ge=0, lt=1)
    """Dropout rate before each prediction of a mask."""

    first_release: bool = False
    """The context module as first released in June 2018, without projection: see :class:`EncModule`."""

    size_invariant: bool = False
    """Make the context independent of the image's size: see :class:`EncModule`. Not published."""

    @model_validator(mode="after")
    def _fits(self) -> "EncNetConfig":
        if self.jpu and self.output_stride in (8, 16):
            raise ValueError(
                f"jpu takes an encoder that is not dilated: leave output_stride={self.output_stride} out, or jpu"
            )
        return self

    def build(self) -> "EncNet":
        """Return the network, with fresh weights."""
        return EncNet(self)


class EncNet(nn.Module):
    """EncNet with two branches: `backbone`, the pretrained encoder, and `head`, all other layers.

    Departures from the authors' code: normalization is part of the network (frames are RGB in [0, 1]), and with an
    output stride of 16 or 32, where the encoder's maps differ in size, lateral maps are resized to the coarsest.
    """

    branches: tuple[str, ...] = ("backbone", "head")

    def __init__(self, config: EncNetConfig) -> None:
        super().__init__()
        stride = config.output_stride or (32 if config.jpu else 8)
        self.backbone = Encoded(config.encoder, output_stride=stride)
        self.head = EncHead(
            self.backbone.encoder_channels,
            config.classes,
            width=config.width,
            codewords=config.codewords,
            lateral=config.lateral,
            jpu=config.jpu,
            se_head=config.se_head,
            aux_head=config.aux_head,
            dropout=config.dropout,
            rate=config.dropout_rate,
            first_release=config.first_release,
            size_invariant=config.size_invariant,
        )

    def forward(self, frame: Tensor, next_frame: Tensor | None = None) -> Outputs:
        """Predict the mask of `frame`; in training also its classes (SE head) and a mask from earlier features.

        Args:
            frame: B3HW, RGB in [0, 1], of any size; trained on 480x480.
            next_frame: ignored.
        """
        predicted = self.head(self.backbone.encode(frame))
        outputs = Outputs(mask_logits=resized(predicted.mask_logits, frame))
        if predicted.se_logits is not None:
            outputs["se_logits"] = predicted.se_logits
        if predicted.aux_mask_logits is not None:
            outputs["aux_mask_logits"] = resized(predicted.aux_mask_logits, frame)
        return outputs
