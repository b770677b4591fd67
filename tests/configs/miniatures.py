"""Miniatures of what the rows of the paper need: data sets and weights in their published layouts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.datasets import Flowers102

from data.files.images import write_image
from data.files.masks import write_mask
from data.segmentation.pascal_context import LISTS, MASKS
from data.synthetic.clips import SyntheticConfig
from data.synthetic.writers import write_davis, write_scene_flow
from models.classifier import ClassifierConfig
from models.encoders.caffe_resnet import CaffeResNet
from tests.models.pretrained.published import flownets_file

SMALL = SyntheticConfig(clips=2, frames=3, height=64, width=96, objects=(1, 1))


def write_video(root: Path) -> None:
    """DAVIS, and the two data sets of Scene Flow."""
    write_davis(SMALL, root / "DAVIS", validation=0.5)
    write_scene_flow(SMALL, root / "SceneFlow/Monkaa", "Monkaa")
    write_scene_flow(SMALL.model_copy(update={"clips": 8, "frames": 2}), root / "SceneFlow/Driving", "Driving")


def write_context(root: Path) -> None:
    """Two images of PASCAL-Context, with the first nine of its classes."""
    root = root / "PASCAL-Context"
    for split, names in (("train", ("2008_1", "2008_2")), ("val", ("2008_3",))):
        _text(root / LISTS / f"{split}.txt", names)
        for name in names:
            _image(root / "JPEGImages" / f"{name}.jpg", 48)
            (root / MASKS).mkdir(parents=True, exist_ok=True)
            write_mask(root / MASKS / f"{name}.png", (np.arange(48 * 48) // 256).reshape(48, 48).astype(np.uint8))


def write_labeled(root: Path) -> None:
    """The six targets of DSTL with an image of each class."""
    for folder, count, groups in (("CUB_200_2011", 200, 0), ("nabirds", 555, 100)):
        _birds(root / folder, count, groups)
    food, dishes = root / "food-101", [f"dish_{i}" for i in range(101)]
    for split in ("train", "test"):
        _text(food / f"meta/{split}.json", [json.dumps({name: [f"{name}/{split}"] for name in dishes})])
        for name in dishes:
            _image(food / f"images/{name}/{split}.jpg")
    aircraft = root / "fgvc-aircraft-2013b/data"
    _text(aircraft / "variants.txt", [f"A{i}" for i in range(100)])
    for split in ("trainval", "test"):
        _text(aircraft / f"images_variant_{split}.txt", [f"{split}{i} A{i}" for i in range(100)])
        for i in range(100):
            _image(aircraft / "images" / f"{split}{i}.jpg")
    cars = root / "stanford_cars"
    (cars / "devkit").mkdir(parents=True)
    names = np.array([f"car {i}" for i in range(196)], dtype=object)
    scipy.io.savemat(cars / "devkit/cars_meta.mat", {"class_names": names})
    rows = np.array([(i + 1, f"{i}.jpg") for i in range(196)], dtype=[("class", "O"), ("fname", "O")])
    for split, file in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        scipy.io.savemat(cars / file, {"annotations": rows})
        for i in range(196):
            _image(cars / f"cars_{split}/{i}.jpg")
    flowers = root / "flowers-102"
    count = len(Flowers102.classes)
    for number in range(1, 3 * count + 1):
        _image(flowers / f"jpg/image_{number:05d}.jpg")
    scipy.io.savemat(flowers / "imagelabels.mat", {"labels": np.tile(np.arange(1, count + 1), 3)[None]})
    ids = {key: np.arange(1, count + 1)[None] + i * count for i, key in enumerate(("trnid", "valid", "tstid"))}
    scipy.io.savemat(flowers / "setid.mat", ids)


def _birds(root: Path, count: int, groups: int) -> None:
    """An image of each class for training and one for testing; `groups` classes have none."""
    names = {number: f"{number:03d}.Bird" for number in range(1, count + 1)}
    listed = names | {count + 1 + group: f"Group {group}" for group in range(groups)}
    _text(root / "classes.txt", [f"{i} {name}" for i, name in listed.items()])
    files = {f"{i}-{split}": (i, f"{names[i]}/{split}.jpg", split) for i in names for split in (0, 1)}
    _text(root / "images.txt", [f"{key} {file}" for key, (_, file, _) in files.items()])
    _text(root / "image_class_labels.txt", [f"{key} {i}" for key, (i, _, _) in files.items()])
    _text(root / "train_test_split.txt", [f"{key} {split}" for key, (_, _, split) in files.items()])
    for _, file, _ in files.values():
        _image(root / "images" / file)


_DRAWN: dict[tuple[Path, int], Path] = {}


def _image(path: Path, size: int = 16) -> None:
    """Noise; every image of one size below one folder is a link to the first, since there are two thousand."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first = _DRAWN.setdefault((path.parents[-3], size), path)
    if first == path or not first.exists():
        write_image(path, np.random.default_rng(0).integers(0, 255, (size, size, 3)).astype(np.uint8))
        _DRAWN[path.parents[-3], size] = path
    else:
        path.hardlink_to(first)


def _text(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def write_weights(folder: Path) -> None:
    """Random weights in the layouts of the files that the configs name, and timm's for `imagenet`."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(caffe_blobs(CaffeResNet((3, 4, 23, 3)).state_dict(), (3, 4, 23, 3)), folder / "resnet101_caffe.pth")
    flownets = {key: 0.02 * value for key, value in flownets_file(33, width=1.0).items()}
    torch.save({"state_dict": flownets}, folder / "flownets_from_caffe.pth")
    for depth in (50, 101):
        torch.save(timm.create_model(f"resnet{depth}s").state_dict(), folder / f"resnet{depth}s.pth")


def write_inception(path: Path) -> None:
    """The weights of a run of dstl_source.yaml, with 585 classes."""
    source = ClassifierConfig(name="classifier", classes=585).build()
    save_file({name: value.contiguous() for name, value in source.state_dict().items()}, path)


def caffe_blobs(own: dict[str, Tensor], counts: Sequence[int]) -> dict[str, Tensor]:
    """Numbered blobs, as a caffemodel of ResNet-101 holds them, of these weights of ours."""
    blobs: dict[str, Any] = {}

    def add(conv: str, norm: str, layer: str, end: str) -> None:
        blobs[f"{layer}.0"] = own[f"{conv}.weight"]
        blobs[f"bn{end}.0"], blobs[f"bn{end}.1"] = own[f"{norm}.running_mean"], own[f"{norm}.running_var"]
        blobs[f"bn{end}.2"] = torch.ones(1)
        blobs[f"scale{end}.0"], blobs[f"scale{end}.1"] = own[f"{norm}.weight"], own[f"{norm}.bias"]

    add("conv1", "bn1", "conv1", "_conv1")
    for stage, count in enumerate(counts, start=1):
        for index in range(count):
            letter = f"b{index}" if stage in (2, 3) and index else "abc"[index]
            ours, theirs = f"layer{stage}.{index}", f"{stage + 1}{letter}_branch"
            if index == 0:
                add(f"{ours}.downsample.0", f"{ours}.downsample.1", f"res{theirs}1", f"{theirs}1")
            for number, branch in enumerate("abc", start=1):
                add(f"{ours}.conv{number}", f"{ours}.bn{number}", f"res{theirs}2{branch}", f"{theirs}2{branch}")
    return blobs | {"fc1000.0": torch.ones(1000, 2048), "fc1000.1": torch.ones(1000)}
