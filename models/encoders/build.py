"""Image encoders by name: one way to get feature maps at strides 4, 8, 16 and 32, or dilated ones at no more than 8."""

import difflib
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from models.encoders.caffe_resnet import BLOCKS, CaffeResNet
from mtsp.batches import evaluating

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Encoded(nn.Module):
    """A branch with an image encoder, to be subclassed: normalizes frames and runs `encoder` on them.

    The normalization belongs to the weights, so `mean` and `std` (RGB, of values in [0, 1]) are buffers, travel with a
    checkpoint, and are set by :func:`models.pretrained.load.load_branch`.

    Args:
        name: `resnet50_caffe`, `resnet101_caffe`, an encoder of segmentation-models-pytorch (`resnet101`, whose keys
            are torchvision's), or `tu-` and a network of timm (`tu-efficientnet_lite0`).
        output_stride: 8 or 16: no map is coarser; convolutions are dilated instead of strided. 32: as published.

    Raises:
        ValueError: there is no encoder of that name, it has no maps at strides 4, 8, 16 and 32, or cannot be dilated.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, *, output_stride: int = 32) -> None:
        super().__init__()
        self.encoder_name = name
        self.encoder = build(name, output_stride=output_stride)
        self.encoder_channels = tuple(cast(Sequence[int], self.encoder.out_channels))[-4:]
        mean, std = normalization(self.encoder)
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def encode(self, frame: Tensor) -> list[Tensor]:
        """Return BCHW maps at strides 4, 8, 16, 32, none above the output stride, of `frame`, B3HW, RGB in [0, 1]."""
        normalized = (frame - self.mean.view(1, 3, 1, 1)) / self.std.view(1, 3, 1, 1)
        return self.encoder(normalized)[-4:]


def build(name: str, *, pretrained: bool = False, output_stride: int = 32) -> nn.Module:
    """Return the encoder called `name`; its own ImageNet weights are downloaded if `pretrained`.

    Raises:
        ValueError: see :class:`Encoded`; or nobody publishes ImageNet weights for it.
    """
    if name in BLOCKS:
        if pretrained:
            raise ValueError(
                f"nobody publishes PyTorch weights of {name}: give a file of Caffe blobs, or use mode modern"
            )
        if output_stride != 32:
            raise ValueError(_CANNOT_DILATE.format(name, output_stride))
        return CaffeResNet(BLOCKS[name])
    import segmentation_models_pytorch as smp
    import timm

    known = [f"tu-{network}" for network in timm.list_models()] + smp.encoders.get_encoder_names()
    if name.split(".")[0] not in known:
        near = difflib.get_close_matches(name, [*BLOCKS, *known], n=3, cutoff=0.4)
        raise ValueError(
            f"no encoder {name!r}; did you mean {' or '.join(near)}?" if near else _NO_ENCODER.format(name)
        )
    stride = output_stride if name.startswith("tu-") else 32  # smp's own dilation is another: _dilate
    weights = "imagenet" if pretrained else None
    try:
        encoder = smp.encoders.get_encoder(name, in_channels=3, depth=5, weights=weights, output_stride=stride)
    except _NOT_THIS_ENCODER as error:
        if stride != 32:
            build(name)  # says so if it has not the four strides at all
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
    """Take the strides out of the coarse stages of an encoder of segmentation-models-pytorch, and dilate instead.

    Only what comes after a strided convolution is dilated, not that convolution itself: then every second (fourth)
    pixel is what the encoder computes as published. It is the rule of EncNet's authors, torchvision and timm; the
    library's own `make_dilated` dilates the whole stage.
    """
    try:
        stages: dict[int, Sequence[nn.Module]] = encoder.get_stages()  # pyright: ignore[reportCallIssue]
        coarse = [stages[stride] for stride in (16, 32) if stride > output_stride]
    except (AttributeError, NotImplementedError, KeyError) as error:
        raise ValueError(_CANNOT_DILATE.format(name, output_stride)) from error
    dilation = 1
    for stage in coarse:
        strided = False
        for conv in (module for part in stage for module in part.modules() if isinstance(module, nn.Conv2d)):
            if max(conv.stride) > 1:
                if conv.kernel_size[0] % 2 == 0:  # patches side by side, as a transformer's
                    raise ValueError(_CANNOT_DILATE.format(name, output_stride))
                conv.stride = (1, 1)
                strided = True
                _dilate_convolution(conv, dilation)
            else:
                _dilate_convolution(conv, 2 * dilation if strided else dilation)
        dilation *= 2
    image = torch.zeros(1, 3, 64, 64, device=next(encoder.parameters()).device)
    with evaluating(encoder), torch.no_grad():
        maps = encoder(image)[-4:]
    if [x.shape[-1] for x in maps] != [64 // min(stride, output_stride) for stride in (4, 8, 16, 32)]:
        raise ValueError(_CANNOT_DILATE.format(name, output_stride))  # it pools


def _dilate_convolution(conv: nn.Conv2d, dilation: int) -> None:
    if max(conv.kernel_size) == 1:
        return
    if hasattr(conv, "static_padding"):  # EfficientNet: padding for one image size, in a layer of its own
        conv.static_padding = nn.Identity()
        conv.padding = tuple(size // 2 for size in conv.kernel_size)
    conv.dilation = tuple(dilation * rate for rate in conv.dilation)
    if not isinstance(conv.padding, str):
        conv.padding = tuple(dilation * rows for rows in conv.padding)


_NOT_THIS_ENCODER = (
    RuntimeError,
    ValueError,
    IndexError,
    KeyError,
    AttributeError,
    NotImplementedError,
    TypeError,
    AssertionError,
)
_CANNOT_DILATE = (
    "encoder {!r} cannot be dilated to output stride {}: take another (resnet50, tu-resnet50s), or stride 32"
)
_NO_ENCODER = "no encoder {!r}; there are those of segmentation-models-pytorch (resnet50) and, after tu-, those of timm"


def normalization(encoder: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std (RGB of values in [0, 1]) that the weights of a timm encoder expect; of others ImageNet's."""
    settings = getattr(getattr(encoder, "model", None), "default_cfg", None) or {}
    return tuple(settings.get("mean", IMAGENET_MEAN)), tuple(settings.get("std", IMAGENET_STD))
