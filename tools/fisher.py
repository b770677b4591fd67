"""Estimate the Fisher information of an experiment's pretrained weights: how much each matters to the predictions.

    python tools/fisher.py --config cub_small.yaml --out runs/fisher.safetensors [key=value ...]
    accelerate launch tools/train.py --config cub_small.yaml \\
      regularizer='{name: l2spfisher, fisher: runs/fisher.safetensors, alpha: 0.1, beta: 0.01}'

It is taken as the experiment starts: at its pretrained weights, on its own training images as training draws them,
through its own head. The paper (section 3) takes the source's images and the source's head: for that, give a config
of the source task whose branch begins with the same weights. Through a head that is new, F tells how much a weight
moves features, not which classes hang on them; a head that was trained before, the rest frozen, tells that.

Stopped, it goes on by the same command; several processes share the images.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from accelerate import Accelerator

from mtsp.anchors import fingerprint
from mtsp.batches import collate, evaluating, to_device
from mtsp.config import ConfigError
from mtsp.distributed.accelerator import make_accelerator
from mtsp.files.progress import progress
from mtsp.fisher.estimate import FisherSum, save_fisher
from mtsp.fisher.inputs import Labels
from mtsp.fisher.partial import KeptSum
from mtsp.training.checks import require_classes
from mtsp.training.signals import StopSignals
from mtsp.training.single_pass import Concatenated, Rounds
from mtsp.training.state import PretrainedNetwork
from mtsp.types import IGNORE, Examples
from tools.build import AnyExperiment, at_least_one, build_network, read_experiment, run_or_say_why

MOST_PASSES = 100_000
"""Backward passes for one image that `exact` may take: days, on any machine, are a mistake."""

_SAVE_EVERY = 30.0  # seconds
_SEEN = {"segmentation": ("mask_logits", "mask"), "classification": ("label_logits", "label")}
"""What a task with classes is seen by: an output and a label."""
_LOG = logging.getLogger("mtsp")


class Settings(NamedTuple):
    """What the command line says of the estimate."""

    mode: Labels | None = None
    """None: exact for classes of images, sampled for those of pixels."""
    examples: int = 1000
    draws: int = 1
    seed: int = 0
    batch: int = 8
    """Images that are read together."""
    chunk: int = 16
    """Gradients that are held at once."""


def estimate(experiment: AnyExperiment, out: Path, settings: Settings, *, overwrite: bool = False) -> bool:
    """Estimate and write `out`; return whether it is done, False if a signal stopped it.

    Args:
        experiment: whose weights, training data and task it is of.
        out: the file. Beside it lie the sums, `.part`, while it is not done.
        settings: how many images, and what of their labels.
        overwrite: a file that is there already.

    Raises:
        ValueError, OSError: what a person can mend, in one line.
    """
    _require_place(out, overwrite)
    task = _task(experiment)
    accelerator = make_accelerator("fp32")
    with accelerator.main_process_first():  # one process downloads, the others find the file
        pretrained = build_network(experiment)
    if not pretrained.anchors:
        raise ConfigError("branches: none has pretrained `weights`, so there is nothing to estimate")
    data = _data(experiment, task)
    examples = Concatenated(list(data.values()))
    pretrained.model.to(accelerator.device)
    settings = _settled(settings, task, len(examples), _passes(pretrained, examples, task, accelerator.device))
    rounds = Rounds(
        examples, accelerator, settings.examples, settings.batch, settings.seed, workers=experiment.train.workers
    )
    generator = torch.Generator(accelerator.device)
    sums = _sum(pretrained, task, settings, generator)
    described = _described(experiment, settings, pretrained, task, {name: len(one) for name, one in data.items()})
    kept = KeptSum(_part(out, accelerator), described)
    with StopSignals() as signals:
        if not _sum_up(sums, kept, rounds, generator, signals):
            return False
    if accelerator.num_processes > 1:
        total: Any = accelerator.reduce({k: v.to(accelerator.device) for k, v in sums.state_dict().items()})
        sums.load_state_dict(total)
    if accelerator.is_main_process:
        _write(out, sums, pretrained, task, list(data), settings)
    accelerator.wait_for_everyone()
    kept.path.unlink(missing_ok=True)
    accelerator.end_training()
    return True


def _sum_up(sums: FisherSum, kept: KeptSum, rounds: Rounds, generator: torch.Generator, signals: StopSignals) -> bool:
    """Add all that is not kept from a run before; return whether it is done."""
    main, total = rounds.accelerator.is_main_process, rounds.images
    begun = kept.load(sums)
    with progress("Fisher information", total, "images") if main else nullcontext(lambda done: None) as advance:
        advance(rounds.images_of(begun))
        rounds_done, saved = begun, time.monotonic()
        try:
            for number, batch in rounds.batches(begun):
                seed = np.random.SeedSequence([rounds.seed, number]).generate_state(1)[0]
                generator.manual_seed(int(seed))  # of the batch, wherever and whenever it is computed
                sums.add(batch)
                rounds_done += 1
                images = rounds.images_of(rounds_done)
                advance(images)
                if signals.received() and images < total:
                    kept.save(sums, rounds_done)
                    _LOG.warning("stopped after %d of %d images", images, total)
                    return False
                if time.monotonic() - saved > _SAVE_EVERY:
                    kept.save(sums, rounds_done)
                    saved = time.monotonic()
        except Exception:
            if rounds_done > begun:
                kept.save(sums, rounds_done)
            raise
    return True


def _require_place(out: Path, overwrite: bool) -> None:
    """Refuse what cannot be written to, before any work."""
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder; give a file, as in --out runs/fisher.safetensors")
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} is there already; add --overwrite, or choose another --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"--out {out} cannot be written: {error.strerror}") from error
    if not os.access(out.parent, os.W_OK):
        raise OSError(f"--out {out} cannot be written: permission denied")


def _task(experiment: AnyExperiment) -> str:
    """The task whose predictions are looked at."""
    wanted = [name for name in _SEEN if getattr(experiment.tasks, name) is not None]
    if not wanted:
        raise ConfigError("tasks: Fisher information needs predicted classes, of segmentation or classification")
    if len(wanted) > 1:
        raise ConfigError(f"tasks: Fisher information is of one task's predictions; set tasks.{wanted[1]}=null")
    return wanted[0]


def _data(experiment: AnyExperiment, task: str) -> dict[str, Examples]:
    """The data that the task is trained on."""
    names = dict.fromkeys(name for stage in experiment.train.stages for name in stage.batch_size)
    built = {name: experiment.data[name].build() for name in names}
    label = _SEEN[task][1]
    found = {
        name: examples
        for name, examples in built.items()
        if label in examples.train_sample(0, np.random.default_rng(0))
    }
    if not found:
        raise ConfigError(f"data: none of {', '.join(names)} has a {label}, which {task} is trained on")
    require_classes(experiment, found)
    return found


@torch.no_grad()
def _passes(pretrained: PretrainedNetwork, examples: Examples, task: str, device: torch.device) -> int:
    """Backward passes that exact labels of one image take: classes times pixels.

    Raises:
        ConfigError: the network does not give what the task is seen by.
    """
    batch = to_device(collate([examples.train_sample(0, np.random.default_rng(0))]), device, channels_last=False)
    with evaluating(pretrained.model):
        outputs = pretrained.model(batch["frame"], batch.get("next_frame"))
    output = _SEEN[task][0]
    if output not in outputs:
        raise ConfigError(f"tasks.{task}: this network gives {', '.join(outputs)}, and no {output}")
    return outputs[output][0].numel()


def _settled(settings: Settings, task: str, examples: int, passes: int) -> Settings:
    """The settings with what they leave to the experiment."""
    if settings.mode == "exact" and passes > MOST_PASSES:
        raise ConfigError(
            f"--mode exact takes {passes:,} backward passes for each image, one for each class of each pixel; use "
            "--mode sampled, which estimates the same, or smaller images"
        )
    mode: Labels = settings.mode or ("exact" if task == "classification" else "sampled")
    if mode != "sampled" and settings.draws != 1:
        raise ConfigError(f"--draws {settings.draws}: of sampled labels; --mode {mode} draws none")
    return settings._replace(mode=mode, examples=min(settings.examples, examples))


def _sum(pretrained: PretrainedNetwork, task: str, settings: Settings, generator: torch.Generator) -> FisherSum:
    output, label = _SEEN[task]
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


def _part(out: Path, accelerator: Accelerator) -> Path:
    """Each process keeps its own sums: nothing is sent about before the end."""
    alone = accelerator.num_processes == 1
    share = "" if alone else f"-{accelerator.process_index + 1}-of-{accelerator.num_processes}"
    return out.with_name(f"{out.name}{share}.part")


def _described(
    experiment: AnyExperiment, settings: Settings, pretrained: PretrainedNetwork, task: str, images: Mapping[str, int]
) -> dict[str, Any]:
    """What the sums depend on, the order of the data included: images are numbered over all of it."""
    chosen = settings._asdict()
    del chosen["chunk"]
    sections = {f"data.{name}": experiment.data[name].model_dump(mode="json") for name in images}
    read = {"task": task, "data": list(images), "images": list(images.values())}
    return {**read, **sections, **chosen, "network": fingerprint(pretrained.model.state_dict())}


def _write(
    out: Path, sums: FisherSum, pretrained: PretrainedNetwork, task: str, data: Sequence[str], settings: Settings
) -> None:
    fisher = sums.fisher()
    notes = {
        "labels": f"{settings.mode}, {settings.draws} draw{'s' if settings.draws > 1 else ''}"
        if settings.mode == "sampled"
        else str(settings.mode),
        "samples": str(sums.samples),
        "observations": str(sums.observations),
        "normalization": "divided by the mean over all entries",
        "task": task,
        "data": ", ".join(data),
        "seed": str(settings.seed),
    }
    save_fisher(out, fisher, anchors=pretrained.anchors, **notes)
    _LOG.info("%s: %s", out, "; ".join(f"{key} {value}" for key, value in notes.items()))
    if nothing := [name for name, value in fisher.items() if not bool(value.any())]:
        _LOG.warning(
            "%d of %d weights, the first %s, do not change what is predicted: their Fisher information is 0, and "
            "nothing would hold them",
            len(nothing),
            len(fisher),
            nothing[0],
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and estimate; return 130 if a signal stopped it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a YAML file, looked for in configs/ if no folder is named")
    parser.add_argument("--out", type=Path, required=True, metavar="F", help="the .safetensors file to write")
    parser.add_argument(
        "--mode",
        choices=get_args(Labels),
        help="labels: exact, the expectation over all classes; sampled, drawn from the predictions, an estimate of it; "
        "empirical, the data's own, another quantity (default: exact for images, sampled for pixels)",
    )
    parser.add_argument(
        "--examples", type=at_least_one, default=1000, metavar="N", help="default: 1000, or all there are"
    )
    parser.add_argument("--draws", type=at_least_one, default=1, metavar="N", help="sampled labels of a image")
    parser.add_argument("--seed", type=int, default=0, help="of the images and of sampled labels")
    parser.add_argument("--batch", type=at_least_one, default=8, metavar="N", help="images at a time, of one size")
    parser.add_argument("--chunk", type=at_least_one, default=16, metavar="N", help="gradients that are held at once")
    parser.add_argument("--overwrite", action="store_true", help="a file that is there already")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as in data.cub.dataset.root=DIR")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    if int(os.environ.get("RANK", "0")) == 0:
        _LOG.setLevel(logging.INFO)
    if options.seed < 0:
        raise ConfigError(f"--seed must be from 0 up, got {options.seed}")
    settings = Settings(options.mode, options.examples, options.draws, options.seed, options.batch, options.chunk)
    experiment = read_experiment(options.config, options.overrides)
    if estimate(experiment, options.out, settings, overwrite=options.overwrite):
        return 0
    print("the same command goes on from here", file=sys.stderr)
    return 130


if __name__ == "__main__":
    sys.exit(run_or_say_why(partial(main)))
