"""Define the colors of class ids."""

import numpy as np


def palette(classes: int = 256) -> np.ndarray:
    """Return the colors that DAVIS and PASCAL VOC use for class ids 0, 1, ..., N3 uint8: 0 is black, 1 is dark red."""
    ids = np.arange(classes)
    colors = np.zeros((classes, 3), np.uint8)
    for bit in range(8):  # bits 3i, 3i+1, 3i+2 of the id give bit 7-i of red, green and blue
        for channel in range(3):
            colors[:, channel] |= ((ids >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colors
