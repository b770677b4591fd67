"""Read and write masks as numpy arrays: indexed, gray or color images; never JPEG, which does not keep values."""

from pathlib import Path

import numpy as np
from PIL import Image

from data.files.images import open_image, pixels_of, read_file
from data.types import DataError
from mtsp.files.palettes import palette


def read_mask(path: Path) -> np.ndarray:
    """Return a mask, HW uint8: the palette index of an indexed image, the value of a gray one.

    Raises:
        DataError: damaged, not of the suffix's format, with RGB or 16-bit pixels, which are no ids, or a JPEG, which
            does not keep ids.
    """
    image = _open_mask(path)
    if image.mode not in ("P", "L", "1"):
        raise DataError(
            f"{path}: the mask has pixels of kind {image.mode}, which are colors and no class ids; store it as an "
            "indexed PNG (each pixel an id, the palette only says how it is shown) or as 8-bit gray"
        )
    return pixels_of(path, image).astype(np.uint8, copy=False)


def read_foreground(path: Path) -> np.ndarray:
    """Return where a mask is not zero, HW bool. It may be indexed, gray, RGB or RGBA; alpha does not count.

    Raises:
        DataError: damaged, not of the suffix's format, or a JPEG, whose zeros near an object are not zero.
    """
    image = _open_mask(path)
    pixels = pixels_of(path, image)
    if pixels.ndim == 2:
        return pixels > 0
    colors = pixels[..., :-1] if image.mode in ("RGBA", "LA", "PA") else pixels
    return np.logical_or.reduce(colors > 0, axis=2)


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write `mask`, HW uint8 or bool, as an indexed PNG in the colors of DAVIS and PASCAL VOC.

    Raises:
        DataError: another shape or type.
    """
    if mask.ndim != 2 or mask.dtype not in (np.uint8, np.bool_) or mask.size == 0:
        raise DataError(f"{path}: a mask is HW uint8 or bool, got {'x'.join(map(str, mask.shape))} {mask.dtype}")
    image = Image.fromarray(np.ascontiguousarray(mask, np.uint8), mode="P")
    image.putpalette(palette().tobytes())
    image.save(path, format="PNG")


def _open_mask(path: Path) -> Image.Image:
    image = open_image(path, read_file(path))
    if image.format in ("JPEG", "MPO"):
        raise DataError(
            f"{path}: the mask is a JPEG, which changes values a little where they meet; make it anew as a PNG"
        )
    return image
