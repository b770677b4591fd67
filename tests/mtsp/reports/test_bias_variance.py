"""The paper's linear analysis: Table 7 by hand and by simulation, the limit of alpha on both sides, and Figure 1."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtsp.reports.bias_variance import (
    ESTIMATORS,
    EXAMPLE,
    HESSIAN,
    MINIMUM,
    PRETRAINED,
    STRENGTH,
    Estimator,
    Regression,
    closed_form,
    descent,
    draw_figure1,
    early_stopping_alpha,
    figure_panels,
    minimizer,
    simulate,
)
from tools.report import main


def two_weights() -> Regression:
    """w* = (3, 1), eps = (0.6, 0.8), so ||eps||^2 = 1; sigma = 0.5, so p sigma^2 = 0.5."""
    return Regression(np.array([3.0, 1.0]), np.array([3.6, 1.8]), 0.5)


def orthonormal(rows: int, columns: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(0).standard_normal((rows, columns))).Q


def test_the_moments_of_table_7_by_hand() -> None:
    # alpha = 1: both penalties halve the estimate, a quarter of the variance 0.25 of each weight is left.
    # L2: mean (1.5, 0.5), squared bias ||w*||^2 / 4 = 2.5. L2-SP: mean w* + eps / 2, squared bias ||eps||^2 / 4 = 0.25.
    moments = {estimator: two_weights().moments(estimator, 1.0) for estimator in ESTIMATORS}
    assert moments["least squares"].mean.tolist() == [3.0, 1.0]
    assert moments["L2"].mean.tolist() == [1.5, 0.5]
    assert moments["L2-SP"].mean.tolist() == pytest.approx([3.3, 1.4])
    assert moments["least squares"].variance.tolist() == [0.25, 0.25]
    assert moments["L2"].variance.tolist() == moments["L2-SP"].variance.tolist() == [0.0625, 0.0625]
    assert [moments[name].error for name in ESTIMATORS] == pytest.approx([0.5, 2.5 + 0.125, 0.25 + 0.125])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_closed_forms_minimize_the_penalized_loss(estimator: Estimator) -> None:
    rng = np.random.default_rng(1)
    design, start, responses = orthonormal(7, 3), rng.standard_normal(3), rng.standard_normal(7)
    found = closed_form(estimator, design, responses, start, 0.7)
    np.testing.assert_allclose(found, minimizer(estimator, design, responses, start, 0.7), atol=1e-12)
    strength = {"least squares": 0.0, "L2": 0.7, "L2-SP": 0.7}[estimator]
    reference = start if estimator == "L2-SP" else np.zeros(3)
    gradient = design.T @ (design @ found - responses) + strength * (found - reference)
    np.testing.assert_allclose(gradient, 0, atol=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_simulated_moments_are_those_of_table_7(estimator: Estimator) -> None:
    # 20000 repetitions: a mean of standard deviation s has an error of s / 141, a variance a relative one of 0.01.
    theory, seen = two_weights().moments(estimator, 0.8), simulate(two_weights(), estimator, 0.8)
    np.testing.assert_allclose(seen.mean, theory.mean, atol=5 * 0.5 / 141)
    np.testing.assert_allclose(seen.variance, theory.variance, rtol=0.05)
    assert seen.error == pytest.approx(theory.error, rel=0.05)


def test_the_limit_of_alpha_by_hand() -> None:
    # 2 * 0.5 / (1 - 0.5) = 2, and there the errors are equal: (0.5 + 1 * 4) / 9 = 0.5.
    assert two_weights().largest_useful_alpha() == pytest.approx(2.0)
    assert two_weights().moments("L2-SP", 2.0).error == pytest.approx(0.5)
    assert two_weights().best_alpha() == pytest.approx(0.5)


@pytest.mark.parametrize(("share", "better"), [(0.05, True), (0.5, True), (0.9, True), (1.1, False), (2.0, False)])
def test_l2sp_beats_least_squares_below_the_limit_and_not_above(share: float, better: bool) -> None:
    # At 0.9, alpha = 1.8: (0.5 + 1.8^2) / 2.8^2 = 0.477; at 1.1, 2.2: 0.521; least squares 0.5. Their means over 20000
    # draws of the same noise have an error of 0.7 %.
    alpha = share * two_weights().largest_useful_alpha()
    least = two_weights().moments("least squares", 0.0).error
    assert (two_weights().moments("L2-SP", alpha).error < least) == better
    assert (
        simulate(two_weights(), "L2-SP", alpha).error < simulate(two_weights(), "least squares", 0.0).error
    ) == better


@pytest.mark.parametrize("alpha", [0.01, 1.0, 100.0, 1e6])
def test_a_start_within_the_noise_is_useful_at_every_alpha(alpha: float) -> None:
    # ||eps||^2 = 0.49 <= p sigma^2 = 0.5. The paper's text compares ||eps|| = 0.7 with it, and would refuse this start.
    near = Regression(np.array([3.0, 1.0]), np.array([3.7, 1.0]), 0.5)
    assert near.largest_useful_alpha() == float("inf")
    assert near.moments("L2-SP", alpha).error < near.moments("least squares", 0.0).error


def test_the_best_alpha_is_a_minimum() -> None:
    best = two_weights().best_alpha()
    errors = [two_weights().moments("L2-SP", alpha).error for alpha in (0.99 * best, best, 1.01 * best)]
    assert errors[1] < min(errors[0], errors[2])


def test_l2sp_beats_l2_when_the_start_is_nearer_than_zero_and_only_then() -> None:
    far = Regression(np.array([3.0, 1.0]), np.array([-3.0, 1.0]), 0.5)  # ||eps||^2 = 36 > ||w*||^2 = 10
    for case, better in ((two_weights(), True), (far, False)):
        assert (case.moments("L2-SP", 0.3).error < case.moments("L2", 0.3).error) == better


def test_stopping_early_is_l2sp_with_an_alpha() -> None:
    design, rng = orthonormal(9, 3), np.random.default_rng(2)
    start, responses = rng.standard_normal(3), rng.standard_normal(9)
    w = start.copy()
    for _ in range(5):
        w -= 0.2 * design.T @ (design @ w - responses)
    # 0.8^5 = 0.32768 of the distance is left: alpha = 0.32768 / 0.67232.
    assert early_stopping_alpha(0.2, 5) == pytest.approx(0.487387, abs=1e-6)
    np.testing.assert_allclose(
        closed_form("L2-SP", design, responses, start, early_stopping_alpha(0.2, 5)), w, atol=1e-12
    )


def test_what_cannot_be_analyzed_is_refused() -> None:
    with pytest.raises(ValueError, match="1 rows cannot hold 2 orthonormal columns"):
        simulate(two_weights(), "L2", 1.0, rows=1)
    with pytest.raises(ValueError, match="got 1 and 5"):
        early_stopping_alpha(1, 5)


# Figure 1


def test_the_paths_lead_to_the_minimizers_of_the_penalized_loss() -> None:
    for panel in figure_panels():
        expected = np.linalg.solve(HESSIAN + STRENGTH * np.eye(2), HESSIAN @ MINIMUM + STRENGTH * panel.reference)
        np.testing.assert_allclose(panel.path[0], panel.start)
        np.testing.assert_allclose(panel.path[-1], expected, atol=1e-6)


def test_l2_forgets_the_start_and_l2sp_does_not() -> None:
    scratch, fine_tuned, anchored = figure_panels()
    # (b) ends where (a) does: "all the benefit of the pre-trained solution is lost".
    np.testing.assert_allclose(fine_tuned.path[-1], scratch.path[-1], atol=1e-6)
    # (c) ends nearer to the minimum than either (0.62 against 1.09), and nearer than where it started (1.14).
    away = [float(np.linalg.norm(panel.path[-1] - MINIMUM)) for panel in (scratch, anchored)]
    assert away[1] < 0.6 * away[0]
    assert away[1] < np.linalg.norm(PRETRAINED - MINIMUM)


def test_the_solution_is_the_best_point_of_the_admissible_set() -> None:
    # No point of the disk has a lower unregularized risk than the path's end, and the end lies on its border.
    for panel in figure_panels():
        angles = np.linspace(0, 2 * np.pi, 2000)
        radii = np.linspace(0, panel.radius, 50)[:, None]
        disk = panel.reference + np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=-1).reshape(-1, 2)
        risks = np.einsum("ni,ij,nj->n", disk - MINIMUM, HESSIAN, disk - MINIMUM)
        end = panel.path[-1] - MINIMUM
        assert end @ HESSIAN @ end <= risks.min() + 1e-9
        assert np.linalg.norm(panel.path[-1] - panel.reference) == pytest.approx(panel.radius)


def test_descent_takes_the_gradients_step() -> None:
    # H = 2, minimum 1, reference -1, alpha 3, from 0: gradient 2 (0 - 1) + 3 (0 + 1) = 1, a step of 0.1 leads to -0.1.
    path = descent(np.array([[2.0]]), np.array([1.0]), np.array([0.0]), np.array([-1.0]), 3.0, rate=0.1, steps=1)
    assert path.tolist() == [[0.0], [-0.1]]


def test_the_figure_has_the_papers_symbols(tmp_path: Path) -> None:
    draw_figure1(figure_panels(), tmp_path / "figure.png")
    figure = np.asarray(Image.open(tmp_path / "figure.png").convert("RGB"))
    for third in np.array_split(figure, 3, axis=1):
        assert (third == [255, 0, 0]).all(axis=-1).any()  # the star
        assert (third == [0xCF, 0xE2, 0xF7]).all(axis=-1).any()  # the admissible set
        assert (third == [0, 0, 0]).all(axis=-1).any()  # the path


def test_the_program_writes_table_and_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper-analysis", "--out", str(tmp_path / "paper")]) == 0
    printed = capsys.readouterr().out
    text = (tmp_path / "paper/table7.md").read_text()
    assert printed.startswith(text)
    assert (tmp_path / "paper/figure1.png").stat().st_size > 10_000
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    rows = {row[0]: row for row in cells}
    # Least squares: no bias, p sigma^2 = 8 * 0.16 = 1.28. At the best alpha 0.64: L2-SP's error is 1.28 / 1.64.
    assert rows["least squares"][1] == "0.0000"
    assert rows["least squares"][3] == "1.2800"
    assert float(rows["L2-SP"][5]) == pytest.approx(1.28 / 1.64, abs=1e-4)
    assert [row[-1] for row in cells if row[1] in ("0.9", "1", "1.1")] == ["L2-SP", "equal", "least squares"]
    assert EXAMPLE.best_alpha() == pytest.approx(0.64)
