"""Measure time and memory of the distance between domains: ours, pyemd as DSTL calls it, and scipy.

    python -m tools.bench.transfer [--quick] [--large | --sizes 5000x555] [--solvers ours cpp] [--minutes 60]

Domains are made up: 2048 features around 20 centers, source classes of 200 to 1300 images. pyemd takes square matrices
only: DSTL pads the n x m distances with zeros to n + m. pyemd's original solver (`cpp`, DSTL's in 2018) works on the
whole square; its present default drops the empty part and solves the rectangle with POT, as ours does. The time of both
includes the padding.

Each solver runs in its own process. Memory is the growth of its peak in the first run; times are medians in turns with
ours, or the only run of a slow solver. Each row is printed as soon as it is measured; standard error names the solver
at work each minute. A solver that takes longer than `--minutes` is stopped, and its row says so. mtsp itself needs
neither pyemd nor scipy.
"""

import argparse
import importlib.util
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np

from mtsp.transfer.distances import class_weights, distances, emd
from tools.bench.timing import forget_peak, machine, medians, peak_memory

Domains = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Solver = Callable[[np.ndarray, np.ndarray, np.ndarray], float]
Size = tuple[int, int, int]
"""Numbers of source classes, target classes and features."""
CENTERS = 20
ROUNDS = 7
SLOW = 2.0
"""Seconds; a program that takes longer runs once."""


class Measured(NamedTuple):
    """Measurements of one solver."""

    seconds: float
    ours: float
    """Seconds of our solver in the same process."""
    memory: int
    """Bytes."""
    value: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Earth Mover's Distance between domains, ours and others'.")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", action="store_true", help="200 x 50 classes of 256 features: seconds")
    sizes.add_argument("--large", action="store_true", help="5000 x 555 too, where pyemd's cpp may take an hour")
    sizes.add_argument("--sizes", nargs="+", type=_size, metavar="NxM", help="classes of source and target")
    parser.add_argument("--solvers", nargs="+", choices=SOLVERS, default=list(SOLVERS), help="(default: all)")
    parser.add_argument(
        "--minutes", type=float, default=90.0, help="stop a solver after this time (default: %(default)g)"
    )
    options = parser.parse_args(arguments)
    chosen = [(200, 50, 256)] if options.quick else [(1000, 200, 2048)] + [(5000, 555, 2048)] * options.large
    print(machine())
    for size in options.sizes or chosen:
        print(f"\n{size[0]:,} x {size[1]:,} classes, {size[2]:,} features")
        _distances(made_up(*size))
        _solvers(size, options.solvers, 60 * options.minutes)


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
        a, b = (
            np.concatenate([class_weights(source), np.zeros(m)]),
            np.concatenate([np.zeros(n), class_weights(target)]),
        )
        return pyemd.emd(a, b, square, backend=backend)

    return solve


def by_linprog(cost_matrix: np.ndarray, source: np.ndarray, target: np.ndarray) -> float:
    """Solve the linear program with HiGHS, its constraints sparse."""
    from scipy.optimize import linprog
    from scipy.sparse import eye_array, kron, vstack

    n, m = cost_matrix.shape
    sums = vstack([kron(eye_array(n), np.ones((1, m))), kron(np.ones((1, n)), eye_array(m))]).tocsr()
    return linprog(
        cost_matrix.ravel(), A_eq=sums, b_eq=np.concatenate([class_weights(source), class_weights(target)])
    ).fun


SOLVERS: dict[str, tuple[str, str, Solver, str]] = {
    "ours": ("mtsp, with its proof", "ot", emd, ""),
    "default": ("pyemd default, rectangular", "pyemd", by_pyemd("pot"), ">= 2"),
    "linprog": ("scipy linprog, HiGHS", "scipy", by_linprog, ">= 50"),
    "cpp": ("pyemd cpp, padded (DSTL)", "pyemd", by_pyemd("cpp"), ">= 30"),
}
"""For each row: description, required package, solver, and how much longer than ours it should take."""


def _distances(domains: Domains) -> None:
    x, y, _, _ = domains
    _row("distances", "ms", "over ours", "target", "largest diff.")
    if importlib.util.find_spec("scipy") is None:
        _row("scipy cdist", "not installed", "", ">= 8")
        return
    from scipy.spatial.distance import cdist

    difference = np.abs(distances(x, y) - cdist(x, y)).max()
    programs = {"ours": lambda: distances(x, y), "product": lambda: x @ y.T, "cdist": lambda: cdist(x, y)}
    seconds = medians(programs, ROUNDS)
    times = {key: (f"{1e3 * taken:.1f}", f"{taken / seconds['ours']:.1f}") for key, taken in seconds.items()}
    _row("mtsp, matrix product", *times["ours"])
    _row("  the product alone", *times["product"])
    _row("scipy cdist", *times["cdist"], ">= 8", f"{difference:.1e}")


def _solvers(size: Size, names: Sequence[str], limit: float) -> None:
    _row("solver", "ms", "over ours", "target", "MiB", "value")
    for key in names:
        name, package, _, goal = SOLVERS[key]
        if importlib.util.find_spec(package) is None:
            _row(name, "not installed", "", goal)
            continue
        found = _in_a_process(key, size, limit)
        if isinstance(found, str):
            _row(name, found, "", goal)
            continue
        ratio, memory = f"{found.seconds / found.ours:,.1f}", f"{found.memory / 2**20:,.0f}"
        _row(name, f"{1e3 * found.seconds:,.1f}", ratio, goal, memory, f"{found.value:.10f}")


def _in_a_process(key: str, size: Size, limit: float) -> Measured | str:
    """Return the measurements of a fresh process, or why there are none; report each minute on standard error."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(key, size, sender), daemon=True)
    began = time.monotonic()
    process.start()
    sender.close()
    try:
        while not receiver.poll(min(60.0, max(0.0, limit - (time.monotonic() - began)))):
            minutes = (time.monotonic() - began) / 60
            if 60 * minutes >= limit:
                return f"stopped after {minutes:.1f} min"
            print(f"at work: {key}, {minutes:.0f} min", file=sys.stderr, flush=True)
        return receiver.recv()
    except EOFError:
        process.join()
        return f"ended with {process.exitcode}"  # -9: out of memory, if nobody killed it
    finally:
        process.terminate()
        process.join()


def _measure(key: str, size: Size, found: Connection) -> None:
    x, y, source, target = made_up(*size)
    cost_matrix = distances(x, y)
    _, _, solver, _ = SOLVERS[key]
    for program in (solver, emd):
        program(cost_matrix[:4, :4], source[:4], target[:4])  # imports are not measured
    forget_peak()
    before, start = peak_memory(), time.perf_counter()
    value = float(solver(cost_matrix, source, target))
    once, memory = time.perf_counter() - start, peak_memory() - before
    fast = {key: partial(solver, cost_matrix, source, target)} if once < SLOW else {}
    seconds = medians({"ours": partial(emd, cost_matrix, source, target)} | fast, ROUNDS)
    found.send(Measured(seconds.get(key, once), seconds["ours"], memory, value))


def _row(*cells: str) -> None:
    widths = (22, 11, 8, 14, 17)
    line = f"{cells[0]:<28}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells[1:], widths, strict=False))
    print(line.rstrip(), flush=True)


def _size(text: str) -> Size:
    try:
        n, m = map(int, text.split("x"))
    except ValueError:
        n = m = 0
    if n < 1 or m < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 5000x555")
    return n, m, 2048


if __name__ == "__main__":
    main()
