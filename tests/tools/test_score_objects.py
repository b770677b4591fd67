"""Stored masks of several objects, by the rules of DAVIS 2017: numbers, files, and what the program refuses."""

import csv
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from data.files.images import write_image
from data.files.masks import read_foreground, write_mask
from mtsp.evaluation.metrics_by_kind import VideoObjects
from mtsp.evaluation.scores import scores_of, without_frames
from tools.score import main as run

DATA = Path(os.environ.get("MTSP_DATA", ""))
real_data = pytest.mark.skipif("MTSP_DATA" not in os.environ, reason="MTSP_DATA names no folder of real data")

WIDTH = 20

Frames = Sequence[tuple[np.ndarray, np.ndarray | None]]
"""The true mask of each frame, and the predicted one or None."""


def mask(*columns: int) -> np.ndarray:
    """Object i + 1 is the first `columns[i]` pixels of rows 4 i + 1 to 4 i + 3."""
    result = np.zeros((4 * len(columns) + 1, WIDTH), np.uint8)
    for i, count in enumerate(columns):
        result[4 * i + 1 : 4 * i + 4, :count] = i + 1
    return result


def davis(folder: Path, sequences: Mapping[str, Frames], lists: str) -> list[str]:
    """Write frames of (truth, prediction) as DAVIS has them, and name the sequences in a list; return the arguments."""
    root, predictions = folder / "DAVIS", folder / "predictions"
    for sequence, frames in sequences.items():
        for kind in (root / "JPEGImages/480p", root / "Annotations/480p", predictions):
            (kind / sequence).mkdir(parents=True)
        for i, (truth, predicted) in enumerate(frames):
            write_image(root / f"JPEGImages/480p/{sequence}/{i:05d}.jpg", np.zeros((*truth.shape, 3), np.uint8))
            write_mask(root / f"Annotations/480p/{sequence}/{i:05d}.png", truth)
            if predicted is not None:
                write_mask(predictions / f"{sequence}/{i:05d}.png", predicted)
    (root / "ImageSets" / lists).mkdir(parents=True)
    (root / "ImageSets" / lists / "val.txt").write_text("".join(f"{name}\n" for name in sequences))
    return ["--dataset", "davis", "--root", str(root), "--predictions", str(predictions)]


@pytest.fixture
def videos(tmp_path: Path) -> list[str]:
    """`a` has two objects, in the middle one and a third; `b` has one. First and last frames are not predicted."""
    a = [
        (mask(10, 10, 0), None),
        (mask(10, 10, 10), mask(5, 0, 0)),
        (mask(10, 0, 10), mask(10, 0, 0)),
        (mask(10, 10, 0), None),
    ]
    b = [(mask(10), None), (mask(10), mask(2)), (mask(10), None)]
    return davis(tmp_path, {"a": a, "b": b}, "2017")


def scored(arguments: list[str], folder: Path) -> dict:
    assert run([*arguments, "--json", str(folder / "scores.json")]) == 0
    return json.loads((folder / "scores.json").read_text())


