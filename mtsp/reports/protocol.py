"""Compare regularizers with the same budget for each: choose settings on held-out training data, then run the test.

For every regularizer, the learning rate and the strength are chosen on a validation split that is cut from the training
set, never on the test data. The chosen settings then run with many seeds on all training data. A seed also draws the
labels where a data set has `label_seed`, so that all regularizers see the same draws and differences are paired.
"""

import csv
import io
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np

from mtsp.config import ConfigError, parse
from mtsp.evaluation.metrics_by_kind import first_headlines, lower_is_better
from mtsp.files.atomic_file import write_atomically
from mtsp.reports.sweep import rows
from mtsp.tracking.metrics_file import METRICS, read_metrics
from mtsp.training.checkpoint.resume import is_finished
from mtsp.training.experiment import SOURCE, AnyExperiment

RATES = (0.3, 1.0, 3.0)
"""Factors of all learning rates of the config."""
STRENGTHS: dict[str, tuple[float, ...]] = {
    "none": (0.0,),
    "l2": (1e-5, 1e-4, 1e-3, 1e-2),
    "l2sp": (3.0, 1.0, 0.3, 0.1),
    "spd": (0.1, 0.3, 1.0, 3.0),
}
"""Strengths to choose from for each regularizer, from weak to strong. For l2 they are alpha, which equals beta; for spd
they are alpha; for l2sp they are time constants, in multiples of the run's steps. Only l2 changes the config's beta."""
TUNING_SEED = 1000
"""Seed of the first tuning run; it differs from the seeds of the test."""
VALIDATION = "validation"

_LOG = logging.getLogger("mtsp")
Train = Callable[[AnyExperiment, Path, str], object]


class Setting(NamedTuple):
    """A regularizer with its strength, and the factor of the learning rates."""

    regularizer: str
    strength: float
    rate: float

    @property
    def key(self) -> str:
        """Name in folders."""
        return f"{self.regularizer}-{self.strength:g}-rate{self.rate:g}"


class Run(NamedTuple):
    """A finished run: its phase (start, tune, test, curve or control), its setting, and metrics as `data/metric`."""

    scenario: str
    phase: str
    setting: Setting
    seed: int
    values: Mapping[str, float]


