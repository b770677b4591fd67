"""Draw the legends of figures: the classes of masks, and the colors of flow and of its errors. HW3 uint8, RGB."""

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mtsp.figures.flow_colors import ERROR_COLORS, color_wheel
from mtsp.figures.masks import overlay
from mtsp.types import IGNORE

INK, PAPER = (30, 30, 30), (255, 255, 255)
LINE = 24
"""Height of a line of text, in pixels."""
LONGER = "longer vectors are darker"
_SWATCH = (16, 28)
_WHEEL, _BAND = 140, 24
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def canvas(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw, Font]:
    """Return an empty image, with what draws on it and the font of all figures."""
    image = Image.new("RGB", (width, height), PAPER)
    return image, ImageDraw.Draw(image), ImageFont.load_default(size=16)


def class_name(label: int, classes: Sequence[str], background: int | None = None) -> str:
    """Return the name of a class for people: its own, "unknown" for 255, "object", or its number."""
    if label == IGNORE:
        return "unknown"
    if label < len(classes) and not classes[label].isdigit():
        return classes[label]
    if background is None or classes:
        return f"class {label}"
    return "object" if label == 1 else f"object {label}"


def class_legend(ids: Iterable[int], width: int, classes: Sequence[str], background: int | None) -> np.ndarray:
    """Return lines of color and name of the classes `ids`, as :func:`overlay` draws them; no line for no class.

    Args:
        ids: classes that are drawn; 255 is unknown. The background, which has no color, is left out.
        width: width of the legend in pixels.
        classes: class names; if omitted, classes are shown as numbers.
        background: class that is left uncolored, or None.
    """
    shown = sorted(set(ids) - {background})
    _, draw, font = canvas(1, 1)
    places, x, y = [], 0, 0
    for label in shown:
        name = class_name(label, classes, background)
        needs = _SWATCH[1] + 6 + round(draw.textlength(name, font=font))
        if x and x + needs > width:
            x, y = 0, y + LINE
        places.append((x, y, label, name))
        x += needs + 20
    image, draw, font = canvas(width, y + LINE if places else 0)
    for x, y, label, name in places:
        image.paste(Image.fromarray(_swatch(label, background)), (x, y + (LINE - _SWATCH[0]) // 2))
        draw.text((x + _SWATCH[1] + 6, y + LINE // 2), name, fill=INK, font=font, anchor="lm")
    return np.asarray(image)


def _swatch(label: int, background: int | None) -> np.ndarray:
    """Return a gray patch of one class, with its contour."""
    height, width = _SWATCH
    ids = np.full((height + 2, width + 2), 0 if label else 1, np.uint16)
    ids[1:-1, 1:-1] = label
    return overlay(np.full((*ids.shape, 3), 128, np.uint8), ids, background=background)[1:-1, 1:-1]


def flow_legend(size: tuple[int, int], lines: Sequence[str], *, errors: bool = False) -> np.ndarray:
    """Return the color wheel of flow with lines of text beside it, and the colors of flow errors.

    Args:
        size: height and width of the legend in pixels.
        lines: text that says which length has the full color of the wheel's rim.
        errors: whether to show the colors of errors.
    """
    height, width = size
    image, draw, font = canvas(width, height)
    side = min(height, _WHEEL)
    image.paste(Image.fromarray(color_wheel(side)), (0, 0))
    left = side + 12
    for line, text in enumerate(lines):
        draw.text((left, LINE * line + LINE // 2), text, fill=INK, font=font, anchor="lm")
    if errors:
        top = LINE * len(lines) + 8
        for band, color in enumerate(ERROR_COLORS.tolist()):
            x = left + band * _BAND
            draw.rectangle((x, top, x + _BAND - 1, top + 15), fill=tuple(color))
        for bands, text, anchor in ((0, "0.19", "lm"), (5, "3 px or 5 %", "mm"), (10, "48", "rm")):
            draw.text((left + bands * _BAND, top + 15 + LINE // 2), text, fill=INK, font=font, anchor=anchor)
        draw.text((left + 10 * _BAND + 8, top + 8), "error", fill=INK, font=font, anchor="lm")
    return np.asarray(image)
