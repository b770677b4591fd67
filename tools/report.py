"""Make tables, curves and a page of experiments, the paper's tables, and its analysis of linear regression.

    python tools/report.py curves runs/l2 runs/l2sp --out curves.png
    python tools/report.py table runs/*-seed? --metrics 'davis/*' chairs/epe --paper paper.yaml
    python tools/report.py page runs/l2 runs/l2sp --out report.html
    python tools/report.py evidence runs/*-tuned/runs.csv --out evidence
    python tools/report.py paper runs/segflow_davis_l2sp-seed? --evidence runs/*-tuned/runs.csv --out paper
    python tools/report.py paper-analysis --out paper-analysis

Runs with the same name and different seeds share one curve and one table row, with mean and standard deviation.
`page` writes one HTML file with settings, curves, tables and figures, which any browser shows without a network.
`evidence` compares regularizers in runs of `tools/sweep.py --tune`. `paper` has every row of the paper's Tables 3 to 6,
with our numbers for those that were run. `paper-analysis` needs no run: it computes the paper's Table 7, checks it by
simulation, and draws Figure 1.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before installed packages called tools, models or data

from mtsp.command_line import program

if TYPE_CHECKING:
    from mtsp.reports.protocol import Run


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, and draw, tabulate or analyze."""
    arguments = _parser().parse_args(argv)
    if arguments.command == "paper-analysis":
        _paper_analysis(arguments.out)
    elif arguments.command == "evidence":
        _evidence(arguments.files, arguments.out)
    elif arguments.command == "paper":
        _paper(arguments.runs, arguments.evidence or [], arguments.out)
    else:
        _runs(arguments)
    return 0


def _evidence(files: Sequence[Path], folder: Path) -> None:
    """Print the tables of runs of `tools/sweep.py --tune`; write them, and the figure if there are runs for it."""
    from mtsp.reports import evidence

    runs = _compared(files)
    text = _evidence_text(files)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evidence.md").write_text(text, encoding="utf-8")
    print(text, folder / "evidence.md", sep="\n")
    if any(run.phase == "curve" for run in runs):
        evidence.draw(runs, folder / "evidence.png")
        print(folder / "evidence.png")


def _evidence_text(files: Sequence[Path]) -> str:
    from mtsp.reports import evidence

    runs = _compared(files)
    found = evidence.differences(runs)
    parts = [evidence.results_table(runs), evidence.comparison_table(found), evidence.verdicts(found)]
    if control := evidence.differences(runs, phase="control"):
        parts += ["Control: the same strengths, all at one learning rate.\n", evidence.comparison_table(control)]
    return "\n".join(parts)


def _compared(files: Sequence[Path]) -> "list[Run]":
    from mtsp.reports.protocol import read_csv

    found: dict[tuple[object, ...], Path] = {}
    runs = []
    for file in files:
        for run in read_csv(file):
            if (other := found.setdefault(run[:4], file)) != file:
                raise ValueError(f"{file} and {other} have the same run: {run.scenario}, {run.phase}, seed {run.seed}")
            runs.append(run)
    return runs


def _paper(folders: Sequence[Path], evidence: Sequence[Path], out: Path) -> None:
    """Print and write the page of the paper's tables."""
    import json

    from mtsp.reports import paper
    from tools.build import read_experiment

    rows = paper.paper_rows()
    experiments = {row.config: read_experiment(f"paper/{row.config}.yaml").model_dump(mode="json") for row in rows}
    runs: dict[str, list[dict[str, float]]] = {}
    for folder in folders:
        name = read_experiment(folder / "experiment.yaml").name
        if name not in experiments:
            raise ValueError(f"{folder} is a run of {name}, which is not a config of configs/paper")
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        values = {f"{data}/{key}": value for data, found in results.items() for key, value in found.items()}
        runs.setdefault(name, []).append(values)
    lines = paper.page(rows, experiments, runs)
    text = _evidence_text(evidence) if evidence else ""
    out.mkdir(parents=True, exist_ok=True)
    (out / "paper.md").write_text(paper.as_markdown(lines, text), encoding="utf-8")
    (out / "paper.html").write_text(paper.as_html(lines, text), encoding="utf-8")
    print(paper.as_markdown(lines, text), out / "paper.md", out / "paper.html", sep="\n")


