"""Monkaa, Driving and FlyingThings3D: pairs, splits, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.files.flow_formats.pfm import write_pfm
from data.flow.scene_flow import DRIVING_VAL, MONKAA_VAL, DrivingConfig
from data.types import MissingDataError
from tests.data.flow.files import HEIGHT, NONE, WIDTH, first, flow, monkaa, things, write_film


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
    with pytest.raises(MissingDataError, match=r"all_unused_files\.txt: no such file"):
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
