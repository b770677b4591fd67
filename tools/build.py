"""Build an experiment from its config file, and a network with pretrained branches, for all programs."""

from collections.abc import Sequence
from pathlib import Path

import torch

from data import DataConfig
from models import AnyModel
from models.pretrained.load import load_branch
from mtsp import anchors
from mtsp.config import ConfigError, load
from mtsp.training.experiment import Experiment
from mtsp.training.state import PretrainedNetwork

AnyExperiment = Experiment[AnyModel, DataConfig]  # pyright: ignore[reportInvalidTypeArguments]


def read_experiment(path: str | Path, overrides: Sequence[str] = ()) -> AnyExperiment:
    """Return the experiment in a config file. Raises ConfigError with all mistakes in the file."""
    return load(AnyExperiment, path, overrides)


def build_network(experiment: AnyExperiment) -> PretrainedNetwork:
    """Return the network with each branch's pretrained weights, and the anchors copied from them.

    Raises:
        ConfigError: the network and the config have different branches.
        ValueError: pretrained weights do not fit the network, or none of them can be used as anchors.
    """
    torch.manual_seed(experiment.seed)
    model = experiment.model.build()
    names: tuple[str, ...] = model.branches
    if set(names) != set(experiment.branches):
        raise ConfigError(
            f"branches: the network {experiment.model.name} has {', '.join(names)}, "
            f"but the config describes {', '.join(experiment.branches) or 'none'}"
        )
    loaded = {
        name: load_branch(model, name, branch.weights, mean=branch.mean, std=branch.std)
        for name, branch in experiment.branches.items()
        if branch.weights is not None
    }
    references = {}
    for branch in loaded.values():
        references |= anchors.capture(model, branch.names)
    return PretrainedNetwork(model, references, loaded)
