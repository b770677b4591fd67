"""Odd data sets as people have them: each gives the numbers worked out here, or is refused or warned about by name."""

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data import DataConfig
from data.files.flow_formats.flo import write_flo
from data.files.images import write_image
from data.files.masks import write_mask
from data.types import DataError
from mtsp.config import parse
from tests.data.flow.files import made
from tools.score import main

SIZE = (2, 6)
GRAY = np.full((*SIZE, 3), 90, np.uint8)


def row(*ids: int) -> np.ndarray:
    """A mask of two equal rows."""
    return np.array([ids, ids], np.uint8)


def photo(path: Path) -> Path:
    write_image(made(path), GRAY)
    return path


def stored(path: Path, mask: np.ndarray, mode: str | None = None) -> None:
    image = Image.fromarray(mask)
    (image if mode is None else image.convert(mode)).save(made(path))


def build(name: str, **values: Any) -> Any:
    return parse(DataConfig, {"dataset": {"name": name, **values}}).build_dataset()


def own(root: Path, name: str = "mask_folder", **values: Any) -> Any:
    return build(name, frames=str(root / "images"), masks=str(root / "masks"), **values)


def masks_of(dataset: Any) -> list[list[int]]:
    return [dataset[i]["mask"][0].tolist() for i in range(len(dataset))]


def score(folder: Path, *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json", str(folder / "scores.json")]) == 0
    return json.loads((folder / "scores.json").read_text())


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*arguments]) == 1
    said = capsys.readouterr().err
    assert said.count("error: ") == 1
    assert "Traceback" not in said
    return said


TWO: dict[str, Any] = {"classes": ["ground", "road"]}


def test_1_masks_have_a_suffix_of_their_own(tmp_path: Path) -> None:
    for name in ("a", "b_mask"):
        photo(tmp_path / f"images/{name}.jpg")
        stored(tmp_path / f"masks/{name}_mask.png", row(0, 0, 1, 1, 255, 0))
    assert masks_of(own(tmp_path, mask_suffix="_mask", **TWO)) == [[0, 0, 1, 1, 255, 0]] * 2
    with pytest.raises(DataError, match=r"no mask in .* for 2 files \(a\.jpg, b_mask\.jpg\)"):
        own(tmp_path, **TWO)


def test_2_masks_of_one_bit_hold_ids_and_not_0_and_255(tmp_path: Path) -> None:
    photo(tmp_path / "images/a.jpg")
    stored(tmp_path / "masks/a.png", row(0, 255, 255, 0, 0, 0), "1")
    assert masks_of(own(tmp_path, **TWO)) == [[0, 1, 1, 0, 0, 0]]
    assert masks_of(own(tmp_path, "folder", kind="images", classes=2)) == [[0, 1, 1, 0, 0, 0]]


def test_3_masks_in_colors_of_a_tool_are_refused_by_name(tmp_path: Path) -> None:
    photo(tmp_path / "images/a.jpg")
    stored(tmp_path / "masks/a.png", np.full((*SIZE, 3), (128, 0, 0), np.uint8))
    with pytest.raises(DataError, match=r"a\.png: the mask has pixels of kind RGB, which are colors"):
        masks_of(own(tmp_path, **TWO))
    assert masks_of(own(tmp_path, foreground=True, **TWO)) == [[1] * 6]


def test_4_ids_with_gaps_go_where_the_values_say(tmp_path: Path) -> None:
    photo(tmp_path / "images/a.jpg")
    stored(tmp_path / "masks/a.png", row(10, 20, 0, 0, 20, 10))
    with pytest.raises(DataError, match=r"a\.png: the values \[10, 20\] are not in the label map"):
        masks_of(own(tmp_path, **TWO))
    assert masks_of(own(tmp_path, values=[20, 10], unknown=[0], **TWO)) == [[1, 0, 255, 255, 0, 1]]


def test_5_classes_named_in_another_order_than_their_ids_are_scored_by_name(tmp_path: Path) -> None:
    photo(tmp_path / "images/a.jpg")
    stored(tmp_path / "masks/a.png", row(0, 0, 0, 1, 1, 2))
    stored(tmp_path / "found/a.png", row(0, 0, 1, 1, 1, 1))
    where = ["--dataset", "mask_folder", f"frames={tmp_path}/images", f"masks={tmp_path}/masks"]
    found = score(tmp_path, *where, "classes=[sky,tree,pole]", "--predictions", str(tmp_path / "found"))
    assert found["class_iou"] == pytest.approx({"sky": 2 / 3, "tree": 2 / 4, "pole": 0})
    assert found["miou"] == pytest.approx((2 / 3 + 1 / 2) / 3)


