"""Draw figures of samples and predictions: titled tiles with masks, flow and flow errors, and their legends.

Images are HW3 uint8, RGB. This module opens no window and does not need matplotlib.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image

from mtsp.batches import resize_maps
from mtsp.figures.flow_colors import (
    FULL_COLOR_PERCENTILE,
    error_map,
    flow_to_color,
    full_color_length,
    known_flow,
)
from mtsp.figures.legends import INK, LINE, LONGER, Font, canvas, class_legend, class_name, flow_legend
from mtsp.figures.masks import overlay
from mtsp.types import Batch, Outputs

TILE = 480
"""Width of each tile of a panel, in pixels."""

LEGEND = 140
"""Height of the legend of flow below the tiles, in pixels."""

GAP = 8
"""Pixels between tiles and around them."""


class Tile(NamedTuple):
    """An image with a title."""

    title: str
    image: np.ndarray


def panel(
    batch: Batch,
    outputs: Outputs,
    index: int = 0,
    *,
    background: int | None = 0,
    flow_radius: float | None = None,
    classes: Sequence[str] = (),
) -> np.ndarray:
    """Return a figure of one example: frames, true and predicted labels, errors of flow, and legends below.

    Pairs share a row: frame and next frame, true and predicted mask, true and predicted flow; what has no partner
    follows. The most probable classes of the image are bars, with the true class in green. Missing labels and
    predictions are left out. Predictions are resized to the frame, and flow vectors are scaled accordingly.

    Args:
        batch: tensors on any device.
        outputs: predictions for the same examples.
        index: index of the example in the batch.
        background: class that is left uncolored, see :func:`overlay`.
        flow_radius: length of the flow vectors drawn in full color, in pixels; None uses that of
            :func:`mtsp.figures.flow_colors.full_color_length` for the true flow, or for the predicted one if there is
            no true flow.
        classes: class names; if omitted, classes are shown as numbers.
    """
    frame = to_image(batch["frame"][index])
    size = frame.shape[:2]
    frames = [Tile(batch["name"][index], fit(frame))]
    if "next_frame" in batch:
        frames.append(Tile("next frame", fit(to_image(batch["next_frame"][index]))))
    masks = _masks(batch, outputs, index, size)
    flows, errors, scale = _flows(batch, outputs, index, size, flow_radius)
    groups = [
        frames,
        _labels(batch, outputs, index, frames[0].image.shape[:2], classes),
        [Tile(title, fit_overlay(frame, mask, background)) for title, mask in masks.items()],
        flows,
        errors,
    ]
    below: list[np.ndarray] = []
    count = sum(map(len, groups))
    if scale and count % 2:
        height = max(LEGEND, frames[0].image.shape[0])
        groups.append([Tile("colors of flow", flow_legend((height, TILE), scale, errors=bool(errors)))])
        count, scale = count + 1, []
    columns = count if count % 2 else 2
    if columns == 2:
        groups.sort(key=lambda group: len(group) != 2)
    tiles = [tile for group in groups for tile in group]
    width = columns * (TILE + GAP) - GAP
    if masks:
        below.append(class_legend(seen(masks.values()), width, classes, background))
    if scale:
        below.append(flow_legend((LEGEND, width), scale, errors=bool(errors)))
    return compose([tiles[i : i + columns] for i in range(0, len(tiles), columns)], below)


def _labels(batch: Batch, outputs: Outputs, index: int, size: tuple[int, int], classes: Sequence[str]) -> list[Tile]:
    if "label_logits" not in outputs:
        return []
    chances = outputs["label_logits"][index].float().softmax(0).cpu().numpy()
    truth = int(batch["label"][index]) if "label" in batch else None
    rows = max(1, min(5, len(chances), size[0] // LINE))
    image, draw, font = canvas(size[1], size[0])
    for row, label in enumerate(np.argsort(-chances, kind="stable")[:rows].tolist()):
        top = row * LINE
        color = (190, 225, 190) if label == truth else (225, 225, 225)
        draw.rectangle((0, top + 1, float(chances[label]) * size[1], top + LINE - 2), fill=color)
        text = _shortened(f"{chances[label]:.2f}  {class_name(label, classes)}", font, size[1])
        draw.text((2, top + LINE // 2), text, fill=INK, font=font, anchor="lm")
    title = "most probable" if truth is None else f"true: {class_name(truth, classes)}"
    return [Tile(title, np.asarray(image))]


def _masks(batch: Batch, outputs: Outputs, index: int, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return the true and the predicted class ids at the frame's size, HW, by title."""
    masks = {}
    if "mask" in batch:
        masks["true mask"] = batch["mask"][index].cpu().numpy()
    if "mask_logits" in outputs:
        masks["predicted mask"] = _resize(outputs["mask_logits"][index], size).argmax(dim=0).numpy()
    return masks


