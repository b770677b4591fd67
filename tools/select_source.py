"""Choose what to pre-train on: `python tools/select_source.py --source imagenet/train --target cub:CUB_200_2011`.

Each class of a domain is the mean of its pictures' features, as heavy as their number, and the distance between domains
is the Earth Mover's (DSTL, CVPR 2018). Under `--out` are then

    classes.txt           the chosen classes of the source, as `classes` of a data set takes them
    <target>.csv          each with its distance, the distance of the set so far, and what it feeds
    <target>_plan.csv     the transport plan from the chosen classes to the target's, where anything goes
    <target>_plan.safetensors   all of it; the names are in the header
    <target>.png          a picture of it
    summary.json          the distances and similarities of the table on the screen

Several places after one --source or --target are one domain (ImageNet and iNaturalist; CUB and NABirds). Each --target
chooses its own --k classes, and classes.txt is the union: `--target cub nabirds --target dogs --k 400 100`.
"""

import argparse
import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from data import DataError, LabeledImages
from data.fine_grained import read_classes
from mtsp import transfer
from mtsp.checkpoint import write_atomically
from mtsp.config import ConfigError
from mtsp.transfer import Centroids, Growth
from mtsp.transfer.centroids import SUFFIX, require_same_features
from mtsp.transfer.picture import plain
from tools.domains import class_means, images_at, named, network
from tools.parts import run_or_say_why

METHODS = ("greedy", "ranking", "neighbours")
_FEEDS = 3  # target classes named beside a chosen class
_ROWS = 25  # of the table on the screen