def test_each_object_has_its_own_numbers_and_all_weigh_the_same(
    videos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    found = scored([*videos, "--objects", "--csv", str(tmp_path / "scores.csv")], tmp_path)
    assert found["objects"] == 3
    assert found["per_object"]["a_1"]["J"] == [0.5, 1.0]
    assert found["per_object"]["a_2"]["J"] == [0.0, 1.0]  # not predicted at all; then in neither mask
    assert found["per_object"]["a_2"]["F"] == [0.0, 1.0]
    assert found["per_object"]["b_1"]["J"] == [0.2]
    assert found["per_object"]["b_1"]["frames"] == ["00001"]
    assert found["per_sequence"]["a"]["J"] == [0.25, 1.0]
    assert found["J_mean"] == pytest.approx((0.75 + 0.5 + 0.2) / 3)  # over objects, not over sequences
    assert found["JF_mean"] == pytest.approx((found["J_mean"] + found["F_mean"]) / 2)
    rows = {row["sequence"]: row for row in csv.DictReader((tmp_path / "scores.csv").open())}
    assert list(rows) == ["a", "a_1", "a_2", "b", "b_1", "all"]
    assert [float(rows[name]["J_mean"]) for name in ("a", "a_2", "b_1")] == [0.625, 0.5, 0.2]
    printed = capsys.readouterr()
    assert "mean over objects" in printed.out
    assert "a_2" in printed.out
    assert "objects that are not in the first true mask are not scored" in caplog.text
    assert "a (3); --objects all scores them" in caplog.text


def test_a_long_table_leaves_out_the_objects_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = [(mask(4, 4), mask(4, 4))] * 3
    arguments = davis(tmp_path, {f"s{i:02d}": frames for i in range(21)}, "2017")
    scored([*arguments, "--objects"], tmp_path)
    printed = capsys.readouterr().out
    assert "s20 " in printed
    assert "s20_1" not in printed  # 21 sequences and 42 objects are more than 60 rows
    assert "each of the 42 objects: --csv or --json" in printed


def test_an_object_belongs_to_the_sequence_before_its_last_underscore(tmp_path: Path) -> None:
    frames = {"a": [(mask(4, 4), mask(4, 4))] * 3, "a_1": [(mask(4), mask(2))] * 3}
    scored([*davis(tmp_path, frames, "2017"), "--objects", "--csv", str(tmp_path / "scores.csv")], tmp_path)
    rows = [(row["sequence"], row["J_mean"]) for row in csv.DictReader((tmp_path / "scores.csv").open())]
    assert rows[:3] == [("a", "1.0"), ("a_1", "1.0"), ("a_2", "1.0")]
    assert rows[3:5] == [("a_1", "0.5"), ("a_1_1", "0.5")]


def test_every_frame_counts_when_asked_for(videos: list[str], tmp_path: Path) -> None:
    for sequence, last in (("a", 3), ("b", 2)):
        for i in (0, last):
            write_mask(tmp_path / f"predictions/{sequence}/{i:05d}.png", mask(*((10, 10, 0) if last == 3 else (10,))))
    found = scored([*videos, "--objects", "--every-frame"], tmp_path)
    assert found["every_frame"] is True
    assert found["per_object"]["a_1"]["J"] == [1.0, 0.5, 1.0, 1.0]
    assert found["per_object"]["b_1"]["J"] == [1.0, 0.2, 1.0]
    assert scored([*videos, "--every-frame"], tmp_path)["per_sequence"]["b"]["J"] == [1.0, 0.2, 1.0]


def test_an_object_that_appears_later_is_scored_from_then_on_when_all_are_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Object 2 is there from frame 2 of 0 to 5. It is predicted by half in frame 2, not at all in frame 3, whole in 4.
    truth = [mask(10, 0), mask(10, 0), mask(10, 10), mask(10, 10), mask(10, 10), mask(10, 10)]
    predicted = [None, mask(10, 0), mask(10, 5), mask(10, 0), mask(10, 10), None]
    arguments = davis(tmp_path, {"a": list(zip(truth, predicted, strict=True))}, "2017")
    found = scored([*arguments, "--objects", "all"], tmp_path)
    assert found["per_object"]["a_2"]["frames"] == ["00002", "00003", "00004"]
    assert found["per_object"]["a_2"]["J"] == [0.5, 0.0, 1.0]
    assert found["per_object"]["a_1"]["J"] == [1.0] * 4
    assert found["J_mean"] == pytest.approx((1 + 0.5) / 2)
    assert found["per_sequence"]["a"]["J"] == [1.0, 0.75, 0.5, 1.0]  # one object in frame 1, then two
    assert not [record for record in caplog.records if record.name.startswith("mtsp")]
    by_the_rules = scored([*arguments, "--objects"], tmp_path)  # object 2 is allowed in predictions, and not scored
    assert by_the_rules["per_object"].keys() == {"a_1"}
    assert by_the_rules["J_mean"] == 1
    assert "a (2); --objects all" in caplog.text


def test_a_sequence_without_an_object_in_its_first_mask_is_skipped_with_its_name(
    videos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_mask(tmp_path / "DAVIS/Annotations/480p/b/00000.png", mask(0))
    found = scored([*videos, "--objects"], tmp_path)
    assert found["J_mean"] == pytest.approx((0.75 + 0.5) / 2)  # of a, as before
    assert "1 sequences without an object in their first true mask are not scored: b\n" in caplog.text
    for i in range(4):
        write_mask(tmp_path / f"DAVIS/Annotations/480p/a/{i:05d}.png", mask(0, 0, 0))
        write_mask(tmp_path / f"predictions/a/{i:05d}.png", mask(0, 0, 0))
    assert run([*videos, "--objects"]) == 1
    assert "no sequence can be scored: the first true mask of each, such as a, has no object" in capsys.readouterr().err


def test_a_frame_that_is_unknown_everywhere_does_not_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    void = np.full_like(mask(10), 255)
    frames = [(mask(10), None), (void, mask(10)), (mask(10), mask(5)), (mask(10), None)]
    arguments = davis(tmp_path, {"a": frames}, "2017")
    found = scored([*arguments, "--objects"], tmp_path)
    assert found["per_object"]["a_1"]["frames"] == ["00002"]
    assert found["J_mean"] == 0.5  # with the unknown frame it would be 0.75
    assert "1 of 4 examples have no known pixel in their true mask and count for nothing: a/00001" in caplog.text


def test_unknown_pixels_count_for_nothing(tmp_path: Path) -> None:
    truth, predicted = mask(10), mask(10)
    truth[1, 5:15] = 255  # five of the object and five beside it
    predicted[1, :15] = 1
    found = scored([*davis(tmp_path, {"a": [(truth, predicted)] * 3}, "480p"), "--objects"], tmp_path)
    assert found["J_mean"] == found["F_mean"] == 1


def test_the_lists_of_2017_are_looked_for_first_with_objects_and_last_without(
    videos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "DAVIS/ImageSets/2016").mkdir()
    (tmp_path / "DAVIS/ImageSets/2016/val.txt").write_text("b\n")
    assert list(scored([*videos, "--objects"], tmp_path)["per_sequence"]) == ["a", "b"]
    for i in (0, 2):
        write_mask(tmp_path / f"predictions/b/{i:05d}.png", mask(10))
    capsys.readouterr()
    assert list(scored(videos, tmp_path)["per_sequence"]) == ["b"]
    assert capsys.readouterr().err == ""  # b has one object


def test_several_objects_that_are_scored_as_one_are_noted(
    videos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for sequence, i in (("a", 0), ("a", 3), ("b", 0), ("b", 2)):
        write_mask(tmp_path / f"predictions/{sequence}/{i:05d}.png", mask(*((1, 1, 1) if sequence == "a" else (1,))))
    found = scored(videos, tmp_path)
    assert found["per_sequence"]["a"]["J"] == [5 / 30, 10 / 20]
    assert "per_object" not in found
    said = capsys.readouterr().err
    assert said == "note: several objects were scored as one in 1 of 2 sequences, as a; --objects scores each\n"


def test_masks_of_your_own_videos_are_scored_by_object(videos: list[str], tmp_path: Path) -> None:
    folders = [
        f"{key}={tmp_path}/DAVIS/{kind}/480p" for key, kind in (("frames", "JPEGImages"), ("masks", "Annotations"))
    ]
    found = scored(["--dataset", "folder", *videos[4:], *folders, "--objects"], tmp_path)
    assert found["per_object"]["a_1"]["J"] == [0.5, 1.0]
    assert found["J_mean"] == scored([*videos, "--objects"], tmp_path)["J_mean"]


def test_objects_of_your_own_videos_are_read_by_color_from_sorted_palettes(videos: list[str], tmp_path: Path) -> None:
    arguments = ["--dataset", "folder", "--predictions", str(tmp_path / "predictions"), "--objects"]
    arguments += [f"frames={tmp_path}/DAVIS/JPEGImages/480p", f"masks={tmp_path}/DAVIS/Annotations/480p"]
    before = scored(arguments, tmp_path)["per_object"]
    for path in (tmp_path / "predictions/a").iterdir():  # indices 1 and 2, and their colors, change places
        Image.open(path).remap_palette([0, 2, 1, *range(3, 256)]).save(path)
    assert scored(arguments, tmp_path)["per_object"] == before
    for path in (tmp_path / "DAVIS/Annotations/480p/a").iterdir():
        Image.open(path).remap_palette([0, 2, 1, *range(3, 256)]).save(path)
    assert scored(arguments, tmp_path)["per_object"] == before


def binary_truth(root: Path) -> None:
    for path in (root / "DAVIS/Annotations/480p/a").iterdir():
        Image.fromarray(np.where(mask(4, 4, 4) > 0, 255, 0).astype(np.uint8)).save(path)


@pytest.mark.parametrize(
    ("change", "extra", "message"),
    [
        (
            lambda p: write_mask(p / "predictions/a/00001.png", np.vstack([mask(5, 0, 1)[:-1], 4 * mask(1)[1:2]])),
            [],
            "a/00001.png: an object 4, but the true masks of its sequence have the objects 1, 2, 3\n",
        ),
        (
            lambda p: write_mask(p / "predictions/b/00001.png", 255 * mask(5)),
            [],
            "b/00001.png: an object 255; --objects needs the number of each object",
        ),
        (
            binary_truth,
            [],
            "a/00000: the first true mask of its sequence contains only 0 and 255 (unknown); leave out --objects",
        ),
        (lambda p: (p / "predictions/a/00002.png").unlink(), [], "1 of 3 predictions are missing: a/00002.png"),
        (lambda p: None, ["--every-frame"], "4 of 7 predictions are missing: a/00000.png, a/00003.png, b/00000.png"),
        (
            lambda p: write_mask(p / "predictions/b/00001.png", mask(5)[:-1]),
            [],
            "b/00001.png: 4x20 pixels, but the truth has 5x20",
        ),
    ],
)
def test_what_cannot_be_scored_by_object_is_named(
    videos: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], None],
    extra: list[str],
    message: str,
) -> None:
    change(tmp_path)
    assert run([*videos, "--objects", *extra]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--objects", "folder: --objects needs masks that number the objects (davis, or folder with masks"),
        ("--every-frame", "--objects and --every-frame need videos with masks; leave them out"),
    ],
)
def test_data_without_masks_of_objects_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, message: str
) -> None:
    write_image(tmp_path / "0.png", np.zeros((4, 4, 3), np.uint8))
    assert run(["--dataset", "folder", "--predictions", str(tmp_path), f"frames={tmp_path}", option]) == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")


