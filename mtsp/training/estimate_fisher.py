"""Estimate the Fisher information of an experiment's pretrained weights on its training images."""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mtsp.anchors import fingerprint
from mtsp.batches import collate, evaluating, first_sample, to_device
from mtsp.config import ConfigError
from mtsp.distributed.accelerator import make_accelerator
from mtsp.files.progress import progress
from mtsp.fisher.estimate import FisherSum, save_fisher
from mtsp.fisher.inputs import Labels
from mtsp.fisher.partial import PartialEstimate
from mtsp.training.checks.classes import align_classes, with_classes
from mtsp.training.checks.missing_files import open_data
from mtsp.training.experiment import AnyExperiment
from mtsp.training.sample_stream import Concatenated, SinglePass
from mtsp.training.signals import StopSignals
from mtsp.training.state import PretrainedNetwork, learned_classes
from mtsp.types import IGNORE, Examples

MOST_PASSES = 100_000
"""Largest number of backward passes per image in mode `exact`; more would take days on any machine."""

_SAVE_EVERY = 30.0  # seconds between two saves of the partial sums
_OUTPUT_AND_LABEL = {"segmentation": ("mask_logits", "mask"), "classification": ("label_logits", "label")}
"""Output and label key of each task that predicts classes."""
_LOG = logging.getLogger("mtsp")


class Settings(NamedTuple):
    """Settings of the estimate from the command line."""

    mode: Labels | None = None
    """Method; None is `exact` for classification and `sampled` for segmentation."""
    examples: int = 1000
    draws: int = 1
    seed: int = 0
    batch_size: int = 8
    """Images per batch."""
    chunk: int = 16
    """Number of gradients in memory at once."""


def estimate(
    experiment: AnyExperiment,
    out: Path,
    settings: Settings,
    *,
    build_network: Callable[[AnyExperiment, Sequence[str]], PretrainedNetwork],
    missing_weights: Callable[[AnyExperiment], Sequence[str]] = lambda experiment: (),
    overwrite: bool = False,
) -> bool:
    """Estimate the Fisher information and write it to a file. Return True when done, False if a signal stopped it.

    Args:
        experiment: the config that names the weights, the training data and the task.
        out: file to write. While the estimate runs, its partial sums are saved in a `.part` file beside `out`.
        settings: number of images, and how labels are chosen.
        build_network: takes the experiment and the names of its classes; returns the network with its pretrained
            weights, and may download them.
        missing_weights: returns a line for each file of weights that is missing or cannot be downloaded.
        overwrite: replace an existing file.

    Raises:
        ValueError, OSError: with a message that says how to fix it.
    """
    _require_place(out, overwrite)
    task = _task(experiment)
    accelerator = make_accelerator("fp32")
    opened = open_data(experiment, experiment.train.entries, missing_weights(experiment))
    experiment = with_classes(experiment, opened)
    with accelerator.main_process_first():  # one process downloads, the others find the file
        pretrained = build_network(experiment, learned_classes(opened))
    if not pretrained.anchors:
        raise ConfigError("branches: none has pretrained `weights`, so there is nothing to estimate")
    data = _data(experiment, opened, task)
    examples: Any = Concatenated(list(data.values()))
    pretrained.model.to(accelerator.device)
    settings = _settled(settings, task, len(examples), _passes(pretrained, examples, task, accelerator.device))
    workers = experiment.train.worker_count()
    rounds = SinglePass(examples, accelerator, settings.examples, settings.batch_size, settings.seed, workers)
    generator = torch.Generator(accelerator.device)
    sums = _sum(pretrained, task, settings, generator)
    described = _described(experiment, settings, pretrained, task, {name: len(one) for name, one in data.items()})
    index, processes = accelerator.process_index, accelerator.num_processes
    part = ".part" if processes == 1 else f"-{index + 1}-of-{processes}.part"  # all parts are added at the end
    partial_estimate = PartialEstimate(out.with_name(out.name + part), described)
    with StopSignals() as signals:
        if not _sum_up(sums, partial_estimate, rounds, generator, signals):
            return False
    if processes > 1:
        total: Any = accelerator.reduce({k: v.to(accelerator.device) for k, v in sums.state_dict().items()})
        sums.load_state_dict(total)
    if accelerator.is_main_process:
        _write(out, sums, pretrained, task, list(data), settings)
    accelerator.wait_for_everyone()
    partial_estimate.path.unlink(missing_ok=True)
    accelerator.end_training()
    return True


def _sum_up(
    sums: FisherSum, partial_estimate: PartialEstimate, rounds: SinglePass, generator: torch.Generator,
    signals: StopSignals,
) -> bool:  # fmt: skip
    """Add the rounds that the partial estimate lacks; return False if a signal stopped it before the last."""
    main, total = rounds.accelerator.is_main_process, rounds.images
    begun = partial_estimate.load(sums)
    with progress("Fisher information", total, "images") if main else nullcontext(lambda done: None) as advance:
        rounds_done, images, saved = begun, rounds.images_of(begun), time.monotonic()
        advance(images)
        try:
            for number, batch in rounds.batches(begun):
                seed = np.random.SeedSequence([rounds.seed, number]).generate_state(1)[0]
                generator.manual_seed(int(seed))  # depends on the batch only, not on the process or a restart
                sums.add(batch)
                rounds_done += 1
                images = rounds.images_of(rounds_done)
                advance(images)
                if signals.received() and images < total:
                    _LOG.warning("stopped after %d of %d images", images, total)
                    return False
                if time.monotonic() - saved > _SAVE_EVERY:
                    partial_estimate.save(sums, rounds_done)
                    saved = time.monotonic()
        finally:  # also when stopped, or when a sample cannot be read
            if rounds_done > begun and images < total:
                partial_estimate.save(sums, rounds_done)
    return True


