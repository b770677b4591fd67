"""Labeled images: which are chosen, what their labels are, and what is said of files that are wrong."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data import DataConfig, DataError, MissingDataError
from data.augment.crops import center_crop, random_box
from data.classification.labeled_images import LabeledImage, LabeledImages
from data.files.images import write_image
from data.files.listing import folders_below
from mtsp.config import ConfigError, parse

CUB = ("001.Auk", "002.Bunting", "004.Cardinal")


def image(path: Path, value: int = 0, size: tuple[int, int] = (4, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, np.full((*size, 3), value, np.uint8))


def dataset(**values: Any) -> LabeledImages:
    config = parse(DataConfig, {"dataset": {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}})
    built = config.dataset.build()
    assert isinstance(built, LabeledImages)
    return built


def lines(path: Path, *text: str) -> None:
    path.write_text("".join(f"{line}\n" for line in text))


@pytest.fixture
def cub(tmp_path: Path) -> Path:
    """Three classes with the ids 1, 2 and 4, each with 7 images to train on and 2 to test on."""
    root = tmp_path / "CUB_200_2011"
    rows = [(name, number) for name in CUB for number in range(9)]
    for i, (name, number) in enumerate(rows):
        image(root / "images" / name / f"{number}.png", value=i)
    lines(root / "classes.txt", *(f"{int(name[:3])} {name}" for name in CUB))
    lines(root / "images.txt", *(f"{i} {name}/{number}.png" for i, (name, number) in enumerate(rows)))
    lines(root / "image_class_labels.txt", *(f"{i} {int(name[:3])}" for i, (name, _) in enumerate(rows)))
    lines(root / "train_test_split.txt", *(f"{i} {int(number < 7)}" for i, (_, number) in enumerate(rows)))
    return root


def test_cub_has_its_own_split_and_contiguous_labels(cub: Path) -> None:
    train, test = (dataset(name="cub", root=cub, split=split) for split in ("train", "test"))
    assert train.classes == test.classes == CUB
    assert train.targets == [0] * 7 + [1] * 7 + [2] * 7
    assert test.ids == [f"{name}/{number}" for name in CUB for number in (7, 8)]
    assert test[5].get("label") == 2
    assert test[5]["frame"][0, 0].tolist() == [26, 26, 26]  # the last of the 27
    assert test.labels(5) == {"name": "004.Cardinal/8", "label": 2}


def test_the_root_may_be_the_folder_that_holds_it(cub: Path) -> None:
    assert dataset(name="cub", root=cub.parent).ids == dataset(name="cub", root=cub).ids


@pytest.mark.parametrize(("share", "each"), [(15, 1), (30, 2), (50, 4), (0.1, 1), (100, 7)])
def test_a_share_is_of_each_class(cub: Path, share: float, each: int) -> None:
    # 7 * 15 % = 1.05, 7 * 30 % = 2.1, 7 * 50 % = 3.5, rounded half up; never none
    chosen = dataset(name="cub", root=cub, label_percent=share)
    assert Counter(chosen.targets) == {0: each, 1: each, 2: each}
    assert chosen.ids == sorted(chosen.ids)  # the order of the lists


def test_a_smaller_share_is_inside_a_larger_one_and_another_seed_gives_another(cub: Path) -> None:
    small, middle, large = (set(dataset(name="cub", root=cub, label_percent=share).ids) for share in (15, 30, 50))
    assert small < middle < large
    others = [set(dataset(name="cub", root=cub, label_percent=30, label_seed=seed).ids) for seed in range(1, 5)]
    assert any(other != middle for other in others)


def test_which_images_are_chosen_depends_on_their_class_alone(cub: Path, tmp_path: Path) -> None:
    lines(tmp_path / "classes.txt", "004.Cardinal")
    whole = dataset(name="cub", root=cub, label_percent=30)
    alone = dataset(name="cub", root=cub, label_percent=30, classes=tmp_path / "classes.txt")
    assert alone.ids == [name for name in whole.ids if name.startswith("004")]
    assert alone.targets == [0, 0]


def test_a_class_list_makes_labels_contiguous_in_the_data_sets_order(cub: Path, tmp_path: Path) -> None:
    lines(tmp_path / "list.txt", "# from a selection", "", "004.Cardinal\t0.31", "001.Auk\t0.28")
    chosen = dataset(name="cub", root=cub, classes=tmp_path / "list.txt", split="test")
    assert chosen.classes == ("001.Auk", "004.Cardinal")
    assert chosen.targets == [0, 0, 1, 1]


def test_per_class_balances_a_long_tail(tmp_path: Path) -> None:
    for name, count in (("head", 10), ("tail", 2)):
        for number in range(count):
            image(tmp_path / name / f"{number}.png")
    chosen = dataset(name="image_folder", root=tmp_path, per_class=5)
    assert Counter(chosen.targets) == {0: 5, 1: 5}
    assert len(set(chosen.ids)) == 10
    tail = [name for name, label in zip(chosen.ids, chosen.targets, strict=True) if label == 1]
    assert Counter(name.partition("#")[0] for name in tail) in (
        {"tail/0": 3, "tail/1": 2},
        {"tail/0": 2, "tail/1": 3},
    )
    assert sorted(name.partition("#")[2] for name in tail) == ["", "", "2", "2", "3"]
    again = dataset(name="image_folder", root=tmp_path, per_class=5)
    assert again.ids == chosen.ids


def test_limit_keeps_the_classes(cub: Path) -> None:
    config = parse(DataConfig, {"dataset": {"name": "cub", "root": str(cub)}, "limit": 3})
    sample = config.build_dataset()
    assert isinstance(sample, LabeledImages)
    assert sample.classes == CUB
    assert sample.targets == [0, 1, 2]


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


MISTAKES: list[tuple[Callable[[Path], object], str]] = [
    (lambda root: (root / "images/001.Auk/3.png").unlink(), r"CUB-200-2011 at .*: 1 file \(.*001.Auk/3.png\) missing"),
    (lambda root: (root / "train_test_split.txt").unlink(), r"train_test_split.txt: no such file"),
    (
        lambda root: edit(root / "image_class_labels.txt", "0 1\n", ""),
        r"image_class_labels.txt: 1 ids do not match images.txt: '0' is not in image_class_labels.txt",
    ),
    (
        lambda root: edit(root / "train_test_split.txt", "0 1\n", "0 1\n77 1\n"),
        r"train_test_split.txt: 1 ids do not match images.txt: '77' is not in images.txt",
    ),
    (lambda root: edit(root / "train_test_split.txt", "0 1\n", "0 2\n"), r"image 0 has '2', expected 0 or 1"),
    (
        lambda root: edit(root / "image_class_labels.txt", "0 1\n", "0 3\n"),
        r"image 0 has class 3, which is not in classes.txt",
    ),
    (lambda root: edit(root / "image_class_labels.txt", "0 1\n", "0 x\n"), r"'x' is not the number of a class"),
    (
        lambda root: edit(root / "image_class_labels.txt", "0 1\n", "0 2\n"),
        r"001.Auk/0 is labeled '002.Bunting', but lies in '001.Auk'",
    ),
    (
        lambda root: edit(root / "classes.txt", "1 001.Auk", "1 001.Auk\n3 003.Bat"),
        r"1 of 4 classes have no images \(003.Bat\); exclude them with a list in `classes`",
    ),
    (lambda root: edit(root / "images.txt", "1 001.Auk/1", "1 001.Auk/0"), r"1 examples are listed twice"),
    (lambda root: edit(root / "images.txt", "0 001.Auk/0.png", "0 ../0.png"), r"'\.\.' is not a path inside"),
]


@pytest.mark.parametrize(("spoil", "message"), MISTAKES)
def test_what_is_wrong_with_cub_is_said_in_one_line(cub: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(cub)
    with pytest.raises(DataError, match=message) as error:
        dataset(name="cub", root=cub)
    assert "\n" not in str(error.value)


def test_a_damaged_image_is_named_when_it_is_read(cub: Path) -> None:
    path = cub / "images/001.Auk/0.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"001.Auk/0.png: truncated"):
        dataset(name="cub", root=cub)[0]


def test_an_unknown_class_of_a_list_is_named_with_the_nearest(cub: Path, tmp_path: Path) -> None:
    where = tmp_path / "list.txt"
    lines(where, "001.Auk", "002.Buntings", "Emu")
    with pytest.raises(
        DataError, match=r"list.txt: 2 of 3 classes are not in CUB.*, the first '002.Buntings'; did you"
    ):
        dataset(name="cub", root=cub, classes=where)
    lines(where, "001.Auk", "001.Auk")
    with pytest.raises(DataError, match=r"1 classes are listed twice, for example '001.Auk'"):
        dataset(name="cub", root=cub, classes=where)
    lines(where, "# nothing")
    with pytest.raises(DataError, match="the list of classes is empty"):
        dataset(name="cub", root=cub, classes=where)


def test_a_test_set_is_not_shared_out(cub: Path) -> None:
    with pytest.raises(
        ConfigError, match="`label_percent` and `per_class` are for training; leave them out of split test"
    ):
        dataset(name="cub", root=cub, split="test", label_percent=15)


@pytest.fixture
def nabirds(tmp_path: Path) -> Path:
    """Two classes with the ids 817 and 1001 among 0, 1, 2, which are groups; two of the names are equal."""
    files = {"a-1": ("0817/x.png", 817, 1), "b-2": ("1001/y.png", 1001, 1), "c-3": ("0817/z.png", 817, 0)}
    for file, _, _ in files.values():
        image(tmp_path / "images" / file)
    lines(tmp_path / "classes.txt", "0 Birds", "1 Ducks", "2 Snow Goose", "817 Snow Goose (White)", "1001 Brant")
    lines(tmp_path / "images.txt", *(f"{key} {file}" for key, (file, _, _) in files.items()))
    lines(tmp_path / "image_class_labels.txt", *(f"{key} {number}" for key, (_, number, _) in files.items()))
    lines(tmp_path / "train_test_split.txt", *(f"{key} {flag}" for key, (_, _, flag) in files.items()))
    return tmp_path


def test_nabirds_ids_with_gaps_become_contiguous_in_their_order(nabirds: Path) -> None:
    train, test = (dataset(name="nabirds", root=nabirds, split=split) for split in ("train", "test"))
    assert train.classes == test.classes == ("Snow Goose (White)", "Brant")
    assert (train.targets, test.targets) == ([0, 1], [0])


def test_equal_names_of_nabirds_are_told_apart_by_their_ids(nabirds: Path) -> None:
    edit(nabirds / "classes.txt", "1001 Brant", "1001 Snow Goose (White)")
    assert dataset(name="nabirds", root=nabirds).classes == ("Snow Goose (White) [817]", "Snow Goose (White) [1001]")


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    for file in ("b/2.png", "b/10.png", "a/deep/1.png"):
        image(tmp_path / file)
    tree = dataset(name="image_folder", root=tmp_path)
    assert tree.classes == ("a", "b")
    assert list(zip(tree.ids, tree.targets, strict=True)) == [("a/deep/1", 0), ("b/2", 1), ("b/10", 1)]
    (tmp_path / "c").mkdir()
    with pytest.raises(DataError, match=r"1 of 3 classes have no images \(c\)"):
        dataset(name="image_folder", root=tmp_path)
    image(tmp_path / "loose.png")
    with pytest.raises(DataError, match=r"1 images are outside the class folders, for example loose.png"):
        dataset(name="image_folder", root=tmp_path)


def test_a_tree_has_links_and_what_programs_left_in_it(tmp_path: Path, litter: Callable[[Path], None]) -> None:
    for file in ("tree/a/1.JPG", "tree/a/2 of 3.png", "disk/deep/er/3.jpeg"):
        image(tmp_path / file)
    (tmp_path / "tree" / "b").symlink_to(tmp_path / "disk")
    (tmp_path / "tree" / "a" / "more").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "circle").symlink_to(tmp_path / "disk" / "deep" / "..")
    litter(tmp_path / "tree")
    litter(tmp_path / "disk")
    tree = dataset(name="image_folder", root=tmp_path / "tree")
    assert tree.classes == ("a", "b")
    assert tree.ids == ["a/1", "a/2 of 3", "a/more/deep/er/3", "b/deep/er/3"]


@pytest.mark.parametrize("place", ["tree", "tree/a", "."])
def test_a_link_to_what_holds_it_brings_no_other_classes_images(tmp_path: Path, place: str) -> None:
    for file in ("tree/a/1.png", "tree/b/2.png", "3.png"):
        image(tmp_path / file)
    (tmp_path / "tree/a/deep").mkdir()
    (tmp_path / "tree/a/deep/link").symlink_to(tmp_path / place)
    tree = dataset(name="image_folder", root=tmp_path / "tree")
    assert list(zip(tree.ids, tree.targets, strict=True)) == [("a/1", 0), ("b/2", 1)]
    assert folders_below(tmp_path / "tree/a") == [tmp_path / "tree/a", tmp_path / "tree/a/deep"]


def test_links_to_nothing_and_folders_are_no_images(tmp_path: Path) -> None:
    for file in ("a/1.png", "b/1.png"):
        image(tmp_path / file)
    (tmp_path / "a/2.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "a/3.png").symlink_to(tmp_path / "b/1.png")
    (tmp_path / "a/4.png").symlink_to(tmp_path / "a/4.png")
    (tmp_path / "b/2.png").mkdir()
    wrong = r"expected 3 files \(a/2.png, a/4.png, b/2.png\), found links to none, or folders"
    with pytest.raises(MissingDataError, match=rf"^images at .*: {wrong}$"):
        dataset(name="image_folder", root=tmp_path)


def test_an_image_from_the_web_may_be_of_another_format_than_its_name_says(tmp_path: Path) -> None:
    """As n02105855_2933.jpg of Stanford Dogs, a PNG with transparency."""
    image = np.arange(4 * 6 * 4, dtype=np.uint8).reshape(4, 6, 4)
    (tmp_path / "a").mkdir()
    Image.fromarray(image).save(tmp_path / "a" / "1.jpg", "PNG")
    Image.fromarray(image[..., 0]).save(tmp_path / "a" / "2.png", "JPEG")
    Image.fromarray(image[..., 0]).save(tmp_path / "a" / "3.jpg", "GIF")
    tree = dataset(name="image_folder", root=tmp_path)
    assert np.array_equal(tree[0]["frame"], image[..., :3])
    for index in (1, 2):
        assert np.abs(tree[index]["frame"].astype(int) - image[..., :1]).max() < 8
    whole = (tmp_path / "a" / "1.jpg").read_bytes()
    for damaged in (whole[:-9], whole[:60] + b"\0" + whole[61:], b"<html>not found</html>", b""):
        (tmp_path / "a" / "1.jpg").write_bytes(damaged)
        with pytest.raises(DataError, match=r"a/1\.jpg: "):
            tree[0]


def test_each_image_may_be_a_class_of_its_own(tmp_path: Path) -> None:
    for name in ("n01_tench", "n02_goldfish"):
        image(tmp_path / f"{name}.png")
    photos = dataset(name="image_folder", root=tmp_path, one_class_per_image=True)
    assert photos.classes == ("n01_tench", "n02_goldfish")
    assert photos.targets == [0, 1]


def test_a_list_as_dstl_has_it(tmp_path: Path) -> None:
    for file in ("wren/1.png", "robin/1.png", "robin/2.png"):
        image(tmp_path / file)
    where = tmp_path / "train.txt"
    lines(where, "wren/1.png: 3", "robin/2.png: 0")
    tree = dataset(name="image_folder", root=tmp_path, list=where)
    assert tree.classes == ("robin", "wren")
    assert list(zip(tree.ids, tree.targets, strict=True)) == [("wren/1", 1), ("robin/2", 0)]
    lines(where, "wren/1.png: 3", "robin/1.png: 3")
    with pytest.raises(DataError, match=r"robin/1.png has label 3, which belongs to wren"):
        dataset(name="image_folder", root=tmp_path, list=where)
    lines(where, "robin/1.png: 3", "robin/2.png: 1", "wren/1.png: 2")
    with pytest.raises(DataError, match="images in robin have the labels 1, 3; expected one"):
        dataset(name="image_folder", root=tmp_path, list=where)
    lines(where, "robin/1.png 3")
    with pytest.raises(DataError, match=r"'robin/1.png 3' does not have the form `path: label`"):
        dataset(name="image_folder", root=tmp_path, list=where)


def test_a_list_of_a_flat_folder_calls_classes_by_number(tmp_path: Path) -> None:
    for file in ("jpg/1.png", "jpg/2.png"):
        image(tmp_path / file)
    lines(tmp_path / "list.txt", "jpg/1.png: 12", "jpg/2.png: 5")
    flat = dataset(name="image_folder", root=tmp_path, list=tmp_path / "list.txt")
    assert (flat.classes, flat.targets) == (("5", "12"), [1, 0])


def test_the_center_of_an_image_becomes_the_size() -> None:
    image = np.zeros((8, 20, 3), np.uint8)
    image[2:6, 8:12] = 200  # the middle half of the shorter side, as a square
    assert center_crop(image, (4, 4), 0.5).tolist() == np.full((4, 4, 3), 200).tolist()
    assert center_crop(image, (4, 8), 0.5)[:, 2:6].min() == 200  # 4x8 of the image: 2 on either side are dark
    assert center_crop(image, (4, 8), 0.5)[:, :2].max() == 0


def test_a_random_rectangle_has_the_asked_area_and_shape() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([random_box((300, 400), (0.1, 0.5), (0.75, 4 / 3), rng) for _ in range(2000)])
    left, top, width, height = boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + width <= 400).all()
    assert (top + height <= 300).all()
    area = width * height / 120_000
    assert 0.1 <= area.min() < 0.12
    assert 0.48 < area.max() <= 0.5
    assert area.mean() == pytest.approx(0.3, abs=0.02)  # even between the ends
    assert np.log(width / height).mean() == pytest.approx(0, abs=0.02)  # wide as often as tall


def test_a_rectangle_that_never_fits_is_the_largest_in_the_middle() -> None:
    # of 10 x 100, all of the area at a width of one to two heights: 10 x 20 at most
    assert random_box((10, 100), (1.0, 1.0), (1.0, 2.0), np.random.default_rng(0)) == (40.0, 0.0, 20.0, 10.0)


def test_training_cuts_a_rectangle_and_keeps_the_label(cub: Path) -> None:
    config = {
        "dataset": {"name": "cub", "root": str(cub)},
        "augment": {"preset": "inception", "crop": [5, 7]},
        "size": [3, 3],
        "crop_pct": 0.875,
    }
    examples = parse(DataConfig, config).build()
    drawn, seen = examples.train_sample(20, np.random.default_rng(0)), examples[20]
    assert drawn["frame"].shape == (3, 5, 7)
    assert seen["frame"].shape == (3, 3, 3)
    assert drawn.get("label") == seen.get("label") == 2


def test_a_rectangle_shows_all_of_the_image_at_full_area(tmp_path: Path) -> None:
    path = tmp_path / "c" / "x.png"
    path.parent.mkdir()
    ramp = np.repeat(np.arange(0, 240, 24, dtype=np.uint8)[None, :, None], 10, axis=0).repeat(3, axis=2)
    write_image(path, ramp)
    config = {
        "dataset": {"name": "image_folder", "root": str(tmp_path)},
        "augment": {"crop": [10, 10], "area": [1.0, 1.0], "aspect": [1.0, 1.0], "flip": 1.0},
    }
    drawn = parse(DataConfig, config).build().train_sample(0, np.random.default_rng(0))
    expected = ramp[:, ::-1, 0] / 255  # the mirror image of the whole
    np.testing.assert_allclose(drawn["frame"][0].numpy(), expected, atol=1 / 255)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"augment": {"area": [0.1, 1.0]}}, "`area` is a fraction of the image, at most 1"),
        ({"augment": {"area": [0.1, 2.0], "crop": [4, 4]}}, "`area` is a fraction of the image, at most 1"),
        ({"augment": {"area": [0.1, 1.0], "crop": [4, 4], "scale": [0.5, 1.0]}}, "leave out scale"),
        ({"crop_pct": 0.875}, "`crop_pct` needs `size`"),
    ],
)
def test_settings_that_do_nothing_are_refused(cub: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(DataConfig, {"dataset": {"name": "cub", "root": str(cub)}, **values})


def test_only_labeled_images_have_a_middle(tmp_path: Path) -> None:
    values = {"dataset": {"name": "folder", "frames": str(tmp_path)}, "size": [4, 4], "crop_pct": 1.0}
    with pytest.raises(ConfigError, match="`crop_pct` is for labeled images; folder is scored on whole images"):
        parse(DataConfig, values)


def test_an_image_of_a_subset_keeps_its_label() -> None:
    images = [LabeledImage(str(i), Path(f"{i}.png"), i % 2) for i in range(4)]
    taken = LabeledImages(["even", "odd"], images).subset([3, 0])
    assert (taken.ids, taken.targets) == (["3", "0"], [1, 0])
    assert json.dumps(taken.targets) == "[1, 0]"  # plain numbers
