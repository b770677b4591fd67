"""Select classes for one target and report them as CSV tables, a transport plan, a figure, and printed tables."""

import csv
import json
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from mtsp.files.atomic_file import write_atomically
from mtsp.files.progress import progress
from mtsp.transfer.centroids import Centroids
from mtsp.transfer.distances import distances, emd, similarity, single_class, transport
from mtsp.transfer.figure import draw_plan, plain
from mtsp.transfer.selection import SelectionPath, greedy, ranking, selection_path

_EQUAL = 1e-9  # as a fraction of the largest distance: smaller differences are rounding errors
_FEEDS = 3  # number of target classes listed with each selected class
_ROWS = 25  # maximum number of rows of the printed table
_HEADER = ("place", "class", "images", "distance_alone", "distance_so_far", "share", "feeds")


class Selection(NamedTuple):
    """The classes selected for one target."""

    name: str
    target: Centroids
    cost_matrix: np.ndarray  # n x m distances from all source classes to the target's
    path: SelectionPath
    ranked: list[float]  # distances of the sets of the first 1, 2, ... classes of the ranking


def select(name: str, source: Centroids, target: Centroids, method: Literal["greedy", "ranking"], k: int) -> Selection:
    """Select `k` classes of `source` for the target called `name`, showing progress."""
    cost_matrix = distances(source.means, target.means)
    path = selection_path(cost_matrix, source.counts, target.counts, ranking(cost_matrix, target.counts, k))
    ranked = path.distances
    if method == "greedy":
        with progress(f"for {name}", k, "classes", brief=True) as advance:
            path = greedy(cost_matrix, source.counts, target.counts, k, advance)
    return Selection(name, target, cost_matrix, path, ranked)


def write_selection(
    out: Path, source: Centroids, selection: Selection, method: str, gamma: float
) -> dict[str, dict[str, float]]:
    """Write the files of one target to the folder `out`, print its tables, and return its distances.

    `source` contains all source classes; `method` is the name shown in the tables; for `gamma`, see
    :func:`mtsp.transfer.distances.similarity`.
    """
    name, target, cost_matrix, path, ranked = selection
    chosen = source.taken(path.classes)
    costs = cost_matrix[path.classes]
    moved = transport(costs, chosen.counts, target.counts)
    whole = emd(cost_matrix, source.counts, target.counts)
    curve = np.array(path.distances)
    best = int(np.argmax(curve <= curve.min() + _EQUAL * cost_matrix.max())) + 1
    emds = {f"all {len(source)} classes": whole, f"{len(chosen)} by {method}": moved.distance}
    if method != "ranking":
        emds[f"{len(chosen)} by ranking"] = ranked[-1]
    emds[f"lowest, at k = {best}"] = float(curve[best - 1])
    median = float(np.median(cost_matrix))
    summary = {
        row: {"emd": far, "emd_per_median_distance": far / median, "similarity": similarity(far, gamma)}
        for row, far in emds.items()
    }
    rows = _rows(source, selection, moved.plan)
    _write_csv(out / f"{name}.csv", _HEADER, rows)
    _write_plan(out, name, chosen.names, target.names, moved.plan, costs)
    title = (
        f"Transport plan from {len(chosen)} selected source classes to {name}. Earth Mover's Distance: "
        f"{moved.distance:.4g} from these, {whole:.4g} from all {len(source)}"
    )
    draw_plan(out / f"{name}.png", moved.plan, chosen.names, target.names, title)
    _show(name, summary, rows, median, gamma)
    print(
        f"{name}: among k = 1 to {len(chosen)}, the distance is lowest at k = {best} ({curve[best - 1]:.5g}); beyond "
        "some k it rises again, because the mass of every class must be moved"
    )
    return summary


def _rows(source: Centroids, selection: Selection, plan: np.ndarray) -> list[tuple[str, ...]]:
    """Return the rows of the table, in the order in which classes were selected."""
    alone = single_class(selection.cost_matrix, selection.target.counts)
    rows = []
    for place, (index, so_far) in enumerate(zip(*selection.path[:2], strict=True)):
        share = plan[place].sum()
        fed = [j for j in np.argsort(-plan[place], kind="stable")[:_FEEDS] if plan[place, j] > 1e-9]
        feeds = "; ".join(f"{selection.target.names[j]} {plan[place, j] / share:.0%}" for j in fed)
        numbers = (f"{alone[index]:.6g}", f"{so_far:.6g}", f"{share:.6g}")
        rows.append((str(place + 1), source.names[index], str(source.counts[index]), *numbers, feeds))
    return rows


def _write_plan(
    out: Path, name: str, sources: Sequence[str], targets: Sequence[str], plan: np.ndarray, costs: np.ndarray
) -> None:
    from safetensors.numpy import save

    tensors = {"plan": np.ascontiguousarray(plan), "distances": np.ascontiguousarray(costs)}
    metadata = {"sources": json.dumps(sources), "targets": json.dumps(targets)}
    write_atomically(out / f"{name}_plan.safetensors", save(tensors, metadata))
    moved = zip(*np.nonzero(plan > 1e-12), strict=True)
    cells = [[sources[i], targets[j], f"{plan[i, j]:.9g}", f"{costs[i, j]:.9g}"] for i, j in moved]
    _write_csv(out / f"{name}_plan.csv", ["source", "target", "share", "distance"], cells)


def _show(
    name: str, summary: dict[str, dict[str, float]], rows: Sequence[tuple[str, ...]], median: float, gamma: float
) -> None:
    console = Console()
    title = Text(f"for {name}", "table.title")  # Text, because rich would read brackets in names as markup
    table = Table("chosen", "images", "distance alone", "set so far", "feeds", title=title)
    for _, label, images, alone, so_far, _, feeds in rows[:_ROWS]:
        fed = "; ".join(plain(part) for part in feeds.split("; "))
        table.add_row(Text(plain(label)), images, f"{float(alone):.4g}", f"{float(so_far):.4g}", Text(fed))
    if len(rows) > _ROWS:
        table.add_row(Text(f"and {len(rows) - _ROWS} more, in {name}.csv"))
    console.print(table)
    table = Table(Column(Text(f"to {name}")), "EMD", f"over median ({median:.4g})", f"similarity, gamma {gamma:g}")
    for label, row in summary.items():
        table.add_row(label, f"{row['emd']:.5g}", f"{row['emd_per_median_distance']:.4f}", f"{row['similarity']:.4f}")
    console.print(table)


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_atomically(path, text.getvalue().encode())
