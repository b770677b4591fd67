"""Tables and a figure of comparisons that `tools/sweep.py --tune` ran: who wins on the target, and who on the source.

Differences are paired by seed, since a seed draws the same labels and batches for all regularizers. Intervals and p
values are of a paired t-test; p values are corrected by Holm's method over the whole table.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from mtsp.evaluation.metrics_by_kind import first_headlines, lower_is_better
from mtsp.reports.protocol import Run, Setting
from mtsp.reports.runs import markdown_table, mean_and_deviation
from mtsp.training.experiment import SOURCE

NAMES = {"none": "nothing", "l2": "L2", "l2sp": "L2-SP", "spd": "SPD"}
PAIRS = (("l2sp", "l2"), ("l2sp", "none"), ("l2", "none"), ("spd", "l2sp"), ("spd", "none"))
"""Comparisons of the table: the first over the second."""
LEVEL = 0.05


class Difference(NamedTuple):
    """Mean paired difference between two regularizers; positive if the first is better."""

    scenario: str
    first: str
    second: str
    metric: str
    seeds: int
    mean: float
    low: float
    """Lower end of the 95 % confidence interval."""
    high: float
    p: float


def paired(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float, float]:
    """Return mean, 95 % confidence interval and two-sided p value of the differences `first` - `second`.

    Raises:
        ValueError: there are fewer than two pairs, or scipy is missing.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    if len(differences) < 2:
        raise ValueError(f"a paired comparison needs at least two seeds, got {len(differences)}")
    try:
        from scipy.stats import t
    except ImportError as error:
        raise ValueError("p values need scipy: pip install scipy") from error
    middle, error = mean(differences), stdev(differences) / math.sqrt(len(differences))
    if error == 0:
        return middle, middle, middle, 1.0 if middle == 0 else 0.0
    half = float(t.ppf(0.975, len(differences) - 1)) * error
    p = 2 * float(t.sf(abs(middle) / error, len(differences) - 1))
    return middle, middle - half, middle + half, p


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values corrected by Holm's method: the smallest times n, the next times n - 1, and so on."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def differences(
    runs: Sequence[Run], pairs: Sequence[tuple[str, str]] = PAIRS, *, phase: str = "test"
) -> list[Difference]:
    """Return the comparisons of all scenarios on the target and, where it is measured, on the source.

    In the phase `test` each regularizer has the learning rate that was chosen for it, in `control` all have the same.
    """
    found = []
    for scenario in dict.fromkeys(run.scenario for run in runs):
        tested = _tested(runs, scenario, phase)
        for first, second in pairs:
            for metric in _compared(tested):
                values = {name: _by_seed(tested.get(name, []), metric) for name in (first, second)}
                seeds = sorted(values[first].keys() & values[second].keys())
                if len(seeds) < 2:
                    continue
                better = first, second
                if lower_is_better(metric):
                    better = second, first
                numbers = paired(*([values[name][seed] for seed in seeds] for name in better))
                found.append(Difference(scenario, first, second, metric, len(seeds), *numbers))
    return found


def results_table(runs: Sequence[Run]) -> str:
    """Return the means and standard deviations of all tested settings as Markdown."""
    rows = []
    for scenario in dict.fromkeys(run.scenario for run in runs):
        start = [run.values for run in runs if run.scenario == scenario and run.phase == "start"]
        tested = _tested(runs, scenario)
        for name, members in tested.items():
            target = _target(members[0])
            entry = target.partition("/")[0]
            before = [values[metric] for values in start if (metric := _source(members[0])) in values]
            columns = [target, _source(members[0]), f"{entry}/ece", f"{entry}_corrupted/{target.partition('/')[2]}"]
            cells = [
                mean_and_deviation([run.values[column] for run in members if column in run.values])
                for column in columns
            ]
            setting, source = members[0].setting, f"{before[0]:.3f}" if before else "-"
            names = dict.fromkeys(metric.partition("/")[2] for metric in (target, _source(members[0])))
            label = f"{scenario}: {' and '.join(name for name in names if name != '-')}"
            rows.append(
                [label, NAMES[name], _strength(setting), f"{setting.rate:g}", str(len(members)), *cells, source]
            )
    columns = ["scenario", "regularizer", "strength", "rate", "seeds", "target", "source", "ECE", "corrupted", "start"]
    return markdown_table(rows, columns)


def comparison_table(found: Sequence[Difference]) -> str:
    """Return the comparisons as Markdown: a line for each pair, with p values by Holm's method and the winners."""
    rows: dict[tuple[str, str], dict[str, list[str]]] = {}
    missing = ["-", "-", "-"]
    for one, corrected in zip(found, holm([one.p for one in found]), strict=True):
        what = "source" if one.metric.startswith(f"{SOURCE}/") else "target"
        cells = [f"{one.mean:+.3f} [{one.low:+.3f}, {one.high:+.3f}]", _p(corrected), winner(one, corrected)]
        rows.setdefault((one.scenario, f"{NAMES[one.first]} over {NAMES[one.second]}"), {})[what] = cells
    lines = [[*pair, *cells.get("target", missing), *cells.get("source", missing)] for pair, cells in rows.items()]
    columns = [key for what in ("target", "source") for key in (f"{what} [95 %]", "p", "winner")]
    return markdown_table(lines, ["scenario", "comparison", *columns])


def winner(one: Difference, corrected: float) -> str:
    """Return the better of the two where the corrected p value is below 5 %, or else "undecided"."""
    if corrected >= LEVEL:
        return "undecided"
    return NAMES[one.first if one.mean > 0 else one.second]