def test_6_photos_of_capital_suffixes_and_hidden_copies(tmp_path: Path) -> None:
    for name in ("IMG_1.JPG", "IMG_2.Jpeg", "IMG_10.PNG"):
        photo(tmp_path / f"cat/{name}")
    photo(tmp_path / "__MACOSX/cat/x.jpg")
    made(tmp_path / "cat/._IMG_1.JPG").write_bytes(b"resource fork")
    made(tmp_path / ".ipynb_checkpoints/y.jpg").write_bytes(b"")
    dataset = build("image_folder", root=str(tmp_path))
    assert (dataset.classes, dataset.ids) == (("cat",), ["cat/IMG_1", "cat/IMG_2", "cat/IMG_10"])


@pytest.mark.parametrize("names", [("1.jpg", "1.png"), ("a.JPG", "a.jpg")])
def test_7_two_images_of_one_name_are_refused(tmp_path: Path, names: Sequence[str]) -> None:
    for name in names:
        photo(tmp_path / f"cat/{name}")
    if len(list((tmp_path / "cat").iterdir())) == 2:
        with pytest.raises(DataError, match="keep one of them"):
            build("image_folder", root=str(tmp_path))


def test_8_frames_of_unpadded_numbers_follow_by_number(tmp_path: Path) -> None:
    numbers = (1, 2, 9, 10, 11, 100)
    for n in numbers:
        write_image(made(tmp_path / f"images/walk/shot {n}.png"), np.full((*SIZE, 3), n, np.uint8))
        write_mask(made(tmp_path / f"masks/walk/shot {n}.png"), row(0, 1, 0, 0, 0, 0))
    dataset = own(tmp_path, "folder")
    pairs = [(int(dataset[i]["frame"].max()), int(dataset[i]["next_frame"].max())) for i in range(6)]
    assert pairs == [(1, 2), (2, 9), (9, 10), (10, 11), (11, 100), (100, 100)]


def test_9_accents_are_composed_in_one_folder_and_not_in_the_other(tmp_path: Path) -> None:
    photo(tmp_path / f"images/{unicodedata.normalize('NFD', 'été')}/1.png")
    write_mask(made(tmp_path / f"masks/{unicodedata.normalize('NFC', 'été')}/1.png"), row(0, 1, 1, 0, 0, 0))
    assert masks_of(own(tmp_path, **TWO)) == masks_of(own(tmp_path, "folder")) == [[0, 1, 1, 0, 0, 0]]
    assert own(tmp_path, "folder").ids == ["été/1"]


def test_10_a_name_that_is_not_utf_8_is_refused_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "birds"
    photo(folder / "auk/1.png")
    try:
        photo(folder / b"caf\xe9".decode("utf-8", "surrogateescape") / "1.png")
    except OSError:
        pytest.skip("this disk has no such names")
    with pytest.raises(DataError, match=r"birds: the name 'caf\\udce9.*is not UTF-8; rename it"):
        build("image_folder", root=str(folder))


def birds(root: Path, classes: Sequence[str], count: int = 2) -> list[str]:
    for name in classes:
        for i in range(count):
            photo(root / f"birds/{name}/{i}.png")
    return ["--dataset", "image_folder", "--root", str(root / "birds"), "--predictions", str(root / "labels.csv")]


