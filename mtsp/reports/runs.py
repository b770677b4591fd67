"""Make curves and tables of runs from their `metrics.jsonl`, with means over seeds."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.table import Table

from mtsp.config import parse_yaml
from mtsp.evaluation.metrics_by_kind import headlines, lower_is_better
from mtsp.tracking.metrics_file import METRICS, read_metrics

EXPERIMENT = "experiment.yaml"

HEADLINES = tuple(f"*/{name}" for name in headlines())
"""Metrics that a table shows by default; `*` matches any text, including `/`."""
CURVES = ("loss*", "train/*", "penalty*", *HEADLINES, "*distance*", "lr*")
"""Metrics that curves show by default."""


@dataclass(frozen=True)
class RunLog:
    """The experiment and the metrics of one run folder."""

    path: Path
    name: str
    seed: int
    experiment: dict[str, Any]
    rows: list[dict[str, float]]

    @classmethod
    def read(cls, path: Path) -> "RunLog":
        """Read a run folder. Raises FileNotFoundError if files are missing, ValueError if they are damaged."""
        rows = read_metrics(path / METRICS)
        file = path / EXPERIMENT
        if not file.is_file():
            raise FileNotFoundError(f"no {file}; name a run folder that tools/train.py wrote")
        try:
            experiment = parse_yaml(file.read_text(encoding="utf-8"))
        except ValueError as error:  # ConfigError, or not UTF-8
            raise ValueError(f"{file}: {error}") from error
        if not isinstance(experiment, dict) or not {"name", "seed"} <= experiment.keys():
            raise ValueError(f"{file}: expected an experiment with `name` and `seed`")
        return cls(path, str(experiment["name"]), experiment["seed"], experiment, rows)

    @property
    def metrics(self) -> list[str]:
        """Names of the logged metrics, in the order in which they appear."""
        return list(dict.fromkeys(key for row in self.rows for key in row if key not in ("step", "time")))

    def curve(self, metric: str) -> dict[int, float]:
        """Return the metric by step. If a step was logged twice, for example after a resume, the later value counts."""
        points = {int(row["step"]): row[metric] for row in self.rows if metric in row}
        return dict(sorted(points.items()))

    def last(self, metric: str) -> float | None:
        """Return the metric at the last step at which it was logged, or None if it never was."""
        curve = self.curve(metric)
        return curve[max(curve)] if curve else None


def grouped(runs: Iterable[RunLog]) -> dict[str, list[RunLog]]:
    """Group runs by name, so that means over a group are means over seeds.

    Raises:
        ValueError: runs with the same name have the same seed, or differ in more than the seed and numbers in paths.
    """
    groups: dict[str, list[RunLog]] = {}
    for run in runs:
        groups.setdefault(run.name, []).append(run)
    for name, (first, *others) in groups.items():
        seeds = {first.seed: first}
        for other in others:
            both = f"{seeds.get(other.seed, first).path} and {other.path} are both {name!r}"
            if other.seed in seeds:
                raise ValueError(f"{both} with seed {other.seed}; leave one out, or rename one with name=...")
            seeds[other.seed] = other
            if difference := _difference(first.experiment, other.experiment):
                raise ValueError(f"{both} but differ in {difference}; runs of one name may differ only in seed")
    return groups


def _difference(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """Return the first key except the seed in which two experiments differ, with both values, or None."""
    from mtsp.training.checkpoint.resume import differences

    for key, a, b in differences(one, other):
        paths = [re.sub(r"\d+", "#", text) for text in (a, b) if isinstance(text, str) and "/" in text]
        if key != ("seed",) and (len(paths) < 2 or paths[0] != paths[1]):
            return f"{'.'.join(key)} ({a}, {b})"
    return None


def matching(runs: Iterable[RunLog], patterns: Sequence[str]) -> list[str]:
    """Return the runs' metrics that match a pattern, in the order of the patterns.

    Raises:
        ValueError: a pattern without `*` matches none, or no pattern does; the message lists the metrics.
    """
    known = list(dict.fromkeys(metric for run in runs for metric in run.metrics))
    found = list(dict.fromkeys(name for pattern in patterns for name in known if fnmatchcase(name, pattern)))
    missing = [
        pattern for pattern in patterns if "*" not in pattern and not any(fnmatchcase(m, pattern) for m in known)
    ]
    if missing or not found:
        raise ValueError(f"no metric {', '.join(missing or patterns)}; there are: {', '.join(known) or 'none'}")
    return found


def curves(runs: Sequence[RunLog], path: Path, patterns: Sequence[str] = CURVES) -> None:
    """Write a PNG of metrics over steps: one plot for each metric, one color for each run name, thin lines for seeds.

    A thick line is the mean over seeds, at steps that all seeds logged. Losses that change by more than a factor of 30
    have a logarithmic scale.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    groups = grouped(runs)
    metrics = matching(runs, patterns)
    columns = min(3, len(metrics))
    lines = math.ceil(len(metrics) / columns)
    colors = [f"C{index % 10}" for index in range(len(groups))]

    figure = Figure(figsize=(4.6 * columns, 2.7 * lines + 0.3 * len(groups)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    plots = figure.subplots(lines, columns, squeeze=False).flatten()
    for plot, metric in zip(plots, metrics, strict=False):
        for color, members in zip(colors, groups.values(), strict=True):
            _draw(plot, [curve for run in members if (curve := run.curve(metric))], color)
        values = [value for run in runs for value in run.curve(metric).values() if math.isfinite(value)]
        if metric.startswith(("loss", "train/", "penalty")) and values and 0 < 30 * min(values) < max(values):
            plot.set_yscale("log")
        plot.set_title(metric, fontsize=10)
        plot.set_xlabel("step")
        plot.grid(alpha=0.3)
    for plot in plots[len(metrics) :]:
        plot.set_visible(False)
    labels = [f"{name}, {len(members)} seeds" if len(members) > 1 else name for name, members in groups.items()]
    handles = [Line2D([], [], color=color) for color in colors]
    figure.legend(handles, labels, loc="outside upper left", frameon=False)
    figure.savefig(path, format="png")


def _draw(plot: Any, seeds: Sequence[Mapping[int, float]], color: str) -> None:
    if not seeds:
        return
    marker = "o" if max(len(curve) for curve in seeds) < 20 else None
    if len(seeds) > 1:
        for curve in seeds:
            plot.plot(list(curve), list(curve.values()), color=color, alpha=0.35, linewidth=0.8)
    steps = [step for step in seeds[0] if all(step in curve for curve in seeds)]
    means = [mean(curve[step] for curve in seeds) for step in steps]
    plot.plot(steps, means, color=color, linewidth=1.6, marker=marker, markersize=3)


def table(
    runs: Sequence[RunLog],
    patterns: Sequence[str] = HEADLINES,
    paper: Mapping[str, Mapping[str, float | str]] | None = None,
) -> str:
    """Return a Markdown table of the metrics at each run's last step, with one row for each run name.

    Several seeds are shown as mean ± sample standard deviation (n - 1). Published values, passed as `paper` by run
    name and metric, are shown beside the measured values.

    Raises:
        ValueError: see :func:`grouped` and :func:`matching`; or a published value has no run or metric in the table.
    """
    groups = grouped(runs)
    metrics = matching(runs, patterns)
    numbers = paper or {}
    published = [(name, metric) for name, row in numbers.items() for metric in row]
    if astray := [f"{name}: {metric}" for name, metric in published if name not in groups or metric not in metrics]:
        raise ValueError(f"published numbers without a run or metric in the table: {', '.join(astray)}")
    columns = ["run", "seeds"]
    rows = {name: [name, str(len(members))] for name, members in groups.items()}
    for metric in metrics:
        compared = any(metric == other for _, other in published)
        columns += [metric, "paper"] if compared else [metric]
        for name, members in groups.items():
            values = [last for run in members if (last := run.last(metric)) is not None]
            of = f" ({len(values)} of {len(members)})" if 0 < len(values) < len(members) else ""
            rows[name].append(mean_and_deviation(values) + of)
            if compared:
                rows[name].append(str(numbers.get(name, {}).get(metric, "-")))
    return markdown_table(rows.values(), columns)


def mean_and_deviation(values: Sequence[float]) -> str:
    """Return "mean ± deviation" with equal numbers of decimals; the value alone if there is one, "-" if none."""
    if not values:
        return "-"
    middle = _number(mean(values))
    decimals = len(middle.partition(".")[2])
    return middle + (f" ± {stdev(values):.{decimals}f}" if len(values) > 1 else "")


def _number(value: float) -> str:
    """Format a value with three decimals; with one decimal from 100 up, with five below 0.01."""
    if value != 0 and abs(value) < 0.01:
        return f"{value:.5f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3f}"


def markdown_table(rows: Iterable[Sequence[str]], columns: Sequence[str]) -> str:
    """Return a Markdown table that is also aligned as plain text: the first column left, all others right."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [columns, *rows]]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(columns))]
    rule = ["-" * (width - 1) + ":" if i else "-" * width for i, width in enumerate(widths)]
    lines = (
        " | ".join(cell.rjust(widths[i]) if i else cell.ljust(widths[i]) for i, cell in enumerate(row))
        for row in [cells[0], rule, *cells[1:]]
    )
    return "".join(f"| {line} |\n" for line in lines)


def comparison(rows: Mapping[str, Mapping[str, float]], columns: Mapping[str, str], title: str = "") -> Table:
    """Return a table for the terminal, with the best value of each column in bold.

    Args:
        rows: metrics by row label, such as "start", "L2", "L2-SP". A missing metric is shown as "-".
        columns: heading by metric, such as {"J_mean": "J", "epe": "EPE"}; an arrow shows which direction is better.
        title: text above the table.
    """
    view = Table(title=title or None, title_justify="left")
    view.add_column("", no_wrap=True)
    for heading in _headings(columns):
        view.add_column(heading, justify="right", no_wrap=True)
    for label, cells in _compared(rows, columns):
        view.add_row(label, *(f"[bold green]{text}[/]" if best else text for text, best in cells))
    return view


def comparison_markdown(rows: Mapping[str, Mapping[str, float]], columns: Mapping[str, str]) -> str:
    """Return the table of :func:`comparison` as Markdown."""
    compared = _compared(rows, columns)
    lines = [[label, *(f"**{text}**" if best else text for text, best in cells)] for label, cells in compared]
    return markdown_table(lines, ["", *_headings(columns)])


def _headings(columns: Mapping[str, str]) -> list[str]:
    return [f"{heading} {'↓' if lower_is_better(metric) else '↑'}" for metric, heading in columns.items()]


def _compared(
    rows: Mapping[str, Mapping[str, float]], columns: Mapping[str, str]
) -> Iterator[tuple[str, list[tuple[str, bool]]]]:
    """Yield label and cells of each row; a cell is (text, whether it is the best of its column)."""
    best = {}
    for metric in columns:
        values = [row[metric] for row in rows.values() if math.isfinite(row.get(metric, math.nan))]
        if len(values) > 1:
            best[metric] = _number(min(values) if lower_is_better(metric) else max(values))
    for label, row in rows.items():
        texts = {metric: _number(row[metric]) if metric in row else "-" for metric in columns}
        yield label, [(text, best.get(metric) == text) for metric, text in texts.items()]