def official(truths: np.ndarray, predictions: np.ndarray) -> dict[str, dict[str, list[float]]]:
    """J, F and statistics of each object of THW masks, by the steps of the semi-supervised evaluation of 2017.

    As many objects as the highest number in the first frame; all frames but the first and last; whole images and
    `cv2.dilate`; quarters cut in 8 bits.
    """
    radius = math.ceil(0.008 * np.linalg.norm(truths.shape[1:]))
    ys, xs = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = (xs**2 + ys**2 <= radius**2).astype(np.uint8)
    found: dict[str, dict[str, list[float]]] = {}
    for number in range(1, int(truths[0].max()) + 1):
        pairs = [(truth == number, mask == number) for truth, mask in zip(truths, predictions, strict=True)][1:-1]
        values = {
            "J": [float((a & b).sum() / (a | b).sum()) if (a | b).any() else 1.0 for a, b in pairs],
            "F": [official_boundary(a, b, disk) for a, b in pairs],
        }
        for key in "JF":
            numbers = np.array(values[key])
            cuts = (np.round(np.linspace(1, len(numbers), 5) + 1e-10) - 1).astype(np.uint8)
            quarters = [numbers[cuts[i] : cuts[i + 1] + 1] for i in range(4)]
            decay = np.mean(quarters[0]) - np.mean(quarters[3])
            values[f"{key}_stats"] = [float(np.mean(numbers)), float(np.mean(numbers > 0.5)), float(decay)]
        found[str(number)] = values
    return found


