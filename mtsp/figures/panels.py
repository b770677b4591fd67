"""Draw figures of samples and predictions: panels of titled tiles with masks, flow and flow errors.

Images are HW3 uint8, RGB. This module opens no window and does not need matplotlib.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from mtsp.figures.flow_colors import ERROR_COLORS, color_wheel, error_map, flow_to_color, known_flow
from mtsp.figures.masks import overlay
from mtsp.types import Batch, Outputs

TILE = 320
"""Width of each tile of a panel, in pixels."""

_INK, _PAPER = (30, 30, 30), (255, 255, 255)
_GAP, _TITLE, _FONT = 8, 20, 14
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


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
    """Return a figure of one example, with the true labels above the predictions.

    The columns are: frame and next frame; most probable classes of the image, with the true class in green; true and
    predicted mask; true and predicted flow; flow error and legend. Missing labels and predictions are left out.
    Predictions are resized to the frame, and flow vectors are scaled accordingly.

    Args:
        batch: tensors on any device.
        outputs: predictions for the same examples.
        index: index of the example in the batch.
        background: class that is left uncolored, see :func:`overlay`.
        flow_radius: length of the flow vectors drawn in full color, in pixels; None uses the longest true vector, or
            the longest predicted one if there is no true flow.
        classes: class names; if omitted, classes are shown as numbers.
    """
    frame = to_image(batch["frame"][index])
    inputs = [Tile(batch["name"][index], fit(frame))]
    if "next_frame" in batch:
        inputs.append(Tile("next frame", fit(to_image(batch["next_frame"][index]))))
    columns = [
        inputs,
        _labels(batch, outputs, index, inputs[0].image.shape[:2], classes),
        _masks(batch, outputs, index, frame, background),
        *_flows(batch, outputs, index, frame.shape[:2], flow_radius),
    ]
    return compose([column for column in columns if column])


def _labels(batch: Batch, outputs: Outputs, index: int, size: tuple[int, int], classes: Sequence[str]) -> list[Tile]:
    if "label_logits" not in outputs:
        return []
    chances = outputs["label_logits"][index].float().softmax(0).cpu().numpy()
    truth = int(batch["label"][index]) if "label" in batch else None
    rows = max(1, min(5, len(chances), size[0] // _TITLE))
    canvas, draw, font = _canvas(size[1], size[0])
    for row, label in enumerate(np.argsort(-chances, kind="stable")[:rows].tolist()):
        top = row * _TITLE
        color = (190, 225, 190) if label == truth else (225, 225, 225)
        draw.rectangle((0, top + 1, float(chances[label]) * size[1], top + _TITLE - 2), fill=color)
        text = _shortened(f"{chances[label]:.2f}  {_class(label, classes)}", font)
        draw.text((2, top + _TITLE // 2), text, fill=_INK, font=font, anchor="lm")
    title = "most probable" if truth is None else f"true: {_class(truth, classes)}"
    return [Tile(title, np.asarray(canvas))]


def _class(label: int, classes: Sequence[str]) -> str:
    return classes[label] if label < len(classes) else f"class {label}"


def _masks(batch: Batch, outputs: Outputs, index: int, frame: np.ndarray, background: int | None) -> list[Tile]:
    small, masks = fit(frame), {}
    size = (small.shape[1], small.shape[0])
    if "mask" in batch:
        masks["true mask"] = batch["mask"][index]
    if "mask_logits" in outputs:
        masks["predicted mask"] = _resize(outputs["mask_logits"][index], frame.shape[:2]).argmax(dim=0)
    tiles = []
    for title, mask in masks.items():
        drawn = cv2.resize(mask.cpu().numpy().astype(np.uint16), size, interpolation=cv2.INTER_NEAREST)
        tiles.append(Tile(title, overlay(small, drawn, background=background)))
    return tiles


def _flows(
    batch: Batch, outputs: Outputs, index: int, size: tuple[int, int], radius: float | None
) -> Iterable[list[Tile]]:
    truth = valid = predicted = None
    if "flow" in batch:
        truth = batch["flow"][index].cpu().float().permute(1, 2, 0).numpy()
        valid = known_flow(truth)
        if "flow_valid" in batch:
            valid &= batch["flow_valid"][index].cpu().numpy()
        truth = np.where(valid[..., None], truth, np.nan)
    if "flow" in outputs:
        predicted = resize_flow(outputs["flow"][index], size).permute(1, 2, 0).numpy()
    shown = truth if truth is not None else predicted
    if shown is None:
        return
    if radius is None:
        radius = max(float(np.nanmax(np.hypot(shown[..., 0], shown[..., 1]), initial=0)), 1.0)  # noise is not motion

    flows = [Tile("true flow", fit(flow_to_color(truth, radius)))] if truth is not None else []
    if predicted is not None:
        flows.append(Tile("predicted flow", fit(flow_to_color(predicted, radius))))
    legend = Tile(f"flow up to {radius:.3g} px", _legend(flows[0].image.shape[:2], truth is not None))
    if truth is None or predicted is None:
        yield [*flows, legend]
        return
    yield flows
    error = np.hypot(*np.moveaxis(predicted - truth, -1, 0))[valid]
    mean = f", mean {error.mean():.2f} px" if error.size else ", none known"
    yield [Tile("flow error" + mean, fit(error_map(predicted, truth, valid))), legend]


def resize_flow(flow: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return 2HW flow resized bilinearly to `size`, on the CPU; dx is scaled with the width, dy with the height."""
    grown = torch.tensor([size[1] / flow.shape[2], size[0] / flow.shape[1]])
    return _resize(flow, size) * grown[:, None, None]


