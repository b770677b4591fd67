"""DAVIS in the layouts that people have it in, with tiny frames."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.files.images import write_image
from data.files.listing import inside
from data.files.masks import write_mask
from data.types import DataError, MissingDataError
from data.video.davis import Davis, DavisConfig

DATA = Path(os.environ.get("MTSP_DATA", ""))
real_data = pytest.mark.skipif("MTSP_DATA" not in os.environ, reason="MTSP_DATA names no folder of real data")
SIZE = (6, 8)


def davis(root: Path, **options: Any) -> Davis:
    return DavisConfig(name="davis", root=root, **options).build()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """`train` is bear (3 frames) and surf (2), `val` is dog (2). Frame number n of any clip is all 10 * n gray."""
    for sequence, count in {"bear": 3, "surf": 2, "dog": 2}.items():
        for number in range(count):
            frame = tmp_path / "JPEGImages" / "480p" / sequence / f"{number:05d}.jpg"
            mask = tmp_path / "Annotations" / "480p" / sequence / f"{number:05d}.png"
            for path in (frame, mask):
                path.parent.mkdir(parents=True, exist_ok=True)
            write_image(frame, np.full((*SIZE, 3), 10 * number, np.uint8))
            Image.fromarray(np.pad(np.full((2, 3), 255, np.uint8), ((0, 4), (number, 5 - number)))).save(mask)
    lists(tmp_path, train=per_frame("bear", 3) + per_frame("surf", 2), val=per_frame("dog", 2))
    return tmp_path


def per_frame(sequence: str, count: int) -> str:
    names = [f"480p/{sequence}/{number:05d}" for number in range(count)]
    return "".join(
        f"/JPEGImages/{name}.jpg /Annotations/{name}.png \n" for name in names
    )  # as released, with the blank


def lists(root: Path, folder: str = "480p", **splits: str) -> None:
    (root / "ImageSets" / folder).mkdir(parents=True, exist_ok=True)
    for split, text in splits.items():
        (root / "ImageSets" / folder / f"{split}.txt").write_text(text)


def test_a_frame_comes_with_the_next_of_its_sequence_and_the_last_with_itself(root: Path) -> None:
    dataset = davis(root)
    assert dataset.ids == ["bear/00000", "bear/00001", "bear/00002", "surf/00000", "surf/00001"]
    pairs = [(sample["frame"], sample.get("next_frame", np.empty(0))) for sample in (dataset[i] for i in range(5))]
    levels = [[int(frame.mean()), int(following.mean())] for frame, following in pairs]
    assert levels == [[0, 10], [10, 20], [20, 20], [0, 10], [10, 10]]
    assert dataset[-1]["name"] == "surf/00001"
    with pytest.raises(IndexError):
        dataset[5]


def test_a_mask_is_one_where_the_file_is_not_zero(root: Path) -> None:
    sample = davis(root)[1]
    expected = np.zeros(SIZE, np.uint8)
    expected[:2, 1:4] = 1  # 255 in the file
    np.testing.assert_array_equal(sample.get("mask"), expected)
    assert sample["frame"].shape == (*SIZE, 3)


def test_rgba_indexed_and_empty_masks_are_read(root: Path) -> None:
    masks = root / "Annotations" / "480p" / "bear"
    ids = np.zeros(SIZE, np.uint8)
    ids[0, :2] = 1, 2  # two objects of DAVIS 2017
    gray = np.minimum(ids, 1) * 255
    Image.fromarray(np.dstack([gray, gray, gray, np.full(SIZE, 255, np.uint8)])).save(masks / "00000.png")
    write_mask(masks / "00001.png", ids)
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(masks / "00002.png")
    dataset = davis(root)
    assert [int(dataset.labels(i).get("mask", ids).sum()) for i in range(3)] == [2, 2, 0]


def test_labels_are_read_without_the_frame(root: Path) -> None:
    dataset = davis(root)
    (root / "JPEGImages" / "480p" / "bear" / "00000.jpg").write_bytes(b"\xff\xd8\xff cut")
    labels = dataset.labels(0)
    assert set(labels) == {"name", "mask"}
    assert labels["name"] == "bear/00000"
    with pytest.raises(DataError, match=r"bear/00000\.jpg"):
        dataset[0]


@pytest.mark.parametrize("folder", ["480p", "2016", "2017"])
def test_a_split_may_name_sequences_instead_of_frames(root: Path, folder: str) -> None:
    expected = davis(root).ids
    (root / "ImageSets" / "480p" / "train.txt").unlink()
    lists(root, folder, train="surf\nbear\n\n")
    assert davis(root).ids == expected


def test_trainval_without_a_file_is_train_and_val(root: Path) -> None:
    assert davis(root, split="trainval").ids == sorted(davis(root).ids + davis(root, split="val").ids)
    lists(root, trainval=per_frame("dog", 1))
    assert davis(root, split="trainval").ids == ["dog/00000"]


def test_sequences_can_be_chosen_and_a_wrong_one_is_named(root: Path) -> None:
    assert davis(root, sequences=("surf",)).ids == ["surf/00000", "surf/00001"]
    with pytest.raises(DataError, match=r"train has no dog; it has \['bear', 'surf'\]"):
        davis(root, sequences=("surf", "dog"))


def test_the_next_frame_can_be_left_out(root: Path) -> None:
    assert set(davis(root, next_frame=False)[0]) == {"name", "frame", "mask"}


@pytest.mark.parametrize("style", ["frames", "sequences"])
@pytest.mark.parametrize("kind", ["JPEGImages", "Annotations"])
def test_missing_frames_and_masks_are_counted_before_anything_is_decoded(root: Path, style: str, kind: str) -> None:
    if style == "sequences":
        lists(root, train="bear\nsurf\n")
    for path in sorted((root / kind / "480p" / "bear").iterdir())[:2]:
        path.unlink()
    with pytest.raises(MissingDataError, match=rf"2 files \({kind}/480p/bear/00000\.\w+, {kind}/480p/bear/00001"):
        davis(root)


def test_only_the_first_ten_missing_files_are_listed(root: Path) -> None:
    lists(root, train=per_frame("bear", 3 + 6))  # 6 frames and 6 masks more than there are
    with pytest.raises(MissingDataError) as error:
        davis(root)
    assert "12 files (" in str(error.value)
    assert str(error.value).count("bear/0000") == 10


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_split_is_refused(root: Path, text: str) -> None:
    lists(root, train=text)
    with pytest.raises(DataError, match=r"480p/train\.txt: the split is empty"):
        davis(root)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("/JPEGImages/480p/../../../x/00000.jpg /Annotations/480p/x/00000.png", "is not a path inside"),
        ("../x", "is not a path inside"),
        ("..\\x", "is not a path inside"),
        ("eel", "'eel' names no sequence"),
        ("/JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/00001.png", "are not a frame and its mask"),
        ("/etc/passwd /etc/passwd", "etc/passwd"),  # a leading slash is the root of the data set: no such file
    ],
)
def test_a_line_that_names_nothing_inside_the_root_is_refused(root: Path, line: str, reason: str) -> None:
    lists(root, train=per_frame("bear", 3) + line + "\n")
    with pytest.raises(DataError, match=reason):
        davis(root)


def test_a_link_that_leaves_the_root_is_refused(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (root / "JPEGImages" / "480p" / "eel").symlink_to(elsewhere)
    lists(root, train="eel\n")
    with pytest.raises(DataError, match="leads out of"):
        davis(root)
    (elsewhere / "DAVIS").symlink_to(root)
    assert len(davis(elsewhere / "DAVIS", split="val")) == 2  # the root itself may be a link


def test_a_link_inside_is_followed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert inside(tmp_path, "/b/x.jpg", tmp_path / "list.txt") == tmp_path / "b" / "x.jpg"


def test_a_mask_of_another_size_is_an_error_that_names_both(root: Path) -> None:
    path = root / "Annotations" / "480p" / "bear" / "00000.png"
    Image.fromarray(np.zeros((5, 8), np.uint8)).save(path)
    with pytest.raises(DataError, match=r"bear/00000\.png has 5x8 pixels, but .*bear/00000\.jpg has 6x8"):
        davis(root)[0]


def test_a_root_that_is_not_davis_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected JPEGImages/480p inside it; see docs"):
        davis(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere: there is no such folder"):
        davis(tmp_path / "nowhere")


def test_another_resolution_is_pointed_at(root: Path) -> None:
    with pytest.raises(MissingDataError, match="has 480p, not 1080p; set resolution"):
        davis(root, resolution="1080p")


def test_no_list_says_where_it_was_looked_for(root: Path) -> None:
    (root / "ImageSets" / "480p" / "val.txt").unlink()
    with pytest.raises(DataError, match=r"no val\.txt in ImageSets/480p, ImageSets/2016 or ImageSets/2017"):
        davis(root, split="val")


@real_data
def test_the_real_training_set_has_the_published_counts() -> None:
    dataset = davis(DATA / "DAVIS-216p", resolution="216p")
    assert len(dataset) == 2079
    assert len({name.partition("/")[0] for name in dataset.ids}) == 30
    assert len(davis(DATA / "DAVIS-216p", resolution="216p", split="val")) == 200
    sample = dataset[0]
    assert sample["frame"].shape == (216, 384, 3)
    assert np.unique(dataset.labels(0).get("mask")).tolist() == [0, 1]  # pyright: ignore[reportArgumentType, reportCallIssue]


@real_data
def test_the_real_empty_mask_is_read() -> None:
    dataset = davis(DATA / "DAVIS")
    sample = dataset[dataset.ids.index("surf/00054")]
    assert sample["frame"].shape == (480, 854, 3)
    assert not sample.get("mask", np.ones(1)).any()


def test_a_sequence_has_several_objects_if_its_first_mask_numbers_them(root: Path) -> None:
    ids = np.zeros(SIZE, np.uint8)
    ids[0, :3] = 1, 2, 255  # unknown pixels are no object
    write_mask(root / "Annotations/480p/surf/00000.png", ids)
    assert davis(root).several_objects() == ["surf"]  # bear's are 0 and 255
    Image.fromarray(np.pad(np.array([[1, 7, 90]], np.uint8), ((0, 5), (0, 5)))).save(
        root / "Annotations/480p/surf/00000.png"
    )
    assert davis(root).several_objects() == []  # gray values at a soft edge
    Image.fromarray(np.zeros((*SIZE, 4), np.uint8)).save(root / "Annotations/480p/surf/00000.png")
    assert davis(root).several_objects() == []  # as bear/00077


def test_the_numbers_of_the_objects_are_kept_where_they_are_asked_for(root: Path) -> None:
    ids = np.zeros(SIZE, np.uint8)
    ids[0, :3] = 1, 2, 255
    write_mask(root / "Annotations/480p/surf/00000.png", ids)
    config = DavisConfig(name="davis", root=root, sequences=("surf",))
    (merged, numbered) = (Davis(config, objects=objects).labels(0) for objects in (False, True))
    assert np.array_equal(merged.get("mask", ids), ids > 0)
    assert np.array_equal(numbered.get("mask", ids > 0), ids)
