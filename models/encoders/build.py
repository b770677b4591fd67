"""Build image encoders by name, with feature maps at strides 4, 8, 16 and 32, or dilated to a stride of 8 or 16."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.blocks import Normalized
from models.encoders.caffe_resnet import BLOCKS, CaffeResNet
from models.pretrained.caffe_resnet import caffe_layout
from models.pretrained.encnet import split_encoder
from models.pretrained.layouts import Layout, LayoutError, WeightsFile
from models.pretrained.torchvision_download import download_torchvision
from models.pretrained.torchvision_timm import encoder_layout, normalization
from mtsp.batches import evaluating
from mtsp.text import did_you_mean


class Encoded(Normalized):
    """Base of branches with an image encoder: normalizes frames and runs `encoder` on them.

    Args:
        name: `resnet50_caffe`, `resnet101_caffe`, an encoder of segmentation-models-pytorch (`resnet101`, whose keys
            are torchvision's), or `tu-` and a network of timm (`tu-efficientnet_lite0`).
        output_stride: 8 or 16: stages beyond this stride are dilated instead of strided. 32: as published.

    Raises:
        ValueError: there is no such encoder, it lacks maps at strides 4, 8, 16 and 32, or cannot be dilated.
    """

    def __init__(self, name: str, *, output_stride: int = 32) -> None:
        encoder = build(name, output_stride=output_stride)
        super().__init__(*normalization(encoder))
        self.encoder_name = name
        self.encoder = encoder
        self.encoder_channels = tuple(cast(Sequence[int], encoder.out_channels))[-4:]

    def encode(self, frame: Tensor) -> list[Tensor]:
        """Return BCHW maps at strides 4, 8, 16, 32 (at most the output stride) of `frame`, B3HW, RGB in [0, 1]."""
        return self.encoder(self.normalized(frame))[-4:]

    def published_layout(self, file: WeightsFile) -> Layout:
        """Map the tensors of a published file to the encoder; see :class:`models.pretrained.layouts.Published`."""
        if self.encoder_name in BLOCKS:
            return caffe_layout(self.encoder, file.tensors).under("encoder.")
        tensors, others = split_encoder(file.tensors)
        layout = encoder_layout(self.encoder, self.encoder_name, tensors)
        return replace(layout, left_out=[*layout.left_out, *others]).under("encoder.")

    def download(self, source: str) -> Layout:
        """Download the encoder's ImageNet weights; see :class:`models.pretrained.layouts.Downloadable`."""
        if self.encoder_name in BLOCKS:
            hint = "give a file of Caffe blobs, or use mode modern"
            raise LayoutError(f"nobody publishes PyTorch weights of {self.encoder_name}: {hint}")
        if source != "imagenet":
            weights = download_torchvision(self.encoder_name, source)
            layout = encoder_layout(self.encoder, self.encoder_name, weights.tensors)
            buffers = {"mean": weights.mean, "std": weights.std}
            return replace(layout, buffers=buffers, description=weights.description).under("encoder.")
        encoder = build(self.encoder_name, pretrained=True)
        mean, std = normalization(encoder)
        buffers: dict[str, Any] = {"mean": mean, "std": std}
        return Layout(encoder.state_dict(), [], buffers, f"weights of {self.encoder_name}").under("encoder.")


def build(name: str, *, pretrained: bool = False, output_stride: int = 32) -> nn.Module:
    """Build the encoder called `name`, with its own ImageNet weights (a download) if `pretrained`.

    Raises:
        ValueError: see :class:`Encoded`.
    """
    if name in BLOCKS:
        if output_stride != 32:
            raise ValueError(_CANNOT_DILATE.format(name, output_stride))
        return CaffeResNet(BLOCKS[name])
    import segmentation_models_pytorch as smp
    import timm

    known = [f"tu-{network}" for network in timm.list_models()] + smp.encoders.get_encoder_names()
    if name.split(".")[0] not in known:
        otherwise = "known are those of segmentation-models-pytorch (resnet50) and, after tu-, those of timm"
        raise ValueError(f"no encoder {name!r}; {did_you_mean(name, [*BLOCKS, *known], otherwise)}")
    stride = output_stride if name.startswith("tu-") else 32  # smp dilates in a different way, see _dilate
    weights = "imagenet" if pretrained else None
    try:
        encoder = smp.encoders.get_encoder(name, in_channels=3, depth=5, weights=weights, output_stride=stride)
    except Exception as error:  # the type of error depends on the library and its version
        if stride != 32:
            build(name)  # gives a better error if the encoder lacks the four strides
            raise ValueError(_CANNOT_DILATE.format(name, output_stride)) from error
        raise ValueError(f"encoder {name!r} has no feature maps at strides 4, 8, 16, 32: {error}") from error
    info = getattr(getattr(encoder, "model", None), "feature_info", None)
    strides = (4, 8, 16, 32) if info is None else tuple(info.reduction())
    expected = tuple(min(stride, level) for level in (4, 8, 16, 32))
    if strides[-4:] != expected:
        raise ValueError(f"encoder {name!r} has feature maps at strides {strides}; {expected} are needed")
    if stride != output_stride:
        _dilate(encoder, name, output_stride)
    return encoder


def _dilate(encoder: nn.Module, name: str, output_stride: int) -> None:
    """Replace the strides in the coarse stages of an encoder of segmentation-models-pytorch by dilation.

    Only layers after a strided convolution are dilated, not that convolution itself, so every second (fourth) pixel
    has the value that the published encoder computes. EncNet's authors, torchvision and timm do the same; the
    library's own `make_dilated` dilates the whole stage.
    """
    try:
        stages: dict[int, Sequence[nn.Module]] = encoder.get_stages()  # pyright: ignore[reportCallIssue]
        coarse = [stages[stride] for stride in (16, 32) if stride > output_stride]
    except (AttributeError, NotImplementedError, KeyError) as error:
        raise ValueError(_CANNOT_DILATE.format(name, output_stride)) from error
    before = after = 1  # dilations before and after the strided convolution of a stage
    for stage in coarse:
        before = after
        for conv in (module for part in stage for module in part.modules() if isinstance(module, nn.Conv2d)):
            strides = max(conv.stride) > 1
            if strides and conv.kernel_size[0] % 2 == 0:  # non-overlapping patches, as in a transformer
                raise ValueError(_CANNOT_DILATE.format(name, output_stride))
            _dilate_convolution(conv, before if strides else after)
            if strides:
                conv.stride = (1, 1)
                after = 2 * before
    image = torch.zeros(1, 3, 64, 64, device=next(encoder.parameters()).device)
    with evaluating(encoder), torch.no_grad():
        maps = encoder(image)[-4:]
    if [x.shape[-1] for x in maps] != [64 // min(stride, output_stride) for stride in (4, 8, 16, 32)]:
        raise ValueError(_CANNOT_DILATE.format(name, output_stride))  # the encoder strides by pooling


def _dilate_convolution(conv: nn.Conv2d, dilation: int) -> None:
    if max(conv.kernel_size) == 1:
        return
    if hasattr(conv, "static_padding"):  # EfficientNet pads in a separate layer, for a fixed image size
        conv.static_padding = nn.Identity()
        conv.padding = tuple(size // 2 for size in conv.kernel_size)
    conv.dilation = tuple(dilation * rate for rate in conv.dilation)
    if not isinstance(conv.padding, str):
        conv.padding = tuple(dilation * rows for rows in conv.padding)


_CANNOT_DILATE = (
    "encoder {!r} cannot be dilated to output stride {}: use another encoder (resnet50, tu-resnet50s) or stride 32"
)
