import numpy as np
import pytest
import torch
from torchvision.utils import flow_to_image

from mtsp.figures.flow_colors import color_wheel, error_map, flow_to_color
from mtsp.figures.masks import overlay
from mtsp.figures.panels import TILE, panel, resize_flow
from mtsp.files.palettes import palette
from mtsp.types import Batch, Outputs

GRAY = np.full((7, 7, 3), 100, np.uint8)


def vectors(*pairs: tuple[float, float]) -> np.ndarray:
    """Return the pairs as a flow of one row."""
    return np.array([pairs], dtype=np.float32)


def example(**labels: torch.Tensor) -> Batch:
    """Return a batch of two examples of 40 x 64, a frame and what is given."""
    batch: dict = {"name": ["surf/00054", "surf/00055"], "frame": torch.rand(2, 3, 40, 64)}
    return batch | labels  # pyright: ignore[reportReturnType]


def test_rightward_flow_is_red_and_still_is_white() -> None:
    right, still = flow_to_color(vectors((2, 0), (0, 0)))[0]
    assert right.tolist() == [255, 0, 0]
    assert still.tolist() == [255, 255, 255]


def test_downward_flow_is_yellow_and_half_a_turn_after_red_is_cyan_to_blue() -> None:
    # Of the wheel's 55 colors down is number 13.5 (of 15 from red to yellow: green 0.9 * 255 = 229), left number 27
    # (2 of 11 from cyan to blue: green 255 * (1 - 2 / 11) = 209), up number 40.5 (4.5 of 13 to magenta: red 88).
    down, left, up = flow_to_color(vectors((0, 1), (-1, -1e-9), (0, -1)), radius=1)[0]
    assert down.tolist() == [255, 229, 0]
    assert left.tolist() == pytest.approx([0, 209, 255], abs=1)  # the published code rounds down, more than once
    assert up.tolist() == pytest.approx([88, 0, 255], abs=1)


def test_colors_are_those_of_torchvision_where_that_can_be_asked() -> None:
    flow = np.random.default_rng(0).normal(size=(50, 60, 2)).astype(np.float32)
    theirs = flow_to_image(torch.from_numpy(flow).permute(2, 0, 1)).permute(1, 2, 0).numpy().astype(int)
    difference = np.abs(flow_to_color(flow).astype(int) - theirs)
    assert difference.max() <= 1  # they compute in float32


def test_unknown_flow_is_black_and_does_not_set_the_scale() -> None:
    # Middlebury stores unknown vectors as 1.666e9.
    colors = flow_to_color(vectors((np.nan, 0), (0, np.inf), (1.666e9, 1.666e9), (1, 0)))[0]
    assert colors[:3].tolist() == [[0, 0, 0]] * 3
    assert colors[3].tolist() == [255, 0, 0]


def test_a_fixed_radius_makes_figures_comparable() -> None:
    half, full, beyond = flow_to_color(vectors((2, 0), (4, 0), (8, 0)), radius=4)[0]
    assert half.tolist() == [255, 127, 127]
    assert full.tolist() == [255, 0, 0]
    assert beyond.tolist() == [191, 0, 0]  # 0.75 * 255: longer than the legend shows


def test_flow_is_unknown_beyond_a_million_pixels_and_not_at_it() -> None:
    flow = np.array([[[1e6, 0], [1.1e6, 0], [0, -1e6], [0, np.nan]]], np.float32)
    assert flow_to_color(flow).any(axis=-1).tolist() == [[True, False, True, False]]


def test_an_empty_or_wholly_unknown_flow_is_drawn() -> None:
    assert flow_to_color(np.zeros((0, 4, 2))).shape == (0, 4, 3)
    assert not flow_to_color(np.full((2, 2, 2), np.nan)).any()


def test_the_legend_is_red_at_the_right_and_white_in_the_middle_and_outside() -> None:
    wheel = color_wheel(101)
    assert wheel[50, 100].tolist() == [255, 0, 0]
    assert wheel[50, 50].tolist() == wheel[0, 0].tolist() == [255, 255, 255]


def test_the_palette_is_that_of_davis() -> None:
    # The first colors of DAVIS's indexed PNGs, and the last, which PASCAL VOC uses for void.
    assert palette()[:5].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert palette()[255].tolist() == [224, 224, 192]


def test_a_mask_is_blended_inside_bright_on_its_contour_and_absent_elsewhere() -> None:
    mask = np.zeros((7, 7), np.uint8)
    mask[1:6, 1:6] = 1
    image = overlay(GRAY, mask)
    assert image[3, 3].tolist() == [114, 50, 50]  # half of 100 and half of (128, 0, 0)
    assert image[1, 3].tolist() == [255, 0, 0]
    assert image[0, 3].tolist() == [100, 100, 100]
    assert (GRAY == 100).all()  # the frame itself is not drawn on


def test_unknown_pixels_are_pale_and_have_no_contour() -> None:
    mask = np.zeros((7, 7), np.uint8)
    mask[:, 4:] = 255
    assert np.unique(overlay(GRAY, mask)[:, 4:].reshape(-1, 3), axis=0).tolist() == [[162, 162, 146]]


def test_without_a_background_the_first_class_has_a_color_too() -> None:
    assert overlay(GRAY, np.zeros((7, 7), np.uint8), background=None)[3, 3].tolist() == [114, 50, 50]


