"""The published data sets of labeled images, as trees on disk: read as torchvision does, where it can."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision import datasets

from data import DataConfig, DataError, LabeledImages
from data.catalog.datasets import DATASETS
from data.catalog.verify import verify
from data.classification.labeled_images import read_classes
from data.files.images import write_image
from data.files.list_files import read_lines, read_names
from mtsp.config import ConfigError, parse

scipy_io = pytest.importorskip("scipy.io")


def image(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, np.full((4, 6, 3), value, np.uint8))


def read(name: str, root: Path, **values: Any) -> LabeledImages:
    config = parse(DataConfig, {"dataset": {"name": name, "root": str(root), **values}}).dataset
    built = config.build()
    assert isinstance(built, LabeledImages)
    return built


def pairs(images: LabeledImages) -> list[tuple[Path, int]]:
    return [(image.path, image.label) for image in images.images]


def cell(words: list[str]) -> np.ndarray:
    """Text as MATLAB keeps it: a column of cells."""
    return np.array(words, dtype=object).reshape(-1, 1)


def test_flowers_are_those_of_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "flowers-102"
    for number in range(1, 105):
        image(root / "jpg" / f"image_{number:05d}.jpg")
    labels = np.array([[*range(1, 103), 5, 102]])
    scipy_io.savemat(root / "imagelabels.mat", {"labels": labels})
    ids = {"trnid": np.arange(1, 52), "valid": np.arange(52, 103), "tstid": np.array([104, 103])}
    scipy_io.savemat(root / "setid.mat", {key: value[None] for key, value in ids.items()})
    monkeypatch.setattr(datasets.Flowers102, "_check_integrity", lambda self: True)  # by checksums of the real files
    for split in ("val", "test"):
        theirs: Any = datasets.Flowers102(tmp_path, split=split)
        ours = read("flowers102", tmp_path, split=split)
        assert pairs(ours) == list(zip(theirs._image_files, theirs._labels, strict=True))
        assert list(ours.classes) == theirs.classes
    whole = read("flowers102", tmp_path)  # train and val
    assert len(whole) == 102
    with pytest.raises(DataError, match="51 of 102 classes have no images"):
        read("flowers102", tmp_path, split="train")


def test_aircraft_are_those_of_torchvision(tmp_path: Path) -> None:
    root = tmp_path / "fgvc-aircraft-2013b" / "data"
    for name in ("0034309", "0034958", "1"):
        image(root / "images" / f"{name}.jpg")
    for level, names in (("variant", ("707-320", "F/A-18 A")), ("manufacturer", ("Boeing", "McDonnell Douglas"))):
        plural = f"{level}s"
        (root / f"{plural}.txt").write_text("\n".join(names) + "\n")
        rows = f"0034958 {names[1]}\n0034309 {names[0]}\n"
        (root / f"images_{level}_trainval.txt").write_text(rows)
        theirs: Any = datasets.FGVCAircraft(tmp_path, annotation_level=level)
        ours = read("aircraft", tmp_path, level=level)
        assert pairs(ours) == list(zip(map(Path, theirs._image_files), theirs._labels, strict=True))
        assert list(ours.classes) == theirs.classes
    (root / "images_variant_test.txt").write_text("1 Concorde\n")
    with pytest.raises(
        DataError, match=r"images_variant_test.txt: 1 has class 'Concorde', which is not in variants.txt"
    ):
        read("aircraft", tmp_path, split="test")


@pytest.fixture
def cars(tmp_path: Path) -> Path:
    root = tmp_path / "stanford_cars"
    (root / "devkit").mkdir(parents=True)
    scipy_io.savemat(root / "devkit/cars_meta.mat", {"class_names": np.array(["AM Hummer", "BMW M3"], dtype=object)})
    kind = [("bbox_x1", "O"), ("class", "O"), ("fname", "O")]
    rows = np.array([(5, 2, "00001.jpg"), (5, 1, "00002.jpg")], dtype=kind)
    scipy_io.savemat(root / "devkit/cars_train_annos.mat", {"annotations": rows})
    scipy_io.savemat(root / "cars_test_annos_withlabels.mat", {"annotations": rows[::-1]})
    for file in ("cars_train/00001.jpg", "cars_train/00002.jpg", "cars_test/00001.jpg", "cars_test/00002.jpg"):
        image(root / file)
    return tmp_path


def test_cars_are_those_of_torchvision(cars: Path) -> None:
    for split in ("train", "test"):
        theirs: Any = datasets.StanfordCars(cars, split=split)
        ours = read("stanford_cars", cars, split=split)
        assert [(str(path), label) for path, label in pairs(ours)] == theirs._samples
        assert list(ours.classes) == theirs.classes
    assert read("stanford_cars", cars, split="test").ids == ["cars_test/00002", "cars_test/00001"]


def test_cars_are_found_where_mirrors_pack_them(cars: Path) -> None:
    root = cars / "stanford_cars"
    (root / "cars_train").rename(root / "moved")
    (root / "cars_train").mkdir()
    (root / "moved").rename(root / "cars_train" / "cars_train")
    assert [path.exists() for path, _ in pairs(read("stanford_cars", cars))] == [True, True]


def test_wrong_mat_files_are_said_in_one_line(cars: Path) -> None:
    devkit = cars / "stanford_cars" / "devkit"
    scipy_io.savemat(devkit / "cars_meta.mat", {"class_names": np.array(["AM Hummer"], dtype=object)})
    with pytest.raises(DataError, match=r"00001.jpg has class 2, but cars_meta.mat has 1 classes"):
        read("stanford_cars", cars)
    scipy_io.savemat(devkit / "cars_meta.mat", {"names": 1})
    with pytest.raises(DataError, match="has no variable 'class_names'; it holds names"):
        read("stanford_cars", cars)
    (devkit / "cars_meta.mat").write_bytes(b"not MATLAB at all, but long enough to look for a header" * 9)
    with pytest.raises(DataError, match="cannot be read as a MATLAB file"):
        read("stanford_cars", cars)


def test_mat_files_without_scipy_say_what_to_install(cars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(DataError, match=r"cars_meta.mat is a MATLAB file; to read it: pip install mtsp\[mat\]"):
        read("stanford_cars", cars)


def test_a_byte_order_mark_is_no_part_of_a_list(tmp_path: Path) -> None:
    where = tmp_path / "list.txt"
    where.write_bytes("\ufeff# a comment\nduck\n".encode())
    assert read_classes(where) == ["duck"]
    where.write_bytes("\ufeffduck 1\n".encode())
    assert read_names(where) == ["duck 1"]
    assert read_lines(where) == [["duck", "1"]]


def test_food_is_that_of_torchvision(tmp_path: Path) -> None:
    root = tmp_path / "food-101"
    files = {"waffles": ["waffles/7", "waffles/8"], "apple_pie": ["apple_pie/1"]}
    for path in (path for paths in files.values() for path in paths):
        image(root / "images" / f"{path}.jpg")
    (root / "meta").mkdir()
    (root / "meta/train.json").write_text(json.dumps(files))
    theirs: Any = datasets.Food101(tmp_path)
    ours = read("food101", tmp_path)
    assert sorted(pairs(ours)) == sorted(zip(theirs._image_files, theirs._labels, strict=True))
    assert ours.classes == ("apple_pie", "waffles")
    (root / "meta/train.json").write_text('{"waffles": ["apple_pie/1"]}')
    with pytest.raises(DataError, match="apple_pie/1 is listed as class 'waffles', but lies in another folder"):
        read("food101", tmp_path)
    (root / "meta/train.json").write_text('{"waffles": ')
    with pytest.raises(DataError, match=r"train.json: cannot be read as JSON"):
        read("food101", tmp_path)


def test_lists_from_windows_are_read(tmp_path: Path) -> None:
    """With a byte order mark, CRLF, blanks at the ends of lines and blank lines."""
    image(tmp_path / "food" / "images" / "apple_pie" / "1.jpg")
    (tmp_path / "food" / "meta").mkdir()
    (tmp_path / "food" / "meta" / "train.json").write_bytes(b'\xef\xbb\xbf{"apple_pie":\r\n["apple_pie/1"]}\r\n')
    assert read("food101", tmp_path / "food").ids == ["apple_pie/1"]
    data = tmp_path / "aircraft" / "data"
    image(data / "images" / "7.jpg")
    (data / "variants.txt").write_bytes(b"\xef\xbb\xbfF/A-18 A \r\n\r\n")
    (data / "images_variant_trainval.txt").write_bytes(b"\xef\xbb\xbf7  F/A-18 A\r\n \r\n")
    aircraft = read("aircraft", tmp_path / "aircraft")
    assert (aircraft.ids, aircraft.classes) == (["7"], ("F/A-18 A",))


@pytest.fixture
def species(tmp_path: Path) -> Path:
    """iNaturalist 2017 with category ids 3 and 8, as the archive puts its images."""
    files = {11: ("Aves/Pica pica/x.jpg", 8), 12: ("Aves/Corvus corax/y.jpg", 3), 13: ("Aves/Pica pica/z.jpg", 8)}
    for file, _ in files.values():
        image(tmp_path / "train_val_images" / file)
    annotations = {
        "images": [{"id": key, "file_name": f"train_val_images/{file}"} for key, (file, _) in files.items()],
        "annotations": [{"image_id": key, "category_id": number} for key, (_, number) in files.items()],
        "categories": [
            {"id": 8, "name": "Pica pica", "supercategory": "Aves"},
            {"id": 3, "name": "Corvus corax", "supercategory": "Aves"},
        ],
    }
    (tmp_path / "train2017.json").write_text(json.dumps(annotations))
    return tmp_path


def test_inaturalist_by_its_annotations(species: Path) -> None:
    ours = read("inaturalist", species)
    assert ours.classes == ("Aves/Corvus corax", "Aves/Pica pica")
    assert ours.targets == [1, 0, 1]
    (species / "train_val_images").rename(species / "2017")
    assert [path.exists() for path, _ in pairs(read("inaturalist", species))] == [True] * 3
    theirs = datasets.INaturalist(species, version="2017")
    assert list(ours.classes) == theirs.all_categories
    with pytest.raises(DataError, match=r"no iNaturalist 2017 at .*: expected val2017.json inside it"):
        read("inaturalist", species, split="val")


def test_inaturalist_annotations_that_disagree(species: Path) -> None:
    path = species / "train2017.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, "annotations": found["annotations"][1:]}))
    with pytest.raises(DataError, match="ids of images and annotations differ in 1 cases, for example 11"):
        read("inaturalist", species)
    path.write_text(json.dumps({**found, "categories": found["categories"][:1]}))
    with pytest.raises(DataError, match="category 3 of an annotation is not in the list of categories"):
        read("inaturalist", species)
    path.write_text(json.dumps({"images": []}))
    with pytest.raises(DataError, match="expected images, annotations and categories in COCO's format"):
        read("inaturalist", species)


def test_inaturalist_2021_is_that_of_torchvision(tmp_path: Path) -> None:
    names = [f"0000{i}_Animalia_Chordata_Aves_Passeriformes_Corvidae_{genus}_x" for i, genus in enumerate("AB")]
    for name in names:
        image(tmp_path / "2021_train_mini" / name / "p.jpg")
    theirs: Any = datasets.INaturalist(tmp_path, version="2021_train_mini")
    ours = read("inaturalist", tmp_path, version="2021", split="train_mini")
    assert list(ours.classes) == theirs.all_categories
    assert ours.targets == [category for category, _ in theirs.index]
    with pytest.raises(ConfigError, match="iNaturalist 2017 has no train_mini"):
        read("inaturalist", tmp_path, split="train_mini")


@pytest.fixture
def dogs(tmp_path: Path) -> Path:
    """Two of the classes, with the labels 7 and 30."""
    lists = {"train": (["n2-Pug/a.jpg", "n1-Chow/b.jpg"], [7, 30]), "test": (["n2-Pug/c.jpg"], [7])}
    for split, (files, labels) in lists.items():
        for file in files:
            image(tmp_path / "Images" / file)
        values = {"file_list": cell(files), "labels": np.array(labels, float).reshape(-1, 1)}
        scipy_io.savemat(tmp_path / f"{split}_list.mat", values)
    return tmp_path


def test_dogs_have_contiguous_labels_in_both_splits(dogs: Path) -> None:
    train, test = (read("stanford_dogs", dogs, split=split) for split in ("train", "test"))
    assert train.classes == test.classes == ("n2-Pug", "n1-Chow")
    assert (train.targets, test.targets) == ([0, 1], [0])
    assert train.ids == ["n2-Pug/a", "n1-Chow/b"]


def test_dogs_whose_lists_disagree(dogs: Path) -> None:
    values = {"file_list": cell(["n1-Chow/b.jpg"]), "labels": np.array([[7.0]])}
    scipy_io.savemat(dogs / "test_list.mat", values)
    with pytest.raises(DataError, match=r"test_list.mat: n1-Chow/b.jpg has label 7, which belongs to n2-Pug"):
        read("stanford_dogs", dogs)
    scipy_io.savemat(dogs / "test_list.mat", {**values, "labels": np.array([[7.5]])})
    with pytest.raises(DataError, match=r"7.5.* is not the number of a class"):
        read("stanford_dogs", dogs)


PUBLISHED = {name: row for name, row in DATASETS.items() if row.kind == "labeled" and row.splits}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_missing_root_says_what_was_expected(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"no .* at {tmp_path}/nowhere: "):
        read(name, tmp_path / "nowhere")


def test_every_published_data_set_can_be_verified() -> None:
    totals = {name: sum(count or 0 for count in row.splits.values()) for name, row in PUBLISHED.items()}
    assert len(totals) == 8
    assert totals["cub"] == 11_788  # as its name file says
    assert totals["nabirds"] == 48_562
    assert totals["flowers102"] == 8_189
    assert totals["aircraft"] == 10_000
    assert totals["stanford_cars"] == 16_185
    assert totals["food101"] == 101 * 1000
    assert totals["stanford_dogs"] == 20_580
    assert totals["inaturalist"] == 675_170


def test_verify_counts_images_and_classes_and_reads_them_all(cars: Path) -> None:
    (cars / "stanford_cars/cars_test/00001.jpg").write_bytes(b"GIF89a")
    problems = verify("stanford_cars", cars).problems
    assert problems[:4] == [
        "train: 2 examples, published are 8,144",
        "train: 2 classes, published are 196",
        "test: 2 examples, published are 8,041",
        "test: 2 classes, published are 196",
    ]
    assert "00001.jpg: not a JPEG image" in problems[4]
    assert verify("stanford_cars", cars, published=False).problems == problems[4:]


@pytest.mark.skipif("MTSP_DATA" not in os.environ, reason="MTSP_DATA does not name the folder of real data")
def test_real_cub_images() -> None:
    root = Path(os.environ["MTSP_DATA"]) / "CUB_200_2011"
    train, test = (read("cub", root, split=split) for split in ("train", "test"))
    assert len(train.classes) == 20
    assert train.classes[0] == "001.Black_footed_Albatross"
    assert (len(train), len(test)) == (600, 515)
    assert train[0]["frame"].shape[2] == 3
    assert train[0].get("label") == 0
