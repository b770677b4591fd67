"""Verification warps some pairs by their flow: swapped frames and flow of another unit are found."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from data.catalog.verify import verify, warping_errors
from data.files.flow_formats import read_flo, write_flo
from data.synthetic.clips import SyntheticConfig
from data.synthetic.writers import write_flying_chairs
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
    assert any(
        "train: the flow does not explain the frames" in line and "check for swapped frames" in line for line in found
    )


def test_flow_of_another_size_is_found(chairs: Path, tmp_path: Path) -> None:
    root = tmp_path / "far"
    shutil.copytree(chairs, root)
    for path in root.rglob("*.flo"):
        write_flo(path, np.full_like(read_flo(path), 1e5))
    found = problems(root)
    assert len(found) == len(list(root.rglob("*.flo")))
    assert all("100 % of the flow is longer than the frame's diagonal" in line for line in found)


def test_the_next_frame_is_read_where_the_flow_leads() -> None:
    # Everything moves 3 pixels to the right: frame(x) = next(x + 3).
    texture = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    flow = np.zeros((40, 60, 2), np.float32)
    flow[..., 0] = 3
    sample = Sample(name="a", frame=texture, next_frame=np.roll(texture, 3, axis=1), flow=flow)
    still, there, back = warping_errors(sample) or (0, 1, 0)
    assert there == 0
    assert still > 20
    assert back > 20
