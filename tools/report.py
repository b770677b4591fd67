"""Curves and tables of finished or running experiments, and the paper's linear analysis.

    python tools/report.py curves runs/l2 runs/l2sp --out curves.png
    python tools/report.py table runs/*-seed? --metrics 'davis/*' chairs/epe --paper paper.yaml
    python tools/report.py paper-analysis --out paper-analysis

Runs of one name and several seeds are one line and one row, with mean and standard deviation. `paper-analysis` needs no
run: it computes the paper's Table 7, checks it by simulation, and draws Figure 1.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before installed packages called tools, models or data

from tools.command_line import program


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line; draw or tabulate."""
    options = _parser().parse_args(arguments)
    if options.command == "paper-analysis":
        _paper_analysis(options.out)
    else:
        _runs(options)
    return 0


def _runs(arguments: argparse.Namespace) -> None:
    """Draw or tabulate runs."""
    from mtsp.reports.runs import CURVES, HEADLINES, Run, curves, table
    from mtsp.tracking.metrics_file import METRICS

    found = [path for path in arguments.runs if (path / METRICS).is_file()]
    skipped = sorted(set(arguments.runs) - set(found))
    if not found:
        raise FileNotFoundError(f"no {skipped[0] / METRICS}; a run folder, as tools/train.py writes it, holds one")
    for path in skipped:
        print(f"skipped {path}: no {METRICS} in it", file=sys.stderr)
    runs = [Run.read(path) for path in found]
    if arguments.command == "curves":
        curves(runs, arguments.out, arguments.metrics or CURVES)
        print(arguments.out)
    else:
        text = table(runs, arguments.metrics or HEADLINES, _paper(arguments.paper))
        print(text, end="")
        if arguments.out:
            arguments.out.write_text(text, encoding="utf-8")


def _paper_analysis(folder: Path) -> None:
    """Print Table 7 of the paper with its simulation; write it and Figure 1 to a folder."""
    from mtsp.reports import bias_variance as analysis
    from mtsp.reports.runs import markdown_table

    moments, sides = analysis.report_rows()
    case = analysis.EXAMPLE
    noise, distance = case.p * case.sigma**2, case.distance
    text = (
        f"p = {case.p}, p sigma^2 = {noise:g}, ||eps||^2 = {distance:g}; alpha = {case.best_alpha():g}, the best\n\n"
        + markdown_table(moments, analysis.MOMENT_COLUMNS)
        + f"\nL2-SP is better than least squares for alpha < 2 p sigma^2 / (||eps||^2 - p sigma^2) = "
        f"{case.largest_useful_alpha():.3f}\n\n" + markdown_table(sides, analysis.SIDE_COLUMNS)
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table7.md").write_text(text, encoding="utf-8")
    analysis.draw(analysis.figure_panels(), folder / "figure1.png")
    print(text, folder / "table7.md", folder / "figure1.png", sep="\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Curves and tables of runs.")
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="holds metrics.jsonl and experiment.yaml")
    common.add_argument("--metrics", nargs="+", metavar="NAME", help="metrics to show; * matches anything")
    drawn = commands.add_parser("curves", parents=[common], help="metrics over steps, as a PNG")
    drawn.add_argument("--out", type=Path, default=Path("curves.png"), metavar="FILE", help="default: curves.png")
    written = commands.add_parser("table", parents=[common], help="last values, as a Markdown table")
    written.add_argument("--out", type=Path, metavar="FILE", help="also write the table here")
    written.add_argument(
        "--paper", type=Path, metavar="FILE", help="published numbers, YAML: {run name: {metric: number}}"
    )
    computed = commands.add_parser("paper-analysis", help="Table 7 and Figure 1 of the paper, computed")
    computed.add_argument(
        "--out", type=Path, default=Path("paper-analysis"), metavar="DIR", help="default: paper-analysis"
    )
    return parser


def _paper(path: Path | None) -> dict[str, dict[str, float | str]]:
    if path is None:
        return {}
    from mtsp.config import parse_yaml

    numbers = parse_yaml(path.read_text(encoding="utf-8"))
    if not isinstance(numbers, dict) or not all(isinstance(row, dict) for row in numbers.values()):
        raise ValueError(f"{path}: write lines like `run name: {{davis/J_mean: 0.68}}`")
    return numbers


if __name__ == "__main__":
    sys.exit(main())
