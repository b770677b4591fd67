"""Checks made before a run starts."""

import logging
from collections.abc import Mapping
from typing import Any

from mtsp.config import ConfigError
from mtsp.evaluation.classes import align, class_names
from mtsp.text import first_names
from mtsp.training.experiment import AnyExperiment
from mtsp.types import Examples

_LOG = logging.getLogger("mtsp")


def align_classes(experiment: AnyExperiment, data: Mapping[str, Examples]) -> dict[str, Examples]:
    """Return the data entries with labels in the order of the classes that are learned, matched by name.

    Those are the classes of the first entry that is trained on. Others may lack some of them, or list them in another
    order.

    Raises:
        ConfigError: an entry has a class that is not learned, or the network predicts another number of classes.
    """
    wanted = getattr(experiment.model, "classes", None)
    if videos := [name for name, examples in data.items() if examples.kind == "video" and wanted not in (None, 2)]:
        raise ConfigError(
            f"data.{videos[0]} is a data set of videos, whose masks are object or background, but model.classes is "
            f"{wanted}; set model.classes=2, or score each class with data.{videos[0]}.dataset.kind=images"
        )
    trained = [name for stage in experiment.train.stages for name in stage.batch_size if name in data]
    first = next((name for name in [*trained, *data] if class_names(data[name])), None)
    if first is None:
        return dict(data)
    classes = class_names(data[first])
    if wanted is not None and len(classes) != wanted:
        raise ConfigError(
            f"model.classes is {wanted}, but data.{first} has {len(classes)} classes: {first_names(classes)}; set "
            f"model.classes={len(classes)}, or see whether its folder lacks classes"
        )
    for name, examples in data.items():
        if lacking := [other for other in classes if other not in class_names(examples) and class_names(examples)]:
            _LOG.info("data.%s lacks %d of %d classes: %s", name, len(lacking), len(classes), first_names(lacking))
    return {name: align(f"data.{name}", examples, classes, f"data.{first}") for name, examples in data.items()}


def require_whole_images(experiment: AnyExperiment, entries: Mapping[str, Any]) -> None:
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
