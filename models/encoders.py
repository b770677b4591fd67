"""Image encoders by name: one way to get feature maps at strides 4, 8, 16 and 32."""

import difflib
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from models.resnet_caffe import BLOCKS, CaffeResNet

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Encoded(nn.Module):
    """A branch with an image encoder, to be subclassed: normalizes frames and runs `encoder` on them.

    The normalization belongs to the weights, so `mean` and `std` (RGB, of values in [0, 1]) are buffers, travel with a
    checkpoint, and are set by :func:`models.weights.load_branch`.

    Args:
        name: `resnet50_caffe`, `resnet101_caffe`, an encoder of segmentation-models-pytorch (`resnet101`, whose keys
            are torchvision's), or `tu-` and a network of timm (`tu-efficientnet_lite0`).

    Raises:
        ValueError: there is no encoder of that name, or it has no maps at strides 4, 8, 16 and 32.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        self.encoder_name = name
        self.encoder = build(name)
        self.encoder_channels = tuple(cast(Sequence[int], self.encoder.out_channels))[-4:]
        mean, std = normalization(self.encoder)
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def encode(self, frame: Tensor) -> list[Tensor]:
        """Return BCHW maps at strides 4, 8, 16, 32 of `frame`, B3HW, RGB in [0, 1]."""
        normalized = (frame - self.mean.view(1, 3, 1, 1)) / self.std.view(1, 3, 1, 1)
        return self.encoder(normalized)[-4:]


def build(name: str, *, pretrained: bool = False) -> nn.Module:
    """Return the encoder called `name`; its own ImageNet weights are downloaded if `pretrained`.

    Raises:
        ValueError: see :class:`Encoded`; or nobody publishes ImageNet weights for it.
    """
    if name in BLOCKS:
        if pretrained:
            raise ValueError(
                f"nobody publishes PyTorch weights of {name}: give a file of Caffe blobs, or use mode modern"
            )
        return CaffeResNet(BLOCKS[name])
    import segmentation_models_pytorch as smp
    import timm

    known = [f"tu-{network}" for network in timm.list_models()] + smp.encoders.get_encoder_names()
    if name.split(".")[0] not in known:
        near = difflib.get_close_matches(name, [*BLOCKS, *known], n=3, cutoff=0.4)
        raise ValueError(
            f"no encoder {name!r}; did you mean {' or '.join(near)}?" if near else _NO_ENCODER.format(name)
        )
    try:
        encoder = smp.encoders.get_encoder(name, in_channels=3, depth=5, weights="imagenet" if pretrained else None)
    except (RuntimeError, ValueError, IndexError, KeyError, AttributeError, NotImplementedError) as error:
        raise ValueError(f"encoder {name!r} has no feature maps at strides 4, 8, 16, 32: {error}") from error
    info = getattr(getattr(encoder, "model", None), "feature_info", None)
    strides = (4, 8, 16, 32) if info is None else tuple(info.reduction())
    if strides[-4:] != (4, 8, 16, 32):
        raise ValueError(f"encoder {name!r} has feature maps at strides {strides}; 4, 8, 16, 32 are needed")
    return encoder


_NO_ENCODER = "no encoder {!r}; there are those of segmentation-models-pytorch (resnet50) and, after tu-, those of timm"


def normalization(encoder: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std (RGB of values in [0, 1]) that the weights of a timm encoder expect; of others ImageNet's."""
    settings = getattr(getattr(encoder, "model", None), "default_cfg", None) or {}
    return tuple(settings.get("mean", IMAGENET_MEAN)), tuple(settings.get("std", IMAGENET_STD))
