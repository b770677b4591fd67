"""Draw the frames of a movie: each frame, its mask and its flow, side by side, and a legend below."""

from collections.abc import Sequence

import cv2
import numpy as np

from mtsp.figures.flow_colors import flow_to_color, full_color_length
from mtsp.figures.legends import INK, LINE, canvas, class_legend
from mtsp.figures.masks import overlay

_PANEL = (640, 720)  # largest width and height of a panel, in pixels
_FADE = 0.95  # a large motion scales the colors of the frames after it, less from frame to frame


class SideBySide:
    """Draws frames in order; the colors of their flow follow the motion without flicker.

    Vectors as long as the 95th percentile of a frame's flow are drawn in full color, but at least 1 pixel, and at least
    0.95 of the frame's before, unless `radius` fixes it. The length is written below.

    Args:
        background: class that the mask leaves uncolored, see :func:`mtsp.figures.masks.overlay`.
        radius: length of the flow vectors drawn in full color, in pixels of the frame; None follows the motion.
        classes: names of the network's classes; if omitted, there is no legend of classes.
    """

    def __init__(self, background: int | None = 0, radius: float | None = None, classes: Sequence[str] = ()) -> None:
        self.background, self.radius, self.classes = background, radius, classes
        self._reach = radius or 1.0
        self._flow: np.ndarray | None = None

    def draw(
        self, frame: np.ndarray, mask: np.ndarray | None, flow: np.ndarray | None, *, has_flow: bool = True
    ) -> np.ndarray:
        """Return the panels of a frame in a row, HW3 uint8.

        Args:
            frame: HW3 uint8.
            mask: HW, class ids; None if the network predicts none.
            flow: HW2 in pixels; None for the last frame, which repeats the flow before it.
            has_flow: whether there is a panel of flow.
        """
        height, width = frame.shape[:2]
        scale = min(1.0, _PANEL[0] / width, _PANEL[1] / height)
        size = (max(2, 2 * round(width * scale / 2)), max(2, 2 * round(height * scale / 2)))
        small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        panels = [small]
        if mask is not None:
            ids = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
            panels.append(overlay(small, ids, background=self.background))
        if has_flow:
            if flow is not None:
                self._flow = self._colored(cv2.resize(flow, size, interpolation=cv2.INTER_NEAREST))
            still = np.full_like(small, 255)
            panels.append(still if self._flow is None or self._flow.shape != still.shape else self._flow)
        row = np.hstack(panels)
        return np.vstack([row, *self._legends(row.shape[1], mask is not None, has_flow)])

    def _legends(self, width: int, has_mask: bool, has_flow: bool) -> list[np.ndarray]:
        legends = [class_legend(range(len(self.classes)), width, self.classes, self.background)] if has_mask else []
        if has_flow:
            image, draw, font = canvas(width, LINE)
            text = f"flow: full color {self._reach:.3g} px"
            draw.text((width - 8, LINE // 2), text, fill=INK, font=font, anchor="rm")
            legends.append(np.asarray(image))
        return legends

    def _colored(self, flow: np.ndarray) -> np.ndarray:
        moving = max(1.0, _FADE * self._reach, full_color_length(flow))
        self._reach = moving if self.radius is None else self.radius
        return flow_to_color(flow, self._reach)
