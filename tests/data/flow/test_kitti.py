"""KITTI 2015: split and sparse flow."""

from pathlib import Path

import pytest

from data.types import MissingDataError
from tests.data.flow.files import NONE, kitti, write_kitti


def test_every_fifth_scene_of_kitti_is_val_and_flow_is_sparse(tmp_path: Path) -> None:
    write_kitti(tmp_path, 7)
    assert kitti(tmp_path, split="val").ids == ["000000_10", "000005_10"]
    train = kitti(tmp_path)
    assert train.ids == [f"{n:06d}_10" for n in (1, 2, 3, 4, 6)]
    sample = train[1]
    assert sample["frame"][0, 0, 0] == 2
    assert sample.get("flow", NONE)[:, 0, 0].tolist() == [0, 0, 2, 2]
    assert sample.get("flow_valid", NONE)[:, 0].tolist() == [False, False, True, True]
    seen = kitti(tmp_path, occluded=False).labels(1)
    assert seen.get("flow_valid", NONE)[:, 0].tolist() == [True, False, False, True]
    (tmp_path / "training" / "image_2" / "000003_11.png").unlink()
    with pytest.raises(MissingDataError, match=r"1 file \(training/image_2/000003_11\.png\)"):
        kitti(tmp_path)
