"""How a camera was held: the EXIF tag that says how a stored image is to be turned to be looked at."""

import numpy as np
from PIL import Image

_TAG = 0x0112


def orientation_in(exif: bytes | Image.Exif) -> int:
    """Return the orientation in EXIF data, 1 to 8; 1 (as stored) if there is none that means anything."""
    try:
        if isinstance(exif, bytes):
            if not exif:
                return 1
            notes = Image.Exif()
            notes.load(exif)
            exif = notes
        tag = exif.get(_TAG, 1)
    except Exception:  # a note that cannot be parsed, in whatever way, says nothing
        return 1
    return tag if isinstance(tag, int) and 1 <= tag <= 8 else 1


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return an image, HW or HWC, as it is to be looked at; `orientation` as in EXIF, 1 to 8."""
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
    """Return the stored image whose :func:`turned` one is `pixels`."""
    return turned(pixels, {6: 8, 8: 6}.get(orientation, orientation))
