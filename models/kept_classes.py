"""Keep classes of a pretrained classifier: copy its rows for the classes that go on existing into a new last layer."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.pretrained.files import locate
from models.pretrained.load import Loaded, load_branch
from models.pretrained.load_trained import trained_classes
from mtsp.config import ConfigError
from mtsp.text import did_you_mean, first_names

Reuse = str | Sequence[str] | Mapping[str, str]
"""Names of the classes to keep; with the weights' names for them; or "all" that both have."""

IMAGENET = 1000


class KeptClasses(NamedTuple):
    """Result of :func:`load_keeping_classes`."""

    loaded: Loaded
    rows: dict[str, list[int]]
    """Numbers of the pretrained rows of each parameter that has a row for each class."""


def load_keeping_classes(
    config: Any,
    model: nn.Module,
    branch: str,
    source: str,
    *,
    classes: Sequence[str],
    reuse: Reuse,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> KeptClasses:
    """Load pretrained weights into a branch, with the rows of some classes in the layers that depend on the classes.

    All other layers are loaded as by :func:`models.pretrained.load.load_branch`. Rows of other classes stay as
    initialized.

    Args:
        config: config of the network, with a field `classes`, the number of classes.
        model: the network built by `config`.
        branch: name of the branch.
        source: weights of a run, which name their classes, or a classifier of the 1000 classes of ImageNet.
        classes: names of the network's classes.
        reuse: the classes to keep.
        mean: see :func:`models.pretrained.load.load_branch`.
        std: likewise.

    Raises:
        FileNotFoundError, ValueError: see :func:`models.pretrained.load.load_branch`; or a class is not one of the
            network or of the weights, is ambiguous, or no layer of the branch depends on the classes.
    """
    trained = _trained_classes(source)
    names = trained or imagenet_names()
    pairs = matching_rows(classes, names, reuse, place=f"branches.{branch}.reuse", source=source)
    donor = config.model_copy(update={"classes": len(names)}).build()
    try:
        loaded = load_branch(donor, branch, source, mean=mean, std=std)
    except ValueError as error:
        assumed = "" if trained else "; it does not name its classes, so it is taken for one of ImageNet's 1000 classes"
        raise ValueError(f"{error}{assumed}") from error
    by_class = _tensors_by_class(config, branch)
    own, theirs = model.get_submodule(branch).state_dict(), donor.get_submodule(branch).state_dict()
    given = {name.removeprefix(f"{branch}.") for name in loaded.names}
    ours, rows = [row for row, _ in pairs], {}
    with torch.no_grad():
        for key, value in own.items():
            if key in by_class and key in given:
                value[ours] = theirs[key][[row for _, row in pairs]]
                rows[f"{branch}.{key}"] = ours
            elif key not in by_class and (key in given or key.split(".")[-1] in ("mean", "std")):
                value.copy_(theirs[key])
    if not any(name.endswith("weight") for name in rows):
        raise ValueError(f"branches.{branch}.reuse: {source} has no rows for {len(names)} classes in this branch")
    if hasattr(model, "after_loading"):
        model.after_loading(branch)  # pyright: ignore[reportCallIssue]
    kept = first_names([classes[row] for row in ours])
    told = f"{loaded.description}; rows of {len(ours)} of {len(classes)} classes kept: {kept}"
    return KeptClasses(Loaded(told, loaded.names, loaded.fresh, loaded.left_out), rows)


def matching_rows(
    classes: Sequence[str], names: Sequence[Sequence[str]], reuse: Reuse, *, place: str, source: str
) -> list[tuple[int, int]]:
    """Return two numbers for each class to keep: its number in the data, and its number in the weights.

    Args:
        classes: names of the classes of the data.
        names: names of each class in the weights, the main one first. Case, hyphens and underscores do not matter.
        reuse: the classes to keep.
        place: key of the config, for messages.
        source: the weights, for messages.

    Raises:
        ConfigError: a class is unknown to data or weights, or its name stands for several classes of the weights.
    """
    if not classes:
        raise ConfigError(f"{place}: the data do not name their classes, so that rows cannot be matched")
    found: dict[str, list[int]] = {}
    mains: dict[str, list[int]] = {}
    for row, all_names in enumerate(names):
        mains.setdefault(_plain(all_names[0]), []).append(row)
        for name in {_plain(name) for name in all_names}:
            found.setdefault(name, []).append(row)
    if isinstance(reuse, str):
        wanted = {name: name for name in classes if _plain(name) in found}
        if not wanted:
            raise ConfigError(f"{place}: none of the classes here ({first_names(list(classes))}) is one of {source}")
    else:
        wanted = dict(reuse) if isinstance(reuse, Mapping) else {name: name for name in reuse}
    pairs = []
    for ours, theirs in wanted.items():
        if ours not in classes:
            raise ConfigError(
                f"{place}: no class {ours!r} in the data; {did_you_mean(ours, classes, 'see its classes')}"
            )
        rows = found.get(_plain(theirs), [])
        main = mains.get(_plain(theirs), [])
        rows = main if len(main) == 1 else rows
        if not rows:
            near = did_you_mean(theirs, [name for all_names in names for name in all_names], "give its name there")
            raise ConfigError(f"{place}: {source} has no class {theirs!r}; {near}")
        if len(rows) > 1:
            several = "; ".join(", ".join(names[row][:3]) for row in rows[:4])
            raise ConfigError(
                f"{place}: {theirs!r} may be several classes of {source} ({several}); give {{ours: theirs}}"
            )
        pairs.append((list(classes).index(ours), rows[0]))
    return pairs


def _trained_classes(source: str) -> Sequence[Sequence[str]]:
    """Return the name of each class of weights of a run; empty if they do not name their classes."""
    if source.partition(":")[0] in ("imagenet", "torchvision"):
        return ()
    return [(name,) for name in trained_classes(locate(source))]


@cache
def imagenet_names() -> Sequence[Sequence[str]]:
    """Return names of the 1000 classes: torchvision's category, WordNet's number (n01443537), and WordNet's words."""
    from timm.data import ImageNetInfo
    from torchvision.models import ResNet50_Weights

    info, categories = ImageNetInfo(), ResNet50_Weights.DEFAULT.meta["categories"]
    return [
        (categories[row], info.index_to_label_name(row), *info.index_to_description(row).split(", "))
        for row in range(IMAGENET)
    ]


def _tensors_by_class(config: Any, branch: str) -> set[str]:
    """Return the names of the tensors of a branch that have a row for each class."""
    with torch.device("meta"):
        shapes: list[dict[str, Tensor]] = [
            config.model_copy(update={"classes": count}).build().get_submodule(branch).state_dict() for count in (7, 8)
        ]
    seven, eight = shapes
    return {
        key
        for key, value in seven.items()
        if value.shape[1:] == eight[key].shape[1:] and value.shape != eight[key].shape
    }


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())
