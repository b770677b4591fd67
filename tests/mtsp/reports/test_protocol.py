"""Settings are chosen on held-out training data, and the chosen ones are tested with every seed."""

import json
from pathlib import Path
from typing import Any

import pytest

from mtsp.config import ConfigError, parse
from mtsp.reports.protocol import STRENGTHS, Protocol, Setting, as_csv, read_csv
from tools.build import AnyExperiment


def experiment(**changes: Any) -> AnyExperiment:
    """Ten steps on two classes, five labels each; a backbone at half of the head's learning rate."""
    dataset = {"name": "image_folder", "root": "images", "per_class": 5}
    values = {
        "name": "small",
        "model": {"name": "classifier", "backbone": "test_efficientnet", "classes": 2},
        "branches": {"backbone": {"weights": "start.safetensors", "lr": 0.01, "alpha": 7.0}, "head": {}},
        "data": {
            "train": {"dataset": dataset, "augment": {"preset": "inception", "crop": [32, 32]}},
            "test": {"dataset": dataset | {"root": "test", "per_class": None}, "size": [32, 32], "limit": 9},
            "old": {"dataset": dataset | {"root": "old", "per_class": None}, "size": [32, 32]},
        },
        "tasks": {"classification": {}},
        "regularizer": {"name": "l2sp", "alpha": 0.1, "beta": 0.25},
        "optimizer": {"name": "sgd", "lr": 0.02},
        "train": {"steps": 10, "stages": [{"steps": 1, "batch_size": {"train": 4}}]},
        "evaluation": {"data": ["test"], "source": {"data": "old"}, "corruptions": {"data": ["test"]}},
    }
    return parse(AnyExperiment, values | changes)


