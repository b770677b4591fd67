"""Flow files and data sets of random content, as torchvision reads them, to the bit."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.files.flow_formats.flo import write_flo
from data.files.flow_formats.kitti import write_kitti_flow
from data.files.flow_formats.pfm import write_pfm
from data.files.flow_formats.read import read_flow
from data.files.images import write_image
from data.flow.hd1k import Hd1kConfig
from data.segmentation.sbd import SbdConfig
from data.types import MissingDataError, SampleDataset
from tests.data.flow.files import DATA, chairs, kitti, made, real_data, sintel, things

peer = pytest.importorskip("torchvision.datasets")
readers: Any = pytest.importorskip("torchvision.datasets._optical_flow")
SIZE = (5, 7)
RNG = np.random.default_rng(0)


def image(path: Path) -> None:
    write_image(made(path), RNG.integers(0, 256, (*SIZE, 3)).astype(np.uint8))


def flow(size: tuple[int, int] = SIZE, step: float = 1 / 64) -> np.ndarray:
    """Vectors in the steps of KITTI's format, up to 500 pixels long."""
    return (RNG.integers(-32000, 32000, (*size, 2)) * step).astype(np.float32)


def known(size: tuple[int, int] = SIZE) -> np.ndarray:
    return RNG.random(size) > 0.3


def theirs_of(example: Any) -> tuple[np.ndarray, ...]:
    frame, following, field, *valid = example
    return np.asarray(frame), np.asarray(following), field.transpose(1, 2, 0), *valid


def require_equal(ours: SampleDataset, theirs: Iterable[Any], count: int) -> None:
    """Compare all examples, whatever their order: torchvision's sets are sorted otherwise."""
    theirs = [theirs_of(example) for example in theirs]
    assert len(ours) == len(theirs) == count
    left = {pair[0].tobytes() + pair[1].tobytes(): pair for pair in theirs}
    assert len(left) == count
    for i in range(count):
        sample = ours[i]
        frame, following = sample["frame"], sample.get("next_frame", sample["frame"])
        field, valid = sample.get("flow", np.zeros(0)), sample.get("flow_valid")
        other = left.pop(frame.tobytes() + following.tobytes())
        if len(other) == 4:  # torchvision leaves a value where the flow is unknown
            assert valid is not None
            np.testing.assert_array_equal(valid, other[3])
            np.testing.assert_array_equal(field, other[2] * other[3][..., None])
        else:
            np.testing.assert_array_equal(field, other[2])


def test_300_random_flow_files_are_read_alike(tmp_path: Path) -> None:
    for i in range(100):
        height, width = RNG.integers(1, 40, 2).tolist()
        exact = RNG.normal(0, 50, (height, width, 2)).astype(np.float32)
        write_flo(tmp_path / f"{i}.flo", exact)
        np.testing.assert_array_equal(
            read_flow(tmp_path / f"{i}.flo")[0], readers._read_flo(tmp_path / f"{i}.flo").transpose(1, 2, 0)
        )
        write_pfm(tmp_path / f"{i}.pfm", np.dstack([exact, exact[..., 0]]), little_endian=bool(i % 2))
        np.testing.assert_array_equal(
            read_flow(tmp_path / f"{i}.pfm")[0], readers._read_pfm(tmp_path / f"{i}.pfm").transpose(1, 2, 0)
        )
        steps, valid = flow((height, width)), known((height, width))
        write_kitti_flow(tmp_path / f"{i}.png", steps, valid)
        field, true = readers._read_16bits_png_with_flow_and_valid_mask(str(tmp_path / f"{i}.png"))
        ours, ours_known = read_flow(tmp_path / f"{i}.png")
        assert ours_known is not None
        np.testing.assert_array_equal(ours_known, true)
        np.testing.assert_array_equal(ours[true], field.transpose(1, 2, 0)[true])


def test_flying_chairs(tmp_path: Path) -> None:
    root = tmp_path / "FlyingChairs"
    for n in range(1, 7):
        for k in (1, 2):
            image(root / f"data/{n:05d}_img{k}.ppm")
        write_flo(root / f"data/{n:05d}_flow.flo", flow())
    (root / "FlyingChairs_train_val.txt").write_text("1\n2\n1\n1\n2\n1\n")
    for split, count in (("train", 4), ("val", 2)):
        require_equal(chairs(root, split=split), peer.FlyingChairs(tmp_path, split=split), count)


@pytest.mark.parametrize("which", ["clean", "final"])
def test_sintel(tmp_path: Path, which: str) -> None:
    root = tmp_path / "Sintel"
    for scene, count in (("alley_1", 4), ("temple_2", 3)):
        for n in range(1, count + 1):
            image(root / f"training/{which}/{scene}/frame_{n:04d}.png")
            if n < count:
                write_flo(made(root / f"training/flow/{scene}/frame_{n:04d}.flo"), flow())
    require_equal(sintel(root, split="all", passes=(which,)), peer.Sintel(tmp_path, pass_name=which), 5)


