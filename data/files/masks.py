"""Read and write masks as numpy arrays of their stored values, from indexed, gray or color images without loss."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from PIL import Image

from data.files import mask_colors
from data.files.images import Exif, OpenedImage, open_image, pixels_of, read_file
from data.files.orientation import turned
from data.files.pgm import read_pgm
from data.files.png import require_all_rows
from data.types import DataError
from mtsp.files.palettes import palette
from mtsp.text import first_names
from mtsp.types import IGNORE

_LOG = logging.getLogger("mtsp")


def read_mask(
    path: Path, *, colors: Literal["voc"] | None = None, same: mask_colors.SameColors | None = None
) -> np.ndarray:
    """Return the stored values of a mask, HW uint8: the indices of an indexed image, or the values of a gray image.

    A gray image of 16 bits with values above 255 is returned as uint16.

    Args:
        path: file of the mask.
        colors: "voc" if ids have the colors of PASCAL VOC and DAVIS. A file in which these colors contradict the
            indices is then read by color.
        same: state shared by the masks of a folder. A mask is refused if it has a color at another index than an
            earlier mask.

    Raises:
        DataError: the file is damaged, not of the format of its suffix, has RGB pixels, which are no ids, or has a
            lossy format such as JPEG.
    """
    return decode_mask(path, read_file(path), colors=colors, same=same)


def decode_mask(
    path: Path,
    data: bytes,
    *,
    colors: Literal["voc"] | None = None,
    same: mask_colors.SameColors | None = None,
    exif: Exif = "warn",
) -> np.ndarray:
    """Return the mask in `data` as :func:`read_mask` does; `path` names it in messages, and its format.

    `exif`: what to do with the mask's own EXIF orientation, see :data:`data.files.images.Exif`.
    """
    found = _open_mask(path, data, exif)
    stored = _stored_values(path, data, found, colors, same)
    return turned(stored, found.orientation) if exif == "apply" else stored


def _stored_values(
    path: Path, data: bytes, found: OpenedImage, colors: str | None, same: mask_colors.SameColors | None
) -> np.ndarray:
    image = found.image
    if image.format == "PPM":
        return read_pgm(path, data)
    if image.mode.startswith("I;16"):
        values = pixels_of(path, image).astype(np.uint16, copy=False)
        return values if values.max(initial=0) > 255 else values.astype(np.uint8)
    if image.mode not in ("P", "L", "1"):
        raise DataError(
            f"{path}: the mask has pixels of kind {image.mode}, which are colors and no class ids; store it "
            "as an indexed PNG (each pixel an id, the palette only says how it is shown) or as gray"
        )
    pixels = pixels_of(path, image).astype(np.uint8, copy=False)
    if image.mode == "L" and found.depth < 8:
        pixels = pixels // (255 // (2**found.depth - 1))  # Pillow spreads few bits over 0 to 255
    if image.mode == "P":
        return _by_color(path, image, pixels, colors, same)
    return pixels


def read_foreground(path: Path) -> np.ndarray:
    """Return the foreground of a mask, HW bool.

    The foreground of a gray, RGB or RGBA mask is where a value other than alpha is not zero. The foreground of an
    indexed mask is where its color is not black.

    Raises:
        DataError: the file is damaged, not of the format of its suffix, its colors and indices do not identify the
            background, only its alpha varies, or it has a lossy format such as JPEG, which does not keep zeros.
    """
    return decode_foreground(path, read_file(path))


def decode_foreground(path: Path, data: bytes, *, exif: Exif = "warn") -> np.ndarray:
    """Return the foreground of the mask in `data` as :func:`read_foreground` does; `exif`: see :func:`decode_mask`."""
    opened = _open_mask(path, data, exif)
    stored = _stored_foreground(path, opened.image)
    return turned(stored, opened.orientation) if exif == "apply" else stored


def _stored_foreground(path: Path, image: Image.Image) -> np.ndarray:
    pixels = pixels_of(path, image)
    if image.mode == "P":
        used = mask_colors.used_indices(pixels)
        table = mask_colors.foreground_table(path, _palette_of(image), used)
        if (why := _beside_255(used)) is not None:
            _tell_doubtful(path, why)
        return np.asarray(cv2.LUT(pixels, table.view(np.uint8))).view(bool)
    colors, alpha = (pixels[..., :-1], pixels[..., -1]) if image.mode in ("RGBA", "LA", "PA") else (pixels, None)
    if alpha is not None and (alpha != alpha[0, 0]).any() and (colors == colors[0, 0]).all():
        raise DataError(
            f"{path}: all pixels have one color, and the object is in alpha, which is not read; store it as gray"
        )
    found = pixels > 0 if pixels.ndim == 2 else np.logical_or.reduce(colors > 0, axis=2)
    _tell_soft(path, colors, found)
    return found


_doubtful: set[Path] = set()
_FEW = 32


def _tell_soft(path: Path, pixels: np.ndarray, found: np.ndarray) -> None:
    """Warn if the values of a mask look like probabilities, of which 1 of 255 is an object, too, or if 255 is one."""
    if path.parent in _doubtful:
        return
    if found.all() and (pixels != pixels[0, 0]).any():
        _tell_doubtful(path, "no pixel is 0, the background")
    elif pixels.ndim == 2:
        used = _values(pixels)
        if (count := np.count_nonzero(used)) > _FEW:
            _tell_doubtful(path, f"it has {count} values above 0, as soft edges or probabilities have")
        elif (why := _beside_255(used)) is not None:
            _tell_doubtful(path, why)


def _beside_255(used: np.ndarray) -> str | None:
    ids = used[(used > 0) & (used < IGNORE)].tolist()
    listed = first_names([*map(str, ids)])
    return f"it has 255, which often means unknown, beside {listed}" if ids and IGNORE in used else None


def _tell_doubtful(path: Path, why: str) -> None:
    """Warn of a mask, once per folder, in which values above 0 may not all mean the object."""
    if path.parent not in _doubtful:
        _doubtful.add(path.parent)
        _LOG.warning("%s: %s; each value above 0 is the object: store a threshold's result, 0 and 255", path, why)


def _values(pixels: np.ndarray) -> np.ndarray:
    return mask_colors.used_indices(pixels) if pixels.dtype == np.uint8 else np.unique(pixels)


class OwnMasks:
    """Read the masks of a data set of unknown origin, and check them against each other.

    A mask is refused if it has a color at another index than an earlier mask. If `guess` and no mask has an id from 1
    to 254, the value 255 could mean "unknown" or the object, and the masks are refused: if objects were read as
    unknown, a network that predicts only background would score 1.

    Args:
        stored: function that returns the name and the bytes of each mask; masks are read until one has an id.
        foreground: read masks as :func:`read_foreground`, into 0 and 1.
        guess: whether nobody has said what 255 means.
        exif: what to do with an EXIF orientation of a mask's own; "apply" turns it, as images are turned.
    """

    def __init__(
        self,
        stored: Callable[[], Iterable[tuple[Path, bytes]]],
        *,
        foreground: bool = False,
        guess: bool = False,
        exif: Exif = "warn",
    ) -> None:
        self._stored = stored
        self._foreground = foreground
        self._guess = guess
        self._exif: Exif = exif
        self._same = mask_colors.SameColors()

    def read(self, path: Path) -> np.ndarray:
        """Return the values of a mask, HW uint8 or uint16. Raises DataError."""
        return self.decode(path, read_file(path))

    def read_prediction(self, path: Path) -> np.ndarray:
        """Return the values of a predicted mask, whose colors are held against those of the true masks."""
        return read_foreground(path).astype(np.uint8) if self._foreground else read_mask(path, same=self._same)

    def decode(self, path: Path, data: bytes) -> np.ndarray:
        """Return the mask in `data` as :meth:`read` does; `path` names it in messages, and its format."""
        if self._foreground:
            return decode_foreground(path, data, exif=self._exif).astype(np.uint8)
        mask = decode_mask(path, data, same=self._same, exif=self._exif)
        if self._guess and not _has_ids(mask) and (mask == IGNORE).any():
            if not any(_has_ids(decode_mask(*other, exif=self._exif)) for other in self._stored()):
                raise DataError(
                    f"{path}: this mask and all others hold only 0 and 255. If 255 is the object, set "
                    "`foreground: true`; if it is unknown, set `unknown: [255]`"
                )
            self._guess = False
        return mask


def stored_files(paths: Sequence[Path]) -> Iterator[tuple[Path, bytes]]:
    """Yield the path and the bytes of each file."""
    return ((path, read_file(path)) for path in paths)


def _has_ids(mask: np.ndarray) -> bool:
    return bool(((mask > 0) & (mask < IGNORE)).any())


def byte_ids(ids: np.ndarray) -> np.ndarray:
    """Return class ids as uint8, or as uint16 if one is above 255."""
    return ids.astype(np.uint8 if ids.max(initial=0) <= 255 else np.uint16)


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write `mask`, HW uint8 or bool, as an indexed PNG in the colors of DAVIS and PASCAL VOC; uint16 as 16-bit gray.

    Raises:
        DataError: the shape or type is wrong.
    """
    if mask.ndim == 2 and mask.dtype == np.uint16 and mask.size:
        Image.fromarray(np.ascontiguousarray(mask)).save(path, format="PNG")
        return
    if mask.ndim != 2 or mask.dtype not in (np.uint8, np.bool_) or mask.size == 0:
        shape = "x".join(map(str, mask.shape))
        raise DataError(f"{path}: a mask is HW uint8, uint16 or bool, got {shape} {mask.dtype}")
    image = Image.fromarray(np.ascontiguousarray(mask, np.uint8), mode="P")
    image.putpalette(palette().tobytes())
    image.save(path, format="PNG")


