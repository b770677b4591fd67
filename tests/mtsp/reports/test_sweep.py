"""A sweep on synthetic data: the rows it compares, what it skips and takes up again, and the table."""

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtsp.config import ConfigError, parse, parse_yaml
from mtsp.reports.sweep import rows, sweep, write_tables
from tools.build import AnyExperiment
from tools.train import train as train_for_real


def experiment(values: dict[str, Any], weights: str = "start.safetensors", **changes: Any) -> AnyExperiment:
    """10 steps of SGD with momentum 0.9, lr 0.01, and 0.02 in the flow branch; both branches pretrained."""
    branches = {"segmentation": {"weights": weights}, "flow": {"weights": weights, "lr": 0.02}}
    regularizer = {"name": "l2sp", "alpha": 7.0, "beta": 0.001}
    train = values["train"] | {"steps": 10}
    return parse(AnyExperiment, values | {"branches": branches, "regularizer": regularizer, "train": train} | changes)


def test_the_rows_are_nothing_l2_and_five_time_constants_from_weak_to_strong(values: dict[str, Any]) -> None:
    found = rows(experiment(values))
    assert [row.key for row in found] == ["none", "l2", "tau100", "tau30", "tau10", "tau3", "tau1"]
    assert [row.tau for row in found] == [None, None, 100, 30, 10, 3, 1]
    assert [row.experiment.regularizer.name for row in found] == ["none", "l2", *["l2sp"] * 5]


def test_every_branch_has_the_rows_time_constant_by_its_own_learning_rate(values: dict[str, Any]) -> None:
    # Coupled SGD: tau = (1 - momentum) / (lr alpha), so that alpha = 0.1 / (0.01 * 10) = 1, and 0.5 where lr is 0.02.
    row = next(row for row in rows(experiment(values)) if row.tau == 10)
    alpha, beta = row.experiment.strengths()
    assert alpha == pytest.approx({"segmentation": 1.0, "flow": 0.5})
    assert beta == {"segmentation": 0.001, "flow": 0.001}


def test_a_decoupled_time_constant_has_no_momentum(values: dict[str, Any]) -> None:
    # Adam, auto is decoupled: alpha = 1 / (lr tau) = 1 / (0.01 * 10) = 10.
    adam = rows(experiment(values, optimizer={"name": "adam", "lr": 0.01}), taus=[10])
    assert adam[-1].experiment.strengths()[0]["segmentation"] == pytest.approx(10.0)
    decoupled = {"name": "l2sp", "alpha": 1.0, "beta": 0.0, "mode": "decoupled"}
    assert rows(experiment(values, regularizer=decoupled), taus=[10])[-1].experiment.strengths()[0] == pytest.approx(
        {"segmentation": 10.0, "flow": 5.0}
    )


def test_a_proximal_pull_steps_by_lr_over_one_minus_momentum_under_sgd_alone(values: dict[str, Any]) -> None:
    # alpha = (1 - 0.9) / (0.01 * 10) = 1 under SGD, 1 / (0.01 * 10) = 10 under RMSProp, whose momentum does not count.
    proximal = {"name": "l2sp", "alpha": 1.0, "beta": 0.0, "mode": "proximal"}
    for optimizer, alpha in (("sgd", 1.0), ("rmsprop", 10.0)):
        one = experiment(values, regularizer=proximal, optimizer={"name": optimizer, "lr": 0.01})
        found = rows(one, taus=[10])[-1].experiment.strengths()[0]
        assert found == pytest.approx({"segmentation": alpha, "flow": alpha / 2})


def test_the_pull_alone_leaves_1_over_e_after_the_time_constant(values: dict[str, Any]) -> None:
    # Momentum by hand: v = 0.9 v + alpha d, d = d - lr v, 1000 steps of the alpha that the row has for 1000 steps.
    alpha = rows(experiment(values), taus=[1000])[-1].experiment.strengths()[0]["segmentation"]
    distance, velocity = 1.0, 0.0
    for _ in range(1000):
        velocity = 0.9 * velocity + alpha * distance
        distance -= 0.01 * velocity
    assert distance == pytest.approx(math.exp(-1), rel=0.01)


