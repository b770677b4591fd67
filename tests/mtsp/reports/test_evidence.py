"""The tables of a comparison: paired differences against scipy, Holm's correction by hand, and who wins."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mtsp.reports.evidence import (
    _without_seeds,
    comparison_table,
    differences,
    holm,
    paired,
    results_table,
    verdicts,
    winner,
)
from mtsp.reports.protocol import Run, Setting, as_csv, read_csv
from tools.report import main

L2SP, L2, NONE = Setting("l2sp", 0.3, 1.0), Setting("l2", 1e-3, 3.0), Setting("none", 0.0, 1.0)


def runs(setting: Setting, target: list[float], source: list[float], scenario: str = "birds") -> list[Run]:
    return [
        Run(scenario, "test", setting, seed, {"birds_test/top1": t, "birds_test/ece": 0.125, "source/top1": s})
        for seed, (t, s) in enumerate(zip(target, source, strict=True))
    ]


BIRDS = [
    Run("birds", "start", NONE, 0, {"source/top1": 0.9}),
    Run("birds", "tune", L2, 1000, {"validation/top1": 0.99, "validation/nll": 0.1}),
    *runs(L2SP, [0.6, 0.5, 0.7], [0.8, 0.81, 0.79]),
    *runs(L2, [0.5, 0.5, 0.6], [0.2, 0.22, 0.18]),
    *runs(NONE, [0.7, 0.4, 0.6], [0.1, 0.1, 0.1]),
]


def test_a_paired_difference_is_scipys() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.2, 1, 10).tolist(), rng.normal(0, 1, 10).tolist()
    reference = stats.ttest_rel(a, b)
    interval = reference.confidence_interval(0.95)
    assert paired(a, b) == pytest.approx((np.mean(a) - np.mean(b), interval.low, interval.high, reference.pvalue))


def test_equal_differences_are_certain_and_no_difference_is_nothing() -> None:
    assert paired([0.5, 0.75], [0.25, 0.5]) == (0.25, 0.25, 0.25, 0.0)
    assert paired([0.5, 0.75], [0.5, 0.75]) == (0.0, 0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="at least two seeds, got 1"):
        paired([1.0], [2.0])


def test_holm_by_hand() -> None:
    # Sorted: 0.01 * 4, 0.02 * 3, 0.03 * 2 (not less than the one before), 0.9 * 1.
    assert holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_each_pair_is_compared_on_target_and_source() -> None:
    found = {(one.first, one.second, one.metric): one for one in differences(BIRDS)}
    assert found.keys() == {
        (*pair, metric)
        for pair in (("l2sp", "l2"), ("l2sp", "none"), ("l2", "none"))
        for metric in ("birds_test/top1", "source/top1")
    }
    target, source = (found["l2sp", "l2", metric] for metric in ("birds_test/top1", "source/top1"))
    assert target.mean == pytest.approx((0.1 + 0.0 + 0.1) / 3)
    assert source.mean == pytest.approx(0.6)
    assert source.seeds == 3


def test_a_lower_error_is_a_positive_difference() -> None:
    flow = [
        Run("flow", "test", setting, seed, {"chairs/epe": epe + seed, "source/epe": 1.0})
        for setting, epe in ((L2SP, 2.0), (L2, 3.0))
        for seed in range(3)
    ]
    (target, source) = differences(flow)
    assert (target.metric, target.mean) == ("chairs/epe", 1.0)
    assert (source.metric, source.mean, source.p) == ("source/epe", 0.0, 1.0)


def test_a_line_has_target_and_source_each_with_its_corrected_p_value_and_winner() -> None:
    table = comparison_table(differences(BIRDS)).splitlines()
    cells = [cell.strip() for cell in table[2].strip("|").split("|")]
    # Six p values: that of the source, sharply different, times 6 is 0.008; the target's 0.18 remains undecided.
    assert cells[:2] == ["birds", "L2-SP over L2"]
    assert (cells[2], cells[4], cells[7]) == ("+0.067 [-0.077, +0.210]", "undecided", "L2-SP")
    assert cells[5] == "+0.600 [+0.575, +0.625]"


def test_only_the_corrected_p_value_makes_a_winner() -> None:
    one = differences(BIRDS)[0]
    assert winner(one, 0.049) == "L2-SP"
    assert winner(one._replace(mean=-0.1), 0.049) == "L2"
    assert winner(one, 0.05) == "undecided"


def test_the_claim_is_decided_in_words() -> None:
    target, source = verdicts(differences(BIRDS)).splitlines()
    assert target.startswith("- L2-SP over L2 on the target: confirmed in 0, refuted in 0, undecided in 1 of 1")
    assert source.startswith("- L2-SP over L2 on the source: confirmed in 1, refuted in 0, undecided in 0 of 1")
    assert "in favor of L2-SP in 1 and of L2 in 0" in target


def test_the_tables_name_settings_seeds_and_the_start() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in results_table(BIRDS).splitlines()]
    assert [row[1] for row in rows[2:]] == ["nothing", "L2", "L2-SP"]
    assert rows[4][:5] == ["birds: top1", "L2-SP", "0.3 runs", "1", "3"]
    assert rows[4][5:] == ["0.600 ± 0.100", "0.800 ± 0.010", "0.125 ± 0.000", "-", "0.900"]
    table = comparison_table(differences(BIRDS))
    assert "L2-SP over nothing" in table
    assert len(table.splitlines()) == 2 + 3


def test_the_program_writes_tables_and_the_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    curve = [run._replace(phase="curve") for run in BIRDS if run.phase == "test"]
    curve += [
        run._replace(setting=run.setting._replace(strength=3.0)) for run in curve if run.setting.regularizer != "none"
    ]
    (tmp_path / "runs.csv").write_text(as_csv([*BIRDS, *curve]))
    assert main(["evidence", str(tmp_path / "runs.csv"), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/evidence.md").read_text() in capsys.readouterr().out
    assert (tmp_path / "out/evidence.png").read_bytes()[:4] == b"\x89PNG"


def test_a_control_is_compared_by_itself() -> None:
    control = [run._replace(phase="control") for run in runs(L2, [0.6, 0.6, 0.7], [0.2, 0.2, 0.2])]
    control += [run._replace(phase="control") for run in BIRDS if run.phase == "test" and run.setting == L2SP]
    assert differences([*BIRDS, *control]) == differences(BIRDS)
    target = differences([*BIRDS, *control], phase="control")[0]
    assert (target.first, target.second) == ("l2sp", "l2")
    assert target.mean == pytest.approx(-0.1 / 3)


def test_what_a_seed_does_to_all_settings_alike_is_no_spread() -> None:
    # Seed 1 is 0.2 better under both settings: without it, 0.4 and 0.5 remain twice.
    both = [*runs(L2, [0.3, 0.5], [0.5, 0.5]), *runs(L2SP, [0.4, 0.6], [0.5, 0.5])]
    found = _without_seeds(both, "birds_test/top1")
    assert found == pytest.approx({(L2, 0): 0.4, (L2, 1): 0.4, (L2SP, 0): 0.5, (L2SP, 1): 0.5})


def test_a_run_is_not_counted_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text(as_csv(BIRDS))
    assert main(["evidence", str(tmp_path / "a.csv"), str(tmp_path / "b.csv"), "--out", str(tmp_path)]) == 1
    assert "have the same run: birds, start, seed 0" in capsys.readouterr().err


def test_the_tables_in_the_documentation_are_those_of_the_runs_beside_it() -> None:
    docs = Path(__file__).resolve().parents[3] / "docs"
    recorded = [run for file in sorted((docs / "evidence").glob("*.csv")) for run in read_csv(file)]
    text = (docs / "results.md").read_text(encoding="utf-8")
    found = differences(recorded)
    control = comparison_table(differences(recorded, phase="control"))
    for part in (results_table(recorded), comparison_table(found), verdicts(found), control):
        assert part in text
