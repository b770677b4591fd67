import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from mtsp.reports.runs import RunLog, comparison, comparison_markdown, curves, grouped, markdown_table, table
from tools.report import main

J = "davis/J_mean"


def run(root: Path, name: str, seed: int, scores: dict[int, float], settings: str = "") -> Path:
    """Write a run folder with a loss of 1 at step 1 and a J at each step given."""
    folder = root / f"{name}-{seed}"
    folder.mkdir(parents=True)
    (folder / "experiment.yaml").write_text(f"name: {name}\nseed: {seed}\n{settings}")
    rows = [{"step": 1, "time": 0.0, "train/loss": 1.0}, *({"step": s, "time": 0.0, J: v} for s, v in scores.items())]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_a_table_has_the_mean_over_seeds_of_the_last_values(tmp_path: Path) -> None:
    # The last values 0.5, 0.6, 0.7: mean 0.6, sample deviation sqrt((0.01 + 0 + 0.01) / 2) = 0.1, not 0.082 (n).
    runs = [run(tmp_path, "l2sp", seed, {10: 0.1, 20: value}) for seed, value in enumerate((0.5, 0.6, 0.7))]
    single = run(tmp_path, "l2", 0, {10: 0.9, 20: 0.4})
    header, _, *rows = cells(table([RunLog.read(path) for path in [single, *runs]]))
    assert header == ["run", "seeds", J]
    assert rows == [["l2", "1", "0.400"], ["l2sp", "3", "0.600 ± 0.100"]]


def test_a_seed_without_the_metric_is_not_counted_in_silence(tmp_path: Path) -> None:
    paths = [run(tmp_path, "l2", seed, scores) for seed, scores in enumerate(({5: 0.5}, {5: 0.7}, {}))]
    assert cells(table([RunLog.read(path) for path in paths]))[2] == ["l2", "3", "0.600 ± 0.141 (2 of 3)"]


def test_a_published_number_is_shown_beside_the_measured_one(tmp_path: Path) -> None:
    runs = [RunLog.read(run(tmp_path, name, 0, {5: 0.5})) for name in ("l2", "l2sp")]
    header, _, *rows = cells(table(runs, [J, "train/loss"], paper={"l2sp": {J: 0.68}}))
    assert header == ["run", "seeds", J, "paper", "train/loss"]
    assert [row[3] for row in rows] == ["-", "0.68"]
    with pytest.raises(ValueError, match="without a run or metric in the table: other: epe"):
        table(runs, paper={"other": {"epe": 7.1}})


def test_the_later_line_of_a_step_counts(tmp_path: Path) -> None:
    folder = run(tmp_path, "l2", 0, {10: 0.1})
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(
            json.dumps({"step": 10, "time": 1.0, J: 0.3}) + "\n" + '{"step": 20, "da'
        )  # and a run still going on
    assert RunLog.read(folder).curve(J) == {10: 0.3}


def test_the_same_seed_twice_is_not_two_seeds(tmp_path: Path) -> None:
    runs = [RunLog.read(run(tmp_path / part, "l2", 0, {5: 0.5})) for part in "ab"]
    with pytest.raises(ValueError, match="both 'l2' with seed 0"):
        grouped(runs)


def test_runs_of_one_name_may_differ_in_the_seed_and_in_numbers_of_paths_only(tmp_path: Path) -> None:
    def runs(*settings: str) -> list[RunLog]:
        root = tmp_path / str(hash(settings))
        return [RunLog.read(run(root, "l2", seed, {5: 0.5}, text)) for seed, text in enumerate(settings)]

    weights = [f"branches: {{flow: {{weights: runs/source-{seed}/model.safetensors}}}}" for seed in (1, 2)]
    assert len(grouped(runs(*weights))["l2"]) == 2
    with pytest.raises(ValueError, match=re.escape("differ in branches.flow.alpha (0.1, 1.0)")):
        grouped(runs("branches: {flow: {alpha: 0.1}}", "branches: {flow: {alpha: 1.0}}"))
    with pytest.raises(ValueError, match=re.escape("differ in clip (None, 5)")):
        grouped(runs("", "clip: 5"))


