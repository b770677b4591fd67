"""Compare no regularization, L2, and L2-SP at several strengths: run a sweep and make its table."""

import csv
import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from mtsp.config import ConfigError, parse
from mtsp.files.atomic_file import write_atomically
from mtsp.regularizers import Pace
from mtsp.regularizers.configs import PenaltyConfig
from mtsp.reports.runs import HEADLINES, markdown_table, mean_and_deviation
from mtsp.training.checkpoint.resume import is_finished
from mtsp.training.experiment import AnyExperiment

LENGTHS = (10.0, 3.0, 1.0, 0.3, 0.1)
"""Default time constants as multiples of the number of steps, from weak to strong regularization."""

_LOG = logging.getLogger("mtsp")


class Row(NamedTuple):
    """One row of the table: a regularization to run with every seed."""

    key: str
    """Name in the run folders, such as none, l2, tau300."""
    name: str
    """Name in the table."""
    tau: float | None
    """Time constant in steps; None for rows without L2-SP."""
    experiment: AnyExperiment


def sweep(
    experiment: AnyExperiment,
    folder: Path,
    *,
    train: Callable[[AnyExperiment, Path, str], object],
    seeds: int = 1,
    taus: Sequence[float] | None = None,
    metrics: Sequence[str] = HEADLINES,
) -> str | None:
    """Run every row with every seed, skipping finished runs; return a table of mean ± sample deviation over the seeds.

    All rows run with one seed before any row runs with the next, so that a first comparison is complete early. Returns
    None if a signal stopped a run, which is then saved.

    Args:
        experiment: must have the regularizer l2sp or l2, which sets beta, and a branch with pretrained weights.
        folder: folder for the runs (such as `folder/tau300-seed0`), `table.md` and `runs.csv`.
        train: trains one experiment in a folder, with `resume="auto"`; returns None if a signal stopped it.
        seeds: number of seeds, counting up from the experiment's own seed.
        taus: see :func:`rows`.
        metrics: columns of the table, as `data/metric`; `*` matches any text.

    Raises:
        ValueError, OSError, FloatingPointError: with a message that says how to fix it.
    """
    if seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {seeds}")
    if not experiment.evaluation.data:
        raise ConfigError("evaluation.data is empty, so there is nothing to compare; set it to entries of `data`")
    planned = rows(experiment, taus)
    runs = [
        (row.experiment.model_copy(update={"seed": seed}), folder / f"{row.key}-seed{seed}")
        for seed in seeds_from(experiment, seeds)
        for row in planned
    ]
    may_differ, otherwise = ("tracking", "train.workers", "train.keep_last"), "choose another --run-dir"
    # Check all folders before the first run starts: a folder with another run is an error.
    done = [is_finished(one, run_dir, may_differ=may_differ, otherwise=otherwise) for one, run_dir in runs]
    for number, (one, run_dir) in enumerate(runs, start=1):
        if not done[number - 1]:
            _LOG.info("%d/%d %s", number, len(runs), run_dir)
            if train(one, run_dir, "auto") is None:
                return None
        write_tables(folder, planned, seeds_from(experiment, seeds), metrics)
    return write_tables(folder, planned, seeds_from(experiment, seeds), metrics)


def rows(experiment: AnyExperiment, taus: Sequence[float] | None = None) -> list[Row]:
    """Return the rows to compare: none, L2, and L2-SP from weak to strong, with one time constant for all branches.

    The L2-SP rows replace the experiment's alphas and keep its betas. The L2 row uses the experiment's alpha if its
    regularizer is l2, otherwise its beta. `taus` are time constants in steps; default: 10, 3, 1, 0.3 and 0.1 times the
    run's number of steps.

    Raises:
        ConfigError: the experiment has no beta or no pretrained branch, or no time constant is defined. In coupled mode
            a time constant is defined only for SGD; for regularizers other than l2 and l2sp it never is.
    """
    settings = experiment.regularizer
    if settings.name == "none":
        raise ConfigError("regularizer: none has no beta for the new weights; set l2sp (the sweep replaces its alpha)")
    if settings.name not in ("l2", "l2sp"):
        raise ConfigError(f"regularizer: {settings.name} has no time constants to sweep; set l2sp or l2")
    if not _pulled(experiment):
        raise ConfigError("branches: no trained branch has pretrained `weights`; set them for one branch")
    steps = experiment.train.steps
    constants = [max(1.0, round(steps * length)) for length in LENGTHS] if taus is None else list(taus)
    if wrong := [tau for tau in constants if not 1 <= tau < float("inf")]:
        raise ConfigError(f"a time constant must be at least 1 step, got {wrong[0]:g}")
    if len(set(constants)) < len(constants):
        raise ConfigError(f"two time constants are equal: {', '.join(f'{tau:g}' for tau in constants)}")
    own = experiment.model_dump(mode="json")
    if settings.name == "l2":
        alpha, alphas = own["regularizer"]["alpha"], {name: one["alpha"] for name, one in own["branches"].items()}
    else:
        alpha, alphas = own["regularizer"]["beta"], {}
    planned = [
        Row("none", "none", None, _regularized(experiment, "none", "none")),
        Row("l2", "L2", None, _regularized(experiment, "l2", "l2", alpha, alphas)),
    ]
    rates = experiment.learning_rates()
    for tau in sorted(constants, reverse=True):
        alphas = {name: _alpha(experiment, tau, rates[name]) for name in _pulled(experiment)}
        alpha = _alpha(experiment, tau, experiment.optimizer.lr)
        one = _regularized(experiment, f"tau{tau:g}", "l2sp", alpha, alphas)
        planned.append(Row(f"tau{tau:g}", "L2-SP", tau, one))
    return planned