def test_a_frozen_or_new_branch_gets_no_alpha(values: dict[str, Any]) -> None:
    branches = {"segmentation": {"weights": "a.safetensors"}, "flow": {"alpha": 3.0}}
    found = rows(experiment(values, branches=branches), taus=[10])
    assert found[-1].experiment.branches["flow"].alpha is None
    assert found[0].experiment.branches["flow"].alpha is None  # none refuses an alpha


def test_the_l2_row_has_beta_unless_it_is_said_otherwise(values: dict[str, Any]) -> None:
    assert rows(experiment(values))[1].experiment.strengths()[0] == {"segmentation": 0.001, "flow": 0.001}
    own = {"name": "l2", "alpha": 0.3, "beta": 0.001}
    assert rows(experiment(values, regularizer=own))[1].experiment.strengths()[0]["flow"] == 0.3


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"regularizer": {"name": "none"}}, {}, "none has no beta"),
        (
            {"branches": {"segmentation": {}, "flow": {}}, "regularizer": {"name": "l2", "alpha": 1.0, "beta": 1.0}},
            {},
            "no trained branch has pretrained `weights`",
        ),
        (
            {
                "optimizer": {"name": "adam", "lr": 0.01},
                "regularizer": {"name": "l2sp", "alpha": 1.0, "beta": 0.0, "mode": "coupled"},
            },
            {},
            "through Adam has no time constant",
        ),
        (
            {
                "optimizer": {"name": "rmsprop", "lr": 0.01},
                "regularizer": {"name": "l2sp", "alpha": 1.0, "beta": 0.0, "mode": "coupled"},
            },
            {},
            "through RMSprop has no time constant",
        ),
        ({"regularizer": {"name": "l1sp", "alpha": 1.0, "beta": 0.0}}, {}, "l1sp has no time constants to sweep"),
        ({"regularizer": {"name": "spd", "alpha": 1.0, "beta": 0.0}}, {}, "spd has no time constants to sweep"),
        ({}, {"taus": [10, 0]}, "must be at least 1 step, got 0"),
        ({}, {"taus": [10, 10]}, "two time constants are equal: 10, 10"),
    ],
)
def test_what_has_no_strengths_to_sweep_is_refused(
    values: dict[str, Any], changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        rows(experiment(values, **changes), **options)


class Runs:
    """Stands for tools.train.train: leaves what a run does, and measures 0.1 for each row and 0.01 for each seed."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.started: list[str] = []
        self.stop_at = stop_at

    def __call__(self, one: AnyExperiment, run_dir: Path, resume: str | None = None) -> dict[str, Any] | None:
        assert resume == "auto"
        self.started.append(run_dir.name)
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "experiment.yaml").write_text(json.dumps(one.model_dump(mode="json")))
        if len(self.started) == self.stop_at:
            return None
        score = 0.1 * len({name.split("-")[0] for name in self.started}) + 0.01 * one.seed
        results = {"davis_val": {"J_mean": score, "frames": 3}}
        (run_dir / "results.json").write_text(json.dumps(results))
        return results


def test_a_sweep_runs_all_rows_of_a_seed_first_and_gives_means_and_deviations(
    values: dict[str, Any], tmp_path: Path
) -> None:
    runs = Runs()
    text = sweep(experiment(values, seed=3), tmp_path, train=runs, seeds=2, taus=[10])
    assert text == (tmp_path / "table.md").read_text()
    assert runs.started == ["none-seed3", "l2-seed3", "tau10-seed3", "none-seed4", "l2-seed4", "tau10-seed4"]
    assert text is not None
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert lines[0] == ["regularizer", "tau (steps)", "alpha", "seeds", "davis_val/J_mean"]
    # none: 0.13 with seed 3, 0.34 with seed 4 when three rows are known: mean 0.235, deviation 0.21 / sqrt 2 = 0.148.
    assert lines[2] == ["none", "-", "-", "2 of 2", "0.235 ± 0.148"]
    assert lines[4][:4] == ["L2-SP", "10", "segmentation 1, flow 0.5", "2 of 2"]
    written = list(csv.DictReader((tmp_path / "runs.csv").open()))
    assert len(written) == 6
    assert written[0] == {
        "regularizer": "none", "tau": "-", "alpha": "-", "seed": "3",
        "davis_val/J_mean": "0.13", "davis_val/frames": "3",
    }  # fmt: skip


def test_a_stopped_sweep_goes_on_with_what_is_not_finished(values: dict[str, Any], tmp_path: Path) -> None:
    assert sweep(experiment(values), tmp_path, train=Runs(stop_at=2), taus=[10]) is None
    assert "1 of 1" in (tmp_path / "table.md").read_text()  # what is finished stands in the table already
    again = Runs()
    assert sweep(experiment(values), tmp_path, train=again, taus=[10]) is not None
    assert again.started == ["l2-seed3", "tau10-seed3"]
    nothing = Runs()
    assert sweep(experiment(values), tmp_path, train=nothing, taus=[10]) is not None
    assert nothing.started == []


def test_finished_runs_of_other_settings_are_not_put_into_the_table(values: dict[str, Any], tmp_path: Path) -> None:
    sweep(experiment(values), tmp_path, train=Runs(), taus=[10])
    other = experiment(values, regularizer={"name": "l2sp", "alpha": 7.0, "beta": 0.5})
    with pytest.raises(ConfigError, match=r"l2-seed3 is finished, but with other settings \(regularizer\.alpha"):
        sweep(other, tmp_path, train=Runs(), taus=[10])
    with pytest.raises(ConfigError, match=r"none-seed3 is finished, but with other settings \(train\.steps"):
        sweep(experiment(values, train=values["train"] | {"steps": 20}), tmp_path, train=Runs(), taus=[10])


def test_a_metric_that_is_not_there_is_said_with_those_that_are(values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no metric x; there are: davis_val/J_mean, davis_val/frames"):
        sweep(experiment(values), tmp_path, train=Runs(), taus=[10], metrics=["x"])
    assert "davis_val/frames" in write_tables(tmp_path, rows(experiment(values), [10]), [3], ["*/frames"])


def test_real_runs_are_swept_resumed_and_skipped(
    values: dict[str, Any], train: Callable[..., Any], outcome: Callable[[Path], Any], tmp_path: Path
) -> None:
    values["train"] |= {"steps": 2, "save_every": 1, "stages": [{"steps": 1, "batch_size": {"chairs": 2}}]}
    values["evaluation"] = {"data": ["chairs_val"]}
    train(values, tmp_path / "source")
    weights = str(tmp_path / "source/weights.safetensors")
    values["branches"] = {"segmentation": {"weights": weights}, "flow": {"weights": weights}}
    values["regularizer"] = {"name": "l2sp", "alpha": 1.0, "beta": 0.001}
    folder = tmp_path / "sweep"
    text = sweep(parse(AnyExperiment, values), folder, train=train_for_real, taus=[2])
    assert text is not None
    assert [line.split()[1] for line in text.splitlines()[2:]] == ["none", "L2", "L2-SP"]
    assert "chairs_val/epe" in text
    # As if killed after step 1: the sweep takes up the checkpoint and comes to the same weights and the same table.
    before = outcome(folder / "tau2-seed3")
    for name in ("results.json", "weights.safetensors", "checkpoints/step-00000002"):
        path = folder / "tau2-seed3" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    stamp = (folder / "l2-seed3/results.json").stat().st_mtime_ns
    assert sweep(parse(AnyExperiment, values), folder, train=train_for_real, taus=[2]) == text
    assert outcome(folder / "tau2-seed3")[0] == before[0]
    assert (folder / "l2-seed3/results.json").stat().st_mtime_ns == stamp
    assert parse_yaml((folder / "none-seed3/experiment.yaml").read_text())["regularizer"] == {"name": "none"}