class Runs:
    """Stands for tools.train.train. The likelihood on held-out data is best at rate 3 and the last strength."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.started: list[AnyExperiment] = []
        self.stop_at = stop_at

    def __call__(self, one: AnyExperiment, run_dir: Path, resume: str | None = None) -> dict[str, Any] | None:
        self.started.append(one)
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "experiment.yaml").write_text(json.dumps(one.model_dump(mode="json")))
        if len(self.started) == self.stop_at:
            return None
        for name in ("checkpoints/step-1", "weights.safetensors"):
            (run_dir / name).parent.mkdir(exist_ok=True)
            (run_dir / name).write_text("large")
        nll = 1.0 / one.optimizer.lr + 1.0 / (1 + getattr(one.regularizer, "beta", 0.0))
        results = {name: {"top1": 0.5, "nll": nll} for name in one.evaluation.data}
        (run_dir / "metrics.jsonl").write_text('{"step": 0, "time": 1, "source/top1": 0.75, "test/top1": 0.1}\n')
        (run_dir / "results.json").write_text(json.dumps(results | {"source": {"top1": 0.25}}))
        return results


def protocol(folder: Path, runs: Runs, **settings: Any) -> Protocol:
    return Protocol(experiment(), folder, train=runs, regularizers=("none", "l2"), **settings)


def test_the_rate_is_chosen_first_and_then_the_strength(tmp_path: Path) -> None:
    runs = Runs()
    chosen = protocol(tmp_path, runs).tune()
    # none: three rates. l2: three rates at 1e-3, then the three other strengths at the best rate, 3.
    assert len(runs.started) == 3 + 3 + 3
    assert chosen == {"none": Setting("none", 0.0, 3.0), "l2": Setting("l2", 1e-2, 3.0)}


def test_untuned_regularizers_get_their_middle_strength_and_the_rate_of_the_config(tmp_path: Path) -> None:
    runs = Runs()
    chosen = protocol(tmp_path, runs, untuned=True).tune()
    assert runs.started == []
    # Of 1e-5, 1e-4, 1e-3, 1e-2 the third.
    assert chosen == {"none": Setting("none", 0.0, 1.0), "l2": Setting("l2", 1e-3, 1.0)}


def test_tuning_sees_no_test_data(tmp_path: Path) -> None:
    runs = Runs()
    protocol(tmp_path, runs, holdout=0.4).tune()
    for one in runs.started:
        trained, held_out = (one.data[name].model_dump() for name in ("train", "validation"))
        assert one.evaluation.data == ("validation",)
        assert (one.evaluation.source, one.evaluation.corruptions) == (None, None)
        assert trained["dataset"] == held_out["dataset"]
        assert trained["holdout"] == {"fraction": 0.4, "seed": one.seed, "part": "rest"}
        assert held_out["holdout"] == trained["holdout"] | {"part": "held_out"}
        assert trained["dataset"]["label_seed"] == one.seed
        assert (held_out["size"], held_out["augment"], held_out["limit"]) == ((32, 32), None, None)


def test_videos_are_held_out_by_whole_sequences(tmp_path: Path) -> None:
    compared = Protocol(experiment(), tmp_path, train=Runs(), holdout=0.34)
    entry = {"dataset": {"name": "davis", "sequences": ["a", "b", "c", "d", "e", "f"]}, "limit": None}
    parts = [compared._part(entry, 1000, part)["dataset"]["sequences"] for part in ("held_out", "rest")]
    assert [len(part) for part in parts] == [2, 4]  # a third of six
    assert sorted(parts[0] + parts[1]) == ["a", "b", "c", "d", "e", "f"]
    assert compared._part(entry, 1001, "held_out") != compared._part(entry, 1000, "held_out")


def test_the_chosen_settings_are_tested_with_every_seed_on_all_training_data(tmp_path: Path) -> None:
    runs = Runs()
    compared = protocol(tmp_path, runs)
    chosen = compared.tune()
    assert chosen is not None
    tuned = len(runs.started)
    assert compared.test(list(chosen.values()), range(3))
    tests = runs.started[tuned:]
    assert [(one.seed, one.regularizer.name) for one in tests] == [(s, r) for s in range(3) for r in ("none", "l2")]
    assert all(one.data["train"].holdout is None for one in tests)
    assert all(one.data["train"].dataset.model_dump()["label_seed"] == one.seed for one in tests)
    assert not list(tmp_path.rglob("weights.safetensors")) + list(tmp_path.rglob("step-1"))
    found = read_csv(tmp_path / "runs.csv")
    assert len(found) == len(runs.started)
    assert as_csv(found) == as_csv(compared.runs) == (tmp_path / "runs.csv").read_text()


def test_finished_runs_are_skipped_and_a_signal_stops(tmp_path: Path) -> None:
    assert protocol(tmp_path, Runs(stop_at=4)).tune() is None
    runs = Runs()
    compared = protocol(tmp_path, runs)
    assert compared.tune() is not None
    assert len(runs.started) == 9 - 3
    assert len(compared.runs) == 9


def test_learning_rates_are_scaled_and_strengths_are_the_regularizers_own(tmp_path: Path) -> None:
    compared = Protocol(experiment(), tmp_path, train=Runs())
    l2, spd, none = (compared.configured(Setting(name, 0.5, 3.0), 0) for name in ("l2", "spd", "none"))
    assert l2.learning_rates() == pytest.approx({"backbone": 0.03, "head": 0.06})
    assert l2.strengths() == ({"backbone": 0.5, "head": 0.5}, {"backbone": 0.5, "head": 0.5})
    assert spd.strengths() == ({"backbone": 0.5, "head": 0.5}, {"backbone": 0.25, "head": 0.25})
    assert none.regularizer.name == "none"
    # Half of 10 steps as time constant of coupled SGD: (1 - 0.9) / (lr * alpha) = 5, so that alpha = 0.02 / lr.
    alpha, beta = compared.configured(Setting("l2sp", 0.5, 3.0), 0).strengths()
    assert alpha["backbone"] == pytest.approx(0.02 / 0.03)
    assert beta == {"backbone": 0.25, "head": 0.25}


def test_the_source_task_is_measured_before_fine_tuning(tmp_path: Path) -> None:
    runs = Runs()
    compared = protocol(tmp_path, runs)
    assert compared.measure_start()
    assert runs.started[0].train.steps == 1
    assert runs.started[0].evaluation.at_start
    assert [(run.phase, run.values) for run in compared.runs] == [("start", {"source/top1": 0.75})]


def test_every_strength_is_run_at_the_rate_chosen_without_regularization(tmp_path: Path) -> None:
    found = protocol(tmp_path, Runs()).strengths_of({"l2": Setting("l2", 1e-2, 0.3)})
    assert found == [Setting("l2", strength, 0.3) for strength in STRENGTHS["l2"]]
    both = {"none": Setting("none", 0.0, 3.0), "l2": Setting("l2", 1e-2, 0.3)}
    found = protocol(tmp_path, Runs()).strengths_of(both)
    assert found == [Setting("none", 0.0, 3.0), *(Setting("l2", strength, 3.0) for strength in STRENGTHS["l2"])]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"regularizer": {"name": "none"}, "branches": {"backbone": {}, "head": {}}}, "needs l2sp, whose beta"),
        ({"evaluation": {}}, "evaluation.data is empty"),
    ],
)
def test_what_cannot_be_compared_is_said(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        Protocol(experiment(**changes), tmp_path, train=Runs())


def test_a_regularizer_without_strengths_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no strengths for the regularizer 'l1'; there are none, l2, l2sp, spd"):
        Protocol(experiment(), tmp_path, train=Runs(), regularizers=("l1",))


def test_another_csv_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text("regularizer,tau\nl2,3\n")
    with pytest.raises(ValueError, match=r"runs.csv is not a runs.csv of tools/sweep.py --tune: 'scenario'"):
        read_csv(tmp_path / "runs.csv")
