"""Measure time and memory of the distance between domains: ours, pyemd as DSTL calls it, and scipy.

    python tools/bench/transfer.py [--quick] [--sizes 5000x555] [--solvers ours cpp] [--minutes 60]

Domains are made up: 2048 features around 20 centers, source classes of 200 to 1300 images. pyemd takes square matrices
only: DSTL pads the n x m distances with zeros to n + m. pyemd's original solver (`cpp`, DSTL's in 2018) works on the
whole square; its present default drops the empty part and solves the rectangle with POT, as ours does. The time of both
includes the padding.

Each solver runs in its own process, and its result is compared with ours. They take turns, and the median counts.
Memory is the growth of the process's peak. A solver that takes longer than half of `--minutes` is stopped, and its row
says so, as it does for one that is not installed.
"""

import argparse
import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # before installed packages called tools, models or data

from mtsp.transfer.distances import class_weights, distances, emd
from tools.bench.timing import Program, machine, medians, table
from tools.bench.workers import Worker, take_turns
from tools.command_line import above_zero, height_width, program

Domains = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Solver = Callable[[np.ndarray, np.ndarray, np.ndarray], float]
Size = tuple[int, int, int]
"""Numbers of source classes, target classes and features."""
CENTERS, ROUNDS = 20, 3


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", action="store_true", help="200 x 50 classes of 256 features: seconds")
    help_of_sizes = "classes of source and target (default: 1000x200; at 5000x555 pyemd's cpp may take an hour)"
    sizes.add_argument("--sizes", nargs="+", type=height_width, metavar="NxM", help=help_of_sizes)
    parser.add_argument("--solvers", nargs="+", choices=SOLVERS, default=list(SOLVERS), help="(default: all)")
    limit = "stop a solver after this time (default: %(default)g)"
    parser.add_argument("--minutes", type=above_zero, default=90.0, help=limit)
    options = parser.parse_args(arguments)
    console = Console(width=100)
    console.print(machine())
    features = 256 if options.quick else 2048
    for n, m in options.sizes or [(200, 50) if options.quick else (1000, 200)]:
        console.print(f"{n:,} x {m:,} classes, {features:,} features")
        console.print(_distances(*made_up(n, m, features)[:2]))
        console.print(_solvers((n, m, features), options.solvers, 60 * options.minutes))
    return 0


def made_up(n: int, m: int, features: int) -> Domains:
    """Return class means and numbers of images of a made-up source and target."""
    rng = np.random.default_rng(0)
    centers = rng.gamma(0.5, 1, (CENTERS, features))
    x, y = (centers[rng.integers(0, CENTERS, k)] + rng.gamma(0.4, 0.8, (k, features)) for k in (n, m))
    return x, y, rng.integers(200, 1300, n), rng.integers(20, 30, m)


def by_pyemd(backend: str) -> Solver:
    """Return pyemd on the padded square."""

    def solve(cost_matrix: np.ndarray, source: np.ndarray, target: np.ndarray) -> float:
        import pyemd  # pyright: ignore[reportMissingImports]

        n, m = cost_matrix.shape
        square = np.zeros((n + m, n + m))
        square[:n, n:] = cost_matrix
        square[n:, :n] = cost_matrix.T
        a = np.concatenate([class_weights(source), np.zeros(m)])
        b = np.concatenate([np.zeros(n), class_weights(target)])
        return pyemd.emd(a, b, square, backend=backend)

    return solve


def by_linprog(cost_matrix: np.ndarray, source: np.ndarray, target: np.ndarray) -> float:
    """Solve the linear program with HiGHS, its constraints sparse."""
    from scipy.optimize import linprog
    from scipy.sparse import eye_array, kron, vstack

    n, m = cost_matrix.shape
    sums = vstack([kron(eye_array(n), np.ones((1, m))), kron(np.ones((1, n)), eye_array(m))]).tocsr()
    weights = np.concatenate([class_weights(source), class_weights(target)])
    return linprog(cost_matrix.ravel(), A_eq=sums, b_eq=weights).fun


SOLVERS: dict[str, tuple[str, str, Solver, str]] = {
    "ours": ("mtsp, with its proof", "ot", emd, ""),
    "default": ("pyemd default, rectangular", "pyemd", by_pyemd("pot"), ">= 2"),
    "linprog": ("scipy linprog, HiGHS", "scipy", by_linprog, ">= 50"),
    "cpp": ("pyemd cpp, padded (DSTL)", "pyemd", by_pyemd("cpp"), ">= 30"),
}
"""For each row: description, required package, solver, and how much longer than ours it should take."""


def _distances(x: np.ndarray, y: np.ndarray) -> Table:
    from scipy.spatial.distance import cdist

    programs = {"mtsp, matrix product": lambda: distances(x, y), "  the product alone": lambda: x @ y.T}
    programs["scipy cdist"] = lambda: cdist(x, y)
    seconds = medians(programs, 2 * ROUNDS + 1)
    drawn = table("distances", "program", "ms", "over ours", "target")
    for name, spent in seconds.items():
        ratio = f"{spent / seconds['mtsp, matrix product']:.1f}"
        drawn.add_row(name, f"{1e3 * spent:.1f}", ratio, ">= 8" if "cdist" in name else "")
    drawn.caption = f"largest difference from cdist: {np.abs(distances(x, y) - cdist(x, y)).max():.1e}"
    return drawn


def _solvers(size: Size, names: Sequence[str], limit: float) -> Table:
    idle = Worker(_solver, "", size)
    workers = {key: Worker(_solver, key, size) for key in ("ours", *names) if importlib.util.find_spec(SOLVERS[key][1])}
    take_turns([idle, *workers.values()], ROUNDS, steps=1, limit=limit, warm_up_fraction=0.5)
    drawn = table("solvers", "solver", "ms", "over ours", "target", "MiB")
    for key in names:
        name, _, _, goal = SOLVERS[key]
        worker = workers.get(key)
        if worker is None or not worker.seconds:
            drawn.add_row(name, worker.problem if worker else "not installed", "", goal)
            continue
        ratio, memory = worker.median / workers["ours"].median, (worker.peak - idle.peak) / 2**20
        drawn.add_row(name, f"{1e3 * worker.median:,.1f}", f"{ratio:,.1f}", goal, f"{memory:,.0f}")
    return drawn


def _solver(key: str, size: Size) -> Program:
    x, y, source, target = made_up(*size)
    cost_matrix = distances(x, y)
    if not key:  # measures the memory of the libraries and the input
        return lambda: emd(cost_matrix[:4, :4], source[:4], target[:4])
    solve = SOLVERS[key][2]
    expected = emd(cost_matrix, source, target)

    def run() -> None:
        found = solve(cost_matrix, source, target)
        if not math.isclose(found, expected, rel_tol=1e-9):
            raise ValueError(f"found {found}, ours is {expected}")

    return run


if __name__ == "__main__":
    sys.exit(main())
