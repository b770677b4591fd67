"""Check that the network takes frames of every size that a run will give it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mtsp.batches import evaluating, first_sample, without_computing
from mtsp.config import ConfigError
from mtsp.evaluation.tta import Tta
from mtsp.indices import evenly_spaced
from mtsp.training.checks.samples import SAMPLES
from mtsp.training.experiment import AnyExperiment
from mtsp.types import Batch, Examples

_OTHER_SIZES = (224, 256, 299, 384, 512)
"""Sides of the square frames that are tried to find sizes that work."""


def require_whole_images(experiment: AnyExperiment, entries: Mapping[str, Any]) -> None:
    """Check that the test-time augmentation `multi_crop` gets whole images, not cropped or resized ones.

    Raises:
        ConfigError: an entry is resized. Papers report ten crops of the whole image, not ten crops of a crop.
    """
    resized = [name for name, entry in entries.items() if entry.size is not None]
    if experiment.evaluation.tta.name == "multi_crop" and resized:
        raise ConfigError(
            f"evaluation.tta: crops are cut from whole images, but data.{resized[0]} is resized first; set "
            f"data.{resized[0]}.size=null data.{resized[0]}.crop_pct=null"
        )


def try_sizes(experiment: AnyExperiment, network: nn.Module, data: Mapping[str, Examples]) -> None:
    """Run the network without computing on frames of every size that training and evaluation will use.

    The sizes are those of a few samples of each entry; test-time augmentation makes its own of them.

    Raises:
        ConfigError: the network does not take frames of one of these sizes; the message names sizes that work.
    """
    for name in sorted(data.keys() & set(experiment.train.entries)):
        batch = first_sample(data[name])
        _try(network, f"data.{name}, in training", batch["frame"].shape, "next_frame" in batch)
    tta = experiment.evaluation.tta.build()
    with evaluating(network):
        for name in experiment.evaluation.data:
            sizes = {}
            for index in evenly_spaced(len(data[name]), SAMPLES):
                batch = data[name][index]
                sizes.setdefault((batch["frame"].shape, "next_frame" in batch), batch)
            for batch in sizes.values():
                _try_tta(network, f"data.{name}, in evaluation", tta, batch)


def _try_tta(network: nn.Module, place: str, tta: Tta, batch: Batch) -> None:
    """Run the augmentation with a network that only looks at the sizes of frames."""
    predicted: dict[tuple[Any, ...], Any] = {}

    def shaped(frame: Tensor, next_frame: Tensor | None) -> Any:
        key = (frame.shape, next_frame is not None)
        if key not in predicted:
            outputs = _try(network, place, frame.shape[1:], next_frame is not None)
            predicted[key] = {name: torch.zeros(len(frame), *x.shape[1:]) for name, x in outputs.items()}
        return predicted[key]

    images = Batch(name=batch["name"], frame=batch["frame"][None])
    if "next_frame" in batch:
        images["next_frame"] = batch["next_frame"][None]
    tta(shaped, images)


def _try(network: nn.Module, place: str, size: tuple[int, ...], pair: bool) -> Any:
    frame = torch.zeros(2, *size)  # two, because batch normalization refuses one
    try:
        return without_computing(network, frame, *([frame] if pair else []))
    except ValueError as error:  # networks of this package say what to do
        raise ConfigError(f"{place}: {error}") from error
    except (RuntimeError, AssertionError, IndexError, TypeError) as error:
        why = " ".join(str(error).split())[:160]
        others = [other for other in _OTHER_SIZES if _works(network, (size[0], other, other), pair)]
        instead = f"sizes that work are {', '.join(f'{side}x{side}' for side in others)}" if others else "use another"
        raise ConfigError(
            f"{place}: the network does not take frames of {size[-2]}x{size[-1]} ({why}); {instead}"
        ) from error


def _works(network: nn.Module, size: tuple[int, ...], pair: bool) -> bool:
    frame = torch.zeros(2, *size)
    try:
        without_computing(network, frame, *([frame] if pair else []))
    except Exception:  # whatever a network raises for sizes that it does not take
        return False
    return True
