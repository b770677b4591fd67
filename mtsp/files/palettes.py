"""Colors of class ids."""

import numpy as np


def palette(classes: int = 256) -> np.ndarray:
    """Return the colors of class ids 0, 1, ... as DAVIS and PASCAL VOC give them, N3 uint8: 0 black, 1 dark red."""
    ids = np.arange(classes)
    colors = np.zeros((classes, 3), np.uint8)
    for bit in range(8):  # of three bits of the id, each goes to one channel, the first three to its highest bit
        for channel in range(3):
            colors[:, channel] |= ((ids >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colors
