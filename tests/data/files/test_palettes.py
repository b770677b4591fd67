"""Indexed masks whose palette an image tool has put into another order: read by color, or refused by name."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import DataConfig
from data.files.images import write_image
from data.files.mask_colors import used_indices
from data.files.masks import read_foreground, read_mask
from data.types import DataError
from mtsp.config import parse
from tests.data.files.encoded import png
from tools.score import main as score

BLACK, WHITE, RED, GREEN, SEAM = (0, 0, 0), (255, 255, 255), (128, 0, 0), (0, 128, 0), (224, 224, 192)
"""Colors 0, none, 1, 2 and 255 of PASCAL VOC and DAVIS."""


def written(path: Path, indices: list[list[int]], palette: list[tuple[int, int, int]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(np.array(indices, np.uint8), 8, 3, palette=palette))
    return path


@pytest.mark.parametrize(
    ("palette", "indices"),
    [
        ([BLACK, WHITE], [[0, 1], [0, 0]]),
        ([WHITE, BLACK], [[1, 0], [1, 1]]),  # sorted by brightness, or by how often they occur
        ([RED, BLACK], [[1, 0], [1, 1]]),
        ([GREEN, RED, BLACK], [[2, 1], [2, 2]]),
        ([BLACK, RED, BLACK], [[2, 1], [0, 0]]),  # black twice
    ],
)
def test_black_is_background_wherever_the_palette_has_it(
    tmp_path: Path, palette: list[tuple[int, int, int]], indices: list[list[int]]
) -> None:
    path = written(tmp_path / "a.png", indices, palette)
    assert read_foreground(path).tolist() == [[False, True], [False, False]]


def test_a_file_that_is_all_object_need_not_name_black(tmp_path: Path) -> None:
    assert read_foreground(written(tmp_path / "a.png", [[0, 0]], [WHITE])).tolist() == [[True, True]]


def test_a_file_that_says_neither_by_color_nor_by_index_is_refused(tmp_path: Path) -> None:
    purple_and_yellow = written(tmp_path / "a.png", [[0, 1]], [(68, 1, 84), (253, 231, 37)])
    with pytest.raises(DataError, match=r"a\.png: .*palette.*index 0.*\(68, 1, 84\).*black"):
        read_foreground(purple_and_yellow)
    no_colors = written(tmp_path / "b.png", [[0, 1]], [BLACK, BLACK])
    with pytest.raises(DataError, match=r"b\.png: .*palette.*black"):
        read_foreground(no_colors)


@pytest.mark.parametrize(
    ("palette", "indices"),
    [
        ([BLACK, RED, GREEN], [[0, 1, 2]]),
        ([GREEN, RED, BLACK], [[2, 1, 0]]),
        ([SEAM, BLACK, GREEN, RED], [[1, 3, 2]]),
    ],
)
def test_colors_of_voc_are_ids_wherever_the_palette_has_them(
    tmp_path: Path, palette: list[tuple[int, int, int]], indices: list[list[int]]
) -> None:
    assert read_mask(written(tmp_path / "a.png", indices, palette), colors="voc").tolist() == [[0, 1, 2]]


def test_the_seam_is_255_by_its_color(tmp_path: Path) -> None:
    path = written(tmp_path / "a.png", [[0, 1, 2]], [BLACK, SEAM, RED])
    assert read_mask(path, colors="voc").tolist() == [[0, 255, 1]]


def test_other_colors_do_not_contradict(tmp_path: Path) -> None:
    path = written(tmp_path / "a.png", [[0, 1, 2]], [BLACK, (1, 2, 3), (4, 5, 6)])
    assert read_mask(path, colors="voc").tolist() == [[0, 1, 2]]
    gray = written(tmp_path / "b.png", [[0, 1, 2]], [(0, 0, 0), (1, 1, 1), (2, 2, 2)])
    assert read_mask(gray, colors="voc").tolist() == [[0, 1, 2]]


def test_a_palette_half_of_voc_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.png", [[0, 1, 2]], [BLACK, GREEN, (1, 2, 3)])
    with pytest.raises(DataError, match=r"a\.png: .*index 1 .*color of id 2"):
        read_mask(path, colors="voc")


def voc(root: Path, palette: list[tuple[int, int, int]], indices: list[list[int]]) -> Path:
    written(root / "SegmentationClass" / "a.png", indices, palette)
    (root / "JPEGImages").mkdir()
    write_image(root / "JPEGImages" / "a.jpg", np.zeros((*np.shape(indices), 3), np.uint8))
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n")
    return root


def test_pascal_voc_is_read_by_color(tmp_path: Path) -> None:
    root = voc(tmp_path, [GREEN, RED, BLACK], [[2, 1, 0], [2, 2, 2]])
    dataset = parse(DataConfig, {"dataset": {"name": "pascal_voc", "root": str(root)}}).build_dataset()
    assert np.asarray(dataset.labels(0).get("mask")).tolist() == [[0, 1, 2], [0, 0, 0]]


def test_masks_of_one_folder_agree_on_what_a_color_means(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "frames").mkdir(exist_ok=True)
        write_image(tmp_path / "frames" / f"{name}.png", np.zeros((1, 3, 3), np.uint8))
    sky, road = (70, 130, 180), (128, 64, 128)
    written(tmp_path / "masks" / "a.png", [[0, 1, 1]], [sky, road])
    written(tmp_path / "masks" / "b.png", [[0, 1, 1]], [road, sky])
    values = {"name": "mask_folder", "frames": str(tmp_path / "frames"), "masks": str(tmp_path / "masks")}
    dataset = parse(DataConfig, {"dataset": {**values, "classes": ["sky", "road"]}}).build_dataset()
    dataset.labels(0)
    with pytest.raises(DataError, match=r"b\.png: .*color \(128, 64, 128\).*0.*1 in .*a\.png"):
        dataset.labels(1)


@pytest.mark.parametrize(("palette", "ids"), [([BLACK, RED, GREEN], [0, 1, 2]), ([GREEN, BLACK, RED], [1, 2, 0])])
def test_predictions_of_a_folder_agree_with_the_truth_on_what_a_color_means(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], palette: list[tuple[int, int, int]], ids: list[int]
) -> None:
    """Truth and prediction are black, red and green. Once an image tool has sorted the palette, ids are not indices."""
    (tmp_path / "frames").mkdir()
    write_image(tmp_path / "frames/a.png", np.zeros((1, 3, 3), np.uint8))
    written(tmp_path / "masks/a.png", [[0, 1, 2]], [BLACK, RED, GREEN])
    written(tmp_path / "saved/a.png", [ids], palette)
    own = [f"frames={tmp_path}/frames", f"masks={tmp_path}/masks", "classes=[ground, car, tree]"]
    done = score(["--dataset", "mask_folder", *own, "--predictions", f"{tmp_path}/saved"])
    if ids == [0, 1, 2]:
        assert done == 0
        assert "1.000" in capsys.readouterr().out
    else:
        assert done == 1
        assert (
            "saved/a.png: its palette has the color (0, 128, 0) at index 0, which is 2 in " in capsys.readouterr().err
        )


def test_the_indices_in_use_are_found_whatever_their_order() -> None:
    assert used_indices(np.array([[7, 7, 0], [0, 255, 7]], np.uint8)).tolist() == [0, 7, 255]
    noise = np.random.default_rng(0).integers(3, 90, (20, 30)).astype(np.uint8)
    assert used_indices(noise[:, ::2]).tolist() == np.unique(noise[:, ::2]).tolist()
    assert used_indices(np.zeros((0, 4), np.uint8)).tolist() == []


@pytest.mark.parametrize("color", [[0], [255], [0, 0, 0], [255, 255, 255]])
def test_an_object_in_alpha_is_refused_as_foreground(tmp_path: Path, color: list[int]) -> None:
    alpha = np.array([[0, 255, 0]], np.uint8)
    pixels = np.dstack([*(np.full_like(alpha, value) for value in color), alpha])
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a.png: all pixels have one color, and the object is in alpha"):
        read_foreground(tmp_path / "a.png")
    pixels[..., :-1] = np.array([[[0], [9], [0]]])  # the object is in the colors, too
    Image.fromarray(pixels).save(tmp_path / "b.png")
    assert read_foreground(tmp_path / "b.png").tolist() == [[False, True, False]]


@pytest.mark.parametrize(
    ("values", "why"),
    [([3, 255, 3], "no pixel is 0"), ([0, *range(1, 41)], "it has 40 values above 0"), ([0, 255], "")],
)
def test_soft_masks_are_warned_about_once_per_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, values: list[int], why: str
) -> None:
    for name in ("a", "b"):
        Image.fromarray(np.array([values], np.uint8)).save(tmp_path / f"{name}.png")
        assert read_foreground(tmp_path / f"{name}.png").tolist() == [[value > 0 for value in values]]
    told = [record.message for record in caplog.records]
    assert [("a.png" in text, why in text) for text in told] == ([(True, True)] if why else [])


def test_a_mask_with_an_orientation_of_its_own_is_read_as_stored_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    note = Image.Exif()
    note[0x0112] = 3
    Image.fromarray(np.array([[0, 1, 1]], np.uint8)).save(tmp_path / "a.png", exif=note)
    for _ in range(2):
        assert read_mask(tmp_path / "a.png").tolist() == [[0, 1, 1]]
    assert [("a.png" in r.message, "orientation 3" in r.message) for r in caplog.records] == [(True, True)]
