"""Compare L2-SP at five strengths, L2, and no regularization on one experiment.

    python tools/sweep.py --config F.yaml [--seeds 3] [key=value ...]
    python tools/sweep.py --config F.yaml --tune [--seeds 10] [key=value ...]

Strengths are time constants: the number of steps in which the pull alone would reduce a weight's distance from its
start to 1/e, at the full learning rate. Each run has its own run folder, as from tools/train.py. The same command
continues a stopped sweep and skips finished runs. `table.md` and `runs.csv` are written after each run.

With --tune, none, L2, L2-SP and SPD get the same budget: for each, the learning rate and the strength are chosen on
training data that is held out, then all seeds run with the chosen settings and are measured on the test data.
`tools/report.py evidence` makes the table of their `runs.csv`.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before installed packages called tools, models or data

from mtsp.command_line import above_zero, add_config, program, stopped

if TYPE_CHECKING:
    from mtsp.reports.sweep import Row
    from tools.build import AnyExperiment

PLAIN = ("taus", "metrics", "print_commands")
"""Options that only a sweep without --tune reads."""
TUNED = ("tuning_seeds", "holdout", "regularizers", "untuned", "curve_seeds", "control_rate")
"""Options that only --tune reads."""


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and sweep; return 75 if a signal stopped it."""
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)
    unused, when = (PLAIN, "with") if options.tune else (TUNED, "without")
    if given := [name for name in unused if getattr(options, name) != parser.get_default(name)]:
        parser.error(f"--{given[0].replace('_', '-')} has no effect {when} --tune")

    from mtsp.config import ConfigError
    from mtsp.reports.runs import HEADLINES
    from mtsp.reports.sweep import rows, seeds_from, sweep
    from tools.build import read_experiment
    from tools.train import train

    experiment = read_experiment(options.config, options.overrides)
    if options.tune:
        return _tune(experiment, options)
    folder = options.run_dir or Path("runs") / f"{experiment.name}-sweep"
    try:
        taus = [float(word) for word in options.taus.split(",")] if options.taus else None
    except ValueError as error:
        raise ValueError(f"--taus {options.taus}: expected numbers of steps separated by commas") from error
    if options.print_commands:
        for line in _commands(folder, rows(experiment, taus), seeds_from(experiment, options.seeds)):
            print(line)
        return 0
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "a sweep runs in one process; launch the lines of --print-commands, then sweep to get the table"
        )
    metrics = options.metrics or HEADLINES
    text = sweep(experiment, folder, train=train, seeds=options.seeds, taus=taus, metrics=metrics)
    if text is None:
        return stopped()
    print(text, end="")
    return 0


def _tune(experiment: "AnyExperiment", options: argparse.Namespace) -> int:
    """Choose settings, test them, and print where their numbers are; return 75 if a signal stopped a run."""
    from mtsp.reports.protocol import STRENGTHS, Protocol
    from mtsp.reports.sweep import seeds_from
    from tools.train import train

    folder = options.run_dir or Path("runs") / f"{experiment.name}-tuned"
    protocol = Protocol(
        experiment,
        folder,
        train=train,
        holdout=options.holdout,
        regularizers=options.regularizers or tuple(STRENGTHS),
        tuning_seeds=options.tuning_seeds,
        untuned=options.untuned,
    )
    chosen = protocol.tune() if protocol.measure_start() else None
    if chosen is None or not protocol.test(list(chosen.values()), seeds_from(experiment, options.seeds)):
        return stopped()
    curve = seeds_from(experiment, options.curve_seeds)
    if not protocol.test(protocol.strengths_of(chosen), curve, phase="curve"):
        return stopped()
    if options.control_rate is not None:
        control = [one._replace(rate=options.control_rate) for one in chosen.values()]
        if not protocol.test(control, seeds_from(experiment, options.seeds), phase="control"):
            return stopped()
    print(folder / "runs.csv")
    return 0


def _commands(folder: Path, planned: "Sequence[Row]", seeds: Sequence[int]) -> Iterator[str]:
    """Write the config of each row and yield the command of each run, to launch elsewhere or on several processes."""
    from mtsp.files.atomic_file import write_atomically
    from mtsp.training.experiment import as_yaml

    for seed in seeds:
        for row in planned:
            config = folder / "configs" / f"{row.key}.yaml"
            config.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(config, as_yaml(row.experiment).encode())
            run_dir = folder / f"{row.key}-seed{seed}"
            words = ["accelerate", "launch", "tools/train.py", "--config", str(config), "--run-dir", str(run_dir)]
            yield shlex.join([*words, "--resume", "auto", f"seed={seed}"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    add_config(parser)
    parser.add_argument("--run-dir", type=Path, help="folder for all runs and the table (default: runs/NAME-sweep)")
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="number of seeds, counting up from the config's seed (default: 1)",
    )
    parser.add_argument(
        "--taus", metavar="A,B,...", help="time constants in steps (default: 10 to 0.1 times train.steps)"
    )
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="metrics to show in the table; * matches any text")
    parser.add_argument("--tune", action="store_true", help="choose settings on held-out training data, then test")
    parser.add_argument(
        "--tuning-seeds", type=int, default=1, metavar="N", help="splits to average over while tuning (default: 1)"
    )
    parser.add_argument(
        "--holdout",
        type=above_zero,
        default=0.25,
        metavar="F",
        help="fraction of training data to hold out (default: 0.25)",
    )
    parser.add_argument("--regularizers", nargs="+", metavar="NAME", help="with --tune: none, l2, l2sp, spd")
    parser.add_argument(
        "--untuned", action="store_true", help="with --tune: choose nothing; take the middle strength of each"
    )
    parser.add_argument(
        "--curve-seeds", type=int, default=0, metavar="N", help="with --tune: also test every strength with N seeds"
    )
    parser.add_argument(
        "--control-rate", type=above_zero, metavar="F", help="with --tune: also test all at F times the learning rates"
    )
    parser.add_argument("--print-commands", action="store_true", help="write the configs, print the commands and stop")
    return parser


if __name__ == "__main__":
    sys.exit(main())
