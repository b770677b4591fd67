"""The folder of a finished run: a small classifier of three classes, pulled to an anchor, without any training."""

import json
from pathlib import Path

import torch

from mtsp.config import parse
from mtsp.files.tensors import write_tensors
from mtsp.training.experiment import as_yaml
from tools.build import AnyExperiment

CLASSES = ["ant", "bee", "cat"]
ANCHOR = "ab" * 32


def finished_run(folder: Path) -> Path:
    """Write what a run leaves behind that ended at step 10, and return the folder."""
    dataset = {"name": "image_folder", "root": "/home/somebody/secret/images"}
    experiment = parse(
        AnyExperiment,
        {
            "name": "insects",
            "seed": 7,
            "model": {"name": "classifier", "backbone": "test_resnet", "classes": 3},
            "branches": {"backbone": {"weights": "imagenet"}, "head": {}},
            "data": {"train": {"dataset": dataset, "augment": {"preset": "inception", "crop": [64, 64]}}},
            "tasks": {"classification": {}},
            "regularizer": {"name": "l2sp", "alpha": 0.1, "beta": 0.01},
            "optimizer": {"name": "sgd", "lr": 0.02},
            "train": {"steps": 10, "stages": [{"steps": 1, "batch_size": {"train": 4}}]},
        },
    )
    folder.mkdir()
    (folder / "experiment.yaml").write_text(as_yaml(experiment))
    (folder / "results.json").write_text(json.dumps({"test": {"top1": 0.75}}))
    (folder / "metrics.jsonl").write_text('{"step": 10, "time": 1.0, "distance/backbone": 0.125}\n')
    torch.manual_seed(0)
    notes = {"classes": json.dumps(CLASSES), "anchor": ANCHOR}
    write_tensors(folder / "weights.safetensors", experiment.model.build().state_dict(), notes)
    return folder