class Choice(NamedTuple):
    """The classes chosen for one target."""

    name: str
    target: Centroids
    ground: np.ndarray  # n x m, of all source classes
    growth: Growth
    ranked: list[float]  # distances of the first 1, 2, ... of the ranking


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    arguments = _parser().parse_args(argv)
    budgets = _budgets(arguments)
    if (arguments.out / "classes.txt").exists() and not arguments.overwrite:
        raise ValueError(f"{arguments.out / 'classes.txt'} is there already; add --overwrite, or choose another --out")
    groups = [arguments.source, *arguments.target]
    sources, *targets = _domains(groups, arguments)
    source = _restricted(transfer.joined(sources), arguments)
    for group in targets:
        require_same_features((_name(sources), source), (_name(group), transfer.joined(group)))
    chosen = [
        choose(_name(group), source, transfer.joined(group), arguments.method, k)
        for group, k in zip(targets, budgets, strict=True)
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    _write_classes(arguments.out, sources, source, chosen)
    summaries = {choice.name: _write(arguments.out, source, choice, arguments) for choice in chosen}
    _write_text(arguments.out / "summary.json", json.dumps(summaries, indent=1))
    return 0


def choose(name: str, source: Centroids, target: Centroids, method: str, k: int | None) -> Choice:
    """Return the classes of `source` for `target`.

    Args:
        name: of the target.
        source: to choose from.
        target: to come near to.
        method: of METHODS.
        k: how many; None: 200, or all if there are fewer.
    """
    k = min(200, len(source)) if k is None else k
    if k > len(source):
        raise ValueError(f"--k {k}: the source has {len(source)} classes to choose from")
    ground = transfer.distances(source.means, target.means)
    ranked = transfer.growth(ground, source.counts, target.counts, transfer.ranking(ground, target.counts, k))
    if method == "ranking":
        grown = ranked
    elif method == "neighbours":
        grown = transfer.growth(ground, source.counts, target.counts, transfer.neighbours(ground, k))
    else:
        with _progress(f"classes for {name}", k) as advance:
            grown = transfer.greedy(ground, source.counts, target.counts, k, advance)
    return Choice(name, target, ground, grown, ranked.distances)


def _domains(groups: list[list[str]], arguments: argparse.Namespace) -> list[list[tuple[str, Centroids]]]:
    """Return the domains of all places; everything is looked up before the first picture is decoded."""
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
    means = {text: (name, domain) for text, (name, domain) in found.items() if isinstance(domain, Centroids)}
    if len(means) < len(found):
        net = network(arguments.backbone, arguments.weights, arguments.size)
        for text, (name, domain) in found.items():
            if isinstance(domain, LabeledImages):
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


def _restricted(source: Centroids, arguments: argparse.Namespace) -> Centroids:
    """Return the source classes that may be chosen."""
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


def _write_classes(
    out: Path, sources: list[tuple[str, Centroids]], source: Centroids, chosen: Sequence[Choice]
) -> None:
    """Write the union; of several sources also a list for each, with the names that its own data set has."""
    names = [source.names[index] for index in transfer.united(choice.growth.classes for choice in chosen)]
    what = f"for {', '.join(choice.name for choice in chosen)}"
    _write_text(out / "classes.txt", _list(names, f"{len(names)} classes of {_name(sources)} {what}"))
    if len(sources) > 1:
        for name, _ in sources:
            own = [label.removeprefix(f"{name}/") for label in names if label.startswith(f"{name}/")]
            _write_text(out / f"classes_{name}.txt", _list(own, f"{len(own)} classes of {name} {what}"))


def _list(names: Sequence[str], comment: str) -> str:
    return "".join(f"{line}\n" for line in (f"# {comment}", *names))


def _write(out: Path, source: Centroids, choice: Choice, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Write what belongs to one target and show its tables; return its distances."""
    rows = choice.growth.classes
    picked = source.taken(rows)
    moved = transfer.transport(choice.ground[rows], picked.counts, choice.target.counts)
    whole = transfer.emd(choice.ground, source.counts, choice.target.counts)
    method = {"greedy": "greedy growth", "ranking": "ranking", "neighbours": "neighbours"}[arguments.method]
    distances = {f"all {len(source)} classes": whole, f"{len(rows)} by {method}": moved.distance}
    if arguments.method != "ranking":
        distances[f"{len(rows)} by ranking"] = choice.ranked[-1]
    median = float(np.median(choice.ground))
    summary = {
        name: {
            "emd": distance,
            "emd_per_median_distance": distance / median,
            "similarity": transfer.similarity(distance, arguments.gamma),
        }
        for name, distance in distances.items()
    }
    lines = _lines(source, choice, moved.plan)
    _write_csv(out / f"{choice.name}.csv", _HEADER, lines)
    _write_plan(out, choice, picked, moved.plan)
    title = f"{len(rows)} source classes to {choice.name}: EMD {moved.distance:.4g}, all {len(source)}: {whole:.4g}"
    transfer.draw_plan(out / f"{choice.name}.png", moved.plan, picked.names, choice.target.names, title)
    _show(choice, summary, lines, median, arguments)
    return summary


_HEADER = ("place", "class", "images", "distance_alone", "distance_so_far", "share", "feeds")


def _lines(source: Centroids, choice: Choice, plan: np.ndarray) -> list[tuple[str, ...]]:
    """Return the rows of the table, in the order chosen."""
    alone = transfer.single_class(choice.ground, choice.target.counts)
    lines = []
    for place, (index, so_far) in enumerate(zip(choice.growth.classes, choice.growth.distances, strict=True)):
        share = plan[place].sum()
        fed = [j for j in np.argsort(-plan[place], kind="stable")[:_FEEDS] if plan[place, j] > 1e-9]
        feeds = "; ".join(f"{choice.target.names[j]} {plan[place, j] / share:.0%}" for j in fed)
        numbers = (f"{alone[index]:.6g}", f"{so_far:.6g}", f"{share:.6g}")
        lines.append((str(place + 1), source.names[index], str(source.counts[index]), *numbers, feeds))
    return lines


def _write_plan(out: Path, choice: Choice, picked: Centroids, plan: np.ndarray) -> None:
    from safetensors.numpy import save

    metadata = {"sources": json.dumps(picked.names), "targets": json.dumps(choice.target.names)}
    ground = choice.ground[choice.growth.classes]
    tensors = {"plan": np.ascontiguousarray(plan), "distances": np.ascontiguousarray(ground)}
    write_atomically(out / f"{choice.name}_plan.safetensors", save(tensors, metadata))
    cells = [
        (picked.names[i], choice.target.names[j], f"{plan[i, j]:.9g}", f"{ground[i, j]:.9g}")
        for i, j in zip(*np.nonzero(plan > 1e-12), strict=True)
    ]
    _write_csv(out / f"{choice.name}_plan.csv", ("source", "target", "share", "distance"), cells)


def _show(
    choice: Choice,
    summary: dict[str, dict[str, float]],
    lines: Sequence[tuple[str, ...]],
    median: float,
    arguments: argparse.Namespace,
) -> None:
    console = Console()
    table = Table("chosen", "images", "distance alone", "set so far", "feeds", title=f"for {choice.name}")
    for _, name, images, alone, so_far, _, feeds in lines[:_ROWS]:
        fed = "; ".join(plain(part) for part in feeds.split("; "))
        table.add_row(plain(name), images, f"{float(alone):.4g}", f"{float(so_far):.4g}", fed)
    if len(lines) > _ROWS:
        table.add_row(f"and {len(lines) - _ROWS} more, in {choice.name}.csv")
    console.print(table)
    table = Table("to " + choice.name, "EMD", f"over median ({median:.4g})", f"similarity, gamma {arguments.gamma:g}")
    for name, row in summary.items():
        table.add_row(name, f"{row['emd']:.5g}", f"{row['emd_per_median_distance']:.4f}", f"{row['similarity']:.4f}")
    console.print(table)


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    _write_text(path, text.getvalue())


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, text.encode())


def _name(domains: Sequence[tuple[str, Centroids]]) -> str:
    return "+".join(name for name, _ in domains)


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    console = Console(stderr=True)
    columns = (TextColumn(what, markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


def _budgets(arguments: argparse.Namespace) -> list[int | None]:
    """Return how many classes each target gets."""
    targets, given = len(arguments.target), arguments.k
    if given is None:
        return [None] * targets
    if len(given) not in (1, targets):
        raise ConfigError(f"--k has {len(given)} numbers for {targets} targets; give one, or one for each --target")
    return given * targets if len(given) == 1 else given


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="select_source.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    place = "[NAME=]PLACE: a folder of class folders, or of one picture for each class; cub:ROOT or another data set; "
    place += "a .yaml file as under `dataset` of an experiment; a .safetensors file of class means"
    parser.add_argument("--source", nargs="+", required=True, metavar="PLACE", help=place)
    parser.add_argument("--target", nargs="+", required=True, action="append", metavar="PLACE", help="as --source")
    parser.add_argument(
        "--k", type=_positive, nargs="+", help="classes to choose (default: 200), one for each --target"
    )
    parser.add_argument("--method", choices=METHODS, default="greedy", help="how to choose (default: %(default)s)")
    parser.add_argument("--among", type=Path, metavar="FILE", help="choose only among the classes in this list")
    parser.add_argument(
        "--min-images", type=_positive, default=1, help="of a source class (DSTL: 200; default: %(default)s)"
    )
    parser.add_argument("--gamma", type=float, default=transfer.GAMMA, help="of exp(-gamma EMD) (default: %(default)s)")
    parser.add_argument(
        "--backbone", default="tf_efficientnet_lite0", help="of timm, or torchvision:NAME (default: %(default)s)"
    )
    parser.add_argument(
        "--weights",
        default="package:efficientnet-lite0",
        help="a file, `imagenet` for a download, or package:NAME (default: %(default)s)",
    )
    parser.add_argument("--size", type=_positive, metavar="PX", help="of the picture in the network (default: its own)")
    parser.add_argument("--batch-size", type=_positive, default=64, help="(default: %(default)s)")
    parser.add_argument("--threads", type=_positive, default=2, help="that decode pictures (default: %(default)s)")
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out pictures that cannot be read")
    parser.add_argument(
        "--cache", type=Path, default=Path("runs/class_means"), help="of class means (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, required=True, help="a folder for what is written")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in it")
    return parser


if __name__ == "__main__":
    sys.exit(run_or_say_why(partial(main)))
