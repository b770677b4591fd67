"""The rows of Tables 3 and 6 that are DSTL's: there is a config for each, with its strengths and its data."""

import re
from pathlib import Path

import pytest

from data import LabeledConfig
from data.catalog.datasets import DATASETS
from models.classifier import ClassifierConfig
from mtsp.config import CONFIGS
from mtsp.regularizers import time_constant
from mtsp.reports.paper import paper_rows
from tools.build import read_experiment

ROWS = sorted((CONFIGS / "paper").glob("dstl_*.yaml"))
EXPECTED = {row.config: row for row in paper_rows() if row.system.startswith("DSTL")}


def test_every_row_has_its_config() -> None:
    assert {path.stem for path in ROWS} == EXPECTED.keys()


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_a_row_has_its_strengths_and_the_papers_number(path: Path) -> None:
    experiment, text = read_experiment(path), path.read_text()
    row = EXPECTED[path.stem]
    alpha, beta, (accuracy,) = row.alpha, row.beta, row.paper.values()
    assert experiment.regularizer.name == ("l2" if path.stem.endswith("_l2") else "l2sp")
    assert experiment.strengths() == (
        dict.fromkeys(experiment.branches, alpha),
        dict.fromkeys(experiment.branches, beta),
    )
    assert f"Paper: accuracy {accuracy:.2f}" in text
    comment = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    said = re.search(r"backbone (\S+) \(alpha\), head (\S+) \(beta\)", comment)
    assert said is not None
    steps = [time_constant(strength, 0.01, coupled=True, momentum=0.9) for strength in (alpha, beta)]
    assert [float(number) for number in said.groups()] == pytest.approx(steps)


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_a_row_trains_thirty_epochs_on_its_own_target(path: Path) -> None:
    experiment = read_experiment(path)
    (train, test) = (entry.dataset for entry in experiment.data.values())
    assert isinstance(train, LabeledConfig)
    assert isinstance(test, LabeledConfig)
    published = DATASETS[train.name]
    assert isinstance(experiment.model, ClassifierConfig)
    assert experiment.model.classes == published.classes
    splits = published.splits
    learned = [split for split in splits if split != "test"] if train.model_dump()["split"] == "trainval" else ["train"]
    images = sum(splits[split] or 0 for split in learned)
    assert test.model_dump()["split"] == "test"
    assert experiment.train.steps == pytest.approx(30 * images / 64, abs=1)
    assert experiment.schedule.every == pytest.approx(10 * images / 64, abs=1)
