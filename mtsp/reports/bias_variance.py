"""Compute the paper's bias-variance analysis of L2-SP in linear regression (section 5.3, Table 7), and its Figure 1.

After Li, Grandvalet, Davoine, Dong et al., "Transfer learning in computer vision tasks: remember where you come from",
Image and Vision Computing 2020. The loss is J(w) = 1/2 ||X w - y||^2 with y = X w* + noise of variance sigma^2, a fixed
design X with X'X = I of p columns, and a start w0 = w* + eps. Letters: n rows, p columns, R repetitions.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from mtsp.reports.runs import markdown_table

Estimator = Literal["least squares", "L2", "L2-SP"]
ESTIMATORS: tuple[Estimator, ...] = ("least squares", "L2", "L2-SP")


class Moments(NamedTuple):
    """Mean, variance and error of an estimate of w*, over draws of the noise."""

    mean: np.ndarray  # p
    variance: np.ndarray  # p, per weight; weights are uncorrelated
    error: float
    """Expected ||w - w*||^2: the squared norm of the bias plus the sum of the variances."""


@dataclass(frozen=True)
class Regression:
    """A linear regression problem with initial weights."""

    truth: np.ndarray  # w*, p
    start: np.ndarray  # w0, p
    sigma: float
    """Standard deviation of the noise."""

    @property
    def p(self) -> int:
        """Number of weights."""
        return len(self.truth)

    @property
    def distance(self) -> float:
        """||eps||^2, the squared distance from the start to the truth."""
        return float(((self.start - self.truth) ** 2).sum())

    def moments(self, estimator: Estimator, alpha: float) -> Moments:
        """Return mean and variance of the estimate as in Table 7, and the error that follows from them."""
        keep = 1.0 if estimator == "least squares" else 1 / (1 + alpha)
        mean = keep * self.truth
        if estimator == "L2-SP":
            mean = mean + alpha / (1 + alpha) * self.start  # = w* + alpha / (1 + alpha) eps
        variance = np.full(self.p, (keep * self.sigma) ** 2)
        return Moments(mean, variance, float(((mean - self.truth) ** 2).sum() + variance.sum()))

    def largest_useful_alpha(self) -> float:
        """Return the alpha below which L2-SP has a smaller error than least squares; inf if this holds for every alpha.

        It is 2 p sigma^2 / (||eps||^2 - p sigma^2), or inf if ||eps||^2 <= p sigma^2. (The paper's text says
        ||eps|| < p sigma^2 as this condition; the paper's formula shows that the square is meant.)
        """
        noise = self.p * self.sigma**2
        return 2 * noise / (self.distance - noise) if self.distance > noise else float("inf")

    def best_alpha(self) -> float:
        """Return the alpha that minimizes the error of L2-SP, p sigma^2 / ||eps||^2. Not in the paper."""
        return self.p * self.sigma**2 / self.distance if self.distance else float("inf")


def closed_form(
    estimator: Estimator, design: np.ndarray, responses: np.ndarray, start: np.ndarray, alpha: float
) -> np.ndarray:
    """Return Table 7's estimate for an orthonormal design: p weights from n responses, or R x p from R x n."""
    projected = responses @ design  # X'y
    if estimator == "least squares":
        return projected
    return projected / (1 + alpha) + (alpha / (1 + alpha) * start if estimator == "L2-SP" else 0)


def minimizer(
    estimator: Estimator, design: np.ndarray, responses: np.ndarray, start: np.ndarray, alpha: float
) -> np.ndarray:
    """Return the minimizer of the penalized loss for a design of full rank, from its normal equations."""
    strength = 0.0 if estimator == "least squares" else alpha
    pulled = strength * (start if estimator == "L2-SP" else np.zeros_like(start))
    matrix = design.T @ design + strength * np.eye(design.shape[1])
    return np.linalg.solve(matrix, (responses @ design + pulled).T).T


def early_stopping_alpha(rate: float, steps: int) -> float:
    """Return the alpha for which L2-SP's estimate equals the result of `steps` steps of plain gradient descent.

    With an orthonormal design, each step multiplies the distance to the least-squares estimate by 1 - rate, and L2-SP
    multiplies it by alpha / (1 + alpha): early stopping acts as this penalty. Not in the paper.

    Raises:
        ValueError: `rate` is not between 0 and 1, or `steps` is below 1, which would need an infinite alpha.
    """
    if not 0 < rate < 1 or steps < 1:
        raise ValueError(f"rate must be between 0 and 1 and steps at least 1, got {rate} and {steps}")
    left = (1 - rate) ** steps
    return left / (1 - left)


def simulate(
    regression: Regression, estimator: Estimator, alpha: float, *, rows: int = 20, repetitions: int = 20000,
    seed: int = 0,
) -> Moments:  # fmt: skip
    """Return the moments of `minimizer` over `repetitions` draws of the noise, without using Table 7.

    Raises:
        ValueError: there are fewer rows than weights, so no orthonormal design exists.
    """
    if rows < regression.p:
        raise ValueError(f"{rows} rows cannot hold {regression.p} orthonormal columns")
    rng = np.random.default_rng(seed)
    design = np.linalg.qr(rng.standard_normal((rows, regression.p))).Q
    noise = regression.sigma * rng.standard_normal((repetitions, rows))
    found = minimizer(estimator, design, design @ regression.truth + noise, regression.start, alpha)  # Rp
    error = ((found - regression.truth) ** 2).sum(1).mean()
    return Moments(found.mean(0), found.var(0), float(error))


def descent(
    hessian: np.ndarray, minimum: np.ndarray, start: np.ndarray, reference: np.ndarray, alpha: float,
    *, rate: float = 0.02, steps: int = 2000,
) -> np.ndarray:  # fmt: skip
    """Return the path of gradient descent on a quadratic risk plus a penalty, (steps + 1) x p.

    The risk is 1/2 (w - minimum)' H (w - minimum), the penalty alpha/2 ||w - reference||^2.
    """
    path = [start.astype(float)]
    for _ in range(steps):
        w = path[-1]
        path.append(w - rate * (hessian @ (w - minimum) + alpha * (w - reference)))
    return np.array(path)


class Panel(NamedTuple):
    """One plot of Figure 1."""

    title: str
    start: np.ndarray
    reference: np.ndarray
    """Center of the admissible set, to which the regularizer pulls the weights."""
    path: np.ndarray
    """Points on the path from the start to the regularized solution, which is on the border of the admissible set."""

    @property
    def radius(self) -> float:
        """Radius of the admissible set; the constraint to this set has the same solution as the penalty."""
        return float(np.linalg.norm(self.path[-1] - self.reference))


MINIMUM = np.array([3.0, 2.2])
PRETRAINED = np.array([2.3, 3.1])
STRENGTH = 0.45
_TURN = np.deg2rad(-35)
_AXES = np.array([[np.cos(_TURN), -np.sin(_TURN)], [np.sin(_TURN), np.cos(_TURN)]])
HESSIAN = _AXES @ np.diag([0.35, 1.4]) @ _AXES.T
"""Problem in Figure 1. The paper gives no numbers; these numbers show its case of a start near the minimum."""


def figure_panels(alpha: float = STRENGTH) -> list[Panel]:
    """Return the three plots of Figure 1, all with the same problem and alpha."""
    origin = np.zeros(2)
    settings = [
        ("(a) L2, from scratch", origin, origin),
        ("(b) L2, fine-tuned", PRETRAINED, origin),
        ("(c) L2-SP, fine-tuned", PRETRAINED, PRETRAINED),
    ]
    return [Panel(name, w0, center, descent(HESSIAN, MINIMUM, w0, center, alpha)) for name, w0, center in settings]


def draw_figure1(panels: list[Panel], path: Path) -> None:
    """Write Figure 1 as a PNG, with the paper's symbols: star, cross, segment, point, ellipses and circle.

    The paper draws a large circle in every plot. Here all plots have the same alpha, so the circle in (c) is small.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle

    figure = Figure(figsize=(12, 4.0), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    x, y = np.meshgrid(np.linspace(-4.2, 5.6, 300), np.linspace(-4.2, 5.0, 300))
    away = np.stack([x - MINIMUM[0], y - MINIMUM[1]], axis=-1)
    heights = 0.5 * np.einsum("...i,ij,...j", away, HESSIAN, away)
    for plot, panel in zip(figure.subplots(1, len(panels)), panels, strict=True):
        plot.add_patch(Circle(tuple(panel.reference), panel.radius, facecolor="#cfe2f7", edgecolor="#2468b0", zorder=0))
        plot.contour(x, y, heights, levels=[0.1, 0.4, 0.9, 1.6, 2.5], colors="#c77f7f", linewidths=0.8)
        plot.plot(*panel.path.T, color="black", linewidth=1.5)
        plot.plot(*panel.start, "x", color="black", markersize=10, markeredgewidth=2)
        plot.plot(*panel.path[-1], "o", color="black", markersize=7)
        plot.plot(*MINIMUM, "*", color="red", markersize=13)
        plot.axhline(0, color="gray", linewidth=0.5, zorder=0)
        plot.axvline(0, color="gray", linewidth=0.5, zorder=0)
        plot.set(title=panel.title, aspect="equal", xlim=(-4.2, 5.6), ylim=(-4.2, 5.0), xticks=[], yticks=[])
    figure.savefig(path, format="png")


EXAMPLE = Regression(truth=np.linspace(-2, 2, 8), start=np.linspace(-2, 2, 8) + 0.5, sigma=0.4)
"""p sigma^2 = 1.28 and ||eps||^2 = 2: the limit is alpha < 2.56 / 0.72 = 3.56; ||eps|| is small beside ||w*||."""


def report(regression: Regression = EXAMPLE) -> str:
    """Return two Markdown tables: Table 7 beside its simulation, and L2-SP's error around the largest useful alpha.

    The first table has a row for each estimator, at the best alpha. The second table has a row for each of several
    fractions of the largest useful alpha.
    """
    alpha, limit = regression.best_alpha(), regression.largest_useful_alpha()
    moments = []
    for estimator in ESTIMATORS:
        theory, seen = regression.moments(estimator, alpha), simulate(regression, estimator, alpha)
        bias, seen_bias = (np.linalg.norm(m.mean - regression.truth) for m in (theory, seen))
        values = [bias, seen_bias, theory.variance.sum(), seen.variance.sum(), theory.error, seen.error]
        moments.append([estimator, *(f"{value:.4f}" for value in values)])
    least, sides = regression.moments("least squares", 0.0).error, []
    for fraction in (0.5, 0.9, 1.0, 1.1, 2.0):
        theory = regression.moments("L2-SP", fraction * limit).error
        seen = simulate(regression, "L2-SP", fraction * limit).error
        better = "equal" if fraction == 1 else "L2-SP" if theory < least else "least squares"
        errors = [f"{error:.4f}" for error in (theory, seen, least)]
        sides.append([f"{fraction * limit:.3f}", f"{fraction:g}", *errors, better])
    seen_beside = [name for moment in ("bias", "variance", "error") for name in (moment, "simulated")]
    columns = ["alpha", "fraction of limit", "error of L2-SP", "simulated", "error of least squares", "better"]
    noise = regression.p * regression.sigma**2
    return (
        f"p = {regression.p}, p sigma^2 = {noise:g}, ||eps||^2 = {regression.distance:g}; alpha = {alpha:g}, the best\n"
        f"\n{markdown_table(moments, ['estimator', *seen_beside])}\n"
        "L2-SP is better than least squares for alpha < 2 p sigma^2 / (||eps||^2 - p sigma^2) = "
        f"{limit:.3f}\n\n{markdown_table(sides, columns)}"
    )
