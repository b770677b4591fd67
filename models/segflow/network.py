"""SegFlow: a segmentation branch and a flow branch that read each other's features at three scales.

After Cheng, Tsai, Wang and Yang, "SegFlow: Joint Learning for Video Object Segmentation and Optical Flow", ICCV 2017
(arXiv:1709.06750), and the network definitions that its authors released.
"""

import math
from typing import Literal

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.blocks import ClassesConfig, cropped, next_multiple, on_grid, padded
from models.encnet.encoding import Context
from models.encoders.encoded import Encoded
from models.encoders.names import EncoderName
from models.encoders.pyramids import Pyramid
from models.encoders.sizes import Size
from models.flow import AnyFlow
from models.flow.branch import FlowBranch, FlowNetwork, Motion, enlarged
from models.flow.flownets import FlowNetS, FlowNetSConfig
from models.segflow.decoders import ContextHead, PyramidHead, ScoreHead, bilinear_kernel
from mtsp.types import Outputs

RELEASED_SIZE = (480, 854)
RESIDUAL_UNIT = 20.0  # pixels; the unit of the flow head's output, the same as in FlowNetS


class SegFlowConfig(ClassesConfig):
    """Config of :class:`SegFlow`."""

    name: Literal["segflow"]

    mode: Literal["released", "paper", "modern"] = "modern"
    """`released`: as in the authors' files, 480x854 only; the flow is FlowNetS's own, because the weights of the flow
    head are zero. `paper`: the same, with the output of the flow head as the flow. `modern`: any size and encoder,
    aligned features."""

    encoder: EncoderName = "resnet101"
    """Encoder name, see :class:`models.encoders.encoded.Encoded`. In `released` and `paper`, resnet50 and resnet101 are
    Caffe's."""

    image_size: Size | None = None
    """Height and width of the largest frames, for encoders that are built for one size (Hiera, CoAtNet); null: the
    published size."""

    pyramid: Pyramid | None = None
    """Feature pyramid of a plain vision transformer: `simple` (ViTDet's, from the last map) or `dpt` (DPT's, from four
    depths). null: `simple`; other encoders have their own maps at four strides."""

    classes: int | None = Field(default=2, gt=1, lt=1 << 16)
    """Number of classes of the mask, including background; null: as many as the data have."""

    flow: AnyFlow | None = FlowNetSConfig()
    """Config of the flow branch, by default FlowNetS. null: no flow branch (SegFlow*), and `next_frame` is ignored."""

    decoder: Literal["scores", "fpn", "context"] | None = None
    """Decoder of both heads. `scores`: SegFlow's sums of score maps. `fpn`: a feature pyramid. `context`: `fpn`, and
    EncNet's context module in the segmentation head, for many classes. null: `fpn` in mode `modern`, else `scores`."""

    width: int = Field(default=64, gt=0, multiple_of=8)
    """Number of channels in the segmentation head's feature pyramid."""

    codewords: int = Field(default=32, gt=0)
    """Number of codewords of the decoder `context`."""

    flow_width: int = Field(default=32, gt=0, multiple_of=8)
    """Number of channels in the flow head's feature pyramid."""

    @model_validator(mode="after")
    def _fits(self) -> "SegFlowConfig":
        if self.mode != "modern" and self.decoder in ("fpn", "context"):
            raise ValueError(
                f"mode {self.mode} does not support decoder {self.decoder}; leave out decoder, or use mode modern"
            )
        if self.mode != "modern" and self.flow is not None and self.flow.name != "flownets":
            raise ValueError(f"mode {self.mode} does not support flow {self.flow.name}; use flownets, or mode modern")
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
        super().__init__(encoder, image_size=config.image_size, pyramid=config.pyramid)
        channels = self.encoder_channels
        if config.decoder == "context":
            self.head = ContextHead(
                channels, motion, config.class_count, width=config.width, codewords=config.codewords
            )
        elif config.uses_fpn:
            self.head = PyramidHead(channels, motion, config.class_count, width=config.width, zero=False)
        else:
            self.head = _score_head(config, channels, motion, config.class_count, crops=(4, 2, 1))


class Flow(FlowBranch):
    """The flow branch: `network`, with its normalization, and `head`, which mode `released` lacks."""

    def __init__(self, network: FlowNetwork, config: SegFlowConfig, encoder: tuple[int, ...]) -> None:
        super().__init__(network)
        motion = network.exchanged_channels
        self.head = None
        if config.uses_fpn:
            self.head = PyramidHead(encoder, motion, 2, width=config.flow_width, zero=True)
        elif config.mode != "released":
            self.head = _score_head(config, encoder, motion, 2, crops=(0, 0, 1))


