"""Whole runs of the other pipelines in the same engine: EncNet on masks, a classifier on labels."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data.files.images import write_image
from data.files.masks import write_mask
from mtsp.config import ConfigError, parse
from mtsp.training.checkpoint import atomic_save, storage
from tests import two_processes
from tools.build import AnyExperiment, build_network
from tools.evaluate import main as evaluate
from tools.score import main as score
from tools.train import main

Train = Callable[..., dict[str, dict[str, float]]]
Outcome = Callable[[Path], Any]

CLASSES = ("dark", "gray", "bright")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """`frames` and `masks`: eight images of 64x64 in three gray stripes; `labeled/<class>`: six of one color."""
    for folder in ("frames", "masks", *(f"labeled/{name}" for name in CLASSES)):
        (tmp_path / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(8):
        mask = (rng.permutation(3)[np.arange(64) * 3 // 64] * np.ones((64, 1))).astype(np.uint8)
        mask[:2] = 255
        noise = rng.integers(0, 40, (64, 64, 3))
        write_image(tmp_path / f"frames/{index}.png", (mask.clip(max=2)[..., None] * 90 + noise).astype(np.uint8))
        write_mask(tmp_path / f"masks/{index}.png", mask)
    for label, name in enumerate(CLASSES):
        for index in range(6):
            image = rng.integers(0, 40, (32, 32, 3)) + 160 * (np.arange(3) == label)
            write_image(tmp_path / f"labeled/{name}/{index}.png", image.astype(np.uint8))
    return tmp_path


@pytest.fixture
def segmenting(images: Path) -> dict[str, Any]:
    dataset = {"name": "mask_folder", "frames": f"{images}/frames", "masks": f"{images}/masks", "classes": CLASSES}
    return {
        "name": "stripes",
        "model": {
            "name": "encnet", "encoder": "tu-test_efficientnet", "classes": 3, "width": 16, "codewords": 4,
            "output_stride": 8, "dropout_rate": 0.0,
        },
        "branches": {"backbone": {"lr": 0.02}, "head": {"lr": 0.2}},
        "data": {"stripes": {"dataset": dataset}},
        "tasks": {"segmentation": {"class_balance": False, "aux_loss": 0.2, "se_loss": 0.2}},
        "regularizer": {"name": "l2", "alpha": 0.001, "beta": 0.001},
        "optimizer": {"name": "sgd", "lr": 0.02},
        "schedule": {"name": "poly"},
        "train": {"steps": 4, "stages": [{"steps": 1, "batch_size": {"stripes": 8}}], "workers": 0, "save_every": 2},
        "evaluation": {"data": ["stripes"]},
        "tracking": {"log_every": 1, "images": 1},
    }  # fmt: skip


@pytest.fixture
def classifying(images: Path) -> dict[str, Any]:
    dataset = {"name": "image_folder", "root": f"{images}/labeled"}
    return {
        "name": "colors",
        "model": {"name": "classifier", "backbone": "test_efficientnet", "classes": 3},
        "branches": {"backbone": {"lr": 0.02}, "head": {"lr": 0.2}},
        "data": {"colors": {"dataset": dataset, "augment": {"crop": [32, 32], "area": [0.3, 1.0]}}},
        "tasks": {"classification": {"label_smoothing": 0.1}},
        "regularizer": {"name": "l2", "alpha": 0.001, "beta": 0.001},
        "optimizer": {"name": "sgd", "lr": 0.02},
        "train": {
            "steps": 4, "stages": [{"steps": 1, "batch_size": {"colors": 6}}], "workers": 0, "save_every": 2,
            "ema": {"decay": 0.5},
        },
        "evaluation": {"data": ["colors"], "batch_size": 4},
        "tracking": {"log_every": 1, "images": 1},
    }  # fmt: skip


def rewound(run_dir: Path, to: Path) -> Path:
    """A copy of a run as it was after its first checkpoint."""
    shutil.copytree(run_dir, to)
    shutil.rmtree(storage.checkpoints(to / "checkpoints")[-1])
    for name in ("weights.safetensors", "results.json"):
        (to / name).unlink()
    return to


def test_encnet_learns_stripes_from_all_three_of_its_losses(
    segmenting: dict[str, Any], train: Train, tmp_path: Path
) -> None:
    segmenting["train"] |= {"steps": 30, "save_every": 100}
    results = train(segmenting, tmp_path / "run")
    found = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert results["stripes"]["miou"] > 0.6  # by chance 0.2
    for name in ("segmentation", "segmentation_aux", "segmentation_se"):
        curve = [row[f"train/{name}"] for row in found if f"train/{name}" in row]
        assert min(curve[-3:]) < curve[0], name
    assert any((tmp_path / "run/figures").rglob("*.png"))


def test_encnet_resumed_ends_as_if_uninterrupted(
    segmenting: dict[str, Any], train: Train, outcome: Outcome, tmp_path: Path
) -> None:
    segmenting["model"]["dropout_rate"] = 0.1
    train(segmenting, tmp_path / "whole")
    run_dir = rewound(tmp_path / "whole", tmp_path / "resumed")
    train(segmenting, run_dir, "auto")
    assert outcome(run_dir) == outcome(tmp_path / "whole")


def test_two_processes_share_batch_statistics_and_end_as_one(
    segmenting: dict[str, Any], train: Train, in_two_processes: Callable[..., None], tmp_path: Path
) -> None:
    """Every layer of EncNet is normalized over the whole batch, so the share of a process would give another run."""
    segmenting["train"]["steps"] = 2
    train(segmenting, tmp_path / "one")
    config = tmp_path / "stripes.yaml"
    config.write_text(json.dumps(segmenting))
    in_two_processes(two_processes.program, main, ["--config", str(config), "--run-dir", str(tmp_path / "two")])
    found, expected = (load_file(tmp_path / name / "weights.safetensors") for name in ("two", "one"))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: name + text)
    two, one = (json.loads((tmp_path / name / "results.json").read_text())["stripes"] for name in ("two", "one"))
    assert two == pytest.approx(one, abs=2e-3)


def test_a_classifier_learns_and_its_averaged_weights_are_measured_and_exported(
    classifying: dict[str, Any], train: Train, tmp_path: Path
) -> None:
    classifying["train"] |= {"steps": 40, "save_every": 40}
    results = train(classifying, tmp_path / "run")
    assert results["colors"]["top1"] > 0.5  # by chance 1/3
    assert results["colors"]["images"] == 18
    weights = load_file(tmp_path / "run/weights.safetensors")
    last = storage.load(tmp_path / "run/checkpoints/step-00000040")
    assert last.ema is not None
    averages = last.ema["averages"]
    name = next(name for name in weights if name.startswith("head.") and name.endswith(".weight"))
    assert torch.equal(weights[name], averages[name])
    assert not torch.equal(weights[name], last.model[name])


def test_labels_are_reported_by_class_and_by_image(
    classifying: dict[str, Any], images: Path, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = train(classifying, tmp_path / "run")
    run = ["--config", f"{tmp_path}/run/experiment.yaml", "--checkpoint", f"{tmp_path}/run/weights.safetensors"]
    out = ["--report", f"{tmp_path}/report", "--save-predictions", f"{tmp_path}/saved", "--json", f"{tmp_path}/a.json"]
    assert evaluate([*run, *out]) == 0
    rows = list(csv.DictReader((tmp_path / "saved/colors/labels.csv").open()))
    assert [row["name"] for row in rows][:2] == ["bright/0", "bright/1"]
    assert sorted(path.name for path in (tmp_path / "saved/colors").iterdir()) == ["classes.txt", "labels.csv"]
    right = [row for row in rows if row["truth"] == row["prediction"]]
    assert len(right) / len(rows) == pytest.approx(results["colors"]["top1"])
    lines = (tmp_path / "report/colors-classes.md").read_text().splitlines()
    assert sorted(line.split(" | ")[0] for line in lines[2:]) == ["| bright", "| dark", "| gray"]
    assert (tmp_path / "report/colors-pairs.png").exists() == (len(right) < len(rows))
    entry = json.loads((tmp_path / "a.json").read_text())["entries"]["colors"]
    assert entry["tta"] == {"name": "none"}
    assert entry["accuracy_of_class"].keys() == {"bright", "dark", "gray"}
    root = ["--dataset", "image_folder", "--root", str(images / "labeled")]
    assert score([*root, "--predictions", f"{tmp_path}/saved/colors", "--json", f"{tmp_path}/b.json"]) == 0
    again = json.loads((tmp_path / "b.json").read_text())
    for key in ("top1", "class_accuracy", "images", "nan_predictions", "accuracy_of_class", "worst_pairs"):
        assert again[key] == entry[key]
    assert [again[key] for key in ("ece", "mce")] == pytest.approx([entry[key] for key in ("ece", "mce")], abs=1e-5)
    assert again["nll"] is None
    capsys.readouterr()
    ten = ["evaluation.tta={name: multi_crop, sizes: [32], crop: 28}", "data.colors.size=[32, 32]"]
    assert evaluate([*run, *ten]) == 1
    assert "crops are cut from whole images, but data.colors is resized first" in capsys.readouterr().err


def test_data_of_other_classes_than_the_networks_or_each_others_is_refused(
    classifying: dict[str, Any], images: Path, train: Train, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"model.classes is 4, but data.colors has 3 classes"):
        train(classifying | {"model": classifying["model"] | {"classes": 4}}, tmp_path / "four")
    shutil.copytree(images / "labeled", images / "others")
    (images / "others/gray").rename(images / "others/green")
    classifying["data"]["others"] = {"dataset": {"name": "image_folder", "root": str(images / "others")}}
    classifying["evaluation"]["data"] = ["others"]
    with pytest.raises(
        ConfigError, match=r"data.others: 1 of its 3 classes \(green\) are not .* data.colors \(bright, dark, gray\)"
    ):
        train(classifying, tmp_path / "green")


def test_a_run_with_averaged_weights_resumed_ends_as_if_uninterrupted(
    classifying: dict[str, Any], train: Train, outcome: Outcome, tmp_path: Path
) -> None:
    train(classifying, tmp_path / "whole")
    run_dir = rewound(tmp_path / "whole", tmp_path / "resumed")
    train(classifying, run_dir, "auto")
    assert outcome(run_dir) == outcome(tmp_path / "whole")


def test_a_checkpoint_without_an_average_is_not_resumed_by_a_run_that_needs_it(
    classifying: dict[str, Any], train: Train, tmp_path: Path
) -> None:
    train(classifying, tmp_path / "whole")
    run_dir = rewound(tmp_path / "whole", tmp_path / "without")
    found = storage.newest(run_dir / "checkpoints")
    assert found is not None
    folder, step = run_dir / "checkpoints", found.state["step"]
    atomic_save.save(folder, step, found.model, found.optimizer, found.state, keep_last=1)
    with pytest.raises(ValueError, match="has no averaged weights; start a new run"):
        train(classifying, run_dir, "auto")


def test_a_classifier_with_mixed_and_erased_images_resumes_with_other_workers_as_if_uninterrupted(
    classifying: dict[str, Any], train: Train, outcome: Outcome, tmp_path: Path
) -> None:
    mixing = {"rand_augment": "rand-m9-mstd0.5-inc1", "erase": 0.25, "mixup": 0.2, "cutmix": 1.0}
    classifying["data"]["colors"]["augment"] |= mixing
    train(classifying, tmp_path / "whole")
    classifying["train"]["workers"] = 1
    train(classifying, run_dir := rewound(tmp_path / "whole", tmp_path / "resumed"), "auto")
    assert outcome(run_dir) == outcome(tmp_path / "whole")


def test_a_head_that_is_trained_first_finds_the_backbone_as_it_was(
    classifying: dict[str, Any], train: Train, tmp_path: Path
) -> None:
    """Two stages that add up to the run: two steps of the head alone, then two of both."""
    batch = {"batch_size": {"colors": 6}}
    classifying["train"]["stages"] = [{"steps": 2, "learn": ["head"], **batch}, {"steps": 2, **batch}]
    train(classifying, tmp_path / "run")
    start = build_network(parse(AnyExperiment, classifying), CLASSES).model.state_dict()
    warm, end = (storage.load(path).model for path in storage.checkpoints(tmp_path / "run/checkpoints"))
    moved = [{name for name in start if not torch.equal(start[name], now[name])} for now in (warm, end)]
    assert {name.partition(".")[0] for name in moved[0]} == {"head"}
    assert {"head.label.weight", "backbone.network.conv_stem.weight", "backbone.network.bn1.running_mean"} <= moved[1]
