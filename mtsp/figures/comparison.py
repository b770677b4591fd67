"""Draw the predictions of several networks side by side with the ground truth."""

from collections.abc import Mapping, Sequence

import numpy as np

from mtsp.figures.flow_colors import flow_to_color, full_color_length
from mtsp.figures.legends import LONGER, class_legend, flow_legend
from mtsp.figures.panels import GAP, LEGEND, Tile, compose, fit, fit_overlay, seen, to_image
from mtsp.types import Batch, Outputs

_TILE = 320  # width of each tile, in pixels


def comparison(
    examples: Sequence[tuple[Batch, Mapping[str, Outputs]]],
    *,
    background: int | None = 0,
    classes: Sequence[str] = (),
) -> np.ndarray:
    """Return a figure with a row per example: frames, true mask or flow, and each network's prediction.

    Masks are drawn over the frame. The flows of a row share one scale, which the title of the true one gives (see
    :func:`mtsp.figures.flow_colors.full_color_length`). Legends are below.

    Args:
        examples: for each row, a batch of one sample with a mask or flow, and the outputs of each network for it, by
            the network's name and at the sample's resolution. All batches have a next frame, or none has.
        background: class that is left uncolored, see :func:`mtsp.figures.masks.overlay`.
        classes: class names; if omitted, classes are shown as numbers.

    Returns:
        HW3 uint8.
    """
    tiles = [_masks(*example, background) if "mask" in example[0] else _flows(*example) for example in examples]
    frames = [_frames(batch) for batch, _ in examples]
    rows = [[*pair, *row] for pair, row in zip(frames, tiles, strict=True)]
    width = max(map(len, rows)) * (_TILE + GAP) - GAP
    below = []
    masks = [mask for batch, predictions in examples if "mask" in batch for mask in _ids(batch, predictions).values()]
    if masks:
        below.append(class_legend(seen(masks), width, classes, background))
    if any("flow" in batch for batch, _ in examples):
        below.append(flow_legend((LEGEND, width), ["flow: color shows the direction, strength the length", LONGER]))
    return compose(rows, below)


def _frames(batch: Batch) -> list[Tile]:
    tiles = [Tile(batch["name"][0], fit(to_image(batch["frame"][0]), _TILE))]
    if "next_frame" in batch:
        tiles.append(Tile("next frame", fit(to_image(batch["next_frame"][0]), _TILE)))
    return tiles


def _ids(batch: Batch, predictions: Mapping[str, Outputs]) -> dict[str, np.ndarray]:
    """Return the true and predicted class ids, HW, by title."""
    assert "mask" in batch
    ids = {"true mask": batch["mask"][0].cpu().numpy()}
    for name, outputs in predictions.items():
        assert "mask_logits" in outputs
        ids[f"mask, {name}"] = outputs["mask_logits"][0].argmax(0).cpu().numpy()
    return ids


def _masks(batch: Batch, predictions: Mapping[str, Outputs], background: int | None) -> list[Tile]:
    frame = to_image(batch["frame"][0])
    return [Tile(title, fit_overlay(frame, ids, background, _TILE)) for title, ids in _ids(batch, predictions).items()]


def _flows(batch: Batch, predictions: Mapping[str, Outputs]) -> list[Tile]:
    assert "flow" in batch
    truth = batch["flow"][0].permute(1, 2, 0).cpu().numpy()
    radius = full_color_length(truth)
    tiles = [Tile(f"true flow, full color {radius:.1f} px", fit(flow_to_color(truth, radius), _TILE))]
    for name, outputs in predictions.items():
        assert "flow" in outputs
        flow = outputs["flow"][0].permute(1, 2, 0).float().cpu().numpy()
        error = float(np.hypot(*np.moveaxis(flow - truth, -1, 0)).mean())
        tiles.append(Tile(f"flow, {name}, error {error:.2f} px", fit(flow_to_color(flow, radius), _TILE)))
    return tiles
