"""Adaptation to the first frame of a video."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.files.images import write_image
from data.files.masks import read_mask, write_mask
from mtsp.config import load, parse
from tools.adapt import ADAPTATION, main
from tools.adaptation.first_frame import AdaptConfig, Adapter, Video
from tools.build import AnyExperiment

QUICK = ["steps=2", "batch_size=2"]
L2SP = "regularizer={name: l2sp, alpha: 1.0, beta: 0.0}"  # the shipped time constant needs more steps


def masks(out: Path) -> dict[str, np.ndarray]:
    return {path.relative_to(out).as_posix(): read_mask(path) for path in sorted(out.rglob("*.png"))}


def test_no_mask_but_the_first_reaches_the_network(small_network: list[str], synthetic: Path, tmp_path: Path) -> None:
    davis = tmp_path / "DAVIS"
    shutil.copytree(synthetic / "DAVIS", davis)
    command = [*small_network, "--data", "davis", "--root", str(davis), *QUICK, L2SP]
    assert main([*command, "--out", str(tmp_path / "a"), "--json", str(tmp_path / "a.json")]) == 0
    before = masks(tmp_path / "a")
    changed = 0
    for name in before:
        path = davis / "Annotations/480p" / name
        if not name.endswith("/00000.png"):
            write_mask(path, np.where(before[name] == 1, 255, 0).astype(np.uint8))  # as if the prediction were right
            changed += 1
    assert changed
    assert main([*command, "--out", str(tmp_path / "b"), "--json", str(tmp_path / "b.json")]) == 0
    after = masks(tmp_path / "b")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    scores = [json.loads((tmp_path / f"{name}.json").read_text()) for name in "ab"]
    assert scores[0]["J_mean"] != scores[1]["J_mean"]  # the score saw the masks
    assert scores[0]["seconds"].keys() == scores[0]["per_sequence"].keys()


def test_the_first_mask_stays_and_every_object_is_followed(small_network: list[str], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "frames").mkdir()
    for index in range(3):
        write_image(tmp_path / f"frames/{index}.png", rng.integers(0, 256, (64, 96, 3), dtype=np.uint8))
    first = np.zeros((64, 96), np.uint8)
    first[:32, :40], first[40:, 50:], first[:, 90:] = 1, 2, 255
    write_mask(tmp_path / "first.png", first)
    command = [
        *small_network,
        "--frames",
        str(tmp_path / "frames"),
        "--first-mask",
        str(tmp_path / "first.png"),
        "--objects",
    ]
    assert main([*command, "--out", str(tmp_path / "out"), *QUICK, "regularizer={name: none}"]) == 0
    found = masks(tmp_path / "out")
    assert list(found) == ["0.png", "1.png", "2.png"]
    assert np.array_equal(found["0.png"], first)
    assert set(np.unique(found["2.png"])) <= {0, 1, 2}


def test_one_sequence_of_a_data_set_can_be_named(small_network: list[str], synthetic: Path, tmp_path: Path) -> None:
    davis = synthetic / "DAVIS"
    name = (davis / "ImageSets/480p/train.txt").read_text().split()[0].split("/")[3]
    command = [*small_network, "--data", "davis", "--root", str(davis), "--split", "train", "--sequences", name]
    assert main([*command, "--out", str(tmp_path / "out"), "steps=0", L2SP]) == 0
    assert {path.rpartition("/")[0] for path in masks(tmp_path / "out")} == {name}


def test_steps_teach_the_object_and_a_strong_pull_holds_the_weights(small_network: list[str]) -> None:
    """With alpha = 1 / lr, each step begins with the pull back to the anchor: one step of Adam, lr, remains of ten."""
    rng = np.random.default_rng(1)
    mask = np.zeros((64, 96), np.uint8)
    mask[16:48, 24:72] = 1
    frame = np.where(mask[..., None] == 1, [220, 40, 40], rng.integers(0, 90, (64, 96, 3))).astype(np.uint8)
    video = Video("red", ["0", "1"], lambda index: {"name": str(index), "frame": frame, "next_frame": frame}, mask)
    experiment = load(AnyExperiment, small_network[1])

    def adapted(steps: int, regularizer: dict[str, Any]) -> tuple[float, float]:
        values = {"steps": steps, "optimizer": {"name": "adam", "lr": 0.01}, "regularizer": regularizer}
        adapter = Adapter(experiment, small_network[3], parse(AdaptConfig, values))
        predicted = adapter.follow(video)[1] == 1
        start, now = adapter._start, adapter._pretrained.model.state_dict()
        name = "segmentation.head.predict.weight"
        shared = float((predicted & (mask == 1)).sum() / (predicted | (mask == 1)).sum())
        return shared, float((now[name] - start[name]).abs().max())

    free, moved = adapted(25, {"name": "none"})
    assert free > 0.8
    assert moved > 0.02
    assert adapted(0, {"name": "none"})[1] == 0
    assert adapted(10, {"name": "l2sp", "alpha": 100.0, "beta": 0.0})[1] < 0.0101


def test_the_shipped_settings_are_read() -> None:
    config = load(AdaptConfig, ADAPTATION)
    assert config.steps > 0
    assert config.regularizer.name == "l2sp"


def test_mistakes_are_told_in_one_line(
    small_network: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "frames").mkdir()
    write_image(tmp_path / "frames/0.png", np.zeros((64, 96, 3), np.uint8))
    write_mask(tmp_path / "first.png", np.zeros((32, 48), np.uint8))
    command = [*small_network, "--frames", str(tmp_path / "frames"), "--first-mask", str(tmp_path / "first.png")]
    assert main([*command, "--out", str(tmp_path / "out"), L2SP]) == 1
    assert "first.png is 48x32, the first frame 0 is 96x64: a mask has the size of its frame" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path), L2SP]) == 1
    assert "is not an empty folder" in capsys.readouterr().err
