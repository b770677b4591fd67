"""The page of the paper's tables: all rows, ours beside the paper's, and what is missing."""

import json
from pathlib import Path

import pytest

from mtsp.reports.paper import as_html, as_markdown, missing_inputs, page, paper_rows
from tools.build import read_experiment
from tools.report import main

ROWS = paper_rows()


def test_the_rows_are_those_of_tables_three_to_six() -> None:
    assert len(ROWS) == 42
    assert {table: sum(table in row.tables for row in ROWS) for table in (3, 4, 5, 6)} == {3: 28, 4: 6, 5: 16, 6: 6}
    assert sum(row.regularizer == "L2" for row in ROWS) == 14


def test_the_papers_claim_holds_for_the_best_strengths_in_its_own_numbers() -> None:
    # "Not a single comparison is in favor of L2": of Table 3, whose rows are pairs. EPE is better when lower.
    best = {
        (row.system, row.target, row.regularizer): next(iter(row.paper.values())) for row in ROWS if 3 in row.tables
    }
    targets = {key[:2] for key in best}
    assert len(targets) == 14
    for system, target in targets:
        l2, l2sp = (best[system, target, name] for name in ("L2", "L2-SP"))
        assert (l2sp < l2) if "epe" in _metric(system, target) else (l2sp > l2)


def _metric(system: str, target: str) -> str:
    return next(next(iter(row.paper)) for row in ROWS if (row.system, row.target) == (system, target))


def test_a_row_that_was_run_has_mean_deviation_and_difference_in_the_papers_unit(tmp_path: Path) -> None:
    row = next(row for row in ROWS if row.config == "dstl_cub200_l2sp")
    flow = next(row for row in ROWS if row.config == "segflow_monkaa_clean_l2")
    nothing = {"branches": {}, "data": {}}
    experiments = {row.config: nothing, flow.config: nothing}
    runs = {row.config: [{"cub_test/top1": 0.88}, {"cub_test/top1": 0.90}], flow.config: [{"monkaa_val/epe": 8.0}]}
    accuracy, epe = page([row, flow], experiments, runs)
    assert accuracy[5:8] == ["89.19", "89.00 ± 1.41", "-0.19"]
    assert epe[5:8] == ["7.94", "8.00", "+0.06"]
    assert (accuracy[9], epe[9]) == ("run, 2 seeds", "run, 1 seeds")


def test_a_row_that_was_not_run_says_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "there.pth").touch()
    experiment = {
        "branches": {
            "a": {"weights": str(tmp_path / "there.pth")},
            "b": {"weights": "gone.pth"},
            "c": {"weights": None},
        },
        "data": {"x": {"dataset": {"root": "gone"}}, "y": {"dataset": {"root": "gone"}}},
    }
    assert missing_inputs(experiment) == ["gone.pth", "gone"]
    assert page(ROWS[:1], {ROWS[0].config: experiment}, {})[0][6:] == [
        "-", "-", f"paper/{ROWS[0].config}.yaml", "not run: needs gone.pth, gone",
    ]  # fmt: skip


def test_a_config_downloads_its_weights_itself() -> None:
    experiment = read_experiment("paper/pascal_context_encnet50_l2.yaml").model_dump(mode="json")
    assert not any("imagenet" in path for path in missing_inputs(experiment))


def test_the_page_is_markdown_and_html_with_all_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper", "--out", str(tmp_path)]) == 0
    text, page_html = (tmp_path / "paper.md").read_text(), (tmp_path / "paper.html").read_text()
    assert text in capsys.readouterr().out
    for row in ROWS:
        assert f"paper/{row.config}.yaml" in text
        assert f"<td>paper/{row.config}.yaml</td>" in page_html
    assert "not run: needs inputs/weights/resnet101_caffe.pth" in text


def test_smaller_comparisons_stand_below_and_are_escaped() -> None:
    lines = [["<b>"] * 10]
    assert as_markdown(lines, "| x |").endswith("## The same comparisons at the size of this machine\n| x |\n")
    assert "<td>&lt;b&gt;</td>" in as_html(lines, "a < b")
    assert "<pre>a &lt; b</pre>" in as_html(lines, "a < b")


def test_a_run_of_another_config_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = read_experiment("cub_small.yaml")
    (tmp_path / "experiment.yaml").write_text(json.dumps(experiment.model_dump(mode="json")))
    assert main(["paper", str(tmp_path), "--out", str(tmp_path)]) == 1
    assert "is a run of cub_small, which is not a config of configs/paper" in capsys.readouterr().err
