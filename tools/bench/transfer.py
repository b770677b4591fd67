"""Compare time and memory of the distance between domains in mtsp, in pyemd as DSTL calls it, and in scipy.

    python tools/bench/transfer.py [--quick] [--sizes 5000x555] [--solvers ours cpp] [--minutes 60]

The domains are synthetic: 2048 features around 20 centers, source classes of 200 to 1300 images. pyemd accepts only
square matrices: DSTL pads the n x m distances with zeros to side n + m. pyemd's original solver (`cpp`, used by DSTL in
2018) solves the whole square; its current default drops the padding and solves the rectangle with POT, as mtsp does.
The time of both solvers includes the padding.

Each solver runs in its own process, and its result is compared with mtsp's. The solvers take turns, and the median
time is shown. Memory is the growth of the process's peak. A solver that takes longer than half of `--minutes` is
stopped; the table names stopped solvers and solvers that are not installed.
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

from mtsp.command_line import above_zero, height_width, program
from mtsp.transfer.distances import class_weights, distances, emd
from tools.bench.timing import Program, machine, medians, table
from tools.bench.workers import Worker, take_turns

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
    sizes.add_argument("--quick", action="store_true", help="use 200 x 50 classes with 256 features (seconds)")
    help_of_sizes = "numbers of source and target classes (default: 1000x200; 5000x555 may take an hour with cpp)"
    sizes.add_argument("--sizes", nargs="+", type=height_width, metavar="NxM", help=help_of_sizes)
    parser.add_argument(
        "--solvers", nargs="+", choices=SOLVERS, default=list(SOLVERS), help="solvers to compare (default: all)"
    )
    limit = "time limit in minutes; a solver may take half of it (default: %(default)g)"
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
    """Return class means and numbers of images of a synthetic source and target domain."""
    rng = np.random.default_rng(0)
    centers = rng.gamma(0.5, 1, (CENTERS, features))
    x, y = (centers[rng.integers(0, CENTERS, k)] + rng.gamma(0.4, 0.8, (k, features)) for k in (n, m))
    return x, y, rng.integers(200, 1300, n), rng.integers(20, 30, m)


def by_pyemd(backend: str) -> Solver:
    """Return a solver that calls pyemd on the padded square matrix."""

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
    """Solve the linear program with HiGHS and sparse constraints."""
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
"""For each row: description, required package, solver, and target for its time as a multiple of mtsp's time."""


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
