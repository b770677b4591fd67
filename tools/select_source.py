"""Choose what to pre-train on.

    python tools/select_source.py --source imagenet/train --target cub:CUB_200_2011 --k 100 --out runs/source

Each class of a domain is the mean of its images' features, as heavy as their number, and the distance between domains
is the Earth Mover's (DSTL, CVPR 2018). Under `--out` are then

    classes.txt           the chosen classes of the source, as `classes` of a data set takes them
    classes_<source>.txt  of several sources, each one's own, for its own data set; classes.txt has source/class then
    <target>.csv          each with its distance, the distance of the set so far, and what it feeds
    <target>_plan.csv     the transport plan from the chosen classes to the target's, where anything goes
    <target>_plan.safetensors   all of it; the names are in the header
    <target>.png          a image of it
    summary.json          the distances and similarities of the table on the screen, and the settings

Several places after one --source or --target are one domain (ImageNet and iNaturalist; CUB and NABirds). Each --target
chooses its own --k classes, and classes.txt is the union: `--target cub:A nabirds:B --target DOGS --k 400 100`.

To pre-train on classes of several sources, `--link DIR` makes folders DIR/<source>__<class> of links to their images:
a data set `name: image_folder, root: DIR` is then the union.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data import DataError, LabeledImages
from data.classification.class_lists import by_source, link, require_linkable, write_lists
from data.classification.labeled_images import read_classes
from mtsp import transfer
from mtsp.config import ConfigError
from mtsp.files.atomic import write_atomically
from mtsp.files.progress import progress
from mtsp.transfer import Centroids
from mtsp.transfer.centroids import SUFFIX, require_same_features
from mtsp.transfer.selection_output import Choice, write_choice
from tools.build import above_zero, at_least_one, run_or_say_why
from tools.domains import class_means, images_at, named, network

METHODS = ("greedy", "ranking", "neighbors")
Domains = list[tuple[str, Centroids]]
"""The parts of a domain, by name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    arguments = _parser().parse_args(argv)
    budgets = _budgets(arguments)
    _require_places(arguments)
    groups = [arguments.source, *arguments.target]
    found = _looked_up(groups)
    own = dict(found[text] for text in arguments.source)
    if arguments.link is not None:
        require_linkable(arguments.link, own, overwrite=arguments.overwrite)
    sources, *targets = _domains(groups, found, arguments, budgets)
    source = _possible(sources, targets, arguments, budgets)
    chosen = [
        choose(_name(group), source, transfer.joined(group), arguments.method, k)
        for group, k in zip(targets, budgets, strict=True)
    ]
    names = [source.names[index] for index in transfer.united(choice.growth.classes for choice in chosen)]
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_lists(arguments.out, list(own), names, f"for {', '.join(choice.name for choice in chosen)}")
    summaries = {
        choice.name: write_choice(arguments.out, source, choice, arguments.method, arguments.gamma) for choice in chosen
    }
    settings = _settings(arguments, budgets, source, [choice.name for choice in chosen])
    summary = json.dumps({"settings": settings, **summaries}, indent=1)
    write_atomically(arguments.out / "summary.json", summary.encode())
    if arguments.link is not None:
        images = {name: images for name, images in own.items() if isinstance(images, LabeledImages)}
        classes, count = link(arguments.link, images, by_source(list(own), names))
        print(f"{arguments.link}: {classes} classes, links to {count:,} images; the root of an image_folder")
    return 0


def choose(name: str, source: Centroids, target: Centroids, method: str, k: int) -> Choice:
    """Return the classes of `source` for `target`.

    Args:
        name: of the target.
        source: to choose from.
        target: to come near to.
        method: of METHODS.
        k: how many, not more than the source has.
    """
    ground = transfer.distances(source.means, target.means)
    ranked = transfer.growth(ground, source.counts, target.counts, transfer.ranking(ground, target.counts, k))
    if method == "ranking":
        grown = ranked
    elif method == "neighbors":
        grown = transfer.growth(ground, source.counts, target.counts, transfer.neighbors(ground, k))
    else:
        with progress(f"for {name}", k, "classes", brief=True) as advance:
            grown = transfer.greedy(ground, source.counts, target.counts, k, advance)
    return Choice(name, target, ground, grown, ranked.distances)


