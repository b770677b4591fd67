"""The flow data sets, each in its published layout with tiny frames, and the real samples."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from data import DataConfig, SampleDataset
from data.files.flow_formats import write_flo, write_kitti_flow, write_pfm
from data.files.images import write_image
from data.files.masks import write_mask
from data.flow.flying_chairs import FlyingChairsConfig
from data.flow.kitti import KittiConfig
from data.flow.middlebury import MiddleburyConfig
from data.flow.pairs import FlowPair, FlowPairs
from data.flow.scene_flow import DRIVING_VAL, MONKAA_VAL, DrivingConfig, FlyingThingsConfig, MonkaaConfig
from data.flow.sintel import VAL_SCENES, SintelConfig
from data.types import DataError, MissingDataError
from mtsp.config import ConfigError, parse
from mtsp.types import Sample

DATA = Path(os.environ.get("MTSP_DATA", ""))
real_data = pytest.mark.skipif("MTSP_DATA" not in os.environ, reason="MTSP_DATA names no folder of real data")
HEIGHT, WIDTH = 4, 6
NONE: np.ndarray = np.zeros((0, 0, 0), bool)


def gray(level: int) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), level, np.uint8)


def flow(dx: float) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 2), (dx, 0), np.float32)


def made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def first(sample: Sample) -> tuple[int, int, float]:
    """The gray level of both frames and the horizontal flow."""
    both = sample["frame"], sample.get("next_frame", np.zeros((1, 1, 1)))
    return int(both[0][0, 0, 0]), int(both[1][0, 0, 0]), float(sample.get("flow", np.zeros((1, 1, 2)))[0, 0, 0])


# FlyingChairs


def write_chairs(root: Path, numbers: Sequence[int], marks: str) -> Path:
    for number in numbers:
        write_image(made(root / "data" / f"{number:05d}_img1.ppm"), gray(number))
        write_image(root / "data" / f"{number:05d}_img2.ppm", gray(number + 100))
        write_flo(root / "data" / f"{number:05d}_flow.flo", flow(number))
    (root / "FlyingChairs_train_val.txt").write_text("\n".join(marks) + "\n")
    return root


def chairs(root: Path, **options: Any) -> SampleDataset:
    return FlyingChairsConfig(name="flying_chairs", root=root, **options).build()


def test_line_n_of_the_chairs_list_is_pair_number_n(tmp_path: Path) -> None:
    write_chairs(tmp_path, [1, 2, 3, 4], "1211")
    assert chairs(tmp_path).ids == ["00001", "00003", "00004"]
    assert chairs(tmp_path, split="val").ids == ["00002"]
    assert len(chairs(tmp_path, split="all")) == 4
    assert first(chairs(tmp_path)[1]) == (3, 103, 3.0)
    assert "flow_valid" not in chairs(tmp_path)[1]


def test_a_part_of_the_chairs_with_the_full_list_keeps_its_numbers(tmp_path: Path) -> None:
    write_chairs(tmp_path, [2, 5], "12112")
    assert chairs(tmp_path, split="val").ids == ["00002", "00005"]  # lines 2 and 5, not 1 and 2


def test_a_part_of_the_chairs_with_a_list_of_its_own_goes_by_order(tmp_path: Path) -> None:
    write_chairs(tmp_path, [50, 7, 64], "121")
    assert chairs(tmp_path).ids == ["00007", "00064"]
    (tmp_path / "FlyingChairs_train_val.txt").write_text("1\n2\n")
    with pytest.raises(DataError, match=r"2 lines fit neither the number of the last pair, 00064, nor 3 pairs"):
        chairs(tmp_path)


def test_the_chairs_are_found_below_the_folder_they_were_unpacked_in(tmp_path: Path) -> None:
    write_chairs(tmp_path / "FlyingChairs_release", [1, 2], "12")
    assert len(chairs(tmp_path)) == 1
    (tmp_path / "FlyingChairs_release" / "FlyingChairs_train_val.txt").rename(tmp_path / "FlyingChairs_train_val.txt")
    assert len(chairs(tmp_path)) == 1


def test_missing_chairs_are_named_and_a_wrong_list_is_refused(tmp_path: Path) -> None:
    write_chairs(tmp_path, [1, 2, 3], "113")
    with pytest.raises(DataError, match=r"each line is 1 \(train\) or 2 \(val\), got '3'"):
        chairs(tmp_path)
    (tmp_path / "FlyingChairs_train_val.txt").write_text("1\n1\n1\n")
    with pytest.raises(DataError, match="no examples in what was asked for"):
        chairs(tmp_path, split="val")
    (tmp_path / "data" / "00002_img2.ppm").unlink()
    (tmp_path / "data" / "00003_flow.flo").unlink()
    with pytest.raises(MissingDataError, match=r"2 files \(data/00002_img2\.ppm, data/00003_flow\.flo\) missing"):
        chairs(tmp_path)
    (tmp_path / "FlyingChairs_train_val.txt").unlink()
    with pytest.raises(DataError, match="use split=all"):
        chairs(tmp_path)


# Scene Flow


def write_film(root: Path, sequence: str, numbers: Sequence[int], cameras: Sequence[str] = ("left", "right")) -> None:
    """Frame n is gray level n (clean) or n + 100 (final), flow into the future n and into the past -n."""
    for camera in cameras:
        for n in numbers:
            write_image(made(root / "frames_cleanpass" / sequence / camera / f"{n:04d}.png"), gray(n))
            write_image(made(root / "frames_finalpass" / sequence / camera / f"{n:04d}.png"), gray(n + 100))
            for direction, sign in {"Future": 1, "Past": -1}.items():
                folder = root / "optical_flow" / sequence / f"into_{direction.lower()}" / camera
                file = made(folder / f"OpticalFlowInto{direction}_{n:04d}_{camera[0].upper()}.pfm")
                write_pfm(file, np.dstack([flow(sign * n), np.full((HEIGHT, WIDTH), 9, np.float32)]))


def monkaa(root: Path, **options: Any) -> SampleDataset:
    return MonkaaConfig(name="monkaa", root=root, **options).build()


def things(root: Path, **options: Any) -> SampleDataset:
    return FlyingThingsConfig(name="flying_things", root=root, **options).build()


def test_monkaa_pairs_follow_the_direction_of_the_flow(tmp_path: Path) -> None:
    write_film(tmp_path, "eating_x2", [5, 6, 7])  # a film that does not start at 1
    both = monkaa(tmp_path, passes=["clean"])
    assert both.ids == [
        "clean/into_future/left/eating_x2/0005",
        "clean/into_future/left/eating_x2/0006",
        "clean/into_past/left/eating_x2/0006",
        "clean/into_past/left/eating_x2/0007",
    ]  # 0007 has no future and 0005 no past, though both have the file
    assert [first(both[i]) for i in range(4)] == [(5, 6, 5.0), (6, 7, 6.0), (6, 5, -6.0), (7, 6, -7.0)]
    final = monkaa(tmp_path, passes=["final"], directions=["into_future"], cameras=["right"])
    assert final.ids[0] == "final/into_future/right/eating_x2/0005"
    assert first(final[0]) == (105, 106, 5.0)
    assert len(monkaa(tmp_path, cameras=["left", "right"])) == 2 * 2 * 2 * 2


def test_flow_that_no_frame_could_have_is_unknown(tmp_path: Path) -> None:
    write_film(tmp_path, "eating_x2", [1, 2])
    values = np.dstack([flow(1), np.zeros((HEIGHT, WIDTH), np.float32)])
    values[0, 1, 0] = 1e10
    folder = tmp_path / "optical_flow" / "eating_x2" / "into_future" / "left"
    write_pfm(folder / "OpticalFlowIntoFuture_0001_L.pfm", values)
    labels = monkaa(tmp_path, passes=["clean"], directions=["into_future"]).labels(0)
    known = labels.get("flow_valid", NONE)
    assert np.argwhere(~known).tolist() == [[0, 1]]
    assert labels.get("flow", np.ones(1))[0, 1].tolist() == [0, 0]


def test_monkaas_val_scenes_are_those_named_and_never_trained_on(tmp_path: Path) -> None:
    for scene in ["eating_x2", "lonetree_x2", *MONKAA_VAL]:
        write_film(tmp_path / "monkaa", scene, [1, 2], cameras=["left"])

    def scenes(split: str) -> set[str]:
        return {name.split("/")[3] for name in monkaa(tmp_path, split=split).ids}

    assert scenes("val") == MONKAA_VAL
    assert scenes("train") == {"eating_x2", "lonetree_x2"}
    assert scenes("all") == scenes("train") | scenes("val")


def test_of_scenes_with_names_of_their_own_the_last_eighth_is_val(tmp_path: Path) -> None:
    for number in range(1, 10):
        write_film(tmp_path, f"clip-{number}", [1, 2], cameras=["left"])
    val = monkaa(tmp_path, split="val", passes=["clean"], directions=["into_past"])
    assert val.ids == [f"clean/into_past/left/clip-{number}/0002" for number in (8, 9)]  # 9 / 8, rounded up


def test_driving_has_three_folders_to_a_sequence_and_holds_out_one_drive(tmp_path: Path) -> None:
    for sequence in ["15mm_focallength/scene_forwards/fast", "35mm_focallength/scene_forwards/slow", *DRIVING_VAL]:
        write_film(tmp_path, sequence, [1, 2], cameras=["left"])
    options: dict[str, Any] = {"passes": ["clean"], "directions": ["into_future"]}
    train = DrivingConfig(name="driving", root=tmp_path, **options).build()
    val = DrivingConfig(name="driving", root=tmp_path, split="val", **options).build()
    assert train.ids[0] == "clean/into_future/left/15mm_focallength/scene_forwards/fast/0001"
    assert {"/".join(name.split("/")[3:6]) for name in val.ids} == DRIVING_VAL
    assert (len(train), len(val)) == (2, 2)


def test_flying_things_is_split_as_published_and_can_skip_unused_frames(tmp_path: Path) -> None:
    write_film(tmp_path, "TRAIN/A/0000", [6, 7, 8, 9])
    write_film(tmp_path, "TEST/B/0001", [6, 7])
    options: dict[str, Any] = {"passes": ["clean"], "directions": ["into_future"]}
    assert things(tmp_path, split="val", **options).ids == ["clean/into_future/left/TEST/B/0001/0006"]
    assert len(things(tmp_path, **options)) == 3
    with pytest.raises(MissingDataError, match=r"all_unused_files\.txt: no such split file"):
        things(tmp_path, skip_unused=True, **options)
    (tmp_path / "all_unused_files.txt").write_text("TRAIN/A/0000/left/0009.png\nTRAIN/A/0000/right/0009.png\n")
    kept = things(tmp_path, skip_unused=True, **options).ids  # 8 -> 9 shows the unused frame too
    assert [name[-4:] for name in kept] == ["0006", "0007"]


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("frames_cleanpass/eating_x2/left/0002.png", r"frames_cleanpass/eating_x2/left/0002\.png"),
        ("frames_cleanpass/eating_x2/left/0003.png", r"frames_cleanpass/eating_x2/left/0003\.png"),
        ("optical_flow/eating_x2/into_past/left/OpticalFlowIntoPast_0002_L.pfm", r"OpticalFlowIntoPast_0002_L\.pfm"),
    ],
)
def test_a_file_missing_from_a_film_is_named(tmp_path: Path, lost: str, named: str) -> None:
    write_film(tmp_path, "eating_x2", [1, 2, 3])
    (tmp_path / lost).unlink()
    with pytest.raises(MissingDataError, match=named):
        monkaa(tmp_path)


def test_a_camera_that_was_not_unpacked_is_an_error(tmp_path: Path) -> None:
    write_film(tmp_path, "eating_x2", [1, 2], cameras=["left"])
    with pytest.raises(MissingDataError, match=r"neither frames in .*eating_x2/right nor flow"):
        monkaa(tmp_path, cameras=["left", "right"])


# Sintel, KITTI, Middlebury


def write_sintel(root: Path, scene: str, count: int) -> None:
    for n in range(1, count + 1):
        for which in ("clean", "final"):
            write_image(made(root / "training" / which / scene / f"frame_{n:04d}.png"), gray(n))
        if n < count:
            write_flo(made(root / "training" / "flow" / scene / f"frame_{n:04d}.flo"), flow(n))


def sintel(root: Path, **options: Any) -> SampleDataset:
    return SintelConfig(name="sintel", root=root, **options).build()


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


def write_kitti(root: Path, count: int) -> None:
    valid = np.zeros((HEIGHT, WIDTH), bool)
    valid[2:] = True
    for n in range(count):
        for suffix, level in {"10": n, "11": n + 100}.items():
            write_image(made(root / "training" / "image_2" / f"{n:06d}_{suffix}.png"), gray(level))
        for kind, known in {"occ": valid, "noc": np.roll(valid, 1, axis=0)}.items():
            write_kitti_flow(made(root / "training" / f"flow_{kind}" / f"{n:06d}_10.png"), flow(n), known)


def kitti(root: Path, **options: Any) -> SampleDataset:
    return KittiConfig(name="kitti", root=root, **options).build()


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


def test_middlebury_masks_unknown_flow_and_lists_pairs_without_it_on_request(tmp_path: Path) -> None:
    for scene in ("Urban2", "Walking"):
        for n in (10, 11):
            write_image(made(tmp_path / "other-data" / scene / f"frame{n}.png"), gray(n))
    known = np.ones((HEIGHT, WIDTH), bool)
    known[0, 3] = False
    write_flo(made(tmp_path / "other-gt-flow" / "Urban2" / "flow10.flo"), flow(4), known)
    val = MiddleburyConfig(name="middlebury", root=tmp_path).build()
    assert val.ids == ["Urban2"]
    assert first(val[0]) == (10, 11, 4.0)
    np.testing.assert_array_equal(val[0].get("flow_valid"), known)
    every = MiddleburyConfig(name="middlebury", root=tmp_path, split="all").build()
    assert every.ids == ["Urban2", "Walking"]
    assert set(every[1]) == {"name", "frame", "next_frame"}
    assert set(every.labels(1)) == {"name"}


# What all share


def test_what_programs_left_in_the_folders_is_no_pair(tmp_path: Path, litter: Callable[[Path], None]) -> None:
    write_chairs(tmp_path / "chairs", [1, 2], "12")
    write_film(tmp_path / "monkaa", "eating_x2", [1, 2])
    write_film(tmp_path / "things", "TRAIN/A/0000", [6, 7])
    write_sintel(tmp_path / "sintel", "alley_1", 3)
    write_kitti(tmp_path / "kitti", 3)
    for n in (10, 11):
        write_image(made(tmp_path / "middlebury/other-data/Urban2" / f"frame{n}.png"), gray(n))
    write_flo(made(tmp_path / "middlebury/other-gt-flow/Urban2/flow10.flo"), flow(4))
    sets: list[Callable[[], SampleDataset]] = [
        partial(chairs, tmp_path / "chairs", split="all"),
        partial(monkaa, tmp_path / "monkaa"),
        partial(things, tmp_path / "things"),
        partial(sintel, tmp_path / "sintel"),
        partial(kitti, tmp_path / "kitti"),
        MiddleburyConfig(name="middlebury", root=tmp_path / "middlebury", split="all").build,
    ]
    before = [list(build().ids) for build in sets]
    litter(tmp_path)
    assert [list(build().ids) for build in sets] == before
    assert [len(names) for names in before] == [2, 4, 4, 4, 2, 1]


def test_flow_of_another_size_than_its_frame_names_both(tmp_path: Path) -> None:
    write_chairs(tmp_path, [1], "1")
    write_flo(tmp_path / "data" / "00001_flow.flo", np.zeros((5, WIDTH, 2), np.float32))
    with pytest.raises(DataError, match=r"00001_flow\.flo has 5x6 pixels, but .*00001_img1\.ppm has 4x6"):
        chairs(tmp_path)[0]


def test_labels_need_no_frame(tmp_path: Path) -> None:
    write_chairs(tmp_path, [1], "1")
    dataset = chairs(tmp_path)
    (tmp_path / "data" / "00001_img1.ppm").write_bytes(b"P6 damaged")
    assert set(dataset.labels(0)) == {"name", "flow"}
    with pytest.raises(DataError, match=r"00001_img1\.ppm"):
        dataset[0]


def test_two_examples_of_one_name_are_refused(tmp_path: Path) -> None:
    pair = FlowPair("a", tmp_path / "a.png", tmp_path / "b.png", None)
    with pytest.raises(DataError, match="1 examples are listed twice, the first a"):
        FlowPairs("pairs", tmp_path, [pair, pair])


@pytest.mark.parametrize(
    "config",
    [FlyingChairsConfig, MonkaaConfig, DrivingConfig, FlyingThingsConfig, SintelConfig, KittiConfig, MiddleburyConfig],
)
def test_a_root_that_is_not_there_is_an_error_at_once(tmp_path: Path, config: Any) -> None:
    name = config.model_fields["name"].annotation.__args__[0]
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=rf"no .* at {root}: .*; see README"):
            config(name=name, root=root).build()


def test_a_data_set_is_chosen_by_its_name_in_a_config(tmp_path: Path) -> None:
    write_chairs(tmp_path, range(1, 8), "1111112")
    values = {"dataset": {"name": "flying_chairs", "root": str(tmp_path)}, "limit": 3, "size": [8, 12]}
    config = parse(DataConfig, values)
    assert config.build_dataset().ids == ["00001", "00003", "00005"]  # every second of six
    example = config.build()[1]
    assert tuple(example["frame"].shape) == (3, 8, 12)
    assert [tuple(example[key].shape) for key in ("flow",) if key in example] == [(2, HEIGHT, WIDTH)]  # native
    assert config.build_dataset().labels(2)["name"] == "00005"
    with pytest.raises(ConfigError, match="did you mean flying_chairs"):
        parse(DataConfig, {"dataset": {"name": "flying_chair", "root": "x"}})


# Real samples


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
