"""Draw the predictions of several networks side by side with the ground truth."""

from collections.abc import Mapping, Sequence

import numpy as np

from mtsp.figures.flow_colors import color_wheel, flow_to_color
from mtsp.figures.masks import overlay
from mtsp.figures.panels import Tile, compose, fit, to_image
from mtsp.types import Batch, Outputs


def comparison(examples: Sequence[tuple[Batch, Mapping[str, Outputs]]]) -> np.ndarray:
    """Return a figure with a row per example: frame, true mask or flow, and each network's prediction.

    Masks are drawn over the frame. Flow is drawn in the colors of the wheel below the rows, with one scale per row.

    Args:
        examples: for each row, a batch of one sample with a mask or flow, and the outputs of each network for it, by
            the network's name and at the sample's resolution.

    Returns:
        HW3 uint8.
    """
    rows = [_masks(*example) if "mask" in example[0] else _flows(*example) for example in examples]
    if any("flow" in batch for batch, _ in examples):
        height, width = rows[-1][0].image.shape[:2]
        wheel = np.full((height, width, 3), 255, np.uint8)
        wheel[: min(height, width), : min(height, width)] = color_wheel(min(height, width))
        rows.append([Tile("direction and length", wheel)])
    return compose([[row[i] for row in rows if i < len(row)] for i in range(max(map(len, rows)))])


def _masks(batch: Batch, predictions: Mapping[str, Outputs]) -> list[Tile]:
    assert "mask" in batch
    frame = to_image(batch["frame"][0])
    tiles = [Tile(batch["name"][0], fit(frame)), Tile("true mask", fit(overlay(frame, batch["mask"][0].cpu().numpy())))]
    for name, outputs in predictions.items():
        assert "mask_logits" in outputs
        mask = outputs["mask_logits"][0].argmax(0).cpu().numpy()
        tiles.append(Tile(f"mask, {name}", fit(overlay(frame, mask))))
    return tiles


def _flows(batch: Batch, predictions: Mapping[str, Outputs]) -> list[Tile]:
    assert "flow" in batch
    truth = batch["flow"][0].permute(1, 2, 0).cpu().numpy()
    radius = max(1.0, float(np.hypot(truth[..., 0], truth[..., 1]).max()))
    tiles = [
        Tile(batch["name"][0], fit(to_image(batch["frame"][0]))),
        Tile(f"true flow, up to {radius:.1f} px", fit(flow_to_color(truth, radius))),
    ]
    for name, outputs in predictions.items():
        assert "flow" in outputs
        flow = outputs["flow"][0].permute(1, 2, 0).float().cpu().numpy()
        error = float(np.hypot(*np.moveaxis(flow - truth, -1, 0)).mean())
        tiles.append(Tile(f"flow, {name}, error {error:.2f} px", fit(flow_to_color(flow, radius))))
    return tiles
