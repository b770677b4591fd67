"""Domains by where they are: a data set, a folder of images or a file of class means, as class means."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from data import AnyDataset, DataError, LabeledImages, MissingDataError
from data.catalog.datasets import DATASETS
from data.prepared import PreparedExamples
from models.classifier import INCEPTION, Backbone
from models.pretrained.load import load_branch
from mtsp.anchors import fingerprint
from mtsp.config import Config, parse, parse_yaml
from mtsp.distributed.accelerator import computes_bf16
from mtsp.files.hash_cache import digests
from mtsp.files.progress import progress
from mtsp.text import first_names
from mtsp.training.signals import StopSignals
from mtsp.transfer.centroids import SUFFIX, Centroids
from mtsp.transfer.features import extract

CENTER = 0.875
"""The part of an image's shorter side that is seen, as in DSTL's single central crop."""


class _Described(Config):
    """A data set as an experiment names it."""

    dataset: AnyDataset


@dataclass(frozen=True)
class Network:
    """What gives features, and how images are shown to it."""

    features: Callable[[Tensor], Tensor]
    kind: str
    """In words, with a hash of the weights: equal for features that can be compared."""
    size: int
    precision: str
    crop_pct: float = CENTER


class _Branch(nn.Module):
    """What weights are loaded into: a network of one branch."""

    branches = ("backbone",)

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone


def network(backbone: str, weights: str, size: int | None) -> Network:
    """Return a pretrained network without its last layer, on the GPU if there is one, in bf16 where hardware has it.

    Args:
        backbone: a network of timm, or `torchvision:` and one of torchvision's.
        weights: as :func:`models.pretrained.load.load_branch` takes them.
        size: of the square that the network sees; None: 299 for Inception-V3, else what timm says, else 224.

    Raises:
        ValueError: there is no such network, or the weights do not fit it.
        FileNotFoundError: there is no such file of weights.
    """
    branch = _Branch(Backbone(backbone, aux_head=False))
    load_branch(branch, "backbone", weights)
    settings: dict[str, Any] = getattr(branch.backbone.network, "default_cfg", None) or {}
    size = size or (299 if backbone == INCEPTION else int(settings.get("input_size", (3, 224, 224))[-1]))
    kind = f"{backbone} with weights {fingerprint(branch.state_dict())[:16]} at {size} px, middle {CENTER:g}"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = branch.backbone.eval().to(device).to(memory_format=torch.channels_last)
    mixed = computes_bf16()

    def features(frames: Tensor) -> Tensor:
        frames = frames.to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            return model(frames)[0]

    return Network(features, kind, size, f"{device.type} {'bf16' if mixed else 'fp32'}")


def named(text: str) -> tuple[str, str]:
    """Return name and place of `[NAME=]PLACE`; without a name, that of the file, folder or data set."""
    name, equals, place = text.partition("=")
    if equals and place and "/" not in name:
        return name, place
    dataset, colon, _ = text.partition(":")
    return (dataset if colon and dataset in _datasets() else Path(text).resolve().stem), text


def images_at(place: str) -> LabeledImages:
    """Return the labeled images at a place.

    Args:
        place: `cub:ROOT`, a data set of labeled images with its root, of which the training images are taken; a
            .yaml file with what an experiment has under `dataset`; a folder with one folder for each class; or a folder
            of images each of which is a class of its own. A folder that is CUB-200-2011 or NABirds is read as such.

    Raises:
        DataError: there is nothing of that kind.
        ConfigError: the .yaml file does not describe a data set.
    """
    dataset, colon, root = place.partition(":")
    path = Path(place)
    if colon and dataset in _datasets():
        return _build({"name": dataset, "root": root}, place)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise MissingDataError(f"no file {path}")
        return _build(parse_yaml(path.read_text(encoding="utf-8")), place)
    if not path.is_dir():
        known = ", ".join(f"{name}:ROOT" for name in _datasets())
        raise MissingDataError(f"no folder {path}; expected a folder of images, {known}, a .yaml or {SUFFIX} file")
    if (path / "images.txt").is_file():
        return _build({"name": "nabirds" if (path / "hierarchy.txt").is_file() else "cub", "root": place}, place)
    folders = any(inner.is_dir() and not inner.name.startswith(".") for inner in path.iterdir())
    return _build({"name": "image_folder", "root": place, "each_its_own": not folders}, place)


def class_means(
    name: str,
    images: LabeledImages,
    net: Network,
    cache: Path,
    *,
    batch_size: int = 64,
    threads: int = 2,
    skip_unreadable: bool = False,
) -> Centroids:
    """Return the class means of a domain, from the cache if these images and this network are in it.

    The cache goes by the images' bytes: a copy of a data set finds what the original left, and other pixels never
    do. A stopped run leaves its sums in the cache, and the next one goes on from them.

    Args:
        name: of the domain, for what is shown.
        images: of it.
        net: what gives the features.
        cache: a folder.
        batch_size: images at once.
        threads: that decode.
        skip_unreadable: leave out images that cannot be read, and say so, instead of stopping.

    Raises:
        ValueError: see :func:`mtsp.transfer.extract`.
        OSError: the cache cannot be written.
    """
    with progress(f"{name}, reading", len(images), "images", brief=True) as advance:
        files = digests([image.path for image in images.images], cache / "images.jsonl", threads, advance)
    key = content(images, net, files)
    file, partial = cache / f"{key}{SUFFIX}", cache / f"{key}.partial{SUFFIX}"
    console = Console(stderr=True)
    if file.is_file():
        said = f"{name}: class means of {len(images):,} images from {file}"
        console.print(said, markup=False, highlight=False, soft_wrap=True)
        return Centroids.load(file)
    cache.mkdir(parents=True, exist_ok=True)
    skipped: list[str] = []
    with StopSignals() as signals, progress(name, len(images), "images") as advance:
        found = extract(
            net.features,
            PreparedExamples(images, None, (net.size, net.size), net.crop_pct),
            images.classes,
            net.kind,
            partial=partial,
            batch_size=batch_size,
            threads=threads,
            progress=advance,
            passed_over=skipped.append if skip_unreadable else None,
            stop=signals.received,
        )
    if skipped:
        said = f"{name}: {len(skipped)} images cannot be read: {first_names(skipped)}"
        console.print(said, markup=False, highlight=False, soft_wrap=True)
        return found  # not kept: the file would not say so
    found.save(file)
    return found


def content(images: LabeledImages, net: Network, files: Sequence[str]) -> str:
    """Return a hash of what class means depend on: network, classes, and each image's name, label and bytes.

    Args:
        images: the images.
        net: what gives the features.
        files: a digest of each image's file. Where the file lies and how old it is does not count.
    """
    digest = hashlib.sha256(json.dumps([net.kind, net.precision, images.classes]).encode())
    for image, file in zip(images.images, files, strict=True):
        digest.update(json.dumps([image.name, image.label, file]).encode())
    return digest.hexdigest()[:32]


def _datasets() -> list[str]:
    """Return the data sets of labeled images that an experiment can name."""
    return [name for name, row in DATASETS.items() if row.kind == "labeled"]


def _build(values: Any, place: str) -> LabeledImages:
    dataset = parse(_Described, {"dataset": values}).dataset
    if dataset.kind != "labeled":
        raise DataError(f"{place}: {dataset.name} has no classes of whole images; {', '.join(_datasets())} have")
    built = dataset.build()
    assert isinstance(built, LabeledImages)
    return built