def test_11_class_names_with_commas_quotes_dots_and_numbers(tmp_path: Path) -> None:
    names = ["001.Auk, great", '2 "Sula"', "10.x", "été"]
    where = birds(tmp_path, names, 1)
    truth = sorted(names)
    cells = ['"' + name.replace('"', '""') + '"' for name in truth]
    named = ['"' + f"{name}/0".replace('"', '""') + '"' for name in truth]
    rows = [f"{named[i]},{cells[i] if i != 2 else cells[0]}" for i in range(4)]
    (tmp_path / "labels.csv").write_text("\ufeffname,prediction\r\n" + "\r\n\r\n".join(rows) + "\r\n", encoding="utf-8")
    found = score(tmp_path, *where)
    assert found["top1"] == 3 / 4
    assert found["accuracy_of_class"] == dict(zip(truth, (1, 1, 0, 1), strict=True))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("name;prediction\nauk/0;auk\nauk/1;auk\n", "the columns are name;prediction; expected at least name and"),
        ("name\tprediction\nauk/0\tauk\nauk/1\tauk\n", "expected at least name and prediction"),
        ("Name,Prediction\nauk/0,auk\nauk/1,auk\n", "expected at least name and prediction"),
        ("name,prediction\nauk/0,Auk\nauk/1,auk\n", "line 2: no class is called 'Auk'; did you mean auk?"),
        ("name,prediction\nauk/0.png,auk\nauk/1.png,auk\n", "2 of 2 images have no prediction: auk/0, auk/1"),
        ("name,prediction\nauk/0,auk,0.9\nauk/1,auk,0.9\n", "line 2: 3 cells, expected 2"),
        ("name,prediction,probability\nauk/0,auk,90\nauk/1,auk,1\n", "line 2: the probability is '90'"),
        ('name,prediction,probability\nauk/0,auk,"0,9"\nauk/1,auk,1\n', "line 2: the probability is '0,9'"),
        ("name,truth,prediction\nauk/0,emu,auk\nauk/1,auk,auk\n", "no class is called 'emu'"),
    ],
)
def test_12_tables_of_spreadsheets_that_cannot_be_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], table: str, message: str
) -> None:
    where = birds(tmp_path, ["auk"])
    (tmp_path / "labels.csv").write_text(table)
    assert message in refused(capsys, *where)


def test_13_a_table_in_another_encoding_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = birds(tmp_path, ["été"])
    for encoding in ("cp1252", "utf-16"):
        (tmp_path / "labels.csv").write_text("name,prediction\nété/0,été\nété/1,été\n", encoding=encoding)
        assert "labels.csv: cannot be read as text" in refused(capsys, *where)


def test_14_a_class_folder_without_images_is_refused_and_a_list_leaves_it_out(tmp_path: Path) -> None:
    birds(tmp_path, ["auk", "emu"])
    (tmp_path / "birds/dodo").mkdir()
    with pytest.raises(DataError, match=r"1 of 3 classes have no images \(dodo\)"):
        build("image_folder", root=str(tmp_path / "birds"))
    (tmp_path / "two.txt").write_bytes("\ufeffemu\r\nauk\t300 images\r\n".encode())
    dataset = build("image_folder", root=str(tmp_path / "birds"), classes=str(tmp_path / "two.txt"))
    assert (dataset.classes, dataset.targets) == (("auk", "emu"), [0, 0, 1, 1])  # in the data set's order


def test_15_a_list_of_labels_with_gaps_and_in_any_order(tmp_path: Path) -> None:
    birds(tmp_path, ["auk", "emu"], 3)
    (tmp_path / "train.txt").write_text("emu/2.png: 40\nauk/0.png: 7\nemu/0.png: 40\n")
    dataset = build("image_folder", root=str(tmp_path / "birds"), list=str(tmp_path / "train.txt"))
    assert (dataset.ids, dataset.targets) == (["emu/2", "auk/0", "emu/0"], [1, 0, 1])
    assert dataset.classes == ("auk", "emu")
    (tmp_path / "train.txt").write_text("emu/2.png 40\n")
    with pytest.raises(DataError, match=r"train\.txt: 'emu/2\.png 40' does not have the form"):
        build("image_folder", root=str(tmp_path / "birds"), list=str(tmp_path / "train.txt"))


def davis(root: Path, sequences: dict[str, list[np.ndarray]], suffix: str = "jpg") -> list[str]:
    for name, masks in sequences.items():
        for i, mask in enumerate(masks):
            photo(root / f"DAVIS/JPEGImages/480p/{name}/{i:05d}.{suffix}")
            write_mask(made(root / f"DAVIS/Annotations/480p/{name}/{i:05d}.png"), mask)
    made(root / "DAVIS/ImageSets/2017/val.txt").write_text("\n".join(sequences) + "\n")
    return ["--dataset", "davis", "--root", str(root / "DAVIS"), "--predictions", str(root / "found")]