def test_curves_are_drawn_for_runs_of_unequal_length(tmp_path: Path) -> None:
    paths = [run(tmp_path, "l2", 0, {10: 0.1, 20: 0.2}), run(tmp_path, "l2", 1, {10: 0.1}), run(tmp_path, "sp", 0, {})]
    curves([RunLog.read(path) for path in paths], tmp_path / "curves.png")
    figure = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB")).reshape(-1, 3)
    # matplotlib's first two colors: both groups are drawn, and named in the legend.
    assert (figure == [31, 119, 180]).all(axis=1).any()
    assert (figure == [255, 127, 14]).all(axis=1).any()


def test_small_and_large_numbers_keep_their_digits(tmp_path: Path) -> None:
    paths = [run(tmp_path, name, 0, {5: value}) for name, value in (("a", 0.0004), ("b", 123.456), ("c", 0.0))]
    assert [row[2] for row in cells(table([RunLog.read(path) for path in paths]))[2:]] == ["0.00040", "123.5", "0.000"]


def test_a_comparison_marks_the_best_of_each_column_in_the_right_direction() -> None:
    rows = {"start": {"J_mean": 0.31, "epe": 9.1}, "L2": {"J_mean": 0.51, "epe": 4.2}, "L2-SP": {"J_mean": 0.55}}
    columns = {"J_mean": "J", "epe": "EPE"}
    assert cells(comparison_markdown(rows, columns)) == [
        ["", "J ↑", "EPE ↓"],
        ["-----", "--------:", "--------:"],
        ["start", "0.310", "9.100"],
        ["L2", "0.510", "**4.200**"],
        ["L2-SP", "**0.550**", "-"],
    ]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(comparison(rows, columns, "after 300 steps"))
    printed = console.export_text()
    assert "after 300 steps" in printed
    assert re.search(r"L2-SP\W+0\.550\W+-", printed)


def test_a_single_value_or_nan_is_never_marked_as_best() -> None:
    assert "**" not in comparison_markdown({"a": {"epe": 1.0}, "b": {"epe": float("nan")}}, {"epe": "EPE"})


def test_a_bar_in_a_cell_is_escaped() -> None:
    assert markdown_table([["a|b", "1"]], ["name", "n"]).splitlines()[2] == r"| a\|b |   1 |"


def test_the_program_prints_and_writes_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out, paper = run(tmp_path, "l2sp", 0, {5: 0.5}), tmp_path / "table.md", tmp_path / "paper.yaml"
    paper.write_text(f"l2sp: {{{J}: 0.68}}")
    assert main(["table", str(folder), "--out", str(out), "--paper", str(paper)]) == 0
    assert capsys.readouterr().out == out.read_text()
    assert cells(out.read_text())[2] == ["l2sp", "1", "0.500", "0.68"]


def test_the_program_draws_the_metrics_that_are_asked_for(tmp_path: Path) -> None:
    folder, out = run(tmp_path, "l2sp", 0, {5: 0.5}), tmp_path / "c.png"
    assert main(["curves", str(folder), "--metrics", "davis/*", "--out", str(out)]) == 0
    one = Image.open(out).width
    assert main(["curves", str(folder), "--out", str(out)]) == 0
    assert Image.open(out).width == pytest.approx(2 * one, abs=1)  # the loss too


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table", "{run}", "--metrics", "davis/J"], "no metric davis/J; there are: train/loss, davis/J_mean"),
        (["curves", "{run}", "--metrics", "x*"], "no metric x*; there are"),
        (["table", "{run}/nothing"], "name a run folder that tools/train.py wrote"),
        (["curves", "{run}", "--out", "{run}/no/such.png"], "No such file or directory"),
        (["table", "{run}", "--paper", "{run}/experiment.yaml"], "experiment.yaml: expected lines like `run name:"),
    ],
)
def test_a_mistake_is_answered_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    folder = str(run(tmp_path, "l2", 0, {5: 0.5}))
    assert main([argument.replace("{run}", folder) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("text", ["- a list", "name: x", "name: [", "name: x\nname: y\nseed: 0"])
def test_an_experiment_that_no_run_wrote_is_named(tmp_path: Path, text: str) -> None:
    folder = run(tmp_path, "l2", 0, {})
    (folder / "experiment.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"experiment\.yaml: "):
        RunLog.read(folder)