def _resize(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    maps = maps.detach().cpu().float()
    if maps.shape[1:] == size:
        return maps
    return torch.nn.functional.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]


def to_image(frame: torch.Tensor) -> np.ndarray:
    """Return a 3HW frame in [0, 1] as an HW3 uint8 image."""
    return (frame.detach().cpu().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()


def fit(image: np.ndarray) -> np.ndarray:
    """Return the image resized to the width of a tile: averaged if larger, with nearest neighbors if smaller."""
    height = max(1, round(image.shape[0] * TILE / image.shape[1]))
    shrinks = image.shape[1] > TILE
    return cv2.resize(image, (TILE, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST)


def _legend(size: tuple[int, int], with_errors: bool) -> np.ndarray:
    """Return the color wheel and, `with_errors`, the colors of the errors beside it."""
    height, width = size
    canvas, draw, font = _canvas(width, height)
    side = max(8, min(height, width // 2) - 8)
    left = 0 if with_errors else (width - side) // 2
    canvas.paste(Image.fromarray(color_wheel(side)), (left, (height - side) // 2))
    if not with_errors:
        return np.asarray(canvas)
    band = max(1, min(14, (height - 8) // len(ERROR_COLORS)))
    x, top = width // 2 + 16, (height - band * len(ERROR_COLORS)) // 2
    for shade, color in enumerate(ERROR_COLORS[::-1].tolist()):
        draw.rectangle((x, top + shade * band, x + 24, top + (shade + 1) * band - 1), fill=tuple(color))
    for bands, text in ((1, "> 48 px"), (5, "3 px or 5 %"), (9, "< 0.19 px")):
        if bands == 5 or band >= 7:
            draw.text((x + 30, top + bands * band), text, fill=_INK, font=font, anchor="lm")
    return np.asarray(canvas)


def compose(columns: Sequence[Sequence[Tile]]) -> np.ndarray:
    """Return one image with the given columns of tiles, each tile below its title."""
    rows = max(len(column) for column in columns)
    cell = max(tile.image.shape[0] for column in columns for tile in column) + _TITLE
    width = len(columns) * (TILE + _GAP) + _GAP
    canvas, draw, font = _canvas(width, rows * (cell + _GAP) + _GAP)
    for i, column in enumerate(columns):
        for j, (title, image) in enumerate(column):
            x, y = _GAP + i * (TILE + _GAP), _GAP + j * (cell + _GAP)
            draw.text((x, y + _TITLE - 6), _shortened(title, font), fill=_INK, font=font, anchor="ls")
            canvas.paste(Image.fromarray(image), (x, y + _TITLE))
    return np.asarray(canvas)


def _canvas(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw, _Font]:
    canvas = Image.new("RGB", (width, height), _PAPER)
    return canvas, ImageDraw.Draw(canvas), ImageFont.load_default(size=_FONT)


def _shortened(title: str, font: _Font) -> str:
    """Return the title, or only its end if it is too long, since paths differ at the end."""
    short = title
    while font.getlength(short) > TILE:
        title = title[1:]
        short = "..." + title
    return short