def test_16_objects_numbered_1_and_3(tmp_path: Path) -> None:
    truth = row(1, 1, 0, 0, 3, 3)
    where = davis(tmp_path, {"dogs": [truth] * 4})
    for i in (1, 2):
        write_mask(made(tmp_path / f"found/dogs/{i:05d}.png"), row(1, 0, 0, 0, 3, 3))
    found = score(tmp_path, *where, "--objects")
    assert {name: part["J_mean"] for name, part in found["per_object"].items()} == {"dogs_1": 0.5, "dogs_3": 1}
    assert found["J_mean"] == 0.75  # an object 2, which the official code would add with J 1, is in no mask


def test_17_a_sequence_without_an_object_at_first_is_named_and_the_others_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    empty, dog = row(0, 0, 0, 0, 0, 0), row(1, 1, 0, 0, 0, 0)
    where = davis(tmp_path, {"a": [dog] * 3, "late": [empty, dog, dog]})
    write_mask(made(tmp_path / "found/a/00001.png"), row(1, 0, 0, 0, 0, 0))
    write_mask(made(tmp_path / "found/late/00001.png"), dog)
    found = score(tmp_path, *where, "--objects")
    assert (found["objects"], found["J_mean"]) == (1, 0.5)
    assert "1 sequences without an object in their first true mask are not scored: late" in caplog.text


def test_18_a_clip_of_two_frames_has_no_scored_frame(tmp_path: Path) -> None:
    where = davis(tmp_path, {"a": [row(1, 1, 0, 0, 0, 0)] * 3, "short": [row(1, 1, 0, 0, 0, 0)] * 2})
    for name, count in (("a", 3), ("short", 2)):
        for i in range(count):
            write_mask(made(tmp_path / f"found/{name}/{i:05d}.png"), row(1, 0, 0, 0, 0, 0))
    found = score(tmp_path, *where)
    assert found["J_mean"] == 0.5
    assert found["per_sequence"]["short"]["J_mean"] is None


def test_19_frames_that_are_png_and_predictions_named_as_frames(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = davis(tmp_path, {"a": [row(1, 1, 0, 0, 0, 0)] * 3}, "png")
    for i in range(3):
        photo(tmp_path / f"found/a/{i:05d}.jpg")
    assert "3 of 3 predictions are missing: a/00000.png" in refused(capsys, *where)


@pytest.mark.parametrize(
    ("mode", "message"),
    [("RGB", None), ("LA", None), ("JPEG", "the mask is a JPEG"), ("other size", "2x5 pixels, but the truth has 2x6")],
)
def test_20_predicted_masks_of_other_kinds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str, message: str | None
) -> None:
    where = davis(tmp_path, {"a": [row(1, 1, 0, 0, 0, 0)] * 3})
    for i in range(3):
        path = made(tmp_path / f"found/a/{i:05d}.png")
        mask = row(255, 0, 0, 0, 0, 0)
        if mode == "JPEG":
            Image.fromarray(mask).save(path, "JPEG")
        else:
            stored(path, mask[:, :5] if mode == "other size" else mask, mode if len(mode) < 4 else None)
    if message is None:
        assert score(tmp_path, *where)["J_mean"] == 0.5
    else:
        said = refused(capsys, *where)
        assert message in said or "named as a PNG image, but" in said or "not a PNG image" in said
        assert "a/0000" in said


def voc(root: Path, mask: np.ndarray, mode: str | None = None) -> list[str]:
    photo(root / "VOC/JPEGImages/x.jpg")
    stored(root / "VOC/SegmentationClass/x.png", mask, mode)
    made(root / "VOC/ImageSets/Segmentation/val.txt").write_text("x \r\n\r\n")
    return ["--dataset", "pascal_voc", "--root", str(root / "VOC"), "--predictions", str(root / "found")]