def _palette_of(image: Image.Image) -> np.ndarray:
    return np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)


def _by_color(
    path: Path, image: Image.Image, pixels: np.ndarray, colors: str | None, same: mask_colors.SameColors | None
) -> np.ndarray:
    """Return the ids of an indexed mask: its indices, or the ids of its colors if these contradict the indices."""
    used = mask_colors.used_indices(pixels)
    stored = _palette_of(image)
    if colors == "voc" and (table := mask_colors.id_table(path, stored, used)) is not None:
        return np.asarray(cv2.LUT(pixels, table))
    if same is not None:
        same.check(path, stored, used)
    return pixels


_turned: set[Path] = set()
_LOSSLESS_TIFF = {None, 1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 50000}
"""Lossless values of the TIFF tag Compression."""


def _open_mask(path: Path, data: bytes, exif: Exif) -> OpenedImage:
    """Open a mask without decoding it; raise DataError if its format is lossy."""
    found = open_image(path, data)
    image = found.image
    lossy = image.format
    if image.format == "TIFF":
        tags: Any = image.tag_v2  # pyright: ignore[reportAttributeAccessIssue]
        if tags.get(262) == 0 and found.depth > 1:
            raise DataError(f"{path}: a TIFF in which 0 is white; its values may be meant either way, store a PNG")
        lossy = None if tags.get(259) in _LOSSLESS_TIFF else "TIFF with lossy pixels (JPEG or alike)"
    elif image.format == "WEBP":
        lossy = None if data[12:16] in (b"VP8L", b"VP8X") and b"VP8L" in data[12:4096] else "lossy WebP"
    elif image.format not in ("JPEG", "MPO", "AVIF"):
        lossy = None
    if lossy is not None:
        raise DataError(f"{path}: the mask is a {lossy}, which changes ids slightly; create the mask again as a PNG")
    if found.orientation != 1 and exif == "warn" and path not in _turned:
        _turned.add(path)
        _LOG.warning(
            "%s: the mask's own EXIF has orientation %d; it is read as stored: store it as shown, without the tag",
            path, found.orientation,
        )  # fmt: skip
    if found.png is not None:
        require_all_rows(path, found.png, data)
    return found
