"""The classes chosen for one target: the files that say so, and the tables on the screen."""

import csv
import json
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from mtsp import transfer
from mtsp.files.atomic import write_atomically
from mtsp.transfer import Centroids, Growth
from mtsp.transfer.figure import plain

_EQUAL = 1e-9  # of the largest distance: what the last digits make of equal ones
_FEEDS = 3  # target classes named beside a chosen class
_ROWS = 25  # of the table on the screen


class Choice(NamedTuple):
    """The classes chosen for one target."""

    name: str
    target: Centroids
    ground: np.ndarray  # n x m, of all source classes
    growth: Growth
    ranked: list[float]  # distances of the first 1, 2, ... of the ranking


def write_choice(
    out: Path, source: Centroids, choice: Choice, chosen_by: str, gamma: float
) -> dict[str, dict[str, float]]:
    """Write what belongs to one target and show its tables; return its distances."""
    rows = choice.growth.classes
    picked = source.taken(rows)
    moved = transfer.transport(choice.ground[rows], picked.counts, choice.target.counts)
    whole = transfer.emd(choice.ground, source.counts, choice.target.counts)
    method = "greedy growth" if chosen_by == "greedy" else chosen_by
    distances = {f"all {len(source)} classes": whole, f"{len(rows)} by {method}": moved.distance}
    if chosen_by != "ranking":
        distances[f"{len(rows)} by ranking"] = choice.ranked[-1]
    curve = np.array(choice.growth.distances)
    best = int(np.argmax(curve <= curve.min() + _EQUAL * choice.ground.max())) + 1
    distances[f"lowest, at k = {best}"] = float(curve[best - 1])
    median = float(np.median(choice.ground))
    summary = {
        name: {
            "emd": distance,
            "emd_per_median_distance": distance / median,
            "similarity": transfer.similarity(distance, gamma),
        }
        for name, distance in distances.items()
    }
    lines = _lines(source, choice, moved.plan)
    _write_csv(out / f"{choice.name}.csv", _HEADER, lines)
    _write_plan(out, choice, picked, moved.plan)
    title = (
        f"What {len(rows)} chosen source classes feed of {choice.name}. Earth Mover's Distance: {moved.distance:.4g} "
    )
    title += f"from these, {whole:.4g} from all {len(source)}"
    transfer.draw_plan(out / f"{choice.name}.png", moved.plan, picked.names, choice.target.names, title)
    _show(choice, summary, lines, median, gamma)
    print(
        f"{choice.name}: of k = 1 to {len(rows)}, the distance is lowest at k = {best}, "
        f"{curve[best - 1]:.5g}; every class must send its mass, so beyond some k it rises again"
    )
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
    gamma: float,
) -> None:
    console = Console()
    title = Text(f"for {choice.name}", "table.title")  # names are no markup: [b] is a class
    table = Table("chosen", "images", "distance alone", "set so far", "feeds", title=title)
    for _, name, images, alone, so_far, _, feeds in lines[:_ROWS]:
        fed = "; ".join(plain(part) for part in feeds.split("; "))
        table.add_row(Text(plain(name)), images, f"{float(alone):.4g}", f"{float(so_far):.4g}", Text(fed))
    if len(lines) > _ROWS:
        table.add_row(Text(f"and {len(lines) - _ROWS} more, in {choice.name}.csv"))
    console.print(table)
    table = Table(
        Column(Text(f"to {choice.name}")), "EMD", f"over median ({median:.4g})", f"similarity, gamma {gamma:g}"
    )
    for name, row in summary.items():
        table.add_row(name, f"{row['emd']:.5g}", f"{row['emd_per_median_distance']:.4f}", f"{row['similarity']:.4f}")
    console.print(table)


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    _write_text(path, text.getvalue())


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, text.encode())
