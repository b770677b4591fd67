"""Curves and tables of finished or running experiments.

    python tools/report.py curves runs/l2 runs/l2sp --out curves.png
    python tools/report.py table runs/*-seed? --metrics 'davis/*' chairs/epe --paper paper.yaml

Runs of one name and several seeds are one line and one row, with mean and standard deviation.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mtsp.config import parse_yaml
from mtsp.report import CURVES, HEADLINES, Run, curves, table
from mtsp.tracking import METRICS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        found = [path for path in arguments.runs if (path / METRICS).is_file()]
        passed_over = sorted(set(arguments.runs) - set(found))
        if not found:
            raise FileNotFoundError(
                f"no {passed_over[0] / METRICS}; a run folder, as tools/train.py writes it, holds one"
            )
        for path in passed_over:
            print(f"passed over {path}: no {METRICS} in it", file=sys.stderr)
        runs = [Run.read(path) for path in found]
        if arguments.command == "curves":
            curves(runs, arguments.out, arguments.metrics or CURVES)
            print(arguments.out)
        else:
            text = table(runs, arguments.metrics or HEADLINES, _paper(arguments.paper))
            print(text, end="")
            if arguments.out:
                arguments.out.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Curves and tables of runs.")
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="holds metrics.jsonl and experiment.yaml")
    common.add_argument("--metrics", nargs="+", metavar="NAME", help="metrics to show; * stands for anything")
    drawn = commands.add_parser("curves", parents=[common], help="metrics over steps, as a PNG")
    drawn.add_argument("--out", type=Path, default=Path("curves.png"), metavar="FILE", help="default: curves.png")
    written = commands.add_parser("table", parents=[common], help="last values, as a Markdown table")
    written.add_argument("--out", type=Path, metavar="FILE", help="also write the table here")
    written.add_argument(
        "--paper", type=Path, metavar="FILE", help="published figures, YAML: {run name: {metric: figure}}"
    )
    return parser


def _paper(path: Path | None) -> dict[str, dict[str, float | str]]:
    if path is None:
        return {}
    figures = parse_yaml(path.read_text(encoding="utf-8"))
    if not isinstance(figures, dict) or not all(isinstance(row, dict) for row in figures.values()):
        raise ValueError(f"{path}: lines like `run name: {{davis/J_mean: 0.68}}` are expected")
    return figures


if __name__ == "__main__":
    sys.exit(main())
