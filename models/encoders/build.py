"""Build image encoders by name, with feature maps at strides 4, 8, 16 and 32, or dilated to a stride of 8 or 16."""

from typing import Any, NamedTuple

from torch import nn

from models.encoders.caffe_resnet import BLOCKS, CaffeResNet
from models.encoders.dilation import dilate
from models.encoders.names import encoder_name
from models.encoders.plain_vit import PlainViT, four_depths
from models.encoders.pyramids import Pyramid
from models.encoders.sizes import STRIDES, FrameSizes, Size, frame_sizes, maps_fit
from models.encoders.timm_networks import Inspected, inspected, is_timms, timm_network

_OTHERS = "use resnet50, inceptionv4, convnext_tiny, swin_tiny_patch4_window7_224 or vit_small_patch16_dinov3"


class BuiltEncoder(NamedTuple):
    """An encoder, and the sizes of frames that it takes."""

    module: nn.Module
    """Returns a list of maps, whose last four are meant (all of them, for a plain vision transformer); it has
    `out_channels`."""
    sizes: FrameSizes


def build(
    name: str,
    *,
    pretrained: bool = False,
    output_stride: int = 32,
    image_size: Size | None = None,
    pyramid: Pyramid | None = None,
) -> BuiltEncoder:
    """Build an encoder, and find the sizes of frames that it takes.

    Args:
        name: see :func:`models.encoders.names.encoder_name`.
        pretrained: download weights; only for encoders of segmentation-models-pytorch.
        output_stride: 8 or 16: later stages are dilated, except in a plain vision transformer. 32: as published.
        image_size: height and width that an encoder of one size is built for; None: its published size.
        pyramid: pyramid that the maps of a plain vision transformer are for; None: `simple`.

    Raises:
        ValueError: see :class:`models.encoders.encoded.Encoded`.
    """
    name = encoder_name(name)
    if name in BLOCKS:
        _refuse_options(name, image_size, pyramid)
        _refuse(output_stride != 32, _cannot_dilate(name, output_stride))
        return BuiltEncoder(CaffeResNet(BLOCKS[name]), FrameSizes())
    kind = inspected(name.removeprefix("tu-")) if is_timms(name) else None
    if kind is None or kind.options or not kind.can_build_for_a_size:
        _refuse_options(name, image_size, None)
    native = image_size or (kind.native if kind is not None else (256, 256))
    if kind is not None and kind.is_plain:
        vit = _plain_vit(name, kind, image_size, pyramid)
        sizes = frame_sizes(vit, vit.fits, native=native)
        encoder: nn.Module = vit
    else:
        _refuse_options(name, None, pyramid)
        encoder = _multiscale(name, kind, pretrained, output_stride, image_size)
        sizes = _map_sizes(encoder, native, output_stride)
    if sizes is None and image_size is not None:
        wanted = [side + -side % 32 for side in image_size]
        raise ValueError(f"{name} cannot be built for image_size {list(image_size)}; try {wanted}")
    if sizes is None:  # as Inception-V3 of timm, which does not pad
        raise ValueError(f"the maps of encoder {name!r} are not on the grid of strides 4, 8, 16, 32; {_OTHERS}")
    if sizes.fixed is None:
        _refuse_options(name, image_size, None)
    return BuiltEncoder(encoder, sizes)


def _plain_vit(name: str, kind: Inspected, image_size: Size | None, pyramid: Pyramid | None) -> PlainViT:
    model = timm_network(name, image_size=image_size)
    depths = four_depths(kind.depth) if pyramid == "dpt" else [kind.depth - 1]
    model.prune_intermediate_layers(depths, prune_norm=False, prune_head=True)
    return PlainViT(model, kind.strides[0], depths)


def _multiscale(
    name: str, kind: Inspected | None, pretrained: bool, output_stride: int, image_size: Size | None
) -> nn.Module:
    import segmentation_models_pytorch as smp

    stride, options, library_name = 32, {}, name  # smp dilates in a different way, see dilate
    if kind is not None:
        options: dict[str, Any] = kind.options if image_size is None else {"img_size": image_size}
        stride, library_name = output_stride, f"tu-{name.removeprefix('tu-')}"
        if not set(STRIDES) <= set(kind.strides):
            strides = ", ".join(map(str, dict.fromkeys(kind.strides))) or "none that are known"
            raise ValueError(
                f"encoder {name!r} has no feature maps at strides 4, 8, 16, 32 (it has {strides}); {_OTHERS}"
            )
        if image_size is not None:
            timm_network(name.removeprefix("tu-"), image_size=image_size)  # gives a better error if it cannot be built
    try:
        encoder = smp.encoders.get_encoder(
            library_name,
            in_channels=3,
            depth=5,
            weights="imagenet" if pretrained else None,
            output_stride=stride,
            **options,
        )
    except Exception as error:  # the type of error depends on the library and its version
        if pretrained:
            raise
        if stride != 32:
            raise ValueError(_cannot_dilate(name, output_stride)) from error
        raise ValueError(f"encoder {name!r} has no feature maps at strides 4, 8, 16, 32: {error}; {_OTHERS}") from error
    if stride != output_stride:  # an encoder that strides by pooling is not dilated, and its maps tell
        done = dilate(encoder, output_stride) and _map_sizes(encoder, (256, 256), output_stride)
        _refuse(not done, _cannot_dilate(name, output_stride))
    return encoder


def _map_sizes(encoder: nn.Module, native: Size, output_stride: int) -> FrameSizes | None:
    return frame_sizes(encoder, lambda maps, size: maps_fit(maps, size, output_stride), native=native)


def _refuse_options(name: str, image_size: Size | None, pyramid: Pyramid | None) -> None:
    _refuse(image_size is not None, f"encoder {name} takes frames of any size; leave out image_size")
    _refuse(pyramid is not None, f"encoder {name} has maps at several strides itself; leave out pyramid")


def _cannot_dilate(name: str, output_stride: int) -> str:
    return (
        f"encoder {name!r} cannot be dilated to output stride {output_stride}: set output_stride=32 or jpu=true in the "
        "model's config, or use resnet50s or a plain vision transformer (vit_small_patch16_dinov3)"
    )


def _refuse(wrong: bool, message: str) -> None:
    if wrong:
        raise ValueError(message)