def write_tables(folder: Path, planned: Sequence[Row], seeds: Sequence[int], metrics: Sequence[str]) -> str:
    """Write `table.md` and `runs.csv` of the finished runs; return the text of `table.md`."""
    found = {
        (row.key, seed): values
        for row in planned
        for seed in seeds
        if (values := _results(folder / f"{row.key}-seed{seed}")) is not None
    }
    known = list(dict.fromkeys(name for values in found.values() for name in values))
    shown = list(dict.fromkeys(name for pattern in metrics for name in known if fnmatchcase(name, pattern)))
    if found and not shown:
        raise ConfigError(f"no metric {', '.join(metrics)}; there are: {', '.join(known)}")
    lines = []
    for row in planned:
        of_row = [found[row.key, seed] for seed in seeds if (row.key, seed) in found]
        cells = [mean_and_deviation([values[name] for values in of_row if name in values]) for name in shown]
        lines.append([row.name, _tau(row), _alphas(row.experiment), f"{len(of_row)} of {len(seeds)}", *cells])
    text = markdown_table(lines, ["regularizer", "tau (steps)", "alpha", "seeds", *shown])
    written = io.StringIO()
    table = csv.DictWriter(written, ["regularizer", "tau", "alpha", "seed", *known], lineterminator="\n")
    table.writeheader()
    names = {row.key: {"regularizer": row.name, "tau": _tau(row), "alpha": _alphas(row.experiment)} for row in planned}
    table.writerows({**names[key], "seed": seed, **values} for (key, seed), values in found.items())
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "runs.csv", written.getvalue().encode())
    write_atomically(folder / "table.md", text.encode())
    return text


def _pulled(experiment: AnyExperiment) -> list[str]:
    """Return the branches that are trained and have pretrained weights."""
    return [name for name, branch in experiment.branches.items() if branch.weights and branch.learns]


def _alpha(experiment: AnyExperiment, tau: float, lr: float) -> float:
    assert isinstance(experiment.regularizer, PenaltyConfig)
    try:
        return experiment.regularizer.strength("alpha", Pace(tau), lr, experiment.optimizer, may_overshoot=True)
    except ValueError as error:
        raise ConfigError(f"regularizer: {error}") from error


def _regularized(
    experiment: AnyExperiment, key: str, name: str, alpha: object = None, alphas: Mapping[str, object] | None = None
) -> AnyExperiment:
    """Return the experiment with another regularizer and with `alphas` by branch; beta and mode stay."""
    values = experiment.model_dump(mode="json")
    own = values["regularizer"]
    values["name"] = f"{experiment.name}-{key}"
    values["regularizer"] = {"name": name}
    if name != "none":
        values["regularizer"] |= {"alpha": alpha, "beta": own["beta"], "mode": own["mode"]}
    for branch, section in values["branches"].items():
        section["alpha"] = (alphas or {}).get(branch)
        if name == "none":
            section["beta"] = None
    return parse(type(experiment), values)


def seeds_from(experiment: AnyExperiment, count: int) -> range:
    """Return `count` seeds, counting up from the experiment's own seed."""
    return range(experiment.seed, experiment.seed + count)


def _results(run_dir: Path) -> dict[str, float] | None:
    """Return the metrics of a finished run, by `data/metric`."""
    file = run_dir / "results.json"
    if not file.exists():
        return None
    results = json.loads(file.read_text(encoding="utf-8"))
    return {f"{data}/{name}": value for data, values in results.items() for name, value in values.items()}


def _tau(row: Row) -> str:
    return "-" if row.tau is None else f"{row.tau:g}"


def _alphas(experiment: AnyExperiment) -> str:
    """Return the alphas of the trained pretrained branches as text, as one number if they are equal."""
    alphas, _ = experiment.strengths()
    used = {name: f"{alphas[name]:.3g}" for name in _pulled(experiment) if name in alphas}
    if len(set(used.values())) <= 1:
        return next(iter(used.values()), "-")
    return ", ".join(f"{name} {alpha}" for name, alpha in used.items())
