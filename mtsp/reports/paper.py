"""Make a page with every row of the paper's Tables 3 to 6: its number, ours if the row was run, and what it needs."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from mtsp.config import CONFIGS
from mtsp.evaluation.metrics_by_kind import lower_is_better
from mtsp.reports.runs import markdown_table

ROWS = CONFIGS / "paper" / "rows.json"
"""The paper's numbers by config, the only place in the repository that holds them."""

COLUMNS = ("table", "system", "target", "regularizer", "metric", "paper", "ours", "difference", "config", "status")


class PaperRow(NamedTuple):
    """A row of the paper's tables."""

    config: str
    """Name of the config in `configs/paper`, without suffix."""
    tables: tuple[int, ...]
    system: str
    target: str
    regularizer: str
    alpha: float
    """Strength of the config. Where the paper prints none, the config says what was assumed."""
    beta: float
    paper: Mapping[str, float]
    """The paper's numbers by `data/metric` of our results: percentages, but end-point errors in pixels."""

    @property
    def command(self) -> str:
        """Command that runs the row."""
        return f"accelerate launch tools/train.py --config paper/{self.config}.yaml"


def paper_rows(path: Path = ROWS) -> list[PaperRow]:
    """Return the rows of the paper's tables, in their order."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [PaperRow(config, tuple(row.pop("tables")), **row) for config, row in rows.items()]


def missing_inputs(experiment: Mapping[str, Any]) -> list[str]:
    """Return the files and folders that an experiment needs and that do not exist here."""
    files = [branch["weights"] for branch in experiment["branches"].values() if branch["weights"]]
    files = [file for file in files if file != "imagenet" and not file.startswith("package:")]
    folders = [str(entry["dataset"]["root"]) for entry in experiment["data"].values() if "root" in entry["dataset"]]
    return [path for path in dict.fromkeys([*files, *folders]) if not Path(path).exists()]


def page(
    rows: Sequence[PaperRow],
    experiments: Mapping[str, Mapping[str, Any]],
    runs: Mapping[str, Sequence[Mapping[str, float]]],
) -> list[list[str]]:
    """Return the cells of the page, a line for each metric of each row.

    Args:
        rows: see :func:`paper_rows`.
        experiments: resolved config by config name.
        runs: final metrics, as `data/metric`, of the runs of each config, one mapping for each seed.
    """
    lines = []
    for row in rows:
        needs = missing_inputs(experiments[row.config])
        for metric, number in row.paper.items():
            scale = 1.0 if lower_is_better(metric) else 100.0
            ours = [scale * values[metric] for values in runs.get(row.config, ()) if metric in values]
            status = f"run, {len(ours)} seeds" if ours else f"not run: needs {', '.join(needs) or 'time'}"
            deviation = f" ± {stdev(ours):.2f}" if len(ours) > 1 else ""
            lines.append([
                ", ".join(map(str, row.tables)), row.system, row.target, row.regularizer, metric, f"{number:.2f}",
                f"{mean(ours):.2f}{deviation}" if ours else "-", f"{mean(ours) - number:+.2f}" if ours else "-",
                f"paper/{row.config}.yaml", status,
            ])  # fmt: skip
    return lines


def as_markdown(lines: Sequence[Sequence[str]], evidence: str = "") -> str:
    """Return the page as Markdown; `evidence` is the Markdown of the same comparisons at a smaller size."""
    return "".join(f"{part}\n" for part in _parts(markdown_table(lines, COLUMNS), evidence, "# ", "## "))


def as_html(lines: Sequence[Sequence[str]], evidence: str = "") -> str:
    """Return the page as one HTML file without scripts or links to other files."""
    cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in line) for line in lines]
    head = "".join(f"<th>{column}</th>" for column in COLUMNS)
    table = f"<table>\n<tr>{head}</tr>\n" + "".join(f"<tr>{row}</tr>\n" for row in cells) + "</table>"
    style = "body{font-family:sans-serif}td,th{padding:2px 8px;text-align:left;border-bottom:1px solid #ccc}"
    parts = _parts(table, f"<pre>{html.escape(evidence)}</pre>" if evidence else "", "<h1>", "<h2>")
    body = "\n".join(f"<p>{part}</p>" if part[0] != "<" else part for part in parts)
    return f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><style>{style}</style>\n{body}\n</html>\n'


def _parts(table: str, evidence: str, title: str, section: str) -> list[str]:
    command = "accelerate launch tools/train.py --config CONFIG"
    parts = [f"{title}The paper's tables, row by row", f"A row is run by {command}.", table]
    return parts + ([f"{section}The same comparisons at the size of this machine", evidence] if evidence else [])