def test_21_voc_masks_made_gray_by_a_tool_are_the_ids_and_other_grays_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = voc(tmp_path, row(0, 0, 15, 15, 255, 255))
    stored(tmp_path / "found/x.png", row(0, 15, 15, 15, 15, 15))
    assert score(tmp_path, *where)["miou"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    where = voc(tmp_path, row(0, 0, 147, 147, 220, 220))  # the brightness of VOC's colors
    assert "x.png: the values [147, 220] are not in the label map" in refused(capsys, *where)


def test_22_ade20k_shifted_by_one_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, folder in (("images", "jpg"), ("annotations", "png")):
        made(tmp_path / f"ADE/{kind}/validation/a.{folder}")
    photo(tmp_path / "ADE/images/validation/a.jpg")
    stored(tmp_path / "ADE/annotations/validation/a.png", row(0, 1, 149, 149, 255, 255))
    stored(tmp_path / "found/a.png", row(0, 1, 149, 149, 0, 0))
    where = ["--dataset", "ade20k", "--root", str(tmp_path / "ADE"), "--predictions", str(tmp_path / "found")]
    assert "a.png: the values [255] are not in the label map ade20k" in refused(capsys, *where)


IN_TRAIN = ["00001", "00003"]


@pytest.mark.parametrize(
    ("marks", "ids"),
    [(b"\xef\xbb\xbf1\r\n2\r\n1\r\n\r\n", IN_TRAIN), (b"1 2 1", IN_TRAIN), (b"1\n2\n", None), (b"1\n2\n3\n", None)],
)
def test_23_marks_of_flying_chairs_in_other_forms(tmp_path: Path, marks: bytes, ids: list[str] | None) -> None:
    for n in (1, 2, 3):
        for k in (1, 2):
            photo(tmp_path / f"data/{n:05d}_img{k}.ppm")
        write_flo(tmp_path / f"data/{n:05d}_flow.flo", np.zeros((*SIZE, 2), np.float32))
    (tmp_path / "FlyingChairs_train_val.txt").write_bytes(marks)
    if ids is None:
        with pytest.raises(DataError, match="FlyingChairs_train_val"):
            build("flying_chairs", root=str(tmp_path))
    else:
        assert build("flying_chairs", root=str(tmp_path)).ids == ids


def test_24_predicted_flow_with_axes_swapped_or_unknown_vectors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "Middlebury"
    for frame in ("frame10", "frame11"):
        photo(root / f"other-data/Urban/{frame}.png")
    write_flo(made(root / "other-gt-flow/Urban/flow10.flo"), np.full((*SIZE, 2), (3, 4), np.float32))
    where = ["--dataset", "middlebury", "--root", str(root), "--predictions", str(tmp_path / "found")]
    write_flo(made(tmp_path / "found/Urban.flo"), np.full((*SIZE, 2), (4, 3), np.float32))
    assert score(tmp_path, *where)["epe"] == pytest.approx(2**0.5)
    write_flo(tmp_path / "found/Urban.flo", np.full((SIZE[1], SIZE[0], 2), (3, 4), np.float32))
    assert "6x2 pixels, but the truth has 2x6" in refused(capsys, *where)
    write_flo(tmp_path / "found/Urban.flo", np.zeros((*SIZE, 2), np.float32), np.zeros(SIZE, bool))
    assert "12 vectors are marked unknown; a prediction has all" in refused(capsys, *where)


def test_25_split_lists_with_suffixes_comments_or_other_capitals(tmp_path: Path) -> None:
    for name in ("a", "b"):
        photo(tmp_path / f"images/{name}.jpg")
        stored(tmp_path / f"masks/{name}.png", row(0, 1, 1, 0, 0, 0))
    split = tmp_path / "train.txt"
    for text, names in (("b\r\n\r\na \r\n", ["a", "b"]), ("a.jpg\n", None), ("A\n", None), ("# mine\na\n", None)):
        split.write_text(text)
        if names is None:
            with pytest.raises(DataError, match=r"train\.txt: 1 of \d lines name no example"):
                own(tmp_path, split=str(split), **TWO)
        else:
            assert own(tmp_path, split=str(split), **TWO).ids == names


def test_26_an_animation_among_photos_and_a_photo_of_another_format(tmp_path: Path) -> None:
    birds(tmp_path, ["auk"], 1)
    first, second = (Image.fromarray(np.full((*SIZE, 3), level, np.uint8)) for level in (0, 200))
    first.save(tmp_path / "birds/auk/1.gif", save_all=True, append_images=[second])
    Image.fromarray(GRAY).save(tmp_path / "birds/auk/2.jpg", "PNG")  # as n02105855_2933.jpg of Stanford Dogs
    dataset = build("image_folder", root=str(tmp_path / "birds"))
    assert dataset[2]["frame"].tolist() == GRAY.tolist()
    with pytest.raises(DataError, match=r"1\.gif: 2 images in one file"):
        dataset[1]
