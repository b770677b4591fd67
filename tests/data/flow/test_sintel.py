"""Sintel: pairs, splits, invalid pixels."""

from pathlib import Path

import numpy as np
import pytest

from data.files.masks import write_mask
from data.flow.sintel import VAL_SCENES
from data.types import MissingDataError
from tests.data.flow.files import HEIGHT, NONE, WIDTH, first, made, sintel, write_sintel


def test_sintel_pairs_stay_within_their_scene(tmp_path: Path) -> None:
    write_sintel(tmp_path, "alley_1", 3)
    write_sintel(tmp_path, "alley_2", 2)
    assert "alley_2" in VAL_SCENES
    train = sintel(tmp_path)
    assert train.ids == [f"{which}/alley_1/frame_000{n}" for which in ("clean", "final") for n in (1, 2)]
    assert first(train[1]) == (2, 3, 2.0)
    assert sintel(tmp_path, split="val", passes=["final"]).ids == ["final/alley_2/frame_0001"]
    assert len(sintel(tmp_path, split="all", passes=["clean"])) == 3


def test_sintels_invalid_pixels_are_unknown_flow(tmp_path: Path) -> None:
    write_sintel(tmp_path, "alley_1", 2)
    invalid = np.zeros((HEIGHT, WIDTH), np.uint8)
    invalid[1, 2] = 255
    write_mask(made(tmp_path / "training" / "invalid" / "alley_1" / "frame_0001.png"), invalid)
    assert np.argwhere(~sintel(tmp_path)[0].get("flow_valid", NONE)).tolist() == [[1, 2]]


@pytest.mark.parametrize(
    "lost", ["clean/alley_1/frame_0002.png", "final/alley_1/frame_0003.png", "flow/alley_1/frame_0001.flo"]
)
def test_a_missing_file_of_sintel_is_named(tmp_path: Path, lost: str) -> None:
    write_sintel(tmp_path, "alley_1", 3)
    (tmp_path / "training" / lost).unlink()
    with pytest.raises(MissingDataError, match=rf"1 file \(training/{lost}\) missing"):
        sintel(tmp_path)
