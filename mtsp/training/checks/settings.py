"""Find settings that are allowed but are probably mistakes."""

from collections.abc import Mapping

import torch

from mtsp.training.experiment import AnyExperiment
from mtsp.types import Examples


def doubtful_settings(experiment: AnyExperiment, data: Mapping[str, Examples]) -> list[str]:
    """Return one line for each setting that is allowed but is probably a mistake."""
    lines = []
    sizes: dict[str, int] = {}
    for stage in experiment.train.stages:
        for name, size in stage.batch_size.items():
            sizes[name] = max(size, sizes.get(name, 0))
    lines += [
        f"train.stages: a batch has {size} samples of data.{name}, which has only {len(data[name])}: samples repeat"
        for name, size in sizes.items()
        if name in data and size > len(data[name])
    ]
    limit = 1.0 if experiment.optimizer.name == "sgd" else 0.1
    lines += [
        f"learning rate {rate:g} of {branch}: more than {limit:g} is rarely intended with {experiment.optimizer.name}"
        for branch, rate in experiment.learning_rates().items()
        if rate > limit
    ]
    if experiment.train.precision in ("bf16", "fp16") and not torch.cuda.is_available():
        lines.append(
            f"train.precision is {experiment.train.precision}, but there is no GPU here: training on the CPU is slow"
        )
    return lines
