"""What the programs build alike: an experiment from its file, and a network with its branches' pretrained weights."""

import argparse
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from accelerate import Accelerator
from torch import Tensor, nn

from data import DataConfig
from models import AnyModel
from models.pretrained.load import Loaded, load_branch
from mtsp import anchors
from mtsp.config import ConfigError, load
from mtsp.training.experiment import Experiment
from mtsp.types import Examples

AnyExperiment = Experiment[AnyModel, DataConfig]  # pyright: ignore[reportInvalidTypeArguments]


class Started(NamedTuple):
    """A network as fine-tuning finds it."""

    model: nn.Module
    anchors: dict[str, Tensor]
    loaded: dict[str, Loaded]


def read_experiment(path: str | Path, overrides: Sequence[str] = ()) -> AnyExperiment:
    """Return the experiment in a config file. Raises ConfigError with everything that is wrong with it."""
    return load(AnyExperiment, path, overrides)


def as_yaml(experiment: AnyExperiment) -> str:
    """Return the resolved experiment as a config file that gives the same one."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, width=120)


def start(experiment: AnyExperiment) -> Started:
    """Build the network, load each branch's pretrained weights, and take the anchors from them.

    Raises:
        ConfigError: the network's branches are not the config's.
        ValueError: weights that do not fit, or pretrained tensors none of which is a weight to anchor.
    """
    torch.manual_seed(experiment.seed)
    model = experiment.model.build()
    names: tuple[str, ...] = model.branches
    if set(names) != set(experiment.branches):
        raise ConfigError(
            f"branches: this {experiment.model.name} has {', '.join(names)}, "
            f"the config describes {', '.join(experiment.branches) or 'none'}"
        )
    loaded = {
        name: load_branch(model, name, branch.weights)
        for name, branch in experiment.branches.items()
        if branch.weights is not None
    }
    references = {}
    for branch in loaded.values():
        references |= anchors.capture(model, branch.names)
    return Started(model, references, loaded)


def require_classes(experiment: AnyExperiment, data: Mapping[str, Examples]) -> None:
    """Check that the data entries in use name the same classes, and as many as the network predicts.

    Raises:
        ConfigError: they do not: labels would mean other classes, without a word.
    """
    named = {name: classes for name, examples in data.items() if (classes := getattr(examples, "classes", ()))}
    wanted = getattr(experiment.model, "classes", None)
    for name, classes in named.items():
        if wanted is not None and len(classes) != wanted:
            count = len(classes)
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


def require_whole_pictures(experiment: AnyExperiment, entries: Mapping[str, DataConfig]) -> None:
    """Check that views `crops` are given images that nobody has cropped or resized before.

    Raises:
        ConfigError: they are not: ten crops of a crop are not the ten crops that papers report.
    """
    for name, entry in entries.items():
        if experiment.evaluation.views.name == "crops" and entry.size is not None:
            raise ConfigError(
                f"evaluation.views: crops are cut from whole pictures, and data.{name} is resized before; set "
                f"data.{name}.size=null data.{name}.center=null"
            )


def accelerator_of(precision: str) -> Accelerator:
    """Return the Accelerator of this process.

    Args:
        precision: `auto`, `fp32`, `bf16` or `fp16`.

    Raises:
        ConfigError: the launcher started more processes than found each other, or fp16 is asked of a CPU.
    """
    from accelerate.utils import DistributedDataParallelKwargs

    mixed = {"fp32": "no", "auto": "bf16" if computes_bf16() else "no"}.get(precision, precision)
    if mixed == "fp16" and not torch.cuda.is_available():
        raise ConfigError("train.precision: fp16 needs a GPU; use bf16 or fp32 here")
    # Which weights a step reaches depends on its labels: without a mask the segmentation head has no gradient, and a
    # held branch never has one. DDP that does not look for them waits for their gradients and raises at the next step.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(mixed_precision=mixed, kwargs_handlers=[unused])
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise ConfigError(
            f"{started} processes were started, but this one is {accelerator.process_index + 1} of "
            f"{accelerator.num_processes}: without GPUs set ACCELERATE_USE_CPU=true for torchrun"
        )
    return accelerator


def computes_bf16() -> bool:
    """Return whether bf16 is computed in hardware here: a GPU that has it, or a CPU with AMX."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.cpu.get_cpu_capability() == "AMX" or torch.cpu._is_amx_tile_supported()


def above_zero(text: str) -> float:
    """Return a number of the command line, finite and above 0; argparse shows what else was written."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number above 0")
    return value


def at_least_one(text: str) -> int:
    """Return a whole number of the command line, 1 or more; argparse shows what else was written."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def run_or_say_why(main: Callable[[], int]) -> int:
    """Run a program; turn what a person can mend into one `error:` line and exit code 1.

    Those are ValueError, OSError, FloatingPointError and MemoryError, wherever they come from; any other fault is ours
    and keeps its traceback.
    """
    import sys

    try:
        return main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