class Protocol:
    """A comparison of regularizers on one experiment, with all its runs in one folder.

    Args:
        experiment: has the regularizer l2sp, whose beta all regularizers but l2 use, and a branch with pretrained
            weights. The first entry of `evaluation.data` is the test data.
        folder: folder of the runs and of `runs.csv`. Finished runs are skipped; only their numbers are kept.
        train: trains one experiment in a folder, with `resume="auto"`; returns None if a signal stopped it.
        holdout: fraction of the training data to validate on while tuning.
        regularizers: names among :data:`STRENGTHS`.
        tuning_seeds: number of splits to average over.
        rates: factors of the learning rates to choose from.
        untuned: choose nothing: take the config's learning rates, and the middle strength of each regularizer.
    """

    def __init__(
        self,
        experiment: AnyExperiment,
        folder: Path,
        *,
        train: Train,
        holdout: float = 0.25,
        regularizers: Sequence[str] = tuple(STRENGTHS),
        tuning_seeds: int = 1,
        rates: Sequence[float] = RATES,
        untuned: bool = False,
    ) -> None:
        if experiment.regularizer.name != "l2sp":
            raise ConfigError("regularizer: a comparison needs l2sp, whose beta the other regularizers share")
        if not experiment.evaluation.data:
            raise ConfigError("evaluation.data is empty, so there is nothing to compare; set it to entries of `data`")
        if unknown := [name for name in regularizers if name not in STRENGTHS]:
            raise ConfigError(f"no strengths for the regularizer {unknown[0]!r}; there are {', '.join(STRENGTHS)}")
        self.experiment, self.folder, self.train, self.holdout = experiment, folder, train, holdout
        self.regularizers, self.rates, self.untuned = tuple(regularizers), tuple(rates), untuned
        self.tuning_seeds = range(TUNING_SEED, TUNING_SEED + tuning_seeds)
        self.runs: list[Run] = []

    def tune(self) -> dict[str, Setting] | None:
        """Return the chosen setting of each regularizer, or None if a signal stopped a run.

        First the learning rate is chosen at a middle strength, then the strength at that rate.
        """
        chosen = {}
        for name in self.regularizers:
            strengths = STRENGTHS[name]
            middle = strengths[len(strengths) // 2]
            if self.untuned:
                chosen[name] = Setting(name, middle, 1.0)
                continue
            best = self._best([Setting(name, middle, rate) for rate in self.rates])
            best = best and self._best([Setting(name, strength, best.rate) for strength in strengths])
            if best is None:
                return None
            chosen[name] = best
            _LOG.info("chosen: %s, strength %g, learning rates times %g", *best)
        return chosen

    def test(self, settings: Sequence[Setting], seeds: Sequence[int], phase: str = "test") -> bool:
        """Run all settings with every seed on all training data; return False if a signal stopped a run."""
        return all(self._run(phase, setting, seed) is not None for seed in seeds for setting in settings)

    def measure_start(self) -> bool:
        """Measure the source task before fine-tuning, in a run of one step; return False if a signal stopped it."""
        if self.experiment.evaluation.source is None:
            return True
        one = self.configured(Setting("none", 0.0, 1.0), self.experiment.seed)
        short = one.train.model_copy(update={"steps": 1})
        evaluation = one.evaluation.model_copy(update={"at_start": True, "corruptions": None})
        one = one.model_copy(update={"train": short, "evaluation": evaluation})
        return self._finished("start", one, self.folder / "start", Setting("none", 0.0, 1.0)) is not None

    def strengths_of(self, chosen: Mapping[str, Setting]) -> list[Setting]:
        """Return every strength of every regularizer, all at the learning rate that was chosen without regularization.

        At one rate, the strengths alone make the difference. If nothing is not compared, each keeps its own rate.
        """
        plain = chosen.get("none")
        return [
            one._replace(strength=strength, rate=one.rate if plain is None else plain.rate)
            for name, one in chosen.items()
            for strength in STRENGTHS[name]
        ]

    def _best(self, settings: Sequence[Setting]) -> Setting | None:
        """Return the best setting on the validation data, the first of equals."""
        scores = {}
        for setting in settings:
            found = [self._run("tune", setting, seed) for seed in self.tuning_seeds]
            values = [one.values for one in found if one is not None]
            if len(values) < len(found):
                return None
            scores[setting] = _score(values)
        return max(settings, key=lambda setting: scores[setting])

    def _run(self, phase: str, setting: Setting, seed: int) -> Run | None:
        """Return a run, from its folder if it is finished, or None if a signal stopped it."""
        run_dir = self.folder / ("tune" if phase == "tune" else "test") / f"{setting.key}-seed{seed}"
        return self._finished(phase, self.configured(setting, seed, tuning=phase == "tune"), run_dir, setting)

    def _finished(self, phase: str, one: AnyExperiment, run_dir: Path, setting: Setting) -> Run | None:
        may_differ, otherwise = ("tracking", "train.workers", "train.keep_last"), "choose another --run-dir"
        if not is_finished(one, run_dir, may_differ=may_differ, otherwise=otherwise):
            _LOG.info("%s %s", phase, run_dir.name)
            if self.train(one, run_dir, "auto") is None:
                return None
            shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
            (run_dir / "weights.safetensors").unlink(missing_ok=True)
        results = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
        values = {f"{data}/{name}": value for data, found in results.items() for name, value in found.items()}
        if phase == "start":
            logged = read_metrics(run_dir / METRICS)
            values = {name: row[name] for row in logged if row["step"] == 0 for name in row if name.startswith(SOURCE)}
        run = Run(self.experiment.name, phase, setting, one.seed, values)
        if all(other[:4] != run[:4] for other in self.runs):
            self.runs.append(run)
            write_atomically(self.folder / "runs.csv", as_csv(self.runs).encode())
        return run

    def configured(self, setting: Setting, seed: int, *, tuning: bool = False) -> AnyExperiment:
        """Return the experiment of one run."""
        values = self.experiment.model_dump(mode="json")
        values["seed"] = seed
        values["name"] = f"{self.experiment.name}-{setting.key}"
        values["optimizer"]["lr"] *= setting.rate
        for branch in values["branches"].values():
            branch["alpha"] = branch["beta"] = None
            branch["lr"] = branch["lr"] and branch["lr"] * setting.rate
        trained = self.experiment.train.entries
        for name in trained:
            if "label_seed" in values["data"][name]["dataset"]:
                values["data"][name]["dataset"]["label_seed"] = seed
        if tuning:
            self._cut(values, trained, seed)
        beta = values["regularizer"]["beta"]
        if setting.regularizer == "l2sp":
            tau = max(1.0, setting.strength * self.experiment.train.steps)
            named = parse(type(self.experiment), values)
            return rows(named, [tau])[-1].experiment.model_copy(update={"name": values["name"]})
        values["regularizer"] = {"name": setting.regularizer}
        if setting.regularizer != "none":
            beta = setting.strength if setting.regularizer == "l2" else beta
            values["regularizer"] |= {"alpha": setting.strength, "beta": beta}
        return parse(type(self.experiment), values)

    def _cut(self, values: dict[str, Any], trained: Sequence[str], seed: int) -> None:
        """Hold out a part of the training data, and evaluate on it in place of the test data."""
        test = self.experiment.evaluation.data[0]
        first = next(iter(self.experiment.train.stages[0].batch_size))
        held_out = values["data"][test] | {key: values["data"][first][key] for key in ("dataset", "limit")}
        values["data"][VALIDATION] = self._part(held_out, seed, "held_out")
        for name in trained:
            values["data"][name] = self._part(values["data"][name], seed, "rest")
        values["evaluation"] |= {"data": [VALIDATION], "every": None, "source": None, "corruptions": None}

    def _part(self, entry: dict[str, Any], seed: int, part: str) -> dict[str, Any]:
        """Return a data entry that is cut: of videos by whole sequences, else by examples."""
        sequences = entry["dataset"].get("sequences")
        if not sequences:
            return entry | {"holdout": {"fraction": self.holdout, "seed": seed, "part": part}}
        order = [sequences[i] for i in np.random.default_rng(seed).permutation(len(sequences))]
        count = min(len(order) - 1, max(1, round(len(order) * self.holdout)))
        kept = order[:count] if part == "held_out" else order[count:]
        return entry | {"dataset": entry["dataset"] | {"sequences": sorted(kept)}}


def headline(metrics: Mapping[str, float], entry: str) -> str:
    """Return the name of the first headline of a data entry, such as top1."""
    return next(name for name in first_headlines() if f"{entry}/{name}" in metrics)


def _score(runs: Sequence[Mapping[str, float]]) -> float:
    """Return the mean of the negative log likelihood of the validation data, or else of the headline; higher is better.

    Accuracy is too coarse to choose by: a few dozen images are held out where labels are few.
    """
    name = "nll" if f"{VALIDATION}/nll" in runs[0] else headline(runs[0], VALIDATION)
    return (-1 if lower_is_better(name) else 1) * mean(values[f"{VALIDATION}/{name}"] for values in runs)


def as_csv(runs: Sequence[Run]) -> str:
    """Return runs as CSV, with one row for each, sorted, with seven significant digits."""
    ordered = sorted(runs, key=lambda run: run[:4])
    columns = list(dict.fromkeys(name for run in ordered for name in run.values))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["scenario", "phase", "regularizer", "strength", "rate", "seed", *columns])
    for scenario, phase, setting, seed, values in ordered:
        numbers = [f"{values[name]:.7g}" if name in values else "" for name in columns]
        table.writerow(
            [scenario, phase, setting.regularizer, f"{setting.strength:g}", f"{setting.rate:g}", seed, *numbers]
        )
    return text.getvalue()


def read_csv(path: Path) -> list[Run]:
    """Return the runs of a file of :func:`as_csv`. Raises ValueError if it has other columns."""
    return list(_read(path))


def _read(path: Path) -> Iterator[Run]:
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            try:
                scenario, phase = row.pop("scenario"), row.pop("phase")
                setting = Setting(row.pop("regularizer"), float(row.pop("strength")), float(row.pop("rate")))
                seed = int(row.pop("seed"))
                yield Run(scenario, phase, setting, seed, {name: float(value) for name, value in row.items() if value})
            except (KeyError, ValueError) as error:
                raise ValueError(f"{path} is not a runs.csv of tools/sweep.py --tune: {error}") from error
