"""SegFlow: a segmentation branch and a flow branch that read each other's features at three scales.

After Cheng, Tsai, Wang and Yang, "SegFlow: Joint Learning for Video Object Segmentation and Optical Flow", ICCV 2017
(arXiv:1709.06750), and the network definitions that its authors released.
"""

import math
from typing import Literal

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.blocks import ClassesConfig, on_grid
from models.encoders.build import Encoded
from models.flow.flownets import FlowBranch, FlowNetS, FlowNetSConfig, Motion, enlarged
from models.segflow.decoders import PyramidHead, ScoreHead, bilinear_kernel
from mtsp.types import Outputs

RELEASED_SIZE = (480, 854)
STRIDES = (4, 8, 16, 32, 64)  # strides of FlowNetS's pyramid
RESIDUAL_UNIT = 20.0  # pixels; the unit of the flow head's output, the same as in FlowNetS


class SegFlowConfig(ClassesConfig):
    """Config of :class:`SegFlow`."""

    name: Literal["segflow"]

    mode: Literal["released", "paper", "modern"] = "modern"
    """`released`: as in the authors' files, 480x854 only; the flow is FlowNetS's own, because the weights of the flow
    head are zero. `paper`: the same, with the output of the flow head as the flow. `modern`: any size and encoder,
    aligned features."""

    encoder: str = "resnet101"
    """Encoder name, see :mod:`models.encoders.build`. In `released` and `paper`, resnet50 and resnet101 are Caffe's."""

    classes: int | None = Field(default=2, gt=1, lt=256)
    """Number of classes of the mask, including background; null: as many as the data have."""

    flow: FlowNetSConfig | None = FlowNetSConfig()
    """Config of the flow branch. null: no flow branch (SegFlow*), and `next_frame` is ignored."""

    decoder: Literal["scores", "fpn"] | None = None
    """Decoder of both heads. `scores`: SegFlow's sums of score maps. `fpn`: a feature pyramid. null: `fpn` in mode
    `modern`, else `scores`."""

    width: int = Field(default=64, gt=0, multiple_of=8)
    """Number of channels in the segmentation head's feature pyramid."""

    flow_width: int = Field(default=32, gt=0, multiple_of=8)
    """Number of channels in the flow head's feature pyramid."""

    @model_validator(mode="after")
    def _fits(self) -> "SegFlowConfig":
        if self.mode != "modern" and self.decoder == "fpn":
            raise ValueError(f"mode {self.mode} does not support decoder fpn; leave out decoder, or use mode modern")
        return self

    @property
    def uses_fpn(self) -> bool:
        """Return whether the heads are feature pyramids."""
        return self.mode == "modern" and self.decoder != "scores"

    def build(self) -> "SegFlow":
        """Return the network with newly initialized weights."""
        return SegFlow(self)


class Segmentation(Encoded):
    """The segmentation branch: `encoder` with its normalization, and `head`."""

    def __init__(self, encoder: str, config: SegFlowConfig, motion: tuple[int, ...]) -> None:
        super().__init__(encoder)
        channels = self.encoder_channels
        if config.uses_fpn:
            self.head = PyramidHead(channels, motion, config.class_count, width=config.width, zero=False)
        else:
            self.head = _score_head(config, channels, motion, config.class_count, crops=(4, 2, 1))


class Flow(FlowBranch):
    """The flow branch: `network`, FlowNetS with its normalization, and `head`, which mode `released` lacks."""

    def __init__(self, network: FlowNetS, config: SegFlowConfig, encoder: tuple[int, ...]) -> None:
        super().__init__(network)
        motion = network.exchanged_channels
        self.head = None
        if config.uses_fpn:
            self.head = PyramidHead(encoder, motion, 2, width=config.flow_width, zero=True)
        elif config.mode != "released":
            self.head = _score_head(config, encoder, motion, 2, crops=(0, 0, 1))


