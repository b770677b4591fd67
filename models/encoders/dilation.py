"""Dilate the coarse stages of an encoder, so that its maps keep a stride of 8 or 16."""

from collections.abc import Sequence

from torch import nn


def dilate(encoder: nn.Module, output_stride: int) -> bool:
    """Replace the strides beyond `output_stride` of an encoder of segmentation-models-pytorch by dilation.

    Only layers after a strided convolution are dilated, not that convolution itself, so every second (fourth) pixel
    has the value that the published encoder computes. EncNet's authors, torchvision and timm do the same; the
    library's own `make_dilated` dilates the whole stage.

    Returns:
        False if the encoder has other stages, or layers that cannot be dilated, such as non-overlapping patches.
    """
    try:
        stages: dict[int, Sequence[nn.Module]] = encoder.get_stages()  # pyright: ignore[reportCallIssue]
        coarse = [stages[stride] for stride in (16, 32) if stride > output_stride]
    except (AttributeError, NotImplementedError, KeyError):
        return False
    before = after = 1  # dilations before and after the strided convolution of a stage
    for stage in coarse:
        before = after
        for conv in (module for part in stage for module in part.modules() if isinstance(module, nn.Conv2d)):
            strides = max(conv.stride) > 1
            if strides and conv.kernel_size[0] % 2 == 0:  # non-overlapping patches, as in a transformer
                return False
            _dilate_convolution(conv, before if strides else after)
            if strides:
                conv.stride = (1, 1)
                after = 2 * before
    return True


def _dilate_convolution(conv: nn.Conv2d, dilation: int) -> None:
    if max(conv.kernel_size) == 1:
        return
    if hasattr(conv, "static_padding"):  # EfficientNet pads in a separate layer, for a fixed image size
        conv.static_padding = nn.Identity()
        conv.padding = tuple(size // 2 for size in conv.kernel_size)
    conv.dilation = tuple(dilation * rate for rate in conv.dilation)
    if not isinstance(conv.padding, str):
        conv.padding = tuple(dilation * rows for rows in conv.padding)
