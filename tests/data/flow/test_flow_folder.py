"""Pairs in folders of one's own: how the frames of a flow file are found."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.files.flow_formats.flo import write_flo
from data.files.flow_formats.kitti import write_kitti_flow
from data.files.flow_formats.pfm import write_pfm
from data.files.flow_formats.read import read_flow
from data.files.images import write_image
from data.flow.flow_folder import FlowFolderConfig
from data.types import DataError, MissingDataError


def write_frames(root: Path, *names: str) -> None:
    """Frames of one gray each: the first is 0, the second 1, ..."""
    for gray, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(root / name, np.full((8, 12, 3), gray, np.uint8))


def write_flow(path: Path, x: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    flow = np.full((8, 12, 2), x, np.float32)
    if path.suffix == ".flo":
        write_flo(path, flow)
    elif path.suffix == ".pfm":
        write_pfm(path, np.dstack([flow, flow[..., :1]]))
    elif path.suffix == ".png":
        write_kitti_flow(path, flow)
    else:
        np.save(path, flow)


def pairs(**settings: Any) -> list[tuple[str, int, int, float]]:
    """Name, gray of both frames, and flow of each pair."""
    data = FlowFolderConfig(name="flow_folder", **settings).build()
    samples = [data[i] for i in range(len(data))]
    grays = [[int(sample.get(key, 0)[0, 0, 0]) for key in ("frame", "next_frame")] for sample in samples]  # pyright: ignore
    flows = [float(sample.get("flow", np.zeros(1)).reshape(-1)[0]) for sample in samples]
    return [(sample["name"], gray[0], gray[1], flow) for sample, gray, flow in zip(samples, grays, flows, strict=True)]


def test_a_video_has_the_flow_of_each_frame_to_the_next(tmp_path: Path) -> None:
    write_frames(tmp_path / "frames", "walk/8.png", "walk/9.png", "walk/10.png", "run/1.png", "run/2.png")
    for name, x in (("walk/8.flo", 8), ("walk/9.flo", 9), ("run/1.flo", 1)):
        write_flow(tmp_path / "flow" / name, x)
    found = pairs(frames=tmp_path / "frames", flow=tmp_path / "flow")
    assert found == [("run/1", 3, 4, 1.0), ("walk/8", 0, 1, 8.0), ("walk/9", 1, 2, 9.0)]
    (tmp_path / "val.txt").write_text("run\nwalk/9\n")
    chosen = pairs(frames=tmp_path / "frames", flow=tmp_path / "flow", split=tmp_path / "val.txt")
    assert chosen == [found[0], found[2]]


@pytest.mark.parametrize(
    ("frames", "flow"),
    [
        (["00001_img1.ppm", "00001_img2.ppm", "00011_img1.ppm", "00011_img2.ppm"], "00001_flow.flo"),  # FlyingChairs
        (["frame10.png", "frame11.png"], "flow10.flo"),  # Middlebury
        (["000000_10.png", "000000_11.png"], "000000_10.png"),  # KITTI
        (["a_0001.png", "a_0002.png"], "a_0001.pfm"),
        (["a1.jpg", "a2.jpg"], "a1_flow.npy"),
        (["a1.jpg", "a2.jpg"], "a.npy"),
    ],
)
def test_names_of_published_layouts_are_understood(frames: list[str], flow: str, tmp_path: Path) -> None:
    write_frames(tmp_path / "frames", *frames)
    write_flow(tmp_path / "flow" / flow, 2.0)
    found = pairs(frames=tmp_path / "frames", flow=tmp_path / "flow")
    assert [row[3] for row in found] == [2.0]
    assert [round(value) for value in found[0][1:3]] == [0, 1]


def test_frames_and_flow_may_share_a_folder_and_second_frames_have_their_own(tmp_path: Path) -> None:
    write_frames(tmp_path / "all", "1.png", "2.png")
    write_flow(tmp_path / "all/1.flo", 3.0)
    assert pairs(frames=tmp_path / "all", flow=tmp_path / "all") == [("1", 0, 1, 3.0)]
    write_frames(tmp_path / "second", "x.png", "1.png")
    settings = {"frames": tmp_path / "all", "next_frames": tmp_path / "second", "flow": tmp_path / "all"}
    assert pairs(**settings) == [("1", 0, 1, 3.0)]
    (tmp_path / "second/1.png").unlink()
    with pytest.raises(MissingDataError, match=r"no frame in .*second for 1 file \(1.flo\)"):
        pairs(**settings)


def test_the_next_frame_is_of_the_same_camera(tmp_path: Path) -> None:
    write_frames(tmp_path, "x/1_L.png", "x/1_R.png", "x/2_L.png", "x/2_R.png")  # gray 0 to 3
    write_flow(tmp_path / "flow/1_L.flo", 4.0)
    assert pairs(frames=tmp_path / "x", flow=tmp_path / "flow") == [("1_L", 0, 2, 4.0)]
    write_flow(tmp_path / "flow/2_L.flo", 4.0)
    with pytest.raises(DataError, match=r"the frames of 1 file \(2_L.flo\) cannot be told"):
        pairs(frames=tmp_path / "x", flow=tmp_path / "flow")


@pytest.mark.parametrize("other", ["1.npy", "1.FLO"])
def test_two_files_of_flow_for_one_pair_are_refused(tmp_path: Path, other: str) -> None:
    write_frames(tmp_path, "x/1.png", "x/2.png")
    write_flow(tmp_path / "flow/1.flo", 4.0)
    (tmp_path / "flow" / other).write_bytes((tmp_path / "flow/1.flo").read_bytes())
    with pytest.raises(DataError, match=r"flow: both 1\..* and 1\..* hold flow; keep one of them"):
        pairs(frames=tmp_path / "x", flow=tmp_path / "flow")


def test_other_names_need_a_list(tmp_path: Path) -> None:
    write_frames(tmp_path, "x/one.png", "y/two.png")
    write_flow(tmp_path / "z/three.flo", 4.0)
    with pytest.raises(DataError, match=r"the frames of 1 file \(three.flo\) cannot be told .* give a `triples`"):
        pairs(frames=tmp_path / "x", flow=tmp_path / "z")
    (tmp_path / "pairs.txt").write_text("x/one.png y/two.png z/three.flo\n")
    assert pairs(frames=tmp_path, triples=tmp_path / "pairs.txt") == [("z/three", 0, 1, 4.0)]
    (tmp_path / "pairs.txt").write_text("x/one.png z/three.flo\n")
    with pytest.raises(DataError, match="must be the paths of frame, next frame and flow"):
        pairs(frames=tmp_path, triples=tmp_path / "pairs.txt")
    with pytest.raises(ValueError, match="set either `flow`"):
        pairs(frames=tmp_path)


def test_an_array_holds_flow_in_either_order_with_nan_where_unknown(tmp_path: Path) -> None:
    flow = np.arange(8 * 12 * 2, dtype=np.float64).reshape(8, 12, 2)
    np.save(tmp_path / "last.npy", flow)
    np.save(tmp_path / "first.npy", flow.transpose(2, 0, 1))
    for name in ("last", "first"):
        read, valid = read_flow(tmp_path / f"{name}.npy")
        assert valid is None
        assert np.array_equal(read, flow.astype(np.float32))
    flow[0, 0, 1] = np.nan
    np.save(tmp_path / "last.npy", flow)
    read, valid = read_flow(tmp_path / "last.npy")
    assert valid is not None
    assert (valid.sum(), read[0, 0].tolist()) == (8 * 12 - 1, [0, 0])
    np.save(tmp_path / "last.npy", flow[..., 0])
    with pytest.raises(DataError, match=r"last.npy: flow is HW2 or 2HW of numbers, this array is 8x12 float64"):
        read_flow(tmp_path / "last.npy")
    (tmp_path / "last.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match=r"last.npy: not an array of numpy"):
        read_flow(tmp_path / "last.npy")