def official_boundary(truth: np.ndarray, prediction: np.ndarray, disk: np.ndarray) -> float:
    edges = []
    for one in (truth, prediction):
        right, below, across = (np.zeros_like(one) for _ in range(3))
        right[:, :-1], below[:-1], across[:-1, :-1] = one[:, 1:], one[1:], one[1:, 1:]
        edge = (one ^ right) | (one ^ below) | (one ^ across)
        edge[-1], edge[:, -1], edge[-1, -1] = one[-1] ^ right[-1], one[:, -1] ^ below[:, -1], False
        edges.append(edge)
    theirs, ours = edges
    near_theirs, near_ours = (cv2.dilate(edge.astype(np.uint8), disk).astype(bool) for edge in edges)
    if not ours.any() or not theirs.any():
        return float(ours.any() == theirs.any())
    precision, recall = (ours & near_theirs).sum() / ours.sum(), (theirs & near_ours).sum() / theirs.sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


@real_data
def test_real_masks_cut_into_objects_have_the_numbers_of_the_official_steps(tmp_path: Path) -> None:
    """The only real masks at hand have one object: its left, its middle and its right, by the truth, are three."""
    expected, sequences = {}, {}
    for folder in sorted((DATA / "davis_evaluation/predictions").iterdir()):
        files = sorted((DATA / "DAVIS/Annotations/480p" / folder.name).glob("*.png"))
        pairs = [(read_foreground(file), read_foreground(folder / file.name)) for file in files]
        columns = np.flatnonzero(pairs[0][0].any(axis=0))
        number = 1 + np.digitize(np.arange(854), np.quantile(columns, (0.3, 0.6))).astype(np.uint8)  # where it began
        cut = [(truth * number, predicted * number) for truth, predicted in pairs]
        sequences[folder.name] = cut
        expected[folder.name] = official(*(np.stack(side) for side in zip(*cut, strict=True)))
    found = scored([*davis(tmp_path, sequences, "2017"), "--objects"], tmp_path)
    assert found["objects"] == 4 * 3
    every = [values for objects in expected.values() for values in objects.values()]
    for sequence, objects in expected.items():
        for number, values in objects.items():
            ours = found["per_object"][f"{sequence}_{number}"]
            assert (ours["J"], ours["F"]) == (values["J"], values["F"])
    for key in "JF":
        ours = [found[f"{key}_{name}"] for name in ("mean", "recall", "decay")]
        assert ours == pytest.approx(np.mean([values[f"{key}_stats"] for values in every], axis=0), abs=1e-12)


def test_a_video_of_two_frames_is_in_no_mean_and_is_named() -> None:
    metric, mask = VideoObjects(), np.ones((1, 4, 4), np.uint8)
    for name in ("a/0", "a/1", "b/0", "b/1", "b/2"):  # of a, both are first or last
        metric.update([name], mask, {"mask": mask})
    (scores,) = scores_of([metric])
    assert without_frames(scores) == ["a"]
    assert scores.values["objects"] == 1
    assert scores.values["J_mean"] == 1
    every = VideoObjects(every_frame=True)
    every.update(["a/0"], mask, {"mask": mask})
    assert without_frames(scores_of([every])[0]) == []
