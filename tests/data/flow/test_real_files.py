"""Files of the published data sets, where MTSP_DATA names them."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from data import SampleDataset
from data.flow.middlebury import MiddleburyConfig
from mtsp.types import Sample
from tests.data.flow.files import DATA, NONE, chairs, kitti, made, real_data, sintel


def warp_error(sample: Sample) -> tuple[float, float]:
    """Mean difference of the frame to the next one as it is, and to the next one fetched along the flow."""
    field = sample.get("flow", NONE)
    y, x = np.mgrid[: field.shape[0], : field.shape[1]].astype(np.float32)
    following = sample.get("next_frame", NONE).astype(np.float32)
    fetched = cv2.remap(following, x + field[..., 0], y + field[..., 1], cv2.INTER_LINEAR)
    inside = (x + field[..., 0] >= 0) & (x + field[..., 0] < x.shape[1] - 1)
    inside &= (y + field[..., 1] >= 0) & (y + field[..., 1] < y.shape[0] - 1)
    inside &= sample.get("flow_valid", np.ones(y.shape, bool))
    frame = sample["frame"].astype(np.float32)
    return float(np.abs(following - frame)[inside].mean()), float(np.abs(fetched - frame)[inside].mean())


@pytest.fixture
def real_kitti(tmp_path: Path) -> Path:
    """The real pair under the names of the release."""
    names = {
        "frame1.png": "image_2/000001_10.png",
        "frame2.png": "image_2/000001_11.png",
        "flow_gt.png": "flow_occ/000001_10.png",
    }
    for sample, name in names.items():
        made(tmp_path / "training" / name).symlink_to(DATA / "KITTI" / sample)
    return tmp_path


@real_data
def test_real_flow_fetches_the_next_frame_back(real_kitti: Path) -> None:
    sets: dict[str, SampleDataset] = {
        "chairs": chairs(DATA / "FlyingChairs_release", split="all"),
        "sintel": sintel(DATA / "MPI-Sintel", passes=["clean"]),
        "middlebury": MiddleburyConfig(name="middlebury", root=DATA / "Middlebury").build(),
        "kitti": kitti(real_kitti),
    }
    assert {name: len(dataset) for name, dataset in sets.items()} == {
        "chairs": 5,
        "sintel": 1,
        "middlebury": 5,
        "kitti": 1,
    }
    for name, dataset in sets.items():
        for i in range(len(dataset)):
            still, moved = warp_error(dataset[i])
            assert moved < 0.7 * still, f"{name} {dataset.ids[i]}: {moved:.2f} against {still:.2f}"


@real_data
def test_the_real_chairs_are_split_by_their_list() -> None:
    assert chairs(DATA / "FlyingChairs_release").ids == ["00001", "00002", "00003"]
    assert chairs(DATA / "FlyingChairs_release", split="val").ids == ["00004", "00005"]


@real_data
def test_real_middlebury_has_unknown_flow_in_two_pairs() -> None:
    dataset = MiddleburyConfig(name="middlebury", root=DATA / "Middlebury").build()
    labels = [dataset.labels(i) for i in range(len(dataset))]
    share = {one["name"]: float(1 - one["flow_valid"].mean()) for one in labels if "flow_valid" in one}
    assert share == {"Dimetrodon": pytest.approx(0.0475, abs=1e-4), "RubberWhale": pytest.approx(0.0160, abs=1e-4)}
    assert max(np.abs(one.get("flow", NONE)).max() for one in labels) < 25
    assert len(MiddleburyConfig(name="middlebury", root=DATA / "Middlebury", split="all").build()) == 6