class SegFlow(nn.Module):
    """A segmentation branch on an image encoder, and a flow branch; each head reads the features of both.

    FlowNetS's features at strides 4, 8, 16 are pooled and concatenated with the encoder's at strides 8, 16, 32, once
    for the segmentation head and once for the flow head. SPyNet's features already have strides 8, 16 and 32, and
    RAFT's are at stride 8 only. Encoder and flow network do not use each other's features.

    Departures. All modes: each branch normalizes the frames itself (in the authors' files a counter decides whether a
    mean is subtracted twice). `released`: the flow head is left out, because the authors never trained it and its
    output is zero. `modern`: height and width are padded to multiples of 32 and outputs are cropped back; flow
    features lie on the encoder's grid; the feature pyramid of :class:`PyramidHead` replaces sums of score maps unless
    `decoder: scores`; `decoder: context` adds EncNet's context module (:class:`ContextHead`); the flow head predicts a
    residual to the flow network's flow that is zero at first, so the initial flow is that of the flow network.
    """

    def __init__(self, config: SegFlowConfig) -> None:
        super().__init__()
        self.mode = config.mode
        network = None
        if config.flow is not None:
            network = _flow_network(config.flow, "crop" if self.mode == "modern" else "resize")
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
        given, frame, next_frame = frame, _padded(frame), _padded(next_frame)
        features = self.segmentation.encode(frame)
        pooled: list[Tensor] = []
        outputs = Outputs()
        if self.flow is not None:
            motion: Motion = self.flow.network(frame, next_frame)
            pooled = [_pooled(x, like) for x, like in zip(motion.features, features[1:], strict=False)]
            assert self.flow.head is not None
            residual = self.flow.head(features, pooled) * RESIDUAL_UNIT
            flow = motion.flow + on_grid(residual, motion.flow)
            outputs["flow"] = cropped(on_grid(flow, frame), given)
            if self.training and motion.pyramid:
                outputs["flow_pyramid"] = [
                    x[..., : math.ceil(height / stride), : math.ceil(width / stride)]
                    for x, stride in zip(motion.pyramid, self.flow.network.strides, strict=True)
                ]
            if self.training and motion.sequence:
                outputs["flow_sequence"] = [x[..., :height, :width] for x in motion.sequence]
        logits: Tensor | Context = self.segmentation.head(features, pooled)
        if isinstance(logits, Context):
            if logits.se_logits is not None:
                outputs["se_logits"] = logits.se_logits
            logits = logits.features
        outputs["mask_logits"] = cropped(on_grid(logits, frame), given)
        return outputs

    def _faithful(self, frame: Tensor, next_frame: Tensor) -> Outputs:
        height, width = RELEASED_SIZE
        features = self.segmentation.encode(frame)
        pooled: list[Tensor] = []
        outputs = Outputs()
        if self.flow is not None:
            motion: Motion = self.flow.network(frame, next_frame)
            pooled = [F.max_pool2d(x, 3, stride=2, ceil_mode=True) for x in motion.features]
            if self.training:
                outputs["flow_pyramid"] = motion.pyramid
            if self.flow.head is None:
                outputs["flow"] = enlarged(motion.flow, frame, crop=False)
            else:
                outputs["flow"] = self.flow.head(features, pooled)[..., :height, :width]
        outputs["mask_logits"] = self.segmentation.head(features, pooled)[..., :height, :width]
        return outputs


def _flow_network(config: AnyFlow, sizes: Literal["crop", "resize"]) -> FlowNetwork:
    return FlowNetS(config.model_copy(update={"sizes": sizes})) if config.name == "flownets" else config.network()


def _pooled(x: Tensor, like: Tensor) -> Tensor:
    """Return the map on the grid of `like`, max-pooled before if it is twice as fine."""
    return on_grid(F.max_pool2d(x, 3, stride=2, padding=1) if x.shape[-1] > like.shape[-1] else x, like)


def _score_head(
    config: SegFlowConfig, encoder: tuple[int, ...], motion: tuple[int, ...], channels: int, crops: tuple[int, int, int]
) -> ScoreHead:
    return ScoreHead(encoder[1:], motion, channels, crops=None if config.mode == "modern" else crops)


def _padded(frame: Tensor) -> Tensor:
    """Return the frame with its last rows and columns repeated until 32 divides both sides."""
    return padded(frame, *(next_multiple(side, 32) for side in frame.shape[-2:]))