def _flows(
    batch: Batch, outputs: Outputs, index: int, size: tuple[int, int], radius: float | None
) -> tuple[list[Tile], list[Tile], list[str]]:
    """Return true and predicted flow, their errors, and the text of the legend."""
    truth = valid = predicted = None
    if "flow" in batch:
        truth = batch["flow"][index].cpu().float().permute(1, 2, 0).numpy()
        valid = known_flow(truth)
        if "flow_valid" in batch:
            valid &= batch["flow_valid"][index].cpu().numpy()
        truth = np.where(valid[..., None], truth, np.nan)
    if "flow" in outputs:
        size = size if truth is None else truth.shape[:2]
        predicted = resize_flow(outputs["flow"][index], size).permute(1, 2, 0).numpy()
    shown = truth if truth is not None else predicted
    if shown is None:
        return [], [], []
    scale = [LONGER]
    if radius is None:
        radius = full_color_length(shown)
        scale.append(f"{FULL_COLOR_PERCENTILE} % of the {'true' if truth is not None else 'predicted'} flow is shorter")
    scale.insert(0, f"flow: full color {radius:.3g} px")
    flows = [Tile("true flow", fit(flow_to_color(truth, radius)))] if truth is not None else []
    if predicted is None:
        return flows, [], scale
    flows.append(Tile("predicted flow", fit(flow_to_color(predicted, radius))))
    if truth is None:
        return flows, [], scale
    error = np.hypot(*np.moveaxis(predicted - truth, -1, 0))[valid]
    mean = f", mean {error.mean():.2f} px" if error.size else ", none known"
    errors = fit(error_map(predicted, truth, valid), smooth=False)
    return flows, [Tile("flow error" + mean, errors)], scale


def resize_flow(flow: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return 2HW flow resized bilinearly to `size`, on the CPU; dx is scaled with the width, dy with the height."""
    grown = torch.tensor([size[1] / flow.shape[2], size[0] / flow.shape[1]])
    return _resize(flow, size) * grown[:, None, None]


def _resize(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return resize_maps(maps.detach().cpu().float()[None], size)[0]


def to_image(frame: torch.Tensor) -> np.ndarray:
    """Return a 3HW frame in [0, 1] as an HW3 uint8 image."""
    return (frame.detach().cpu().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()


def fit(image: np.ndarray, width: int = TILE, *, smooth: bool = True) -> np.ndarray:
    """Return the image resized to a width: averaged if larger; interpolated (unless `smooth`, repeated) if smaller."""
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    larger = cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if image.shape[1] > width else larger)


def fit_overlay(frame: np.ndarray, mask: np.ndarray, background: int | None, width: int = TILE) -> np.ndarray:
    """Return a mask of class ids drawn over the frame, both resized to a width; contours stay thin."""
    small = fit(frame, width)
    ids = cv2.resize(mask.astype(np.uint16), small.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    return overlay(small, ids, background=background)


def seen(masks: Iterable[np.ndarray]) -> set[int]:
    """Return the class ids in some masks."""
    return {int(label) for mask in masks for label in np.unique(mask)}


def compose(rows: Sequence[Sequence[Tile]], below: Sequence[np.ndarray] = ()) -> np.ndarray:
    """Return one image with rows of tiles of one width, each tile below its title, and legends below them all."""
    below = [legend for legend in below if legend.size]
    tile = max(tile.image.shape[1] for row in rows for tile in row)
    width = max(map(len, rows)) * (tile + GAP) + GAP
    heights = [max(tile.image.shape[0] for tile in row) + LINE + GAP for row in rows]
    image, draw, font = canvas(width, GAP + sum(heights) + sum(GAP + legend.shape[0] for legend in below))
    y = GAP
    for row, height in zip(rows, heights, strict=True):
        for column, (title, content) in enumerate(row):
            x = GAP + column * (tile + GAP)
            draw.text((x, y + LINE - 6), _shortened(title, font, tile), fill=INK, font=font, anchor="ls")
            image.paste(Image.fromarray(content), (x, y + LINE))
        y += height
    for legend in below:
        image.paste(Image.fromarray(legend), (GAP, y))
        y += legend.shape[0] + GAP
    return np.asarray(image)


def _shortened(title: str, font: Font, width: int) -> str:
    """Return the title, or only its end if it is too long, since paths differ at the end."""
    short = title
    while font.getlength(short) > width:
        title = title[1:]
        short = "..." + title
    return short
