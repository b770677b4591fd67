"""Every row of the paper takes a step on a miniature of its data, from constructed weights in their published layout.

With the real files, nothing but time is missing.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.segflow import network
from mtsp.anchors import penalized
from mtsp.batches import collate
from mtsp.optim.groups import parameter_groups
from mtsp.regularizers.configs import NoneConfig
from mtsp.reports.paper import PaperRow, paper_rows
from mtsp.training.checks.classes import align_classes
from mtsp.training.checks.missing_files import open_data
from tests.configs import miniatures
from tools.build import AnyExperiment, build_network, read_experiment

SIZE = (96, 150)
"""Frames of SegFlow, in place of 480x854, which takes a step of this network half a minute."""
BATCH = {"context": 2, "davis": 1, "monkaa": 1, "driving": 1}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like `inputs`, with all data sets and weights of the rows."""
    root = tmp_path_factory.mktemp("inputs")
    miniatures.write_video(root)
    miniatures.write_context(root)
    miniatures.write_labeled(root)
    miniatures.write_weights(root / "weights")
    miniatures.write_inception(root / "weights/inception_v3_subset_b.safetensors")
    return root


def miniature(name: str, inputs: Path) -> AnyExperiment:
    """The row with its paths in `inputs`, few samples in a batch, and small frames where the network allows them."""
    path = f"paper/{name}.yaml"
    own = read_experiment(path)
    changes = [
        f"data.{entry}.dataset.root={_moved(section.dataset.model_dump()['root'], inputs)}"
        for entry, section in own.data.items()
    ]
    for branch, section in own.branches.items():
        if section.weights == "imagenet":
            changes.append(
                f"branches.{branch}.weights={inputs}/weights/{own.model.model_dump()['encoder'].removeprefix('tu-')}.pth"
            )
        elif section.weights is not None:
            changes.append(f"branches.{branch}.weights={_moved(Path(section.weights), inputs)}")
    for number, stage in enumerate(own.train.stages):
        sizes = ", ".join(f"{entry}: {BATCH.get(entry, 2)}" for entry in stage.batch_size)
        changes.append(f"train.stages.{number}.batch_size={{{sizes}}}")
    for entry, section in own.data.items():
        if section.augment is not None and section.augment.preset == "segflow":
            changes.append(f"data.{entry}.augment.resize=[{SIZE[0]}, {SIZE[1]}]")
        if section.augment is not None and section.augment.preset == "encnet":
            changes += [f"data.{entry}.augment.crop=[64, 64]", f"data.{entry}.augment.short_side=64"]
    return read_experiment(path, [*changes, "train.precision=fp32", "train.workers=0"])


def _moved(path: Path, inputs: Path) -> Path:
    return inputs / path.relative_to("inputs")


class Prepared(NamedTuple):
    """A network with its pretrained weights, and gradients of the losses on one batch of its miniature."""

    model: nn.Module
    anchors: dict[str, Tensor]
    gradients: dict[str, Tensor]


@pytest.fixture(scope="module")
def prepared(inputs: Path) -> Callable[[AnyExperiment], Prepared]:
    """Prepares a row; rows that differ in nothing but their regularizer share the latest."""
    latest: dict[str, Prepared] = {}

    def prepare(experiment: AnyExperiment) -> Prepared:
        values = experiment.model_dump(mode="json")
        key = json.dumps({name: value for name, value in values.items() if name not in ("name", "regularizer")})
        if key not in latest:
            latest.clear()
            latest[key] = first_step(experiment)
        return latest[key]

    return prepare


def first_step(experiment: AnyExperiment) -> Prepared:
    torch.manual_seed(0)
    model, anchors, loaded = build_network(experiment)
    assert loaded.keys() == {name for name, branch in experiment.branches.items() if branch.weights is not None}
    stage = experiment.train.stages[-1]
    data = align_classes(experiment, open_data(experiment, stage.batch_size))
    rng = np.random.default_rng(0)
    model.train()
    for name, branch in experiment.branches.items():
        if branch.freeze_norm:
            model.get_submodule(name).eval()
    for entry, size in stage.batch_size.items():
        batch = collate([data[entry].train_sample(i % len(data[entry]), rng) for i in range(size)])
        sums = experiment.tasks.sums(model(batch["frame"], batch.get("next_frame")), batch)
        counts = experiment.tasks.counts(batch)
        assert sums.keys() == counts.keys()
        torch.stack([total / counts[name] for name, total in sums.items()]).sum().backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    learned = {name.partition(".")[0] for name in gradients}
    assert learned >= set(stage.learn or experiment.branches)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())
    return Prepared(model, anchors, gradients)


@pytest.mark.slow
@pytest.mark.parametrize("row", paper_rows(), ids=lambda row: row.config)
def test_a_row_takes_a_step(
    row: PaperRow,
    inputs: Path,
    prepared: Callable[[AnyExperiment], Prepared],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(network, "RELEASED_SIZE", SIZE)
    experiment = miniature(row.config, inputs)
    model, anchors, gradients = prepared(experiment)
    optimizer = experiment.optimizer.build(parameter_groups(model, experiment.learning_rates()))
    assert not isinstance(experiment.regularizer, NoneConfig)
    alpha, beta = experiment.strengths()
    regularizer = experiment.regularizer.build(model, anchors=anchors, alpha=alpha, beta=beta)
    regularizer.attach(optimizer)
    shared, new = (first(model, gradients, anchors, pretrained=kind) for kind in (True, False))
    weights = dict(model.named_parameters())
    with torch.no_grad():
        weights[shared].add_(0.01)  # away from its start
    expected = {}
    for name, strength in ((shared, row.alpha), (new, row.beta if row.regularizer == "L2-SP" else row.alpha)):
        start = anchors[name] if name in anchors and row.regularizer == "L2-SP" else 0.0
        rate = experiment.learning_rates()[name.partition(".")[0]]
        w = weights[name].detach()
        expected[name] = w - rate * (gradients[name] + strength * (w - start))
    for name, weight in weights.items():
        weight.grad = gradients[name].clone() if name in gradients else None
    optimizer.step()
    regularizer.detach()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name].detach(), value)


def first(model: nn.Module, gradients: dict[str, Tensor], anchors: dict[str, Tensor], *, pretrained: bool) -> str:
    """The first weight of a convolution or linear layer that learns, with an anchor or without."""
    found = (name for name in penalized(model) if name in gradients and (name in anchors) == pretrained)
    return next(found)