def test_a_mask_of_another_size_is_refused_with_both_sizes() -> None:
    with pytest.raises(ValueError, match="got 7x7 and 9x8"):
        overlay(GRAY, np.zeros((8, 9), np.uint8))


def test_an_error_is_blue_up_to_three_pixels_or_five_percent_and_red_beyond() -> None:
    # The bound of a true length of 200 is 10 px, not 3: 9 px is right there, and wrong for a length of 4.
    truth = vectors((4, 0), (4, 0), (200, 0), (4, 0), (4, 0))
    prediction = truth + vectors((2.9, 0), (9, 0), (9, 0), (0, 0), (1000, 0))
    near, far, relative, none, huge = error_map(prediction, truth)[0].tolist()
    assert near == relative == [224, 243, 248]  # the palest blue: 1/2 to 1 times the bound
    assert far == [253, 174, 97]  # 2 to 4 times
    assert none == [49, 54, 149]
    assert huge == [165, 0, 38]


def test_the_error_of_unknown_truth_is_black() -> None:
    truth = vectors((1, 0), (np.nan, 0), (1, 0))
    shown = error_map(vectors((1, 0), (1, 0), (1, 0)), truth, np.array([[True, True, False]]))[0]
    assert shown.any(axis=1).tolist() == [True, False, False]


def test_a_prediction_that_is_not_finite_is_the_worst_error() -> None:
    assert error_map(vectors((np.nan, 0)), vectors((1, 0)))[0, 0].tolist() == [165, 0, 38]


def test_a_resized_flow_has_its_vectors_scaled_by_width_and_height() -> None:
    flow = torch.ones(2, 10, 20)
    grown = resize_flow(flow, (30, 40))
    assert grown.shape == (2, 30, 40)
    torch.testing.assert_close(grown[:, 7, 9], torch.tensor([2.0, 3.0]))


def test_a_panel_has_a_column_for_each_thing_that_is_there() -> None:
    # A column is TILE + 8 wide and 8 pixels end the row; a row is 228 high: the title 20, the figure 200, a gap 8.
    mask, flow = torch.zeros(2, 40, 64, dtype=torch.long), torch.zeros(2, 2, 40, 64)
    logits, next_frame = torch.zeros(2, 2, 10, 16), torch.rand(2, 3, 40, 64)

    def columns_and_rows(batch: Batch, outputs: Outputs) -> tuple[float, float]:
        height, width, _ = panel(batch, outputs).shape
        return (width - 8) / (TILE + 8), (height - 8) / 228

    assert columns_and_rows(example(), {}) == (1, 1)
    assert columns_and_rows(example(mask=mask), {}) == (2, 1)
    assert columns_and_rows(example(next_frame=next_frame), {"mask_logits": logits}) == (2, 2)
    assert columns_and_rows(example(), {"flow": flow}) == (2, 2)  # the flow and its legend
    assert columns_and_rows(example(mask=mask, flow=flow), {"mask_logits": logits, "flow": flow}) == (4, 2)


def test_true_and_predicted_flow_of_a_panel_share_the_scale_of_the_truth() -> None:
    # Truth 4 px to the right, prediction 2 px at half the resolution, which are 4: both are the same red.
    truth, half = torch.zeros(2, 2, 40, 64), torch.zeros(2, 2, 20, 32)
    truth[:, 0], half[:, 0] = 4, 2
    image = panel(example(flow=truth), {"flow": half})
    x, y = 8 + TILE + 8 + TILE // 2, 8 + 20 + 100  # the middle of the second column's first figure
    assert image[y, x].tolist() == [255, 0, 0]
    assert image[y + 228, x].tolist() == [255, 0, 0]
    assert image[y, x + TILE + 8].tolist() == [49, 54, 149]  # no error


def test_flow_that_is_not_valid_is_black_whatever_is_stored_there() -> None:
    flow = torch.ones(2, 2, 40, 64)
    image = panel(example(flow=flow, flow_valid=torch.zeros(2, 40, 64, dtype=torch.bool)), {"flow": flow})
    assert not image[8 + 20 : 8 + 220, 8 + TILE + 8 : 8 + TILE + 8 + TILE].any()


def test_a_long_name_does_not_run_into_the_next_column() -> None:
    batch = example(mask=torch.zeros(2, 40, 64, dtype=torch.long))
    batch["name"] = ["a/" * 200 + "end", "x"]
    gap = panel(batch, {})[:28, 8 + TILE : 16 + TILE]
    assert (gap == 255).all()


def test_the_best_classes_are_bars_as_long_as_probable_and_the_true_one_is_green() -> None:
    batch = example(label=torch.tensor([1, 0]))
    outputs = Outputs(label_logits=torch.tensor([[0.0, 0.6, 0.4], [0.0, 0.0, 0.0]]).clamp(min=1e-9).log())
    figure = panel(batch, outputs, classes=["wren", "swift", "gull"])
    assert figure.shape[1] == 2 * TILE + 3 * 8  # the frame, and beside it the classes
    column = figure[:, TILE + 2 * 8 :]
    green = (column == (190, 225, 190)).all(-1).sum(1).max()
    gray = (column == (225, 225, 225)).all(-1).sum(1).max()
    assert (green, gray) == (pytest.approx(0.6 * TILE, abs=2), pytest.approx(0.4 * TILE, abs=2))
