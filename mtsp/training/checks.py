"""Checks made before a run starts."""

from collections.abc import Mapping
from typing import Any

from mtsp.config import ConfigError
from mtsp.training.experiment import Experiment
from mtsp.types import Examples


def require_classes(experiment: Experiment[Any, Any], data: Mapping[str, Examples]) -> None:
    """Check that the data entries in use name the same classes, and as many as the network predicts.

    Raises:
        ConfigError: they differ, so that the same label would mean different classes.
    """
    wanted = getattr(experiment.model, "classes", None)
    if videos := [name for name, examples in data.items() if examples.kind == "video" and wanted not in (None, 2)]:
        raise ConfigError(
            f"data.{videos[0]} is a data set of videos, whose masks are object or background, but model.classes is "
            f"{wanted}; set model.classes=2, or score each class with data.{videos[0]}.dataset.kind=images"
        )
    named = {name: classes for name, examples in data.items() if (classes := getattr(examples, "classes", ()))}
    for name, count in ((name, len(classes)) for name, classes in named.items()):
        if wanted not in (None, count):
            raise ConfigError(f"model.classes is {wanted}, but data.{name} has {count} classes; set {count}")
    first = next(iter(named), "")
    for name, classes in named.items():
        odd = [(i, *pair) for i, pair in enumerate(zip(named[first], classes, strict=True)) if pair[0] != pair[1]]
        if odd:
            place, ours, theirs = odd[0]
            raise ConfigError(
                f"data.{first} and data.{name} differ in {len(odd)} classes: class {place} is {ours!r} in one and "
                f"{theirs!r} in the other; give both the same classes"
            )


def require_whole_images(experiment: Experiment[Any, Any], entries: Mapping[str, Any]) -> None:
    """Check that tta `multi_crop` gets whole images, not cropped or resized ones.

    Raises:
        ConfigError: an entry is resized. Ten crops of a crop are not the ten crops that papers report.
    """
    resized = [name for name, entry in entries.items() if entry.size is not None]
    if experiment.evaluation.tta.name == "multi_crop" and resized:
        raise ConfigError(
            f"evaluation.tta: crops are cut from whole images, but data.{resized[0]} is resized first; set "
            f"data.{resized[0]}.size=null data.{resized[0]}.crop_pct=null"
        )
