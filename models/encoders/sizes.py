"""Sizes of frames that an encoder takes: found by trying, without computing, what its maps would be."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtsp.batches import evaluating, without_computing

Size = tuple[int, int]
STRIDES = (4, 8, 16, 32)


class FrameSizes(NamedTuple):
    """Sizes of frames that an encoder takes; smaller and other ones are padded to them on the right and below."""

    multiple: int = 1
    """Both sides must be multiples of this."""
    fixed: Size | None = None
    """The only height and width; None: any."""

    def padded(self, frame: Tensor, name: str) -> Tensor:
        """Return the frame, BCHW, with its last rows and columns repeated until it has a size that fits.

        Args:
            frame: a normalized frame.
            name: name of the network, for messages.

        Raises:
            ValueError: the frame is larger than the only size.
        """
        height, width = frame.shape[-2:]
        if self.fixed is not None and (height > self.fixed[0] or width > self.fixed[1]):
            larger = [max(side + -side % 32, fixed) for side, fixed in zip((height, width), self.fixed, strict=True)]
            raise ValueError(
                f"{name} is built for frames of at most {self.fixed[0]}x{self.fixed[1]}, got {height}x{width}; "
                f"set model.image_size={larger}, or use a network for any size (convnext_tiny, "
                "vit_small_patch16_dinov3)"
            )
        wanted = self.fixed or tuple(side + -side % self.multiple for side in (height, width))
        pad = [0, wanted[1] - width, 0, wanted[0] - height]
        return F.pad(frame, pad, mode="replicate") if any(pad) else frame

    def checked(self, frame: Tensor, name: str) -> Tensor:
        """Return :meth:`padded` for a network that classifies whole images, where a wide border would mislead.

        Raises:
            ValueError: the frame has another size than the only one, or is no multiple of large windows.
        """
        size = tuple(frame.shape[-2:])
        step = self.multiple if self.multiple > 32 else 1
        if size != (self.fixed or size) or any(side % step for side in size):
            height, width = self.fixed or (step, step)
            raise ValueError(
                f"{name} takes frames of {height}x{width}{'' if self.fixed else ' or multiples of it'}, got "
                f"{size[0]}x{size[1]}; set `crop` and `size` of the data to [{height}, {width}], or use another network"
            )
        return self.padded(frame, name)

    def __str__(self) -> str:
        if self.fixed is not None:
            return f"at most {self.fixed[0]}x{self.fixed[1]}"
        return "any" if self.multiple <= 32 else f"any, padded to multiples of {self.multiple}"


def frame_sizes(network: nn.Module, fits: Callable[[Any, Size], bool], *, native: Size) -> FrameSizes | None:
    """Return the sizes of frames that `network` takes, or None if none of those tried fits.

    Tried are an odd size, multiples of 32, multiples of the size it was published for (windows of attention), and that
    size alone.

    Args:
        network: takes images, B3HW.
        fits: whether the network's output for an image of this size is as it should be.
        native: the size that the network was published or built for.
    """
    height, width = native
    candidates = [(FrameSizes(), (57, 83)), (FrameSizes(32), (64, 96))]
    if height == width:
        candidates.append((FrameSizes(height), (height, 2 * width)))
    candidates.append((FrameSizes(fixed=native), native))
    for sizes, size in candidates:
        try:
            with evaluating(network):
                if fits(without_computing(network, torch.zeros(1, 3, *size)), size):
                    return sizes
        except (RuntimeError, AssertionError, ValueError, TypeError, IndexError):  # whatever a network does not take
            continue
    return None


def maps_fit(maps: Sequence[Tensor], size: Size, output_stride: int) -> bool:
    """Return whether the last four maps, BChw, have strides 4, 8, 16, 32 (at most `output_stride`), rounded up."""
    return [tuple(x.shape[-2:]) for x in maps[-4:]] == _map_sizes(size, output_stride)


def cropped(maps: Sequence[Tensor], size: Size, output_stride: int) -> list[Tensor]:
    """Return the four maps of a padded frame without what lies beyond the frame, whose height and width are `size`."""
    sizes = _map_sizes(size, output_stride)
    return [x[..., :rows, :columns] for x, (rows, columns) in zip(maps, sizes, strict=True)]


def _map_sizes(size: Size, output_stride: int) -> list[Size]:
    """Return height and width of the four maps of a frame of this size, without negative numbers: ONNX rounds their
    quotients toward zero."""
    height, width = size
    strides = [min(stride, output_stride) for stride in STRIDES]
    return [((height + stride - 1) // stride, (width + stride - 1) // stride) for stride in strides]
