"""Time and memory of the distance between domains: ours beside pyemd, as DSTL calls it, and scipy.

    python -m tools.bench.transfer [--quick] [--large]

Domains are made up: 2048 features around 20 centers, source classes of 200 to 1300 images. pyemd takes square matrices
only: DSTL pads the n x m distances with zeros to n + m. Its original solver (`cpp`, DSTL's in 2018) works on all of it;
its present default drops what is empty and solves the rectangle, with POT, as ours does; both include the padding.
Times are medians in turns; memory is what the peak of a process of its own grows by. pyemd and scipy are not needed
to use mtsp.
"""

import argparse
import importlib.util
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mtsp.transfer import distances, emd
from mtsp.transfer.similarity import shares
from tools.bench.timing import forget_peak, machine, medians, peak_memory

Domains = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Solver = Callable[[np.ndarray, np.ndarray, np.ndarray], float]
CENTERS = 20
ROUNDS = 7
SLOW = 2.0
"""Seconds: a program that takes longer runs once."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Earth Mover's Distance between domains, ours and others'.")
    parser.add_argument("--quick", action="store_true", help="200 x 50 classes of 256 features: seconds")
    parser.add_argument("--large", action="store_true", help="5000 x 555 too, where pyemd's cpp may take an hour")
    options = parser.parse_args(arguments)
    console = Console(width=110)
    console.print(machine())
    sizes = [(200, 50, 256)] if options.quick else [(1000, 200, 2048)] + [(5000, 555, 2048)] * options.large
    for n, m, features in sizes:
        domains = made_up(n, m, features)
        console.print(_distances(domains))
        console.print(_solvers(domains))


def made_up(n: int, m: int, features: int) -> Domains:
    """Return class means and numbers of images of a source and a target."""
    rng = np.random.default_rng(0)
    centers = rng.gamma(0.5, 1, (CENTERS, features))
    x, y = (centers[rng.integers(0, CENTERS, k)] + rng.gamma(0.4, 0.8, (k, features)) for k in (n, m))
    return x, y, rng.integers(200, 1300, n), rng.integers(20, 30, m)


def by_pyemd(backend: str) -> Solver:
    """Return pyemd on the padded square."""

    def solve(ground: np.ndarray, source: np.ndarray, target: np.ndarray) -> float:
        import pyemd  # pyright: ignore[reportMissingImports]

        n, m = ground.shape
        square = np.zeros((n + m, n + m))
        square[:n, n:] = ground
        square[n:, :n] = ground.T
        a, b = np.concatenate([shares(source), np.zeros(m)]), np.concatenate([np.zeros(n), shares(target)])
        return pyemd.emd(a, b, square, backend=backend)

    return solve


def by_linprog(ground: np.ndarray, source: np.ndarray, target: np.ndarray) -> float:
    """Solve the linear program with HiGHS, its constraints sparse."""
    from scipy.optimize import linprog
    from scipy.sparse import eye_array, kron, vstack

    n, m = ground.shape
    sums = vstack([kron(eye_array(n), np.ones((1, m))), kron(np.ones((1, n)), eye_array(m))]).tocsr()
    return linprog(ground.ravel(), A_eq=sums, b_eq=np.concatenate([shares(source), shares(target)])).fun


SOLVERS: dict[str, tuple[str, Solver, str]] = {
    "mtsp, with its proof": ("ot", emd, ""),
    "pyemd cpp, padded (DSTL)": ("pyemd", by_pyemd("cpp"), ">= 30"),
    "pyemd default, rectangular": ("pyemd", by_pyemd("pot"), ">= 2"),
    "scipy linprog, HiGHS": ("scipy", by_linprog, ">= 50"),
}
"""Of each row: the package it needs, the solver, and how much longer than ours it should take."""


def _distances(domains: Domains) -> Table:
    x, y, _, _ = domains
    table = Table("distances", "ms", "over ours", "target", "largest difference", title=_title(domains))
    if importlib.util.find_spec("scipy") is None:
        table.add_row("scipy cdist", "not installed", "", ">= 8", "")
        return table
    from scipy.spatial.distance import cdist

    seconds, found = _measured({"ours": lambda: distances(x, y), "cdist": lambda: cdist(x, y)})
    difference = np.abs(found["ours"] - found["cdist"]).max()
    ratio = seconds["cdist"] / seconds["ours"]
    table.add_row("mtsp, matrix product", f"{1e3 * seconds['ours']:.1f}", "1.0", "", "")
    table.add_row("scipy cdist", f"{1e3 * seconds['cdist']:.1f}", f"{ratio:.1f}", ">= 8", f"{difference:.1e}")
    return table


def _solvers(domains: Domains) -> Table:
    x, y, source, target = domains
    ground = distances(x, y)
    table = Table("solver", "ms", "over ours", "target", "MiB", "value", title=_title(domains))
    present = {name: solver for name, (package, solver, _) in SOLVERS.items() if importlib.util.find_spec(package)}
    seconds, found = _measured({name: partial(solver, ground, source, target) for name, solver in present.items()})
    ours = next(iter(seconds.values()))
    for name, (_, _, goal) in SOLVERS.items():
        if name not in seconds:
            table.add_row(name, "not installed", "", goal)
            continue
        memory, ratio = f"{_memory(name, domains):.0f}", f"{seconds[name] / ours:,.1f}"
        table.add_row(name, f"{1e3 * seconds[name]:,.1f}", ratio, goal, memory, f"{float(found[name]):.10f}")
    return table


def _measured(programs: Mapping[str, Callable[[], Any]]) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the median seconds of each program, in turns (of a slow one, of its only run), and the results."""
    once, results = {}, {}
    for name, program in programs.items():
        start = time.perf_counter()
        results[name] = program()
        once[name] = time.perf_counter() - start
    fast = medians({name: program for name, program in programs.items() if once[name] < SLOW}, ROUNDS)
    return once | fast, results


def _memory(name: str, domains: Domains) -> float:
    """Return the MiB by which the peak of a fresh process grows when it solves."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak, (name, domains))


def _peak(name: str, domains: Domains) -> float:
    x, y, source, target = domains
    ground = distances(x, y)
    solver = SOLVERS[name][1]
    solver(ground[:4, :4], source[:4], target[:4])  # imports do not count
    forget_peak()
    before = peak_memory()
    solver(ground, source, target)
    return (peak_memory() - before) / 2**20


def _title(domains: Domains) -> str:
    return f"{len(domains[0]):,} x {len(domains[1]):,} classes, {domains[0].shape[1]:,} features"


if __name__ == "__main__":
    main()
