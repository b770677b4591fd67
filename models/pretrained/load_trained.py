"""Load a trained network for evaluation and prediction."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from models.pretrained.files import read
from models.pretrained.layouts import LayoutError
from mtsp.training.checkpoint import storage
from mtsp.training.experiment import Experiment


def load_trained(experiment: Experiment[Any, Any], path: Path) -> nn.Module:
    """Return an experiment's network with all weights and buffers loaded from a file of its run, without downloads.

    Args:
        experiment: config of the run; its branches' pretrained `weights` are not used.
        path: RUN/weights.safetensors, or a checkpoint, RUN/checkpoints/step-00001000, verified byte by byte.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: the file cannot be read, is damaged, or belongs to another network; the message has one line.
    """
    tensors = _tensors(path)
    section = experiment.model
    if getattr(section, "classes", 0) is None and (classes := trained_classes(path)):
        section = section.model_copy(update={"classes": len(classes)})
    model = section.build()
    own = model.state_dict()
    if odd := _difference(tensors, own):
        raise ValueError(f"{path} holds another network than the config's {experiment.model.name}: {odd}")
    model.load_state_dict(tensors)
    return model


def trained_classes(path: Path) -> tuple[str, ...]:
    """Return the class names that the weights at `path` were trained on; empty if the file does not store them.

    Raises:
        ValueError: the file cannot be read.
    """
    if path.is_dir():
        return tuple(storage.load(path).state.get("classes", ()))
    if path.suffix != ".safetensors":
        return ()
    try:
        with safe_open(path, "pt") as file:
            return tuple(json.loads((file.metadata() or {}).get("classes", "[]")))
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _tensors(path: Path) -> Mapping[str, Tensor]:
    if not path.is_dir():
        try:
            return read(path).tensors
        except LayoutError as error:
            raise ValueError(f"{path}: {error}") from error
    if not path.name.startswith("step-"):
        places = [path / "weights.safetensors", *storage.checkpoints(path / "checkpoints")]
        there = [str(place) for place in places if place.exists()]
        hint = f"choose {' or '.join(there)}" if there else "give RUN/weights.safetensors or RUN/checkpoints/step-..."
        raise ValueError(f"{path} is a folder without a checkpoint; {hint}")
    return storage.load(path).model


def _difference(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Describe how many tensors do not fit, with an example of each kind; empty if all fit."""
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    found = []
    if other := sorted(key for key in own.keys() & tensors.keys() if own[key].shape != tensors[key].shape):
        shapes = f"{tuple(tensors[other[0]].shape)} in the file, {tuple(own[other[0]].shape)} here"
        found.append(f"{len(other)} of {len(own)} shapes differ, as {other[0]}: {shapes}")
    if missing:
        found.append(f"{len(missing)} of {len(own)} tensors are missing, as {missing[0]}")
    if unknown:
        found.append(f"{len(unknown)} have no place, as {unknown[0]}")
    return "; ".join(found)