def _require_place(out: Path, overwrite: bool) -> None:
    """Check that `out` can be written, before the estimate starts."""
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder; give a file, such as --out runs/fisher.safetensors")
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists already; add --overwrite, or choose another --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"--out {out} cannot be written: {error.strerror}") from error
    if not os.access(out.parent, os.W_OK):
        raise OSError(f"--out {out} cannot be written: permission denied")


def _task(experiment: AnyExperiment) -> str:
    wanted = [name for name in _OUTPUT_AND_LABEL if getattr(experiment.tasks, name) is not None]
    if not wanted:
        said = "tasks: Fisher information needs a task that predicts classes"
        raise ConfigError(f"{said}; add segmentation or classification")
    if len(wanted) > 1:
        raise ConfigError(f"tasks: Fisher information is estimated for one task; set tasks.{wanted[1]}=null")
    return wanted[0]


def _data(experiment: AnyExperiment, opened: Mapping[str, Examples], task: str) -> dict[str, Examples]:
    names, label = experiment.train.entries, _OUTPUT_AND_LABEL[task][1]
    found = {name: opened[name] for name in names if label in first_sample(opened[name])}
    if not found:
        raise ConfigError(f"data: none of {', '.join(names)} has a {label}, which {task} needs; add a data set with it")
    return align_classes(experiment, found)


@torch.no_grad()
def _passes(pretrained: PretrainedNetwork, examples: Examples, task: str, device: torch.device) -> int:
    """Return the number of backward passes per image in mode `exact`: classes times pixels."""
    batch = to_device(collate([first_sample(examples)]), device, channels_last=False)
    with evaluating(pretrained.model):
        outputs = pretrained.model(batch["frame"], batch.get("next_frame"))
    if (output := _OUTPUT_AND_LABEL[task][0]) in outputs:
        return outputs[output][0].numel()
    found = ", ".join(outputs)
    raise ConfigError(f"tasks.{task}: this network returns {found}, but not {output}; choose another task or model")


def _settled(settings: Settings, task: str, examples: int, passes: int) -> Settings:
    """Fill in the defaults that depend on the experiment."""
    if settings.mode == "exact" and passes > MOST_PASSES:
        raise ConfigError(
            f"--mode exact needs {passes:,} backward passes for each image, one for each class of each pixel; use "
            "--mode sampled, which approximates it, or smaller images"
        )
    mode: Labels = settings.mode or ("exact" if task == "classification" else "sampled")
    if mode != "sampled" and settings.draws != 1:
        raise ConfigError(f"--draws {settings.draws} needs --mode sampled; --mode {mode} draws no labels")
    return settings._replace(mode=mode, examples=min(settings.examples, examples))


def _sum(pretrained: PretrainedNetwork, task: str, settings: Settings, generator: torch.Generator) -> FisherSum:
    output, label = _OUTPUT_AND_LABEL[task]
    assert settings.mode is not None
    return FisherSum(
        pretrained.model,
        labels=settings.mode,
        draws=settings.draws,
        names=pretrained.anchors,
        inputs=lambda batch: (batch["frame"], batch.get("next_frame")),
        logits=lambda outputs: outputs[output],
        targets=lambda batch: batch.get(label),
        ignore=IGNORE,
        chunk=settings.chunk,
        generator=generator,
    )


def _described(
    experiment: AnyExperiment, settings: Settings, pretrained: PretrainedNetwork, task: str, images: Mapping[str, int]
) -> dict[str, Any]:
    """Return everything the sums depend on, including the order of the data: images are numbered across all entries."""
    read = {"task": task, "data": list(images), "images": list(images.values())}
    read |= {f"data.{name}": experiment.data[name].model_dump(mode="json") for name in images}
    chosen = {name: value for name, value in settings._asdict().items() if name != "chunk"}
    return {**read, **chosen, "network": fingerprint(pretrained.model.state_dict())}


def _write(
    out: Path, sums: FisherSum, pretrained: PretrainedNetwork, task: str, data: Sequence[str], settings: Settings
) -> None:
    fisher = sums.fisher()
    draws = f", {settings.draws} draw{'s' if settings.draws > 1 else ''}" if settings.mode == "sampled" else ""
    notes = {
        "labels": f"{settings.mode}{draws}",
        "samples": str(sums.samples),
        "observations": str(sums.observations),
        "normalization": "divided by the mean over all entries",
        "task": task,
        "data": ", ".join(data),
        "seed": str(settings.seed),
    }
    save_fisher(out, fisher, anchors=pretrained.anchors, **notes)
    _LOG.info("%s: %s", out, "; ".join(f"{key} {value}" for key, value in notes.items()))
    if zeros := [name for name, value in fisher.items() if not bool(value.any())]:
        said = "%d of %d weights, the first %s, do not affect the predictions: with a Fisher information of 0 they "
        _LOG.warning(said + "would not be regularized", len(zeros), len(fisher), zeros[0])
