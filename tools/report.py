"""Make tables and curves of finished or running experiments, and the paper's analysis of linear regression.

    python tools/report.py curves runs/l2 runs/l2sp --out curves.png
    python tools/report.py table runs/*-seed? --metrics 'davis/*' chairs/epe --paper paper.yaml
    python tools/report.py paper-analysis --out paper-analysis

Runs with the same name and different seeds share one curve and one table row, with mean and standard deviation.
`paper-analysis` needs no run: it computes the paper's Table 7, checks it by simulation, and draws Figure 1.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before installed packages called tools, models or data

from tools.command_line import program


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, and draw, tabulate or analyze."""
    arguments = _parser().parse_args(argv)
    if arguments.command == "paper-analysis":
        _paper_analysis(arguments.out)
    else:
        _runs(arguments)
    return 0


def _runs(arguments: argparse.Namespace) -> None:
    """Draw or tabulate runs."""
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
    runs.add_argument("--metrics", nargs="+", metavar="NAME", help="metrics to show; * matches any text")
    curves = commands.add_parser("curves", parents=[runs], help="draw metrics over steps")
    curves.add_argument(
        "--out", type=Path, metavar="FILE", help="PNG to write (default: curves.png in the first run's folder)"
    )
    table = commands.add_parser("table", parents=[runs], help="print the last values as a Markdown table")
    table.add_argument("--out", type=Path, metavar="FILE", help="also write the table to this file")
    table.add_argument(
        "--paper", type=Path, metavar="FILE", help="YAML file of published values: {run name: {metric: value}}"
    )
    analysis = commands.add_parser("paper-analysis", help="compute the paper's Table 7 and Figure 1")
    default = "paper-analysis"
    analysis.add_argument(
        "--out", type=Path, default=Path(default), metavar="DIR", help=f"folder to write (default: {default})"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