class SegFlow(nn.Module):
    """A segmentation branch on an image encoder, and a flow branch on FlowNetS; each head reads the features of both.

    FlowNetS's features at strides 4, 8, 16 are pooled and concatenated with the encoder's at strides 8, 16, 32, once
    for the segmentation head and once for the flow head. Encoder and FlowNetS do not use each other's features.

    Departures. All modes: each branch normalizes the frames itself (in the authors' files a counter decides whether a
    mean is subtracted twice). `released`: the flow head is left out, because the authors never trained it and its
    output is zero. `modern`: height and width are padded to multiples of 32 and outputs are cropped back; flow
    features lie on the encoder's grid; the feature pyramid of :class:`PyramidHead` replaces sums of score maps unless
    `decoder: scores`; the flow head predicts a residual to FlowNetS's flow that is zero at first, so the initial flow
    is that of FlowNetS.
    """

    def __init__(self, config: SegFlowConfig) -> None:
        super().__init__()
        self.mode = config.mode
        network = None
        if config.flow is not None:
            network = FlowNetS(config.flow, "crop" if self.mode == "modern" else "resize")
        encoder = config.encoder
        if self.mode != "modern" and encoder in ("resnet50", "resnet101"):
            encoder = f"{encoder}_caffe"
        self.segmentation = Segmentation(encoder, config, () if network is None else network.exchanged_channels)
        self.flow = None if network is None else Flow(network, config, self.segmentation.encoder_channels)
        self.after_loading("flow")

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the branches, which are the prefixes of all parameter names."""
        return ("segmentation",) if self.flow is None else ("segmentation", "flow")

    def forward(self, frame: Tensor, next_frame: Tensor | None = None) -> Outputs:
        """Predict the mask of `frame` and the flow from it to `next_frame`.

        Args:
            frame: B3HW, RGB in [0, 1]; 480x854 in modes `released` and `paper`, any size in `modern`.
            next_frame: the following frame, same format. None: use `frame` again, as SegFlow does for the last frame
                of a clip.

        Raises:
            ValueError: the mode does not accept frames of this size.
        """
        next_frame = frame if next_frame is None else next_frame
        if self.mode == "modern":
            outputs = self._modern(frame, next_frame)
        elif frame.shape[-2:] == RELEASED_SIZE:
            outputs = self._faithful(frame, next_frame)
        else:
            raise ValueError(
                f"SegFlow in mode {self.mode} takes frames of 480x854, got {frame.shape[-2]}x{frame.shape[-1]}; "
                "resize them, or use mode modern, which takes any size"
            )
        if not self.training:
            outputs.pop("flow_pyramid", None)
        return outputs

    def after_loading(self, branch: str) -> None:
        """Adjust newly loaded weights of `branch` to the mode.

        `released` sets the layers that enlarge the flow between FlowNetS's scales to bilinear interpolation, as the
        authors' training script does (by accident, since it selects layers with "up" in their names).
        """
        if self.mode == "released" and branch == "flow" and self.flow is not None:
            kernel = bilinear_kernel(1, 2)[0, 0]
            for level in (5, 4, 3, 2):
                weight = self.flow.network.get_parameter(f"upsampled_flow{level + 1}_to_{level}.weight").data
                weight[0, 0].copy_(kernel)  # in, out, 4, 4 with 2 channels each
                weight[1, 1].copy_(kernel)

    def _modern(self, frame: Tensor, next_frame: Tensor) -> Outputs:
        height, width = frame.shape[-2:]
        frame, next_frame = _padded(frame), _padded(next_frame)
        features = self.segmentation.encode(frame)
        pooled: list[Tensor] = []
        outputs = Outputs()
        if self.flow is not None:
            motion: Motion = self.flow.network(frame, next_frame)
            pooled = [
                on_grid(F.max_pool2d(x, 3, stride=2, padding=1), like)
                for x, like in zip(motion[1:], features[1:], strict=True)
            ]
            assert self.flow.head is not None
            residual = self.flow.head(features, pooled) * RESIDUAL_UNIT
            flow = motion.pyramid[0] + on_grid(residual, motion.pyramid[0])
            outputs["flow"] = on_grid(flow, frame)[..., :height, :width]
            outputs["flow_pyramid"] = [
                x[..., : math.ceil(height / stride), : math.ceil(width / stride)]
                for x, stride in zip(motion.pyramid, STRIDES, strict=True)
            ]
        logits = self.segmentation.head(features, pooled)
        outputs["mask_logits"] = on_grid(logits, frame)[..., :height, :width]
        return outputs

    def _faithful(self, frame: Tensor, next_frame: Tensor) -> Outputs:
        height, width = RELEASED_SIZE
        features = self.segmentation.encode(frame)
        pooled: list[Tensor] = []
        outputs = Outputs()
        if self.flow is not None:
            motion: Motion = self.flow.network(frame, next_frame)
            pooled = [F.max_pool2d(x, 3, stride=2, ceil_mode=True) for x in motion[1:]]
            outputs["flow_pyramid"] = motion.pyramid
            if self.flow.head is None:
                outputs["flow"] = enlarged(motion.pyramid[0], frame, crop=False)
            else:
                outputs["flow"] = self.flow.head(features, pooled)[..., :height, :width]
        outputs["mask_logits"] = self.segmentation.head(features, pooled)[..., :height, :width]
        return outputs


def _score_head(
    config: SegFlowConfig, encoder: tuple[int, ...], motion: tuple[int, ...], channels: int, crops: tuple[int, int, int]
) -> ScoreHead:
    return ScoreHead(encoder[1:], motion, channels, crops=None if config.mode == "modern" else crops)


def _padded(frame: Tensor) -> Tensor:
    """Return the frame with its last rows and columns repeated until 32 divides both sides."""
    pad = [0, -frame.shape[-1] % 32, 0, -frame.shape[-2] % 32]
    return F.pad(frame, pad, mode="replicate") if any(pad) else frame
