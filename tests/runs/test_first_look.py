"""What a run says or refuses before its first step: data that teach nothing, data that changed, odd settings."""

import contextlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.files.flow_formats.flo import read_flo, write_flo
from data.files.images import read_image, write_image
from mtsp.config import ConfigError

Train = Callable[..., dict[str, dict[str, float]]]


@pytest.fixture
def world(values: dict[str, Any], synthetic: Path, tmp_path: Path) -> dict[str, Any]:
    """Two steps of segmentation and flow on a copy of the synthetic data, measured nowhere."""
    shutil.copytree(synthetic, tmp_path / "data")
    values = json.loads(json.dumps(values).replace(str(synthetic), str(tmp_path / "data")))
    values["train"] |= {"steps": 2, "save_every": 1, "stages": [{"steps": 1, "batch_size": {"davis": 2, "chairs": 2}}]}
    values["evaluation"] = {"data": [], "at_start": False}
    return values


def own(values: dict[str, Any], root: Path) -> Path:
    """Let data.davis be a folder of your own, its masks with ids; return the folder of masks."""
    masks = root / "data/DAVIS/Annotations/480p"
    frames = root / "data/DAVIS/JPEGImages/480p"
    values["data"]["davis"]["dataset"] = {
        "name": "folder",
        "frames": str(frames),
        "masks": str(masks),
        "classes": 2,
        "unknown": [255],
    }
    for path in masks.rglob("*.png"):
        mask = np.minimum(np.array(Image.open(path)), 1).astype(np.uint8)
        Image.fromarray(mask).save(path)
    return masks


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Our own warnings: wandb, which another test may have started in this process, logs some of its own."""
    ours = [record for record in caplog.records if record.name.startswith("mtsp")]
    return [record.getMessage() for record in ours if record.levelno >= logging.WARNING]


def all_unknown(path: Path) -> None:
    Image.fromarray(np.full_like(np.array(Image.open(path)), 255)).save(path)


def test_a_run_from_masks_that_are_unknown_everywhere_is_refused(
    world: dict[str, Any], train: Train, tmp_path: Path
) -> None:
    for path in own(world, tmp_path).rglob("*.png"):
        all_unknown(path)
    with pytest.raises(ConfigError, match=r"data\.davis: none of its 12 samples .* has a known label"):
        train(world, tmp_path / "run")


def test_masks_that_are_unknown_everywhere_are_counted_aloud(
    world: dict[str, Any], train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in sorted(own(world, tmp_path).rglob("*.png"))[:3]:
        all_unknown(path)
    with caplog.at_level(logging.INFO, logger="mtsp"):
        train(world, tmp_path / "run")
    assert any("data.davis: 3 of 12 checked samples have no known label" in line for line in told(caplog))


def test_a_run_from_flow_that_is_unknown_everywhere_is_refused(
    world: dict[str, Any], train: Train, tmp_path: Path
) -> None:
    for path in (tmp_path / "data/chairs").rglob("*.flo"):
        flow = read_flo(path)
        write_flo(path, flow, np.zeros(flow.shape[:2], bool))
    with pytest.raises(ConfigError, match=r"data\.chairs: none of its .* samples .* has a known label"):
        train(world, tmp_path / "run")


def test_frames_that_are_label_maps_are_noticed(
    world: dict[str, Any], train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    masks = own(world, tmp_path)
    world["data"]["davis"]["dataset"]["frames"] = str(masks)
    train(world, tmp_path / "run")
    assert any("data.davis: frames look like label maps" in line for line in told(caplog))


def test_flow_of_100000_pixels_is_noticed(
    world: dict[str, Any], train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (tmp_path / "data/chairs").rglob("*.flo"):
        write_flo(path, np.full_like(read_flo(path), 1e5))
    train(world, tmp_path / "run")
    assert any("data.chairs: flow is longer than the frame's diagonal" in line for line in told(caplog))


def test_odd_settings_are_noticed_once_each(
    world: dict[str, Any], train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world["train"] |= {"stages": [{"steps": 1, "batch_size": {"davis": 20}}], "precision": "bf16"}
    world["optimizer"]["lr"] = 50.0
    with contextlib.suppress(FloatingPointError):
        train(world, tmp_path / "run")
    for text in ("a batch has 20 samples of data.davis, which has only 9", "learning rate 50", "there is no GPU"):
        assert sum(text in line for line in told(caplog)) >= 1, text


def test_a_usual_run_says_nothing(
    world: dict[str, Any], train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(world, tmp_path / "run")
    assert told(caplog) == []


def fewer(root: Path) -> None:
    path = root / "DAVIS/ImageSets/480p/train.txt"
    path.write_text("\n".join(path.read_text().split("\n")[:6]))


def larger(root: Path) -> None:
    for path in (root / "DAVIS").rglob("*.jpg"):
        write_image(path, np.repeat(np.repeat(read_image(path), 2, 0), 2, 1))
    for path in (root / "DAVIS").rglob("*.png"):
        mask = Image.open(path)
        mask.resize((2 * mask.width, 2 * mask.height), Image.Resampling.NEAREST).save(path)


def other_masks(root: Path) -> None:
    for path in (root / "DAVIS").rglob("*.png"):
        mask = Image.open(path)
        mask.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (fewer, r"data\.davis has 6 samples, and had 9"),
        (larger, r"data\.davis has other sizes and labels than before"),
        (other_masks, r"data\.davis has other sizes and labels than before"),
    ],
)
def test_a_run_is_not_resumed_with_other_data(
    world: dict[str, Any], train: Train, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    train(world, tmp_path / "run")
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "data", moved)
    world = json.loads(json.dumps(world).replace(str(tmp_path / "data"), str(moved)))
    world["train"]["steps"] = 3
    train(world, tmp_path / "run", "auto")  # the same data at another place
    change(moved)
    world["train"]["steps"] = 4
    with pytest.raises(ValueError, match=message):
        train(world, tmp_path / "run", "auto")
