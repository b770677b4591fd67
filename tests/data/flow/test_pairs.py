"""Frame pairs of any data set: left-behind files, sizes, labels, configs."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import DataConfig, SampleDataset
from data.files.flow_formats.flo import write_flo
from data.files.images import write_image
from data.flow.flying_chairs import FlyingChairsConfig
from data.flow.kitti import KittiConfig
from data.flow.middlebury import MiddleburyConfig
from data.flow.pairs import FlowPair, FlowPairs
from data.flow.scene_flow import DrivingConfig, FlyingThingsConfig, MonkaaConfig
from data.flow.sintel import SintelConfig
from data.types import DataError
from mtsp.config import ConfigError, parse
from tests.data.flow.files import (
    HEIGHT,
    WIDTH,
    chairs,
    flow,
    gray,
    kitti,
    made,
    monkaa,
    sintel,
    things,
    write_chairs,
    write_film,
    write_kitti,
    write_sintel,
)


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
        with pytest.raises(FileNotFoundError, match=rf"no .* at {root}: .*; see docs"):
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