def test_kitti(tmp_path: Path) -> None:
    root = tmp_path / "KittiFlow"
    for n in range(5):
        for k in (10, 11):
            image(root / f"training/image_2/{n:06d}_{k}.png")
        write_kitti_flow(made(root / f"training/flow_occ/{n:06d}_10.png"), flow(), known())
    require_equal(kitti(root, split="all"), peer.KittiFlow(tmp_path), 5)


@pytest.mark.parametrize(("start", "step"), [(0, 1), (10, 10)])
def test_hd1k_and_a_hole_in_a_sequence(tmp_path: Path, start: int, step: int) -> None:
    root = tmp_path / "hd1k"
    for sequence, count in ((0, 3), (1, 4), (6, 2), (7, 5)):
        for n in range(start, start + step * count, step):
            image(root / f"hd1k_input/image_2/{sequence:06d}_{n:04d}.png")
            write_kitti_flow(made(root / f"hd1k_flow_gt/flow_occ/{sequence:06d}_{n:04d}.png"), flow(), known())
    for where in (tmp_path, root):
        require_equal(Hd1kConfig(name="hd1k", root=where, split="all").build(), peer.HD1K(tmp_path), 2 + 3 + 1 + 4)
    val = Hd1kConfig(name="hd1k", root=root, split="val").build()
    assert val.ids == [f"{s:06d}_{start + step * n:04d}" for s, n in ((0, 0), (0, 1), (6, 0))]
    hole = f"hd1k_input/image_2/000007_{start + step * 2:04d}.png"
    (root / hole).unlink()
    with pytest.raises(MissingDataError, match=rf"1 file \({hole}\)"):
        Hd1kConfig(name="hd1k", root=root).build()


def test_flying_things(tmp_path: Path) -> None:
    root = tmp_path / "FlyingThings3D"
    for sequence in ("A/0000", "C/0003"):
        for n in range(6, 10):
            image(root / f"frames_cleanpass/TRAIN/{sequence}/left/{n:04d}.png")
            for way in ("Future", "Past"):
                place = f"optical_flow/TRAIN/{sequence}/into_{way.lower()}/left/OpticalFlowInto{way}_{n:04d}_L.pfm"
                write_pfm(made(root / place), np.dstack([flow(), np.zeros(SIZE, np.float32)]))
    require_equal(things(root, passes=("clean",)), peer.FlyingThings3D(tmp_path, pass_name="clean"), 2 * 2 * 3)


def write_sbd(root: Path, names: list[str]) -> dict[str, np.ndarray]:
    matlab = pytest.importorskip("scipy.io")
    masks = {}
    for name in names:
        image(root / f"img/{name}.jpg")
        masks[name] = RNG.integers(0, 21, SIZE).astype(np.uint8)
        edges = np.empty((20, 1), dtype=object)
        edges[:, 0] = [np.zeros((2, 2))] * 20
        found = {"Boundaries": edges, "Segmentation": masks[name], "CategoriesPresent": np.array([[1]])}
        matlab.savemat(made(root / f"cls/{name}.mat"), {"GTcls": found})
    return masks


def test_sbd_and_the_usual_training_set_of_voc(tmp_path: Path) -> None:
    root, voc = tmp_path / "benchmark_RELEASE/dataset", tmp_path / "VOC2012"
    masks = write_sbd(root, ["a", "b", "c", "d"])
    (root / "train.txt").write_text("b\na\nd\n")
    (root / "val.txt").write_text("c\n")
    for split in ("train", "val"):
        ours, theirs = (
            SbdConfig(name="sbd", root=root, split=split).build(),
            peer.SBDataset(root, split, "segmentation"),
        )
        assert len(ours) == len(theirs)
        for i, (frame, mask) in enumerate(theirs):
            sample = ours[i]
            np.testing.assert_array_equal(sample["frame"], np.asarray(frame))
            np.testing.assert_array_equal(sample.get("mask", np.zeros(0)), np.asarray(mask))
    # VOC's train has a, which SBD has too, and e; its val has b. So it is a, e of VOC, and d, c of SBD.
    for name, value in (("a", 3), ("e", 4), ("b", 5)):
        image(voc / f"JPEGImages/{name}.jpg")
        Image.fromarray(np.full(SIZE, value, np.uint8)).save(made(voc / f"SegmentationClass/{name}.png"))
    for split, names in (("train", "a\ne\n"), ("val", "b\n")):
        made(voc / f"ImageSets/Segmentation/{split}.txt").write_text(names)
    both = SbdConfig(name="sbd", root=tmp_path / "benchmark_RELEASE", split="train_aug", voc=voc).build()
    assert both.ids == ["a", "e", "d", "c"]
    found = [both.labels(i).get("mask", np.zeros(0)) for i in range(4)]
    for ours, expected in zip(found, (np.full(SIZE, 3), np.full(SIZE, 4), masks["d"], masks["c"]), strict=True):
        np.testing.assert_array_equal(ours, expected)


@real_data
def test_the_real_files_are_read_alike() -> None:
    files = [path for path in DATA.rglob("*.flo") if path.is_file()]
    assert files
    for path in files:
        field, valid = read_flow(path)
        theirs = readers._read_flo(path).transpose(1, 2, 0)
        keep = np.ones(field.shape[:2], bool) if valid is None else valid
        np.testing.assert_array_equal(field[keep], theirs[keep])