def verdicts(found: Sequence[Difference]) -> str:
    """Return the claim of the paper, "not a single comparison is in favor of L2", as decided by each comparison."""
    corrected = dict(zip(found, holm([one.p for one in found]), strict=True))
    lines = []
    for what, wanted in (("target", False), ("source", True)):
        of_claim = [
            one
            for one in found
            if (one.first, one.second) == ("l2sp", "l2") and one.metric.startswith(f"{SOURCE}/") == wanted
        ]
        words = {"L2-SP": "confirmed", "L2": "refuted", "undecided": "undecided"}
        said = {one.scenario: words[winner(one, corrected[one])] for one in of_claim}
        sums = [f"{word} in {list(said.values()).count(word)}" for word in words.values()]
        ahead = sum(one.mean > 0 for one in of_claim), sum(one.mean < 0 for one in of_claim)
        each = "; ".join(f"{scenario} {word}" for scenario, word in said.items())
        lines.append(
            f"- L2-SP over L2 on the {what}: {', '.join(sums)} of {len(said)} comparisons ({each}). Whatever the "
            f"significance, the mean is in favor of L2-SP in {ahead[0]} and of L2 in {ahead[1]}.\n"
        )
    return "".join(lines)


def draw(runs: Sequence[Run], path: Path) -> None:
    """Write a PNG of target against source over strengths, with 95 % intervals, for scenarios with such runs.

    The intervals are of the differences between settings: each value is taken relative to its seed's mean over all
    settings, since seeds draw other labels and are harder or easier for all of them alike.

    Raises:
        ValueError: no scenario has runs of all strengths (`--curve-seeds`).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scenarios = list(dict.fromkeys(run.scenario for run in runs if run.phase == "curve"))
    if not scenarios:
        raise ValueError("no runs of all strengths; add --curve-seeds to tools/sweep.py --tune")
    figure = Figure(figsize=(4.8 * len(scenarios), 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for plot, scenario in zip(figure.subplots(1, len(scenarios), squeeze=False)[0], scenarios, strict=True):
        curve = [run for run in runs if run.scenario == scenario and run.phase == "curve"]
        target, source = _target(curve[0]), _source(curve[0])
        aligned = {metric: _without_seeds(curve, metric) for metric in (source, target)}
        for color, name in enumerate(dict.fromkeys(run.setting.regularizer for run in curve)):
            members = [run for run in curve if run.setting.regularizer == name]
            points = []
            for setting in sorted({run.setting for run in members}, key=lambda one: _weak_first(one)):
                seeds = [run.seed for run in members if run.setting == setting]
                points.append([_interval([aligned[metric][setting, seed] for seed in seeds]) for metric in aligned])
            (x, dx), (y, dy) = (zip(*axis, strict=True) for axis in zip(*points, strict=True))
            plot.errorbar(x, y, xerr=dx, yerr=dy, color=f"C{color}", marker="o", capsize=2, label=NAMES[name])
            if len(x) > 1:
                plot.annotate("strong", (x[-1], y[-1]), textcoords="offset points", xytext=(5, 5), fontsize=8)
        plot.set_xlabel(f"what is remembered: {source}")
        plot.set_ylabel(f"what is learned: {target}")
        plot.set_title(scenario)
        plot.grid(alpha=0.3)
        plot.legend()
    figure.savefig(path, format="png")


def _tested(runs: Iterable[Run], scenario: str, phase: str = "test") -> dict[str, list[Run]]:
    """Return the runs of a phase of a scenario by regularizer."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        if run.scenario == scenario and run.phase == phase:
            found.setdefault(run.setting.regularizer, []).append(run)
    return {name: found[name] for name in NAMES if name in found}


def _compared(tested: Mapping[str, Sequence[Run]]) -> list[str]:
    first = next(iter(tested.values()), None)
    return [] if first is None else [name for name in (_target(first[0]), _source(first[0])) if name in first[0].values]


def _target(run: Run) -> str:
    """Return the first headline of the target data, such as cub_test/top1."""
    known = [
        name for name in run.values if not name.startswith((f"{SOURCE}/", "validation/")) and "_corrupted/" not in name
    ]
    return next(name for headline in first_headlines() for name in known if name.endswith(f"/{headline}"))


def _source(run: Run) -> str:
    known = [name for headline in first_headlines() if (name := f"{SOURCE}/{headline}") in run.values]
    return known[0] if known else f"{SOURCE}/-"


def _by_seed(runs: Iterable[Run], metric: str) -> dict[int, float]:
    return {run.seed: run.values[metric] for run in runs if metric in run.values}


def _without_seeds(runs: Sequence[Run], metric: str) -> dict[tuple[Setting, int], float]:
    """Return the metric of each run minus its seed's mean over all settings, plus the mean over all runs."""
    seeds = {run.seed: mean(one.values[metric] for one in runs if one.seed == run.seed) for run in runs}
    middle = mean(run.values[metric] for run in runs)
    return {(run.setting, run.seed): run.values[metric] - seeds[run.seed] + middle for run in runs}


def _weak_first(setting: Setting) -> float:
    return -setting.strength if setting.regularizer == "l2sp" else setting.strength


def _strength(setting: Setting) -> str:
    if setting.regularizer == "none":
        return "-"
    return f"{setting.strength:g} runs" if setting.regularizer == "l2sp" else f"{setting.strength:g}"


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half of the 95 % confidence interval; 0 for one value."""
    if len(values) < 2:
        return values[0], 0.0
    middle, low, _, _ = paired(values, [0.0] * len(values))
    return middle, middle - low


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
