"""A run that measures what it forgets: under the old head, from the start to the end, and on corrupted images."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from data.files.images import write_image
from mtsp.config import ConfigError, parse
from mtsp.evaluation.evaluate import evaluate
from tools.build import AnyExperiment, build_network

Train = Callable[..., dict[str, dict[str, float]]]


@pytest.fixture
def learned(tmp_path: Path, train: Train) -> dict[str, Any]:
    """A fine-tuning of three colors on two of brightness, from a network that learned the colors."""
    rng = np.random.default_rng(0)
    colors = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200)}
    for name, color in [*colors.items(), ("dark", (40, 40, 40)), ("light", (200, 200, 200))]:
        folder = tmp_path / ("colors" if name in colors else "lights") / name
        folder.mkdir(parents=True)
        for index in range(4):
            image = rng.integers(0, 40, (32, 32, 3)) + np.array(color)
            write_image(folder / f"{index}.png", image.astype(np.uint8))
    entries = {
        name: {"dataset": {"name": "image_folder", "root": f"{tmp_path}/{name}"}} for name in ("colors", "lights")
    }
    values = {
        "name": "colors",
        "model": {"name": "classifier", "backbone": "test_efficientnet", "classes": 3, "dropout": 0.0},
        "branches": {"backbone": {}, "head": {}},
        "data": {"colors": entries["colors"]},
        "tasks": {"classification": {}},
        "regularizer": {"name": "none"},
        "optimizer": {"name": "sgd", "lr": 0.02},
        "train": {"steps": 40, "stages": [{"steps": 1, "batch_size": {"colors": 12}}], "workers": 0},
        "evaluation": {"data": ["colors"], "batch_size": 4},
        "tracking": {"log_every": 30, "images": 0},
    }
    assert train(values, tmp_path / "source")["colors"]["top1"] > 0.6
    weights = str(tmp_path / "source/weights.safetensors")
    return values | {
        "name": "lights",
        "model": values["model"] | {"classes": 2},
        "branches": {"backbone": {"weights": weights}, "head": {}},
        "data": entries,
        "train": {"steps": 4, "stages": [{"steps": 1, "batch_size": {"lights": 4}}], "workers": 0, "save_every": 2},
        "evaluation": {
            "data": ["lights"],
            "every": 2,
            "batch_size": 4,
            "source": {"data": "colors", "heads": {"head": weights}, "classes": 3, "fractions": [0, 1]},
            "corruptions": {"data": ["lights"], "limit": 4},
        },
    }


def test_a_run_measures_what_it_forgets(learned: dict[str, Any], train: Train, tmp_path: Path) -> None:
    before = json.loads((tmp_path / "source/results.json").read_text())["colors"]["top1"]
    results = train(learned, tmp_path / "run")
    curve = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    found = {row["step"]: row["source/top1"] for row in curve if "source/top1" in row}
    assert list(found) == [0, 2, 4]
    assert found[0] == before
    assert results["source"]["retained"] == pytest.approx(results["source"]["top1"] / before)
    # The same network, put together by hand: the fine-tuned backbone and the head of the first run.
    experiment = parse(AnyExperiment, learned)
    ends = {"backbone": str(tmp_path / "run/weights.safetensors"), "head": str(tmp_path / "source/weights.safetensors")}
    mixed = learned | {
        "model": learned["model"] | {"classes": 3},
        "branches": {name: {"weights": file} for name, file in ends.items()},
    }
    network = build_network(parse(AnyExperiment, mixed | {"evaluation": {}})).model
    network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    colors = experiment.data["colors"].build()
    by_hand = evaluate(Accelerator(cpu=True), network, colors, batch_size=4).values()
    assert by_hand == pytest.approx({name: results["source"][name] for name in by_hand})
    with (tmp_path / "run/forgetting.csv").open() as file:
        start, end = csv.DictReader(file)
    assert float(start["source/top1"]) == before
    assert float(end["source/top1"]) == results["source"]["top1"]
    assert float(end["lights/top1"]) == results["lights"]["top1"]
    assert results["lights_corrupted"]["top1"] == pytest.approx(
        np.mean([v for k, v in results["lights_corrupted"].items() if k.endswith("_top1")])
    )
    assert len([name for name in results["lights_corrupted"] if name.endswith("_top1")]) == 8


def test_a_resumed_run_measures_the_same(
    learned: dict[str, Any], train: Train, outcome: Callable[[Path], Any], tmp_path: Path
) -> None:
    train(learned, tmp_path / "whole")
    stopped = learned | {"train": learned["train"] | {"steps": 2}}
    train(stopped, tmp_path / "resumed")
    for name in ("results.json", "weights.safetensors", "forgetting.csv"):
        (tmp_path / "resumed" / name).unlink()
    train(learned, tmp_path / "resumed", "auto")
    assert outcome(tmp_path / "resumed")[2] == outcome(tmp_path / "whole")[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": {"data": "color"}}, "evaluation.source.data: no entry 'color' in `data`; there is colors, lights"),
        ({"source": {"data": "colors", "heads": {"heads": "x"}}}, "evaluation.source.heads: no branch 'heads'"),
        ({"source": {"data": "colors", "heads": {"head": "x", "backbone": "x"}}}, "names all branches"),
        ({"corruptions": {"data": ["colors"]}}, "evaluation.corruptions.data: 'colors' is not in evaluation.data"),
    ],
)
def test_a_source_that_cannot_be_measured_is_said(
    learned: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        parse(AnyExperiment, learned | {"evaluation": {"data": ["lights"], **change}})