def _require_places(arguments: argparse.Namespace) -> None:
    """Refuse folders that cannot be written to."""
    for option in ("out", "cache", "link"):
        if (folder := getattr(arguments, option)) is None:
            continue
        there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
        if not there.is_dir():
            raise ConfigError(f"--{option} {folder}: {there} is a file; give a folder")
        if not os.access(there, os.W_OK):
            raise ConfigError(f"--{option} {folder}: {there} cannot be written; give another folder")
    if (arguments.out / "classes.txt").exists() and not arguments.overwrite:
        raise ValueError(f"{arguments.out / 'classes.txt'} is there already; add --overwrite, or choose another --out")


def _looked_up(groups: list[list[str]]) -> dict[str, tuple[str, LabeledImages | Centroids]]:
    """Return name and content of all places, by what the command line says; no image is decoded."""
    found: dict[str, tuple[str, LabeledImages | Centroids]] = {}
    for text in (text for group in groups for text in group):
        name, place = named(text)
        is_file = Path(place).suffix == SUFFIX
        found[text] = name, Centroids.load(Path(place)) if is_file else images_at(place)
    for group in groups:
        names = [found[text][0] for text in group]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"two places of one domain are called {twice[0]!r}; write NAME=PLACE for one of them")
    names = ["+".join(found[text][0] for text in group) for group in groups[1:]]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"two targets are called {twice[0]!r}; write NAME=PLACE for one of them")
    if "settings" in names:
        raise ConfigError("a target is called 'settings', as a part of summary.json; write NAME=PLACE for it")
    return found


def _domains(
    groups: list[list[str]],
    found: dict[str, tuple[str, LabeledImages | Centroids]],
    arguments: argparse.Namespace,
    budgets: list[int],
) -> list[Domains]:
    """Return the class means of all places; what cannot work is refused before the first image is decoded."""
    means = {text: (name, domain) for text, (name, domain) in found.items() if isinstance(domain, Centroids)}
    net = network(arguments.backbone, arguments.weights, arguments.size) if len(means) < len(found) else None
    kind = "" if net is None else net.kind
    outlines = {text: (name, _outline(domain, kind)) for text, (name, domain) in found.items()}
    sources, *targets = [[outlines[text] for text in group] for group in groups]
    _possible(sources, targets, arguments, budgets)
    for text, (name, domain) in found.items():
        if isinstance(domain, LabeledImages) and net is not None:
            extracted = class_means(
                name,
                domain,
                net,
                arguments.cache,
                batch_size=arguments.batch_size,
                threads=arguments.threads,
                skip_unreadable=arguments.skip_unreadable,
            )
            means[text] = name, extracted
    return [[means[text] for text in group] for group in groups]


def _outline(images: LabeledImages | Centroids, kind: str) -> Centroids:
    """Return a domain without its means, which need not be known yet: enough to see whether a choice can be made."""
    if isinstance(images, Centroids):
        return replace(images, means=images.means[:, :0])
    counts = np.bincount(images.targets, minlength=len(images.classes))
    return Centroids(images.classes, np.zeros((len(counts), 0), np.float32), counts, kind)


def _possible(
    sources: Domains, targets: Sequence[Domains], arguments: argparse.Namespace, budgets: Sequence[int]
) -> Centroids:
    """Return the source classes that may be chosen.

    Raises:
        ValueError: they are too few, unknown, or of other features than a target; or POT is not installed.
    """
    source = _restricted(transfer.joined(sources), arguments)
    for k in budgets:
        if k > len(source):
            raise ConfigError(f"--k {k}: the source has {len(source)} classes to choose from")
    for group in targets:
        require_same_features((_name(sources), source), (_name(group), transfer.joined(group)))
    transfer.emd(np.ones((2, 2)), np.ones(2), np.ones(2))  # POT is missing now, not after an hour of features
    return source


