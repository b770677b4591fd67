"""Draw labels for people: the legend of a label map, and masks in color."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.segmentation.label_map import LabelMap, ranges
from mtsp.types import IGNORE

_UNKNOWN = (255, 255, 255)
_INK, _PAPER = (30, 30, 30), (255, 255, 255)
_ROW, _COLUMN, _ROWS = 22, 230, 30  # pixels, pixels, rows in a column


def legend(label_map: LabelMap, mask: np.ndarray | None = None) -> np.ndarray:
    """Draw a legend, HW3 uint8, with the color, value in mask files, and name of each class.

    Args:
        label_map: the classes and their colors.
        mask: class ids, HW uint8. If set, list only its classes, each with its percentage of the known pixels.
    """
    values, colors = label_map.values, label_map.palette()
    rows = [(tuple(colors[i].tolist()), f"{values[i]}  {name}") for i, name in enumerate(label_map.classes)]
    if mask is not None:
        counts = np.bincount(mask[mask != IGNORE], minlength=len(rows))
        listed = [(row, count) for row, count in zip(rows, counts, strict=True) if count]
        rows = [(color, f"{text}  {100 * count / counts.sum():.1f} %") for (color, text), count in listed]
    rows.append((_UNKNOWN, f"{ranges(label_map.unknown) or 'none'}  unknown"))
    columns = -(-len(rows) // _ROWS)
    high = min(len(rows), _ROWS)
    canvas = Image.new("RGB", (columns * _COLUMN, (high + 1) * _ROW), _PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=14)
    draw.text((6, _ROW // 2), f"{label_map.name}: value, class", fill=_INK, font=font, anchor="lm")
    for place, (color, text) in enumerate(rows):
        x, y = place // _ROWS * _COLUMN + 6, (place % _ROWS + 1) * _ROW
        draw.rectangle((x, y + 3, x + 28, y + _ROW - 4), fill=color, outline=_INK)
        draw.text((x + 36, y + _ROW // 2), text, fill=_INK, font=font, anchor="lm")
    return np.array(canvas)


def colored(mask: np.ndarray, label_map: LabelMap) -> np.ndarray:
    """Return `mask` (class ids, HW uint8) drawn in the colors of the classes, HW3 uint8; unknown pixels are white."""
    table = np.full((max(256, len(label_map.classes)), 3), _UNKNOWN, np.uint8)
    table[: len(label_map.classes)] = label_map.palette()
    table[IGNORE] = _UNKNOWN
    return table[mask]


def labeled_example(frame: np.ndarray, mask: np.ndarray, label_map: LabelMap) -> np.ndarray:
    """Draw an image, its mask in color, and the legend of the mask's classes side by side, HW3 uint8."""
    parts = [frame, colored(mask, label_map), legend(label_map, mask)]
    height = max(part.shape[0] for part in parts)
    padding = [((0, height - part.shape[0]), (0, 8), (0, 0)) for part in parts]
    return np.hstack([np.pad(part, pad, constant_values=255) for part, pad in zip(parts, padding, strict=True)])