def _runs(arguments: argparse.Namespace) -> None:
    """Draw runs, tabulate them, or write their page."""
    from mtsp.reports.runs import CURVES, HEADLINES, RunLog, curves, table
    from mtsp.tracking.metrics_file import METRICS

    found = [path for path in arguments.runs if (path / METRICS).is_file()]
    skipped = sorted(set(arguments.runs) - set(found))
    if not found:
        raise FileNotFoundError(f"no {skipped[0] / METRICS}; name a run folder that tools/train.py wrote")
    for path in skipped:
        print(f"skipped {path}: no {METRICS} in it", file=sys.stderr)
    runs = [RunLog.read(path) for path in found]
    if arguments.command == "curves":
        out = arguments.out or found[0] / "curves.png"
        curves(runs, out, arguments.metrics or CURVES)
        print(out)
    elif arguments.command == "page":
        from mtsp.reports.page import write_page

        write_page(runs, arguments.out)
        print(arguments.out)
    else:
        text = table(runs, arguments.metrics or HEADLINES, _published_numbers(arguments.paper))
        print(text, end="")
        if arguments.out:
            arguments.out.write_text(text, encoding="utf-8")


def _paper_analysis(folder: Path) -> None:
    """Print Table 7 beside its simulation; write both and Figure 1 to `folder`."""
    from mtsp.reports import bias_variance

    text = bias_variance.report()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table7.md").write_text(text, encoding="utf-8")
    bias_variance.draw_figure1(bias_variance.figure_panels(), folder / "figure1.png")
    print(text, folder / "table7.md", folder / "figure1.png", sep="\n")


def _published_numbers(path: Path | None) -> dict[str, dict[str, float | str]]:
    from mtsp.config import parse_yaml

    if path is None:
        return {}
    numbers = parse_yaml(path.read_text(encoding="utf-8"))
    if not isinstance(numbers, dict) or not all(isinstance(row, dict) for row in numbers.values()):
        raise ValueError(f"{path}: expected lines like `run name: {{davis/J_mean: 0.68}}`")
    return numbers


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="report.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    runs = argparse.ArgumentParser(add_help=False)
    runs.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN_DIR", help="run folder with metrics.jsonl and experiment.yaml"
    )
    chosen = argparse.ArgumentParser(add_help=False)
    chosen.add_argument("--metrics", nargs="+", metavar="NAME", help="metrics to show; * matches any text")
    page = commands.add_parser("page", parents=[runs], help="write an interactive HTML page that compares runs")
    page.add_argument(
        "--out", type=Path, default=Path("report.html"), metavar="FILE", help="HTML to write (default: report.html)"
    )
    curves = commands.add_parser("curves", parents=[runs, chosen], help="draw metrics over steps")
    curves.add_argument(
        "--out", type=Path, metavar="FILE", help="PNG to write (default: curves.png in the first run's folder)"
    )
    table = commands.add_parser("table", parents=[runs, chosen], help="print the last values as a Markdown table")
    table.add_argument("--out", type=Path, metavar="FILE", help="also write the table to this file")
    table.add_argument(
        "--paper", type=Path, metavar="FILE", help="YAML file of published values: {run name: {metric: value}}"
    )
    compared = commands.add_parser("evidence", help="compare regularizers: means, paired differences, figure")
    compared.add_argument("files", nargs="+", type=Path, metavar="CSV", help="runs.csv of tools/sweep.py --tune")
    compared.add_argument(
        "--out", type=Path, default=Path("evidence"), metavar="DIR", help="folder to write (default: evidence)"
    )
    paper = commands.add_parser("paper", help="show every row of the paper's tables beside our runs")
    paper.add_argument("runs", nargs="*", type=Path, metavar="RUN_DIR", help="finished runs of configs/paper")
    paper.add_argument("--evidence", nargs="+", type=Path, metavar="CSV", help="add the tables of these runs.csv")
    paper.add_argument(
        "--out", type=Path, default=Path("paper"), metavar="DIR", help="folder to write (default: paper)"
    )
    analysis = commands.add_parser("paper-analysis", help="compute the paper's Table 7 and Figure 1")
    default = "paper-analysis"
    analysis.add_argument(
        "--out", type=Path, default=Path(default), metavar="DIR", help=f"folder to write (default: {default})"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
