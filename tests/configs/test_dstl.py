"""The rows of Tables 3 and 6 that are DSTL's: there is a config for each, with its strengths and its data."""

import re
from pathlib import Path

import pytest

from data import LabeledConfig
from data.catalog.datasets import DATASETS
from models.classifier import ClassifierConfig
from mtsp.config import CONFIGS
from mtsp.regularizers import time_constant
from tools.build import read_experiment

ROWS = sorted((CONFIGS / "paper").glob("dstl_*.yaml"))
TABLE_6 = {
    "l2": (4e-5, 4e-5, 88.47),
    "l2sp": (1e-3, 1e-3, 89.19),
    "l2sp_alpha1e-4_beta1e-4": (1e-4, 1e-4, 89.07),
    "l2sp_beta1e-2": (1e-3, 1e-2, 88.53),
    "l2sp_alpha1e-2": (1e-2, 1e-3, 89.12),
    "l2sp_alpha1e-1": (1e-1, 1e-3, 89.00),
}
TABLE_3 = {
    "flowers102": (97.21, 97.68),
    "stanford_cars": (90.19, 90.67),
    "aircraft": (85.89, 86.83),
    "food101": (88.16, 88.75),
    "nabirds": (87.64, 88.32),
}
EXPECTED = {f"dstl_cub200_{row}": values for row, values in TABLE_6.items()} | {
    f"dstl_{target}_{row}": (*TABLE_6[row][:2], accuracy)
    for target, accuracies in TABLE_3.items()
    for row, accuracy in zip(("l2", "l2sp"), accuracies, strict=True)
}


def test_every_row_has_its_config() -> None:
    assert {path.stem for path in ROWS} == EXPECTED.keys()


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_a_row_has_its_strengths_and_the_papers_number(path: Path) -> None:
    experiment, text = read_experiment(path), path.read_text()
    alpha, beta, accuracy = EXPECTED[path.stem]
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