def _restricted(source: Centroids, arguments: argparse.Namespace) -> Centroids:
    """Return the source classes that the command line allows."""
    if arguments.among is not None:
        wanted = read_classes(arguments.among)
        places = {name: index for index, name in enumerate(source.names)}
        if unknown := [name for name in wanted if name not in places]:
            raise DataError(
                f"{arguments.among}: {len(unknown)} of {len(wanted)} classes are not in the source, the first "
                f"{unknown[0]!r}; its classes are named like {source.names[0]!r}"
            )
        source = source.taken([places[name] for name in wanted])
    return source.at_least(arguments.min_images)


def _settings(
    arguments: argparse.Namespace, budgets: Sequence[int], source: Centroids, targets: Sequence[str]
) -> dict[str, Any]:
    """Return what the choice depends on, for summary.json."""
    return {
        "sources": arguments.source,
        "targets": dict(zip(targets, arguments.target, strict=True)),
        "k": dict(zip(targets, budgets, strict=True)),
        "method": arguments.method,
        "min_images": arguments.min_images,
        "among": None if arguments.among is None else str(arguments.among),
        "gamma": arguments.gamma,
        "features": source.features,
    }


def _name(domains: Sequence[tuple[str, Centroids]]) -> str:
    return "+".join(name for name, _ in domains)


def _budgets(arguments: argparse.Namespace) -> list[int]:
    """Return how many classes each target gets."""
    targets, given = len(arguments.target), arguments.k
    if given is None:
        raise ConfigError("--k is missing; give the number of classes to choose, as DSTL's --k 200, for each --target")
    if len(given) not in (1, targets):
        raise ConfigError(f"--k has {len(given)} numbers for {targets} targets; give one, or one for each --target")
    return given * targets if len(given) == 1 else given


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="select_source.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    place = "[NAME=]PLACE: a folder of class folders, or of one image for each class; cub:ROOT or another data set; "
    place += "a .yaml file as under `dataset` of an experiment; a .safetensors file of class means"
    parser.add_argument("--source", nargs="+", required=True, metavar="PLACE", help=place)
    parser.add_argument("--target", nargs="+", required=True, action="append", metavar="PLACE", help="as --source")
    parser.add_argument(
        "--k",
        type=at_least_one,
        nargs="+",
        help="how many classes to choose, required; one number, or one per --target",
    )
    parser.add_argument("--method", choices=METHODS, default="greedy", help="how to choose (default: %(default)s)")
    parser.add_argument("--among", type=Path, metavar="FILE", help="choose only among the classes in this list")
    parser.add_argument(
        "--min-images", type=at_least_one, default=1, help="of a source class (DSTL: 200; default: %(default)s)"
    )
    parser.add_argument(
        "--gamma", type=above_zero, default=transfer.GAMMA, help="of exp(-gamma EMD) (default: %(default)s)"
    )
    parser.add_argument(
        "--backbone", default="tf_efficientnet_lite0", help="of timm, or torchvision:NAME (default: %(default)s)"
    )
    parser.add_argument(
        "--weights",
        default="package:efficientnet-lite0",
        help="a file, `imagenet` for a download, or package:NAME (default: %(default)s)",
    )
    parser.add_argument(
        "--size", type=at_least_one, metavar="PX", help="of the image in the network (default: its own)"
    )
    parser.add_argument("--batch-size", type=at_least_one, default=64, help="(default: %(default)s)")
    parser.add_argument("--threads", type=at_least_one, default=2, help="that decode images (default: %(default)s)")
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out what cannot be read, but for --link")
    parser.add_argument(
        "--cache", type=Path, default=Path("runs/class_means"), help="of class means (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, required=True, help="a folder for what is written")
    parser.add_argument(
        "--link",
        type=Path,
        metavar="DIR",
        help="make a folder of links for each chosen class, the root of image_folder",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is in --out, and links in --link")
    return parser


if __name__ == "__main__":
    sys.exit(run_or_say_why(partial(main)))
