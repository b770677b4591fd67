"""Which frames belong to one video, and in which order: sequences in folders, frame names of any form."""

import json
from pathlib import Path

import numpy as np
import pytest

from data import DataConfig
from data.catalog.verify import verify
from data.files.images import write_image
from data.files.masks import write_mask
from data.types import DataError
from mtsp.config import parse
from mtsp.metrics import DavisMeasure
from tools.score import main

SIZE = (6, 8)


def clip(root: Path, name: str, frames: int, level: int = 0) -> None:
    for i in range(frames):
        for kind in ("JPEGImages", "Annotations"):
            (root / kind / "480p" / name).mkdir(parents=True, exist_ok=True)
        write_image(root / f"JPEGImages/480p/{name}/{i:05d}.png", np.full((*SIZE, 3), level + i, np.uint8))
        mask = np.zeros(SIZE, np.uint8)
        mask[:2, : 2 + level // 100] = 1
        write_mask(root / f"Annotations/480p/{name}/{i:05d}.png", mask)


@pytest.fixture(params=["a line per sequence", "a line per frame"])
def nested(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """As YouTube-Objects: aeroplane/0001 of 6 frames and boat/0001 of 4, 10 in all."""
    root = tmp_path / "objects"
    clips = {"aeroplane/0001": 6, "boat/0001": 4}
    lines = []
    for place, (name, frames) in enumerate(clips.items()):
        clip(root, name, frames, 100 * place)
        images = [f"480p/{name}/{i:05d}" for i in range(frames)]
        per_frame = [f"/JPEGImages/{image}.png /Annotations/{image}.png" for image in images]
        lines += per_frame if "frame" in request.param else [name]
    (root / "ImageSets/2016").mkdir(parents=True)
    for split in ("train", "val"):
        (root / f"ImageSets/2016/{split}.txt").write_text("\n".join(lines))
    return root


def names_of(dataset: object) -> list[str]:
    return list(getattr(dataset, "ids", None) or getattr(dataset, "names", ()))


def test_sequences_in_folders_are_named_by_their_path(nested: Path) -> None:
    dataset = parse(DataConfig, {"dataset": {"name": "davis", "root": str(nested)}}).build_dataset()
    expected = [f"aeroplane/0001/{i:05d}" for i in range(6)] + [f"boat/0001/{i:05d}" for i in range(4)]
    assert names_of(dataset) == expected
    levels = [
        [int(raw["frame"].mean()), int(np.mean(raw.get("next_frame", 0)))]
        for raw in map(dataset.__getitem__, range(10))
    ]
    assert levels[4:8] == [[4, 5], [5, 5], [100, 101], [101, 102]]
    assert [int(np.sum(dataset.labels(i).get("mask", 0))) for i in (5, 6)] == [4, 6]


def test_nested_sequences_are_scored_each(nested: Path, tmp_path: Path) -> None:
    # aeroplane is predicted as it is: J 1. Of boat's 2 x 3 pixels 2 x 2 are predicted: J 4 / 6.
    for name, frames in {"aeroplane/0001": 6, "boat/0001": 4}.items():
        (tmp_path / "saved" / name).mkdir(parents=True)
        for i in range(frames):
            mask = np.zeros(SIZE, np.uint8)
            mask[:2, :2] = 1
            write_mask(tmp_path / f"saved/{name}/{i:05d}.png", mask)
    arguments = ["--dataset", "davis", "--root", str(nested), "--predictions", str(tmp_path / "saved")]
    assert main([*arguments, "--json", str(tmp_path / "scores.json")]) == 0
    found = json.loads((tmp_path / "scores.json").read_text())
    assert found["per_sequence"]["aeroplane/0001"]["J"] == [1.0] * 4
    assert found["per_sequence"]["boat/0001"]["J"] == pytest.approx([4 / 6] * 2)
    assert found["J_mean"] == pytest.approx((1 + 4 / 6) / 2)


def test_verify_reads_nested_sequences_and_names_a_damaged_frame_by_its_path(nested: Path) -> None:
    # Both splits list all 10 frames.
    assert verify("davis", nested, published=False)[:2] == ({"train": 10, "val": 10}, [])
    counted = verify("davis", nested).problems
    assert "train: aeroplane/0001 has 6 frames, published are 0" in counted
    assert "train: boat/0001 has 4 frames, published are 0" in counted
    (nested / "JPEGImages/480p/boat/0001/00002.png").write_bytes(b"no image")
    problems = verify("davis", nested, published=False).problems
    assert len(problems) == 2  # one of each split
    assert all("480p/boat/0001/00002.png: not a PNG image" in problem for problem in problems)


def test_one_name_for_two_frames_is_refused(tmp_path: Path) -> None:
    clip(tmp_path, "a", 2)
    (tmp_path / "JPEGImages/1080p").symlink_to(tmp_path / "JPEGImages/480p")
    (tmp_path / "Annotations/1080p").symlink_to(tmp_path / "Annotations/480p")
    (tmp_path / "ImageSets/480p").mkdir(parents=True)
    lines = [f"/JPEGImages/{r}/a/00000.png /Annotations/{r}/a/00000.png" for r in ("480p", "1080p")]
    (tmp_path / "ImageSets/480p/train.txt").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"a/00000.*twice"):
        parse(DataConfig, {"dataset": {"name": "davis", "root": str(tmp_path)}}).build_dataset()


ORDERS = [
    (["frame2", "frame10", "frame1"], ["frame1", "frame2", "frame10"]),
    (["00010", "00009"], ["00009", "00010"]),
    (["0.2", "0.1", "0.15"], ["0.1", "0.15", "0.2"]),
    (["-1", "1", "0", "-2"], ["-2", "-1", "0", "1"]),
    (["-0.5", "0.25", "-1.5", "10.0"], ["-1.5", "-0.5", "0.25", "10.0"]),
    (["t1.5", "t1.25", "t10.0"], ["t1.25", "t1.5", "t10.0"]),
    (["1305031102.175304", "1305031102.043289"], ["1305031102.043289", "1305031102.175304"]),
    (["b9", "a10"], ["a10", "b9"]),
    (["clip_1-2", "clip_1-10"], ["clip_1-2", "clip_1-10"]),
]


@pytest.mark.parametrize(("given", "expected"), ORDERS, ids=lambda names: names[0])
def test_frames_follow_each_other_by_their_numbers(tmp_path: Path, given: list[str], expected: list[str]) -> None:
    for name in given:
        write_image(tmp_path / f"{name}.png", np.full((*SIZE, 3), 10 * expected.index(name), np.uint8))
    dataset = parse(DataConfig, {"dataset": {"name": "folder", "frames": str(tmp_path)}}).build_dataset()
    assert names_of(dataset) == expected
    assert int(np.mean(dataset[0].get("next_frame", 0))) == 10


@pytest.mark.parametrize(("given", "expected"), ORDERS, ids=lambda names: names[0])
def test_scores_leave_out_the_first_and_the_last_frame_of_the_same_order(given: list[str], expected: list[str]) -> None:
    davis = DavisMeasure()
    for name in given:
        davis.update(f"clip/{name}", np.ones(SIZE, np.uint8), np.ones(SIZE, np.uint8))
    assert davis.per_sequence()["clip"]["frames"] == expected[1:-1]


@pytest.mark.parametrize("names", [["1.9", "1.10", "1.2"], ["t-1", "t1", "t0"]])
def test_names_that_can_be_read_in_two_orders_are_refused(tmp_path: Path, names: list[str]) -> None:
    # 1.9 before 1.10 as chapter and section, after it as a decimal; t-1 is before t0 or a name with a hyphen.
    for name in names:
        write_image(tmp_path / f"{name}.png", np.zeros((*SIZE, 3), np.uint8))
    with pytest.raises(DataError, match=r"order.*(1\.10|t-1)"):
        parse(DataConfig, {"dataset": {"name": "folder", "frames": str(tmp_path)}}).build_dataset()
