"""`tools/train.py --new`: a config for a person's own data, which trains as it is."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from data.files.flow_formats.flo import write_flo
from data.files.images import write_image
from data.files.masks import write_mask
from data.segmentation.mask_folder import MaskFolderConfig
from models.pretrained import downloads
from models.pretrained.downloads import Download, downloaded
from models.pretrained.files import SHIPPED
from models.segflow import SegFlowConfig
from mtsp.config import CONFIGS, parse
from mtsp.training.checks.missing_files import missing_fisher
from tools import prepare_data
from tools.build import AnyExperiment, _why_missing, read_experiment
from tools.new_config.look import mask_suffix, spread
from tools.new_config.machine import Machine
from tools.new_config.write import filled
from tools.train import main


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in a folder of its own, without a GPU and without a network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for module in ("tools.new_config.machine", "tools.build"):
        monkeypatch.setattr(f"{module}.why_unreachable", lambda url: "no network in tests")
    return tmp_path


def write_photo(path: Path, seed: int, size: tuple[int, int] = (40, 64)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def write_labels(path: Path, *values: int, size: tuple[int, int] = (40, 64)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mask(path, np.resize(np.repeat(np.array(values, np.uint8), 8), size))


def new(*words: str) -> int:
    return main(["--new", "mine.yaml", *words])


def written() -> dict[str, Any]:
    return read_experiment("mine.yaml").model_dump(mode="json")


SMALL = ["model.encoder=tu-test_efficientnet", "branches.backbone.weights=null", "regularizer.name=l2", "train.steps=2"]


def test_masks_of_classes_give_a_config_that_trains(capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(10):
        write_photo(Path(f"photos/{i}.jpg"), i)
        write_labels(Path(f"labels/{i}.png"), 0, 1, 2, 255)
    assert new("--masks", "photos", "labels") == 0
    found = written()
    assert found["name"] == "mine"
    assert found["model"]["classes"] == 3  # 255 is unknown beside other values
    dataset = found["data"]["train"]["dataset"]
    assert (dataset["classes"], dataset["unknown"]) == (["class_0", "class_1", "class_2"], [255])
    assert len(Path("mine_train.txt").read_text().split()) == 8
    assert len(Path("mine_val.txt").read_text().split()) == 2  # a fifth
    assert found["data"]["train"]["augment"]["crop"] == [32, 48]  # 0.8 of 40 and 64, multiples of 16, at least 32
    assert found["data"]["val"]["size"] == [40, 64]
    told = capsys.readouterr().out
    assert "10 masks hold 3 classes: 0 to 2" in told
    assert "python tools/train.py --config mine.yaml" in told
    assert main(["--config", "mine.yaml", *SMALL, "train.workers=0"]) == 0
    assert json.loads(Path("runs/mine/results.json").read_text())["val"]["pixels"] == 2 * 40 * 64 * 3 / 4
    assert new("--masks", "photos", "labels") == 1  # nothing is overwritten
    assert "mine.yaml exists" in capsys.readouterr().err


def test_masks_of_an_object_beside_their_photos(capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(5):
        write_photo(Path(f"both/{i}.jpg"), i)
        write_labels(Path(f"both/{i}_mask.png"), 0, 255)
    assert new("--masks", "both", "both") == 0
    dataset = written()["data"]["val"]["dataset"]
    assert dataset["foreground"]
    assert dataset["mask_suffix"] == "_mask"
    found = read_experiment("mine.yaml").data["val"].build_dataset()
    assert len(found) == 1
    assert sorted(np.unique(found[0].get("mask", 0)).tolist()) == [0, 1]
    assert "masks show one object" in capsys.readouterr().out


def test_masks_in_colors_are_an_object_or_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("colors").mkdir()
    image = np.zeros((40, 64, 3), np.uint8)
    image[:9] = (255, 0, 0)
    for i in range(5):
        write_photo(Path(f"photos/{i}.png"), i)
        Image.fromarray(image).save(f"colors/{i}.png")
    assert new("--masks", "photos", "colors") == 0
    assert written()["data"]["train"]["dataset"]["foreground"]
    image[9:20] = (0, 255, 0)
    Image.fromarray(image).save("colors/3.png")
    Path("mine.yaml").unlink()
    assert new("--masks", "photos", "colors") == 1
    assert "which are colors and no class ids" in capsys.readouterr().err


def test_classes_are_named_by_a_file_beside_the_masks() -> None:
    for i in range(5):
        write_photo(Path(f"set/photos/{i}.jpg"), i)
        write_labels(Path(f"set/labels/{i}.png"), 3, 7, 9)
    Path("set/classes.txt").write_text("# of the survey\nroad\ngrass\nsky\n")
    assert new("--masks", "set/photos", "set/labels", "--val", "set/photos", "set/labels") == 0
    dataset = written()["data"]["val"]["dataset"]
    assert (dataset["classes"], dataset["values"]) == ("set/classes.txt", [3, 7, 9])
    assert not Path("mine_val.txt").exists()
    assert MaskFolderConfig(**{**dataset, "values": (3, 7, 9)}).build().classes == ("road", "grass", "sky")


def test_photos_by_class_give_a_config_that_trains() -> None:
    for i in range(12):
        write_photo(Path(f"photos/{'cat' if i % 3 else 'dog'}/a/{i}.jpg"), i)
    assert new("--images", "photos") == 0
    found = read_experiment("mine.yaml", ["model.backbone=test_efficientnet", *SMALL[1:]])
    train, val = (found.data[name].build_dataset() for name in ("train", "val"))
    assert len(train) == 10  # a fifth of 8 cats, 1, and at least one of 4 dogs are held out
    assert len(val) == 2
    assert not {*train.ids} & {*val.ids}
    assert main(["--config", "mine.yaml", "model.backbone=test_efficientnet", *SMALL[1:], "train.workers=0"]) == 0


def test_photos_in_train_and_val_are_taken_as_they_are() -> None:
    for part in ("train", "val"):
        for i in range(4):
            write_photo(Path(f"photos/{part}/{'cat' if i % 2 else 'dog'}/{i}.jpg"), i)
    assert new("--images", "photos") == 0
    roots = [section["dataset"]["root"] for section in written()["data"].values()]
    assert roots == ["photos/train", "photos/val"]


def test_whole_videos_are_held_out(capsys: pytest.CaptureFixture[str]) -> None:
    for video in ("cat", "dog", "cow"):
        for i in range(3):
            write_photo(Path(f"frames/{video}/{i}.jpg"), i)
            write_labels(Path(f"masks/{video}/{i}.png"), 0, 1, 2)
    assert new("--videos", "frames", "masks") == 0
    assert "they hold 0 to 2, taken together as the object" in capsys.readouterr().out
    small = ["model.encoder=tu-test_efficientnet", "branches.segmentation.weights=null", *SMALL[2:], "train.workers=0"]
    found = read_experiment("mine.yaml", small)
    train, val = (found.data[name].build_dataset() for name in ("train", "val"))
    assert {name.split("/")[0] for name in train.ids} | {name.split("/")[0] for name in val.ids} == {
        "cat",
        "dog",
        "cow",
    }
    assert (len(train), len(val)) == (6, 3)
    assert main(["--config", "mine.yaml", *small]) == 0


def test_a_config_for_videos_takes_the_shipped_flow_branch_as_its_first_lines_say() -> None:
    for video in ("cat", "dog"):
        for i in range(2):
            write_photo(Path(f"frames/{video}/{i}.jpg"), i)
            write_labels(Path(f"masks/{video}/{i}.png"), 0, 1)
    assert new("--videos", "frames", "masks") == 0
    told = [line.removeprefix("#   ") for line in Path("mine.yaml").read_text().splitlines() if "=" in line]
    small = ["model.encoder=tu-test_efficientnet", "branches.segmentation.weights=null", "train.steps=2"]
    assert main(["--config", "mine.yaml", *shlex.split(" ".join(told)), *small, "train.workers=0"]) == 0
    trained, shipped = load_file("runs/mine/weights.safetensors"), load_file(SHIPPED)
    network = [name for name in trained if name.startswith("flow.network.")]
    assert len(network) > 20
    assert all(torch.equal(trained[name], shipped[name]) for name in network)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--masks", "photos", "nowhere"], "there is no folder"),
        (["--masks", "photos", "photos"], "have no mask in photos"),
        (["--images", "photos"], "images are outside the class folders"),
    ],
)
def test_what_cannot_be_used_is_said(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(3):
        write_photo(Path(f"photos/{i}.jpg"), i)
    assert new(*words) == 1
    assert message in capsys.readouterr().err
    assert not Path("mine.yaml").exists()


def test_values_are_filled_in_by_their_keys_and_comments_stay() -> None:
    text = "a: 1 # one\nb:\n  a: 2\n  c: {d: 3} # three\n"
    assert filled(text, {"b.a": "x", "b.c": [1, None]}) == "a: 1 # one\nb:\n  a: x\n  c: [1, null] # three\n"
    with pytest.raises(KeyError, match=r"no a\.b"):
        filled(text, {"a.b": 1})


@pytest.mark.parametrize(
    ("stored", "single", "classes", "values", "unknown"),
    [
        ((0, 255), True, 2, None, None),
        ((0, 200), True, 2, None, None),
        ((0, 1), False, 2, None, None),
        ((1, 255), False, 2, None, [255]),  # one class, and unknown
        ((0, 1, 255), False, 2, None, [255]),
        ((3, 300, 65535), False, 2, [3, 300], [65535]),  # of 16 bits
        ((3, 255, 300), False, 3, [3, 255, 300], []),
    ],
)
def test_values_of_masks_are_read_as_most_mean_them(
    stored: tuple[int, ...], single: bool, classes: int, values: list[int] | None, unknown: list[int] | None
) -> None:
    for i in range(2):
        write_photo(Path(f"photos/{i}.png"), i, size=(2, len(stored)))
        Path("labels").mkdir(exist_ok=True)
        Image.fromarray(np.array([stored, stored], np.uint16 if max(stored) > 255 else np.uint8)).save(
            f"labels/{i}.png"
        )
    assert new("--masks", "photos", "labels") == 0
    found = written()
    dataset = found["data"]["val"]["dataset"]
    assert (dataset["foreground"], found["model"]["classes"]) == (single, classes)
    assert (dataset["values"], dataset["unknown"]) == (values, unknown)
    data = read_experiment("mine.yaml").data["val"].build_dataset()
    assert set(np.unique(data.labels(0).get("mask", 0)).tolist()) <= {*range(classes), 255}


def test_the_batch_fits_half_of_the_memory() -> None:
    machine = Machine(gpu=True, memory=10 * 10**9)  # 5 GB, less 1 GB for the weights: 4 GB
    fitting = {"bytes_per_pixel": 8000, "examples": 1000}  # 1.84 GB for an image of 480x480: two of them
    assert machine.batch((480, 480), most=16, **fitting) == 2
    assert machine.batch((128, 128), most=16, **fitting) == 16
    assert machine.batch((4800, 4800), most=16, **fitting) == 1
    assert machine.batch((128, 128), most=16, bytes_per_pixel=8000, examples=5) == 4


def test_files_are_read_evenly_and_masks_found_by_their_suffix() -> None:
    assert spread(range(10), 4) == [0, 2, 5, 7]
    write_photo(Path("images/1.jpg"), 0)
    write_labels(Path("labels/1_L.png"), 0, 1)
    assert mask_suffix(Path("images"), Path("labels")) == "_L"


@pytest.mark.parametrize("path", sorted((CONFIGS / "own").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_template_is_a_config(path: Path) -> None:
    experiment = read_experiment(path)
    assert experiment.name == path.stem


def test_all_files_of_a_config_are_checked_and_classes_counted(capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(10):
        write_photo(Path(f"photos/{i}.png"), i)
        write_labels(Path(f"labels/{i}.png"), 0, 0, 0, 1)
    write_labels(Path("labels/3.png"), 0)
    assert new("--masks", "photos", "labels", "--val", "photos", "labels") == 0
    capsys.readouterr()
    check = ["verify", "--config", "mine.yaml", "--workers", "1"]
    assert prepare_data.main(check) == 0
    told = capsys.readouterr().out
    assert "mine.yaml: 20 examples read (train 10, val 10): no problems" in told
    assert "object            9   22.50 %" in told  # a quarter of 9 masks of 10
    whole = Path("photos/7.png").read_bytes()
    Path("photos/7.png").write_bytes(whole[: len(whole) // 2])
    write_labels(Path("labels/5.png"), 0, 2)
    assert prepare_data.main([*check, "--entry", "val"]) == 1
    told = capsys.readouterr().out
    assert "photos/7.png" in told
    assert "labels/5.png: the values [2] are not in the label map" in told
    assert "mine.yaml: 10 examples read (val 10): 2 problems" in told
    assert prepare_data.main(["labels", "--config", "mine.yaml", "--out", "example.png"]) == 0
    assert Path("example.png").is_file()
    assert prepare_data.main([*check, "--entry", "tset"]) == 1
    assert "no data entry 'tset'; the config has train, val" in capsys.readouterr().err
    for i in range(2):
        write_photo(Path(f"birds/{'ab'[i]}/{i}.jpg"), i)
    override = "data.train.dataset={name: image_folder, root: birds}"
    assert prepare_data.main([*check, "--entry", "train", override]) == 0
    assert "b        1\n" in capsys.readouterr().out


def test_all_missing_files_are_told_at_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = CONFIGS / "davis_segflow_small.yaml"
    assert (
        main(["--config", str(config), "branches.segmentation.weights=imagenet", "data.davis.dataset.root=gone"]) == 1
    )
    told = capsys.readouterr().err
    assert "tf_efficientnet_lite0.in1k/resolve/main/model.safetensors, which cannot be reached (no network in" in told
    assert f"branches.flow.weights: no file {here / 'runs/flownets_small/weights.safetensors'}; python " in told
    assert "python tools/train.py --config flownets_small.yaml writes it" in told
    for entry in ("davis", "davis_val", "chairs", "chairs_val", "middlebury"):
        assert f"data.{entry}: " in told
    assert not Path("runs/davis_segflow_small").exists()  # no lock, no folder


def test_a_missing_fisher_file_is_told_before_anything_else(values: dict[str, Any], here: Path) -> None:
    values["regularizer"] = {"name": "l2spfisher", "alpha": 0.1, "beta": 0.1, "fisher": "fisher.safetensors"}
    experiment = parse(AnyExperiment, values | {"branches": {"segmentation": {"weights": "w.pth"}, "flow": {}}})
    hint = "write it with python tools/fisher.py --config THIS --out fisher.safetensors"
    assert missing_fisher(experiment) == [f"regularizer.fisher: no file {here / 'fisher.safetensors'}; {hint}"]
    (here / "fisher.safetensors").touch()
    assert missing_fisher(experiment) == []


def test_the_number_of_classes_is_that_of_the_data() -> None:
    for i in range(6):
        write_photo(Path(f"photos/{'cat' if i % 2 else 'dog'}/{i}.jpg"), i)
    assert new("--images", "photos", "--val", "photos") == 0
    small = ["model.backbone=test_efficientnet", *SMALL[1:], "train.workers=0", "model.classes=null"]
    assert main(["--config", "mine.yaml", *small]) == 0
    assert read_experiment("runs/mine/experiment.yaml").model.model_dump()["classes"] == 2


def test_a_file_that_its_library_keeps_needs_no_network(tmp_path: Path) -> None:
    url = "https://example.org/models/resnet-1234.pth"
    assert downloaded(url, tmp_path) == Download(url, None, tmp_path / "resnet-1234.pth")
    (tmp_path / "resnet-1234.pth").touch()
    assert downloaded(url, tmp_path).kept == tmp_path / "resnet-1234.pth"


def test_the_addresses_of_published_weights_are_those_of_their_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    def url(network: str, source: str = "imagenet") -> str:
        found = downloads.published_download(network, source)
        return "" if found is None else found.url

    assert url("raft_small", "torchvision").endswith("models/raft_small_C_T_V2-01064c6d.pth")
    assert url("torchvision:resnet50", "torchvision:IMAGENET1K_V1").endswith("models/resnet50-0676ba61.pth")
    assert url("tu-resnet18.a1_in1k").endswith("/timm/resnet18.a1_in1k/resolve/main/model.safetensors")
    assert "/smp-hub/resnet50.imagenet/resolve/" in url("resnet50")
    assert url("no_such_network") == url("no_such_network", "torchvision") == ""
    values = {"name": "segflow", "flow": {"name": "raft", "size": "small"}}
    assert "raft_small_C_T_V2" in _why_missing(parse(SegFlowConfig, values), "flow", "torchvision")


def test_pairs_with_flow_give_a_config_that_trains(capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(6):
        write_photo(Path(f"set/frames/{i}.png"), i, size=(128, 160))
    for i in range(5):
        Path("set/flow").mkdir(exist_ok=True)
        write_flo(Path(f"set/flow/{i}.flo"), np.ones((128, 160, 2), np.float32))
    assert new("--flow", "set") == 0
    told = capsys.readouterr().out
    assert "found 5 pairs, frames in set/frames and flow in set/flow" in told
    assert "the flow set/flow/0.flo is taken to lead from set/frames/0.png to set/frames/1.png" in told
    assert "torchvision's RAFT cannot be had" in told  # there is no network in tests, so it trains a FlowNetS anew
    found = written()
    assert (found["model"]["name"], found["regularizer"]["name"], found["branches"]["flow"]["weights"]) == (
        ("flownets", "l2", None)
    )
    assert main(["--config", "mine.yaml", "train.steps=1", "train.workers=0", "model.width=0.04"]) == 0
    assert json.loads(Path("runs/mine/results.json").read_text())["val"]["epe"] > 0


def test_pairs_start_from_raft_where_its_weights_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.new_config.machine.why_unreachable", lambda url: "")
    for name in ("1_img1.png", "1_img2.png", "2_img1.png", "2_img2.png"):
        write_photo(Path("set") / name, 0, size=(128, 160))
    for i in (1, 2):
        write_flo(Path(f"set/{i}_flow.flo"), np.ones((128, 160, 2), np.float32))
    assert new("--flow", "set", "--val", "set") == 0
    found = written()
    assert (found["model"]["name"], found["model"]["size"]) == ("raft", "small")
    assert found["branches"]["flow"]["weights"] == "torchvision"
    assert len(read_experiment("mine.yaml").data["val"].build_dataset()) == 2
