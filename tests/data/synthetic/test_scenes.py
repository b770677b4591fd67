"""Scenes with a context cue: their masks, their layout, and that only context tells twins apart."""

from pathlib import Path

import numpy as np
import pytest

from data import DataConfig
from data.segmentation.pascal_context import CLASSES
from data.segmentation.segmented_images import SegmentedImages
from data.synthetic.scenes import PARTNERS, Scene, ScenesConfig, render_scene, write_scenes
from mtsp.config import ConfigError, parse
from tools.prepare_data import main

CONFIG = ScenesConfig(images=30, height=64, width=96)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render_scene(CONFIG, index) for index in range(CONFIG.images)]


def names_in(scene: Scene) -> set[str]:
    return {CLASSES[value - 1] for value in np.unique(scene.mask)}


def test_twins_occur_with_their_landmark_and_landmarks_alone(scenes: list[Scene]) -> None:
    for index, scene in enumerate(scenes):
        landmark = ("tree", "building", "water")[index % 3]
        twin = {"tree": "cow", "building": "car", "water": "boat"}[landmark]
        assert names_in(scene) <= {"sky", "ground", landmark, twin}
        assert {"sky", "ground"} <= names_in(scene)
    seen = set.union(*map(names_in, scenes))
    assert seen == {"sky", "ground", *PARTNERS, *PARTNERS.values()}


def test_twins_look_alike_and_landmarks_do_not(scenes: list[Scene]) -> None:
    """Mean colors of classes, over scenes: how far apart they are, in units of their spread from scene to scene."""

    def colors(name: str) -> np.ndarray:
        value = CLASSES.index(name) + 1
        return np.array([s.frame[s.mask == value].mean(axis=0) for s in scenes if (s.mask == value).sum() > 20])

    def apart(one: str, other: str) -> float:
        a, b = colors(one), colors(other)
        assert min(len(a), len(b)) >= 5
        spread = np.sqrt((a.var(axis=0) + b.var(axis=0)) / 2)
        return float(np.abs((a.mean(axis=0) - b.mean(axis=0)) / spread).max())

    twins = [apart("cow", "car"), apart("cow", "boat"), apart("car", "boat")]
    landmarks = [apart("tree", "building"), apart("tree", "water"), apart("building", "water")]
    assert max(twins) < 1.5
    assert min(landmarks) > 1.5


def test_a_scene_depends_on_its_number_only(scenes: list[Scene]) -> None:
    again = render_scene(CONFIG, 7)
    np.testing.assert_array_equal(again.frame, scenes[7].frame)
    np.testing.assert_array_equal(again.mask, scenes[7].mask)
    other = render_scene(CONFIG.model_copy(update={"seed": 1}), 7)
    assert not np.array_equal(other.frame, scenes[7].frame)


def test_scenes_are_read_by_the_reader_of_the_real_data(tmp_path: Path) -> None:
    write_scenes(CONFIG.model_copy(update={"images": 5}), tmp_path / "scenes")
    datasets = [
        parse(DataConfig, {"dataset": {"name": "pascal_context", "root": str(tmp_path / "scenes"), "split": split}})
        for split in ("train", "val")
    ]
    train, val = (config.build_dataset() for config in datasets)
    assert isinstance(train, SegmentedImages)
    assert (list(train.ids), list(val.ids)) == ([f"scene-{i:04d}" for i in range(4)], ["scene-0004"])
    sample = train[1]
    scene = render_scene(CONFIG, 1)
    np.testing.assert_array_equal(sample.get("mask"), scene.mask - 1)  # files count from 1
    assert np.abs(sample["frame"].astype(int) - scene.frame).mean() < 12  # a JPEG of it, whose noise is not kept
    assert train.classes == CLASSES


def test_the_command_writes_scenes_and_refuses_a_folder_that_holds_something(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "scenes"
    command = ["synthesize", "pascal_context", "--root", str(root), "--size", "32x48", "images=4"]
    assert main(command) == 0
    assert capsys.readouterr().out == f"{root}: 4 images, 32x48\n"
    assert main(command) == 1
    assert "exists and is not empty" in capsys.readouterr().err
    assert main(["synthesize", "pascal_context", "--root", str(tmp_path / "b"), "--clips", "4"]) == 1
    assert "clips: unknown key" in capsys.readouterr().err


def test_ranges_that_do_not_ascend_are_refused() -> None:
    with pytest.raises(ConfigError, match="twins must be two ascending numbers, at least 0, got 3 and 1"):
        parse(ScenesConfig, {"twins": [3, 1]})
    with pytest.raises(ConfigError, match=r"size must be two ascending numbers, at least 0\.02, got 0\.0 and 0\.2"):
        parse(ScenesConfig, {"size": [0, 0.2]})
