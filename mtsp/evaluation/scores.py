"""Show the results of an evaluation as JSON, as CSV and as a table in the terminal.

Lengths are in pixels; J, F, IoU, accuracies and outlier rates are fractions in [0, 1]. A value that was not measured is
null in the JSON, empty in the CSV and a dash in the table, not 0.
"""

import csv
import io
import json
import logging
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mtsp.evaluation.metrics_by_kind import Metric
from mtsp.files.atomic_file import write_atomically
from mtsp.text import first_names
from mtsp.types import IGNORE

if TYPE_CHECKING:
    from rich.table import Table

_LOG = logging.getLogger("mtsp")
MOST_ROWS = 60
"""Largest number of rows in a table. A longer table leaves out the objects, and if still too long, the sequences."""

_DEPTHS = ("totals", "sequences", "objects")
"""Name of the rows at each depth of the table."""


class Scores(NamedTuple):
    """Values of one metric over all examples, and of single sequences, images and so on under `per_...` keys."""

    columns: tuple[str, ...]
    total: str
    values: dict[str, Any]


def scores_of(metrics: Iterable[Metric], classes: Sequence[str] = ()) -> list[Scores]:
    """Return the values of each metric; `classes` are the class names of the data set."""
    return [Scores(metric.columns, metric.total, metric.compute() | metric.details(classes)) for metric in metrics]


def without_frames(scores: Scores) -> list[str]:
    """Return the videos without a scored frame: by the rules of DAVIS, those with only one or two frames."""
    return [name for name, part in scores.values.get("per_sequence", {}).items() if part.get("frames") == []]


def is_known(labels: Mapping[str, Any], label: str) -> bool:
    """Return whether the true `label` ("mask" or "flow") of an example has a known pixel; a class is always known."""
    if label == "mask":
        return bool((labels["mask"] != IGNORE).any())
    return label != "flow" or "flow_valid" not in labels or bool(labels["flow_valid"].any())


def require_known(label: str, unknown: Sequence[str], total: int) -> None:
    """Warn about the examples `unknown`, of `total`, without any known pixel: no value counts them.

    Raises ValueError if there are no others.
    """
    if unknown and len(unknown) == total:
        raise ValueError(f"no true {label} has a known pixel (such as {unknown[0]}): there is nothing to compare with")
    if unknown:
        _LOG.warning(
            "%d of %d examples have no known pixel in their true %s and count for nothing: %s",
            len(unknown), total, label, first_names(unknown),
        )  # fmt: skip


def joined(scores: Sequence[Scores]) -> dict[str, Any]:
    """Return the values of all metrics as one dict, merged for each sequence, too."""
    values: dict[str, Any] = {}
    sequences: dict[str, dict[str, Any]] = {}
    for one in scores:
        values |= one.values
        for name, part in one.values.get("per_sequence", {}).items():
            sequences[name] = sequences.get(name, {}) | part
    return values | ({"per_sequence": sequences} if sequences else {})


def plain(value: Any) -> Any:
    """Return `value` with NaN and infinity replaced by None, since JSON has neither."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def require_writable(json_file: Path | None, csv_file: Path | None) -> None:
    """Raise ValueError if one of the files cannot be written; call this before the evaluation."""
    if json_file is not None and json_file == csv_file:
        raise ValueError(f"{json_file}: --json and --csv cannot be the same file")
    for file in (json_file, csv_file):
        if file is not None and file.is_dir():
            raise ValueError(f"{file} is a folder; name a file in it")
        if file is not None and not file.absolute().parent.is_dir():
            raise ValueError(f"{file}: there is no folder {file.absolute().parent} to write it in")


def show(
    values: Mapping[str, Any], entries: Mapping[str, Sequence[Scores]], json_file: Path | None, csv_file: Path | None
) -> None:
    """Print the tables. Write `values` to `json_file` and the tables to `csv_file`, unless they are None."""
    from rich.console import Console

    if json_file is not None:
        write_atomically(json_file, (json.dumps(plain(values), indent=2, allow_nan=False) + "\n").encode())
    if csv_file is not None:
        write_atomically(csv_file, as_csv(entries).encode())
    for name, scores in entries.items():
        for one in scores:
            Console().print(table(one, name))
            if short := without_frames(one):
                print(
                    f"note: {name}: {len(short)} sequences have no scorable frame (the first and the last never count) "
                    f"and are left out of the means: {first_names(short)}",
                    file=sys.stderr,
                )


def as_csv(entries: Mapping[str, Sequence[Scores]]) -> str:
    """Return a CSV with a row for each sequence and for the total, and the columns of all tables; no value: empty."""
    keys = list(dict.fromkeys(key for scores in entries.values() for one in scores for key in one.columns))
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["data", "sequence", *keys])
    for data, scores in entries.items():
        found: dict[tuple[str, int], dict[str, Any]] = {}  # the depth tells an object a_1 from a sequence a_1
        for one in scores:
            for name, values, depth in _rows(one, "all"):
                found.setdefault((name, depth), {}).update({key: values.get(key) for key in one.columns})
        for (name, _), values in found.items():
            rows.writerow([data, name, *(plain(values.get(key)) for key in keys)])
    return text.getvalue()


def table(scores: Scores, title: str) -> "Table":
    """Return a table with a row for each sequence and for the total."""
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=Text(title, "table.title"), box=SIMPLE, pad_edge=False, collapse_padding=True)
    drawn.add_column("sequence", no_wrap=True)
    for key in scores.columns:
        heading = key.replace("_", "\n").replace("pixel\naccuracy", "pixel\nacc.")
        drawn.add_column(heading, justify="right", no_wrap=True, min_width=5)
    rows = list(_rows(scores, scores.total))
    depths = Counter(depth for _, _, depth in rows)
    # Always show the totals; show a further depth only if all of its rows fit.
    shown = max(depth for depth in depths if not depth or sum(depths[d] for d in range(1, depth + 1)) <= MOST_ROWS)
    for name, part, depth in rows:
        if depth <= shown:
            cells = ("-" if math.isnan(part.get(key, math.nan)) else f"{part[key]:.3f}" for key in scores.columns)
            drawn.add_row(Text(name), *cells, style=None if depth else "bold")
    if hidden := [f"{depths[d]} {_DEPTHS[d]}" for d in sorted(depths) if d > shown]:
        drawn.caption = f"each of the {' and '.join(hidden)}: --csv or --json"
    return drawn


def _rows(scores: Scores, last: str) -> Iterator[tuple[str, Mapping[str, Any], int]]:
    """Yield name, values and depth of each row: depth 2 is an object, 1 a sequence, 0 a total."""
    objects = scores.values.get("per_object", {})
    for name, part in scores.values.get("per_sequence", {}).items():
        yield name, part, 1
        yield from ((one, objects[one], 2) for one in objects if one.rpartition("_")[0] == name)
    for name, part in scores.values.get("per_pass", {}).items():
        yield name, part, 0
    yield last, scores.values, 0
