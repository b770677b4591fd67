"""Build an experiment from its config file, and a network with pretrained branches, for all programs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data import DataConfig
from models import AnyModel
from models.kept_classes import load_keeping_classes
from models.pretrained.downloads import published_download
from models.pretrained.files import locate
from models.pretrained.load import load_branch
from models.pretrained.tf_slim import checkpoint_at
from mtsp import anchors
from mtsp.config import CONFIGS, ConfigError, load
from mtsp.files.reachable import why_unreachable
from mtsp.training.experiment import Experiment
from mtsp.training.state import PretrainedNetwork

AnyExperiment = Experiment[AnyModel, DataConfig]  # pyright: ignore[reportInvalidTypeArguments]


def read_experiment(path: str | Path, overrides: Sequence[str] = ()) -> AnyExperiment:
    """Return the experiment in a config file. Raises ConfigError with all mistakes in the file."""
    return load(AnyExperiment, path, overrides)


def missing_weights(experiment: AnyExperiment) -> list[str]:
    """Return a line for each branch whose pretrained weights are missing, or cannot be downloaded."""
    found = []
    for name, branch in experiment.branches.items():
        if branch.weights is not None and (why := _why_missing(experiment.model, name, branch.weights)):
            found.append(f"branches.{name}.weights: {why}")
    return found


def _why_missing(model: Any, branch: str, weights: str) -> str:
    if weights.partition(":")[0] in ("imagenet", "torchvision"):
        flow = getattr(model, "flow", model) if branch == "flow" else None
        backbone = getattr(model, "backbone", None)  # of timm, where an encoder's name may be that of another library
        name = backbone and (backbone if backbone.startswith("torchvision:") else f"tu-{backbone}")
        name = name or getattr(model, "encoder", None)
        network = name if flow is None else f"{flow.name}_{getattr(flow, 'size', '')}"
        download = None if network is None else published_download(network, weights)
        if download is None or download.kept is not None or not (why := why_unreachable(download.url)):
            return ""
        place = "" if download.place is None else f"put it here as {download.place}, or "
        return (
            f"{weights} needs {download.url}, which cannot be reached ({why}); fetch that file elsewhere, and "
            f"{place}name it in place of {weights}"
        )
    try:
        path = locate(weights)
    except (ValueError, OSError) as error:
        return str(error)
    if path.is_file() or checkpoint_at(path) is not None:
        return ""
    run = path.parent.name
    maker = CONFIGS / f"{run}.yaml"
    hint = f"; python tools/train.py --config {run}.yaml writes it" if maker.is_file() else ""
    return f"no file {path.absolute()}{hint}"


def build_network(experiment: AnyExperiment, classes: Sequence[str] = ()) -> PretrainedNetwork:
    """Return the network with each branch's pretrained weights, and the anchors copied from them.

    Args:
        experiment: the experiment.
        classes: names of the classes that are learned, for branches that keep some of their weights' classes.

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
    loaded, references = {}, {}
    for name, branch in experiment.branches.items():
        if branch.weights is None:
            continue
        rows = {}
        if branch.reuse:
            loaded[name], rows = load_keeping_classes(
                experiment.model,
                model,
                name,
                branch.weights,
                classes=classes,
                reuse=branch.reuse,
                mean=branch.mean,
                std=branch.std,
            )
        else:
            loaded[name] = load_branch(model, name, branch.weights, mean=branch.mean, std=branch.std)
        pulled = set(anchors.penalized(model))
        kept = {weight: numbers for weight, numbers in rows.items() if weight in pulled}
        references |= anchors.capture(model, loaded[name].names, rows=kept)
    return PretrainedNetwork(model, references, loaded)
