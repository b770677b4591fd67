"""Read and apply the EXIF orientation, which says how to rotate or flip a stored image for display."""

import numpy as np
from PIL import Image

_TAG = 0x0112


def orientation_in(exif: bytes | Image.Exif) -> int:
    """Return the orientation in EXIF data, 1 to 8; 1 (as stored) if it is missing or invalid."""
    try:
        if isinstance(exif, bytes):
            if not exif:
                return 1
            notes = Image.Exif()
            notes.load(exif)
            exif = notes
        tag = exif.get(_TAG, 1)
    except Exception:  # treat EXIF data that cannot be parsed as missing
        return 1
    return tag if isinstance(tag, int) and 1 <= tag <= 8 else 1


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return an image, HW or HWC, rotated and flipped for display by an EXIF `orientation` of 1 to 8."""
    swapped = pixels.swapaxes(0, 1)
    shown = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: swapped,
        6: swapped[:, ::-1],
        7: swapped[::-1, ::-1],
        8: swapped[::-1],
    }[orientation]
    return np.ascontiguousarray(shown)


def unturned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo :func:`turned`: return the image as stored."""
    return turned(pixels, {6: 8, 8: 6}.get(orientation, orientation))
