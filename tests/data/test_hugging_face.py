"""Data sets of Hugging Face, read from local files that the test writes: parquet, and folders of images."""

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.files.masks import write_mask
from data.hugging_face import HuggingFaceConfig
from data.types import DataError
from mtsp.types import IGNORE
from tools.evaluate import main as evaluate

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(pixels: np.ndarray) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def write_parquet(folder: Path, split: str, rows: dict[str, list[Any]], **features: Any) -> None:
    folder.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(rows, datasets.Features(features)).to_parquet(str(folder / f"{split}.parquet"))


def scenes(count: int) -> dict[str, list[Any]]:
    """Photos of noise, and masks with class 0 on the left, 1 on the right, and one column of unknown pixels."""
    rng = np.random.default_rng(0)
    mask = np.repeat(np.array([[0] * 16 + [1] * 15 + [IGNORE]], np.uint8), 32, axis=0)
    frames = [png(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(count)]
    return {"photo": frames, "mask": [png(mask)] * count, "objects": [[0, 1]] * count}


def test_masks_in_parquet_train_and_evaluate(
    tmp_path: Path, train: Callable[..., dict[str, dict[str, float]]], capsys: pytest.CaptureFixture[str]
) -> None:
    names = datasets.Sequence(datasets.ClassLabel(names=["grass", "sky"]))
    for split, count in (("train", 4), ("validation", 2)):
        features = {"photo": datasets.Image(), "mask": datasets.Image(), "objects": names}
        write_parquet(tmp_path / "scenes", split, scenes(count), **features)
    source: Any = {"name": "hugging_face", "path": str(tmp_path / "scenes"), "image": "photo", "mask": "mask"}
    dataset = HuggingFaceConfig(**source).build()
    assert dataset.classes == ("grass", "sky")  # of the only column that names classes
    assert (dataset.kind, len(dataset), dataset.ids[3]) == ("images", 4, "00000003")
    sample = pickle.loads(pickle.dumps(dataset))[2]  # as a worker process receives it
    assert np.array_equal(sample["frame"], np.array(Image.open(io.BytesIO(scenes(3)["photo"][2]["bytes"]))))
    assert np.unique(dataset.labels(2).get("mask", 0)).tolist() == [0, 1, IGNORE]
    values = {
        "name": "scenes",
        "model": {"name": "encnet", "encoder": "tu-test_efficientnet", "classes": None, "width": 8, "lateral": False},
        "branches": {"backbone": {}, "head": {}},
        "data": {"train": {"dataset": source}, "val": {"dataset": source | {"split": "validation"}}},
        "tasks": {"segmentation": {}},
        "regularizer": {"name": "l2", "alpha": 0.0, "beta": 0.0},
        "optimizer": {"name": "sgd", "lr": 0.01},
        "train": {"steps": 2, "stages": [{"steps": 1, "batch_size": {"train": 2}}], "workers": 0},
        "evaluation": {"data": ["val"], "at_start": False},
        "tracking": {"images": 0},
    }
    results = train(values, tmp_path / "run")
    assert results["val"]["pixels"] == 2 * 32 * 31
    assert results["val"]["images"] == 2
    run = ["--config", f"{tmp_path}/run/experiment.yaml", "--checkpoint", f"{tmp_path}/run/weights.safetensors"]
    assert evaluate([*run, "--json", f"{tmp_path}/again.json"]) == 0
    again = json.loads((tmp_path / "again.json").read_text())["entries"]["val"]
    assert again["miou"] == pytest.approx(results["val"]["miou"])


def test_a_folder_of_images_by_class_is_labeled(tmp_path: Path) -> None:
    for i, name in enumerate(("cat", "dog", "cat")):
        (tmp_path / "pets/train" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / "pets/train" / name / f"{i}.png")
    dataset = HuggingFaceConfig(name="hugging_face", path=str(tmp_path / "pets"), label="label").build()
    assert (dataset.kind, dataset.classes) == ("labeled", ("cat", "dog"))
    found = [(int(dataset[i]["frame"][0, 0, 0]), dataset.labels(i).get("label")) for i in range(3)]
    assert sorted(found) == [(0, 0), (1, 1), (2, 0)]


def test_labels_without_names_are_numbered_in_their_order(tmp_path: Path) -> None:
    rows = {"image": [png(np.zeros((4, 4, 3), np.uint8))] * 3, "year": [1990, 2010, 1990]}
    write_parquet(tmp_path / "cars", "train", rows, image=datasets.Image(), year=datasets.Value("int64"))
    dataset = HuggingFaceConfig(name="hugging_face", path=str(tmp_path / "cars"), label="year").build()
    assert dataset.classes == ("1990", "2010")
    assert [dataset[i].get("label") for i in range(3)] == [0, 1, 0]


def test_pairs_have_flow_of_arrays(tmp_path: Path) -> None:
    flow = np.zeros((4, 6, 2), np.float32)
    flow[1, 2] = (3, -1)
    flow[0, 0] = np.nan
    frames = [png(np.full((4, 6, 3), gray, np.uint8)) for gray in (1, 2)]
    rows = {"image": frames[:1], "after": frames[1:], "motion": [flow.tolist()]}
    kind = datasets.Array3D((4, 6, 2), "float32")
    write_parquet(tmp_path / "pairs", "train", rows, image=datasets.Image(), after=datasets.Image(), motion=kind)
    config: Any = {"name": "hugging_face", "path": str(tmp_path / "pairs"), "next_image": "after", "flow": "motion"}
    sample = HuggingFaceConfig(**config).build()[0]
    assert [int(sample.get(key, 0)[0, 0, 0]) for key in ("frame", "next_frame")] == [1, 2]  # pyright: ignore
    assert "flow" in sample
    assert "flow_valid" in sample
    assert sample["flow"][1, 2].tolist() == [3, -1]
    assert (int(sample["flow_valid"].sum()), sample["flow"][0, 0].tolist()) == (4 * 6 - 1, [0, 0])


def colored(ids: list[int], colors: list[int]) -> dict[str, Any]:
    """An indexed mask of one row, and the palette, R, G and B of each index."""
    image, file = Image.fromarray(np.array([ids], np.uint8), "P"), io.BytesIO()
    image.putpalette(colors)
    image.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def segmented(folder: Path, masks: list[dict[str, Any]], photo: dict[str, Any] | None = None, **settings: Any) -> Any:
    rows = {"image": [photo or png(np.zeros((1, 3, 3), np.uint8))] * len(masks), "mask": masks}
    write_parquet(folder, "train", rows, image=datasets.Image(), mask=datasets.Image())
    values: dict[str, Any] = {"path": str(folder), "mask": "mask", "classes": ("ground", "crack"), **settings}
    return HuggingFaceConfig(name="hugging_face", **values).build()


def test_masks_of_0_and_255_alone_are_refused_until_255_has_a_meaning(tmp_path: Path) -> None:
    masks = [png(np.array([row], np.uint8)) for row in ([0, 0, 0], [0, 255, 255])]
    with pytest.raises(DataError, match=r"row 1, mask.*only 0 and 255.*`foreground: true`.*`unknown: \[255\]`"):
        segmented(tmp_path / "a", masks)[1]
    assert segmented(tmp_path / "b", masks, foreground=True)[1]["mask"].tolist() == [[0, 1, 1]]
    assert segmented(tmp_path / "c", masks, unknown=(255,))[1]["mask"].tolist() == [[0, 255, 255]]
    masks.append(png(np.array([[0, 1, 255]], np.uint8)))  # 1 is the crack, so 255 is unknown
    assert segmented(tmp_path / "d", masks)[1]["mask"].tolist() == [[0, 255, 255]]


def test_a_mask_with_a_sorted_palette_is_refused(tmp_path: Path) -> None:
    black_red, red_black = [0, 0, 0, 128, 0, 0], [128, 0, 0, 0, 0, 0]
    dataset = segmented(tmp_path / "a", [colored([0, 0, 1], black_red), colored([1, 1, 0], red_black)])
    assert dataset[0]["mask"].tolist() == [[0, 0, 1]]
    with pytest.raises(DataError, match=r"row 1, mask.*at index 0, which is 1 in .*row 0, mask"):
        dataset[1]


def turned_photo() -> dict[str, Any]:
    """White on the left as stored; its EXIF turns it by 180 degrees."""
    note, file = Image.Exif(), io.BytesIO()
    note[0x0112] = 3
    Image.fromarray(np.array([[[255] * 3, [0] * 3, [0] * 3]], np.uint8)).save(file, "PNG", exif=note)
    return {"bytes": file.getvalue(), "path": None}


def test_a_photo_that_exif_turns_is_said_once_or_turned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    masks = [png(np.array([[0, 0, 1]], np.uint8))]
    dataset = segmented(tmp_path / "a", masks, turned_photo())
    assert [dataset[0]["frame"][0, :, 0].tolist() for _ in range(2)] == [[255, 0, 0]] * 2  # as stored
    assert [("row 0, image" in record.message, "orientation 3" in record.message) for record in caplog.records] == [
        (True, True)
    ]
    caplog.clear()
    assert segmented(tmp_path / "a", masks, turned_photo(), exif="apply")[0]["frame"][0, :, 0].tolist() == [0, 0, 255]
    rows = {"image": [turned_photo(), png(np.zeros((1, 3, 3), np.uint8))], "label": ["a", "b"]}
    write_parquet(tmp_path / "b", "train", rows, image=datasets.Image(), label=datasets.Value("string"))
    assert caplog.records == []
    HuggingFaceConfig(name="hugging_face", path=str(tmp_path / "b"), label="label").build()
    assert "1 of 2 checked have an EXIF orientation" in caplog.text


def test_predictions_are_read_as_the_masks_are(tmp_path: Path) -> None:
    dataset = segmented(tmp_path / "a", [png(np.array([[0, 0, 7]], np.uint8))], foreground=True)
    write_mask(tmp_path / "0.png", np.array([[0, 255, 255]], np.uint8))
    assert dataset.labels(0).get("mask", np.zeros(0)).tolist() == [[0, 0, 1]]
    assert dataset.read_prediction(tmp_path / "0.png").tolist() == [[0, 1, 1]]
    dataset = segmented(tmp_path / "b", [png(np.array([[0, 1, 2]], np.uint8))], unknown=(0,))
    assert dataset.labels(0).get("mask", np.zeros(0)).tolist() == [[255, 0, 1]]
    write_mask(tmp_path / "0.png", np.array([[1, 0, 1]], np.uint8))  # ids of classes, not the values of the truth
    assert dataset.read_prediction(tmp_path / "0.png").tolist() == [[1, 0, 1]]


NAMED = datasets.ClassLabel(names=["ant", "bee"])


@pytest.mark.parametrize(
    ("kind", "labels", "odd"),
    [
        (NAMED, [0, 1, -1], "-1"),  # how the hub marks rows without a label
        (NAMED, [0, 1, None], "None"),
        (datasets.Value("string"), ["ant", "bee", None], "None"),
        (datasets.Value("string"), ["ant", "bee", " "], "' '"),
        (datasets.Value("float32"), [0.0, 1.0, 0.5], "0.5"),
        (datasets.Value("float32"), [0.0, 1.0, float("nan")], "nan"),
    ],
)
def test_a_row_without_a_class_is_refused_by_number(tmp_path: Path, kind: Any, labels: list[Any], odd: str) -> None:
    rows = {"image": [png(np.zeros((1, 3, 3), np.uint8))] * 3, "label": labels}
    write_parquet(tmp_path / "a", "train", rows, image=datasets.Image(), label=kind)
    with pytest.raises(DataError, match=rf"row 2: the label is {odd}, no class"):
        HuggingFaceConfig(name="hugging_face", path=str(tmp_path / "a"), label="label").build()


def test_names_of_classes_match_composed_or_not(tmp_path: Path) -> None:
    rows = {
        "image": [png(np.zeros((1, 3, 3), np.uint8))] * 4,
        "label": ["\u00e9t\u00e9", "e\u0301te\u0301", "bee", "bee "],
    }
    write_parquet(tmp_path / "a", "train", rows, image=datasets.Image(), label=datasets.Value("string"))
    dataset = HuggingFaceConfig(name="hugging_face", path=str(tmp_path / "a"), label="label").build()
    assert dataset.classes == ("bee", "\u00e9t\u00e9")
    assert [dataset.labels(i).get("label") for i in range(4)] == [1, 1, 0, 0]


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    rows = {"image": [png(np.zeros((4, 4, 3), np.uint8))], "mask": [png(np.full((4, 4), 7, np.uint8))], "text": ["a"]}
    features = {"image": datasets.Image(), "mask": datasets.Image(), "text": datasets.Value("string")}
    write_parquet(tmp_path / "odd", "train", rows, **features)
    config: Any = {"name": "hugging_face", "path": str(tmp_path / "odd"), "mask": "mask"}
    mistakes: dict[str, dict[str, Any]] = {
        "no column names the classes of the masks; set `classes`": {},
        "has no column 'maks' for mask; it has image, mask, text": {"mask": "maks", "classes": ("a", "b")},
        "the column 'text' holds no images": {"mask": "text", "classes": ("a", "b")},
        "cannot be read as a data set of Hugging Face": {"split": "test", "classes": ("a", "b")},
        "no folder /nowhere": {"path": "/nowhere"},
    }
    for message, change in mistakes.items():
        with pytest.raises(DataError, match=message):
            HuggingFaceConfig(**{**config, **change}).build()
    with pytest.raises(DataError, match=r"row 0, mask.png: the values \[7\] are not in the label map"):
        HuggingFaceConfig(**config | {"classes": ("a", "b")}).build()[0]
    with pytest.raises(ValueError, match="name the column of the labels: one of `mask`, `label` and `flow`"):
        HuggingFaceConfig(**config, label="text")
