import numpy as np
import pytest
import torch
from torchvision.utils import flow_to_image

from mtsp.figures.comparison import comparison
from mtsp.figures.flow_colors import color_wheel, error_map, flow_to_color, full_color_length
from mtsp.figures.legends import class_legend, class_name
from mtsp.figures.masks import overlay
from mtsp.figures.panels import TILE, panel, resize_flow
from mtsp.figures.side_by_side import SideBySide
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


ROW = 24 + 300 + 8
"""Height of a panel's row: title, tile (40 x 64 at 480 wide) and gap."""


def tile(figure: np.ndarray, row: int, column: int) -> np.ndarray:
    """Return a tile of a panel."""
    x, y = 8 + column * (TILE + 8), 8 + row * ROW + 24
    return figure[y : y + 300, x : x + TILE]


@pytest.mark.parametrize(
    ("labels", "predicted", "columns", "rows", "below"),
    [  # below: 24 for the class, 140 for the colors of flow where no cell is left for them, and a gap of 8 for each
        ([], [], 1, 1, 0),
        (["mask"], [], 2, 1, 32),
        (["mask"], ["mask_logits"], 3, 1, 32),
        (["next_frame"], ["mask_logits", "flow"], 2, 2, 180),
        (["next_frame", "mask"], ["mask_logits", "flow"], 2, 3, 32),
        (["next_frame", "flow"], ["flow"], 2, 3, 0),
        (["next_frame", "flow"], ["mask_logits", "flow"], 2, 3, 180),
        (["next_frame", "mask", "flow"], ["mask_logits", "flow"], 2, 4, 32),
    ],
)
def test_a_panel_has_no_empty_cell(
    labels: list[str], predicted: list[str], columns: int, rows: int, below: int
) -> None:
    known = {"mask": torch.ones(2, 40, 64, dtype=torch.long), "next_frame": torch.rand(2, 3, 40, 64)}
    known["flow"] = torch.ones(2, 2, 40, 64)
    outputs: dict = {"mask_logits": torch.rand(2, 2, 10, 16), "flow": torch.ones(2, 2, 40, 64)}
    batch = example(**{name: known[name] for name in labels})
    figure = panel(batch, {name: outputs[name] for name in predicted})  # pyright: ignore[reportArgumentType]
    assert figure.shape == (8 + rows * ROW + below, columns * (TILE + 8) + 8, 3)
    assert all((tile(figure, row, column) != 255).any() for row in range(rows) for column in range(columns))


def test_pairs_of_a_panel_share_a_row_and_the_flows_the_scale_of_the_truth() -> None:
    # Truth 4 px to the right, prediction 2 px at half the resolution, which are 4: both are the same red.
    truth, half = torch.zeros(2, 2, 40, 64), torch.zeros(2, 2, 20, 32)
    truth[:, 0], half[:, 0] = 4, 2
    frames = torch.stack([torch.zeros(3, 40, 64), torch.ones(3, 40, 64)])
    image = panel(example(next_frame=frames, flow=truth), {"flow": half})
    assert tile(image, 0, 1).max() == 0  # the next frame
    assert [tile(image, 1, column)[150, 240].tolist() for column in (0, 1)] == [[255, 0, 0]] * 2
    assert tile(image, 2, 0)[150, 240].tolist() == [49, 54, 149]  # no error


def test_full_color_is_a_length_that_a_small_fast_object_does_not_set() -> None:
    # 96 of 100 vectors have a length of 5 (3, 4), the others of 500; unknown ones do not count.
    flow = np.tile(np.array([3.0, 4.0], np.float32), (1, 100, 1))
    flow[0, :4] *= 100
    assert full_color_length(flow) == 5
    assert full_color_length(np.concatenate([flow, np.full_like(flow, np.nan)])) == 5
    assert full_color_length(flow / 100) == 1  # noise is not motion


def test_flow_that_is_not_valid_is_black_whatever_is_stored_there() -> None:
    flow = torch.ones(2, 2, 40, 64)
    labels = {"flow": flow, "flow_valid": torch.zeros(2, 40, 64, dtype=torch.bool)}
    image = panel(example(next_frame=torch.rand(2, 3, 40, 64), **labels), {"flow": flow})
    assert not tile(image, 1, 0).any()


def test_a_legend_has_a_swatch_for_each_class_that_is_drawn() -> None:
    # Two classes and unknown: swatches are 28 wide, and as in a figure half gray 128, half the class's color.
    legend = class_legend([0, 1, 2, 255], 400, ["sky", "road", "car"], 0)
    assert legend.shape == (24, 400, 3)
    assert {(128, 64, 64), (64, 128, 64), (176, 176, 160)} <= set(map(tuple, legend[12].tolist()))
    assert class_legend([0, 1, 2, 255], 100, ["sky", "road", "car"], 0).shape == (72, 100, 3)  # a line for each
    assert class_legend([0], 400, [], 0).size == 0


def test_a_class_without_a_name_has_a_number() -> None:
    assert [class_name(label, ["sky"]) for label in (0, 3, 255)] == ["sky", "class 3", "unknown"]
    assert [class_name(label, [], 0) for label in (1, 2)] == ["object", "object 2"]
    assert class_name(1, ["0", "1"], None) == "class 1"


def test_a_comparison_has_both_frames_in_each_row_and_no_empty_cell() -> None:
    known = {"next_frame": torch.rand(1, 3, 40, 64), "mask": torch.ones(1, 40, 64, dtype=torch.long)}
    masks: Batch = {"name": ["a"], "frame": torch.rand(1, 3, 40, 64), **known}  # pyright: ignore[reportAssignmentType]
    flows: Batch = {"name": ["b"], "frame": known["next_frame"], "next_frame": known["next_frame"]}
    flows["flow"] = torch.ones(1, 2, 40, 64)
    one: Outputs = {"mask_logits": torch.rand(1, 2, 40, 64), "flow": torch.ones(1, 2, 40, 64)}
    figure = comparison([(masks, {"L2": one, "L2-SP": one}), (flows, {"L2": one, "L2-SP": one})])
    # Five columns of 320; rows of 24 + 200 + 8; below, a line for the class and the colors of flow, each with a gap.
    assert figure.shape == (8 + 2 * 232 + 32 + 148, 8 + 5 * 328, 3)


def test_a_movie_tells_its_classes_and_the_scale_of_flow() -> None:
    frame, flow = np.zeros((90, 160, 3), np.uint8), np.full((90, 160, 2), 30, np.float32)
    image = SideBySide(classes=["sky", "road"]).draw(frame, np.ones((90, 160), np.uint8), flow)
    assert image.shape == (90 + 24 + 24, 3 * 160, 3)
    assert (image[90:114, :200] < 100).any()  # "road"
    assert (image[114:, 320:] < 100).any()  # "flow: full color 42.4 px"


def test_a_long_name_does_not_run_into_the_next_column() -> None:
    batch = example(mask=torch.zeros(2, 40, 64, dtype=torch.long))
    batch["name"] = ["a/" * 200 + "end", "x"]
    gap = panel(batch, {})[:32, 8 + TILE : 16 + TILE]
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
