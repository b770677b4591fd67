"""Check that network and data entries have the same classes, and give each class the same number everywhere."""

import logging
from collections.abc import Mapping

from mtsp.config import ConfigError
from mtsp.evaluation.classes import align, class_names
from mtsp.text import first_names
from mtsp.training.experiment import AnyExperiment
from mtsp.types import Examples

_LOG = logging.getLogger("mtsp")


def with_classes(experiment: AnyExperiment, data: Mapping[str, Examples]) -> AnyExperiment:
    """Return the experiment with `model.classes` as many as the data that it trains on have, if it is null.

    Raises:
        ConfigError: these data have no classes.
    """
    if getattr(experiment.model, "classes", 0) is not None:
        return experiment
    trained = [data[name] for name in experiment.train.entries if name in data]
    classes = next((len(names) for one in trained if (names := class_names(one))), 0)
    if not classes and any(one.kind == "video" for one in trained):
        classes = 2
    if not classes:
        raise ConfigError("model.classes is null, but the data to train on have no classes; set their number")
    return experiment.model_copy(update={"model": experiment.model.model_copy(update={"classes": classes})})


def align_classes(experiment: AnyExperiment, data: Mapping[str, Examples]) -> dict[str, Examples]:
    """Return the data entries with their labels renumbered to the classes that are learned, matched by name.

    The learned classes are those of the first training entry. Other entries may lack some of them, or list them in
    another order.

    Raises:
        ConfigError: an entry has a class that is not learned, or the network predicts a different number of classes.
    """
    wanted = getattr(experiment.model, "classes", None)
    if videos := [name for name, examples in data.items() if examples.kind == "video" and wanted not in (None, 2)]:
        raise ConfigError(
            f"data.{videos[0]} is a data set of videos, with masks of object and background, but model.classes is "
            f"{wanted}; set model.classes=2, or score each class with data.{videos[0]}.dataset.kind=images"
        )
    trained = [name for name in experiment.train.entries if name in data]
    first = next((name for name in [*trained, *data] if class_names(data[name])), None)
    if first is None:
        return dict(data)
    classes = class_names(data[first])
    if wanted is not None and len(classes) != wanted:
        raise ConfigError(
            f"model.classes is {wanted}, but data.{first} has {len(classes)} classes: {first_names(classes)}; set "
            f"model.classes={len(classes)}, or check that its folder has all classes"
        )
    if len(classes) == 1:
        raise ConfigError(
            f"data.{first} has one class, {classes[0]}: every prediction is right, and nothing can be learned; check "
            "that its folder is the one that holds a folder for each class"
        )
    for name, examples in data.items():
        if lacking := [other for other in classes if other not in class_names(examples) and class_names(examples)]:
            _LOG.info("data.%s lacks %d of %d classes: %s", name, len(lacking), len(classes), first_names(lacking))
    return {name: align(f"data.{name}", examples, classes, f"data.{first}") for name, examples in data.items()}
