"""Verification warps some pairs by their flow: swapped frames and flow of another unit are found."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data import DataConfig
from data.catalog.verify import verify, verify_entries, warping_errors
from data.files.flow_formats.flo import read_flo, write_flo
from data.files.images import write_image
from data.synthetic.clips import SyntheticConfig
from data.synthetic.writers import write_flying_chairs
from mtsp.config import parse
from mtsp.types import Sample


@pytest.fixture(scope="module")
def chairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("chairs")
    config = SyntheticConfig(clips=6, frames=2, height=96, width=128, objects=(1, 2))
    write_flying_chairs(config, root, validation=0.2)
    return root


def problems(root: Path) -> list[str]:
    return verify("flying_chairs", root, published=False).problems


def test_right_flow_is_well(chairs: Path) -> None:
    assert problems(chairs) == []


def test_swapped_frames_are_found(chairs: Path, tmp_path: Path) -> None:
    root = tmp_path / "swapped"
    shutil.copytree(chairs, root)
    for first in root.rglob("*_img1.ppm"):
        second = first.with_name(first.name.replace("img1", "img2"))
        one, two = first.read_bytes(), second.read_bytes()
        first.write_bytes(two)
        second.write_bytes(one)
    found = problems(root)
    assert any("train: with the opposite sign" in line and "the frames are swapped" in line for line in found)


def test_flow_of_another_size_is_found(chairs: Path, tmp_path: Path) -> None:
    root = tmp_path / "far"
    shutil.copytree(chairs, root)
    for path in root.rglob("*.flo"):
        write_flo(path, np.full_like(read_flo(path), 1e5))
    found = problems(root)
    assert len(found) == len(list(root.rglob("*.flo")))
    assert all("100 % of the flow is longer than the frame's diagonal" in line for line in found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda flow: flow[..., ::-1], "with swapped dx and dy, the flow explains the frames better in 1 of 1 pairs"),
        (lambda flow: flow * 2, "with half its length, the flow explains"),
        (lambda flow: flow * 0, "the flow of all 1 pairs checked is zero"),
    ],
)
def test_the_reading_that_explains_the_frames_is_named(
    tmp_path: Path, change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    sample = moved()
    for folder in ("frames", "flow"):
        (tmp_path / folder).mkdir()
    write_image(tmp_path / "frames/1.png", sample["frame"])
    write_image(tmp_path / "frames/2.png", sample.get("next_frame", sample["frame"]))
    write_flo(tmp_path / "flow/1.flo", np.ascontiguousarray(change(sample.get("flow", np.zeros(1)))))
    own = {"name": "flow_folder", "frames": f"{tmp_path}/frames", "flow": f"{tmp_path}/flow"}
    found = verify_entries({"own": parse(DataConfig, {"dataset": own}).dataset}).problems
    assert len(found) == 1
    assert message in found[0]


def moved() -> Sample:
    """Everything moves 4 pixels to the right: frame(x) = next(x + 4)."""
    texture = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    flow = np.zeros((40, 60, 2), np.float32)
    flow[..., 0] = 4
    return Sample(name="a", frame=texture, next_frame=np.roll(texture, 4, axis=1), flow=flow)


def test_the_next_frame_is_read_where_the_flow_leads() -> None:
    errors = warping_errors(moved()) or {}
    assert errors["given"] < 10  # 4 of 60 columns leave the image
    assert min(errors["zero"], errors["half its length"], errors["swapped dx and dy"]) > 20
