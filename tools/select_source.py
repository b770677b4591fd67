"""Select the classes of a source data set that are worth pre-training on for a target data set.

    python tools/select_source.py --source imagenet/train --target cub:CUB_200_2011 --k 100 --out runs/source

Each class is represented by the mean of its images' features, weighted by the number of images. The distance between
two domains is the Earth Mover's Distance between their classes (DSTL, CVPR 2018). The folder `--out` receives

    classes.txt           the selected classes, as the `classes` of a data set
    classes_<source>.txt  with several sources: the classes of each source; classes.txt then lists source/class
    <target>.csv          for each selected class: its distance, the distance of the set so far, its target classes
    <target>_plan.csv     the non-zero entries of the transport plan from selected to target classes
    <target>_plan.safetensors  the whole plan; class names are in the header
    <target>.png          a figure of the plan
    class_means/<name>.safetensors  class means of each data set; pass this file instead of the images next time
    summary.json          distances and similarities, and the settings

Several places after one --source or --target form one domain (ImageNet and iNaturalist; CUB and NABirds). For each
--target, --k classes are selected, and classes.txt is the union: `--target cub:A nabirds:B --target DOGS --k 400 100`.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before installed packages called tools, models or data

from mtsp.command_line import above_zero, at_least_one, program

if TYPE_CHECKING:
    from torch import Tensor

    from data import LabeledImages
    from mtsp.transfer.centroids import Centroids

    Domain = list[tuple[str, Centroids]]  # the data sets that form one domain, with their names

CROP_PCT = 0.875
"""Side of the central crop as a fraction of the image's shorter side, as in DSTL."""
METHODS = ("greedy", "ranking")
SUFFIX = ".safetensors"  # suffix of files of class means


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, select classes and write the results; return the exit code."""
    arguments = _parser().parse_args(argv)
    ks = _ks(arguments)
    _require_writable(arguments)

    from data.classification.class_lists import write_lists
    from mtsp.files.atomic_file import write_atomically
    from mtsp.transfer.centroids import merge
    from mtsp.transfer.selection import union
    from mtsp.transfer.selection_output import select, write_selection

    groups = [arguments.source, *arguments.target]
    places = _look_up(groups)
    sources, *targets = _domains(groups, places, arguments, ks)
    source = _candidates(sources, targets, arguments.min_images, ks)
    selections = [
        select(_name(group), source, merge(group), arguments.method, k) for group, k in zip(targets, ks, strict=True)
    ]
    names = [source.names[index] for index in union(selection.path.classes for selection in selections)]
    called = [selection.name for selection in selections]
    write_lists(arguments.out, [places[text][0] for text in arguments.source], names, f"for {', '.join(called)}")
    settings = {
        "sources": arguments.source,
        "targets": dict(zip(called, arguments.target, strict=True)),
        "k": dict(zip(called, ks, strict=True)),
        **{key: getattr(arguments, key) for key in ("method", "min_images", "gamma")},
        "features": source.features,
    }
    summaries = {
        selection.name: write_selection(arguments.out, source, selection, arguments.method, arguments.gamma)
        for selection in selections
    }
    summary = json.dumps({"settings": settings, **summaries}, indent=1)
    write_atomically(arguments.out / "summary.json", summary.encode())
    return 0


def split_name(text: str) -> tuple[str, str]:
    """Return name and place in `[NAME=]PLACE`; the default name is that of the file, folder or kind of data set."""
    name, equals, place = text.partition("=")
    if equals and place and "/" not in name:
        return name, place
    kind, colon, _ = text.partition(":")
    return (kind if colon and kind in _kinds() else Path(text).resolve().stem), text


def images_at(place: str) -> "LabeledImages":
    """Return the labeled images at a place (see --help); for published data sets, the training images.

    A folder that contains CUB-200-2011 or NABirds is read as that data set.

    Raises:
        DataError: there are no labeled images at the place.
        ConfigError: the .yaml file does not describe a data set.
    """
    from data import MissingDataError
    from mtsp.config import parse_yaml

    kind, colon, root = place.partition(":")
    path = Path(place)
    if colon and kind in _kinds():
        return _build({"name": kind, "root": root}, place)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise MissingDataError(f"no file {path}")
        return _build(parse_yaml(path.read_text(encoding="utf-8")), place)
    if not path.is_dir():
        known = ", ".join(f"{kind}:ROOT" for kind in _kinds())
        raise MissingDataError(f"no folder {path}; name a folder of images, {known}, a .yaml or a {SUFFIX} file")
    if (path / "images.txt").is_file():
        return _build({"name": "nabirds" if (path / "hierarchy.txt").is_file() else "cub", "root": place}, place)
    folders = any(inner.is_dir() and not inner.name.startswith(".") for inner in path.iterdir())
    return _build({"name": "image_folder", "root": place, "one_class_per_image": not folders}, place)


def _build(values: Any, place: str) -> "LabeledImages":
    from data import AnyDataset, DataError, LabeledImages
    from mtsp.config import Config, parse

    class Entry(Config):
        dataset: AnyDataset

    dataset = parse(Entry, {"dataset": values}).dataset
    if dataset.kind != "labeled":
        raise DataError(f"{place}: {dataset.name} has no image classes; use {', '.join(_kinds())}")
    images = dataset.build()
    assert isinstance(images, LabeledImages)
    return images


def _kinds() -> list[str]:
    """Return the kinds of labeled data sets that a config can name."""
    from data.catalog.datasets import DATASETS

    return [name for name, row in DATASETS.items() if row.kind == "labeled"]


class Network(NamedTuple):
    """A pretrained network without its last layer."""

    features: "Callable[[Tensor], Tensor]"
    kind: str  # description with a hash of the weights; features can be compared if it is equal
    size: int  # side of the square input in pixels


def pretrained(backbone: str, weights: str, size: int | None) -> Network:
    """Return a pretrained network, on the GPU if there is one, in bf16 if the hardware supports it.

    If `size` is None, it is 299 for Inception-V3, the size in timm's config for other networks, or 224.

    Raises:
        ValueError: the network does not exist, or the weights do not fit it.
        FileNotFoundError: the file of weights does not exist.
    """
    import torch
    from torch import nn

    from models.classifier import INCEPTION, Backbone
    from models.pretrained.load import load_branch
    from mtsp.anchors import fingerprint
    from mtsp.distributed.accelerator import computes_bf16

    branch = nn.Module()
    branch.backbone = Backbone(backbone, aux_head=False)
    load_branch(branch, "backbone", weights)
    default_cfg: dict[str, Any] = getattr(branch.backbone.network, "default_cfg", None) or {}
    size = size or (299 if backbone == INCEPTION else int(default_cfg.get("input_size", (3, 224, 224))[-1]))
    kind = f"{backbone} with weights {fingerprint(branch.state_dict())[:16]} at {size} px, middle {CROP_PCT:g}"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = branch.backbone.eval().to(device).to(memory_format=torch.channels_last)
    mixed = computes_bf16()

    def features(frames: "Tensor") -> "Tensor":
        frames = frames.to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            return model(frames)[0]

    return Network(features, kind, size)


def class_means(name: str, images: "LabeledImages", network: Network, arguments: argparse.Namespace) -> "Centroids":
    """Return the class means of a data set, and save them under `--out`.

    Raises:
        ValueError: see :func:`mtsp.transfer.features.extract`.
    """
    from data.prepared import PreparedExamples
    from mtsp.files.progress import progress
    from mtsp.text import first_names
    from mtsp.transfer.features import extract

    examples = PreparedExamples(images, None, (network.size, network.size), CROP_PCT)
    skipped: list[str] = []
    with progress(name, len(images), "images") as advance:
        means = extract(
            network.features,
            examples,
            images.classes,
            network.kind,
            batch_size=arguments.batch_size,
            workers=arguments.workers,
            progress=advance,
            skipped=skipped.append if arguments.skip_unreadable else None,
        )
    if skipped:
        print(f"{name}: {len(skipped)} images cannot be read and were skipped: {first_names(skipped)}", file=sys.stderr)
    (arguments.out / "class_means").mkdir(parents=True, exist_ok=True)
    means.save(arguments.out / "class_means" / f"{name}{SUFFIX}")
    return means


def _look_up(groups: list[list[str]]) -> "dict[str, tuple[str, LabeledImages | Centroids]]":
    """Return name and content of every place on the command line, without decoding images."""
    from mtsp.transfer.centroids import Centroids

    places: dict[str, tuple[str, LabeledImages | Centroids]] = {}
    for text in (text for group in groups for text in group):
        name, place = split_name(text)
        is_file = Path(place).suffix == SUFFIX
        places[text] = name, Centroids.load(Path(place)) if is_file else images_at(place)
    _require_unique([name for name, _ in places.values()], "places")
    for group in groups:
        _require_unique([places[text][0] for text in group], "places of one domain")
    targets = ["+".join(places[text][0] for text in group) for group in groups[1:]]
    _require_unique(targets, "targets")
    if "settings" in targets:
        raise ValueError(
            "a target is named 'settings', which is a reserved key in summary.json; rename it with NAME=PLACE"
        )
    return places


def _require_unique(names: Sequence[str], what: str) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two {what} are named {twice[0]!r}; rename one with NAME=PLACE")


def _domains(
    groups: list[list[str]],
    places: "dict[str, tuple[str, LabeledImages | Centroids]]",
    arguments: argparse.Namespace,
    ks: Sequence[int],
) -> "list[Domain]":
    """Return the class means of all places. Errors in arguments are raised before any image is decoded."""
    import numpy as np

    from mtsp.transfer.centroids import Centroids

    network = None
    if not all(isinstance(content, Centroids) for _, content in places.values()):
        network = pretrained(arguments.backbone, arguments.weights, arguments.size)
    outlines: dict[str, tuple[str, Centroids]] = {}  # classes and numbers of images, without means
    for text, (name, content) in places.items():
        if isinstance(content, Centroids):
            outlines[text] = name, replace(content, means=content.means[:, :0])
        elif network is not None:
            counts = np.bincount(content.targets, minlength=len(content.classes))
            outlines[text] = name, Centroids(content.classes, np.zeros((len(counts), 0)), counts, network.kind)
    sources, *targets = [[outlines[text] for text in group] for group in groups]
    _candidates(sources, targets, arguments.min_images, ks)
    arguments.out.mkdir(parents=True, exist_ok=True)
    means: dict[str, tuple[str, Centroids]] = {}
    for text, (name, content) in places.items():
        if not isinstance(content, Centroids):
            assert network is not None
            content = class_means(name, content, network, arguments)
        means[text] = name, content
    return [[means[text] for text in group] for group in groups]


def _candidates(sources: "Domain", targets: "Sequence[Domain]", min_images: int, ks: Sequence[int]) -> "Centroids":
    """Return the source classes that may be selected.

    Raises:
        ValueError: there are too few classes, their features come from another network than a target's, or POT is not
            installed.
    """
    import numpy as np

    from mtsp.transfer.centroids import merge, require_same_features
    from mtsp.transfer.distances import emd

    source = merge(sources).at_least(min_images)
    for k in ks:
        if k > len(source):
            raise ValueError(f"--k {k}: the source has {len(source)} classes to choose from")
    for group in targets:
        require_same_features((_name(sources), source), (_name(group), merge(group)))
    emd(np.ones((2, 2)), np.ones(2), np.ones(2))  # fails now if POT is missing, not after an hour
    return source


def _require_writable(arguments: argparse.Namespace) -> None:
    out: Path = arguments.out
    there = next(place for place in (out.absolute(), *out.absolute().parents) if place.exists())
    if not there.is_dir():
        raise ValueError(f"--out {out}: {there} is a file; name a folder")
    if not os.access(there, os.W_OK):
        raise ValueError(f"--out {out}: {there} cannot be written; name another folder")
    if (out / "classes.txt").exists() and not arguments.overwrite:
        raise ValueError(f"{out / 'classes.txt'} exists; add --overwrite, or choose another --out")


def _name(domain: "Domain") -> str:
    return "+".join(name for name, _ in domain)


def _ks(arguments: argparse.Namespace) -> list[int]:
    """Return the number of classes to select for each target."""
    targets, given = len(arguments.target), arguments.k
    if given is None:
        raise ValueError(
            "--k is missing; set the number of classes to select, such as DSTL's --k 200, for each --target"
        )
    if len(given) not in (1, targets):
        raise ValueError(
            f"--k has {len(given)} numbers for {targets} targets; pass one number, or one for each --target"
        )
    return given * targets if len(given) == 1 else given


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="select_source.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    place = (
        "source, as [NAME=]PLACE. PLACE is a folder of class folders; a folder with one image per class; KIND:ROOT, "
    )
    place += "such as cub:ROOT; a .yaml file with the keys of a config's `dataset`; or a .safetensors of class means"
    add("--source", nargs="+", required=True, metavar="PLACE", help=place)
    add("--target", nargs="+", required=True, action="append", metavar="PLACE", help="target, as for --source")
    add("--k", type=at_least_one, nargs="+", help="number of classes to select (required): one, or one per --target")
    add("--method", choices=METHODS, default="greedy", help="selection method (default: %(default)s)")
    fewest = "skip source classes with fewer images (DSTL: 200; default: %(default)s)"
    add("--min-images", type=at_least_one, default=1, help=fewest)
    add("--gamma", type=above_zero, default=0.01, help="gamma in the similarity exp(-gamma EMD) (default: %(default)s)")
    network = "network for the features: a timm name or torchvision:NAME (default: %(default)s)"
    add("--backbone", default="tf_efficientnet_lite0", help=network)
    weights = "weights of the network: a file, `imagenet` (downloaded), or package:NAME (default: %(default)s)"
    add("--weights", default="package:efficientnet-lite0", help=weights)
    add(
        "--size",
        type=at_least_one,
        metavar="PX",
        help="side of the square input in pixels (default: the network's own size)",
    )
    add("--batch-size", type=at_least_one, default=64, help="images per forward pass (default: %(default)s)")
    add("--workers", type=at_least_one, default=2, help="number of threads that decode images (default: %(default)s)")
    add("--skip-unreadable", action="store_true", help="skip images that cannot be read")
    add("--out", type=Path, required=True, help="folder for the results")
    add("--overwrite", action="store_true", help="replace the results in --out")
    return parser


if __name__ == "__main__":
    sys.exit(main())
