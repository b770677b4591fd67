"""Validate a run in progress: log metrics and figures of the entries of `evaluation.data`, and the source task."""

import logging
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from torch import nn

from mtsp.config import ConfigError
from mtsp.evaluation.classes import class_names
from mtsp.evaluation.corruptions import CORRUPTIONS, STRENGTHS, Corrupted
from mtsp.evaluation.evaluate import Evaluation, describe, evaluate
from mtsp.evaluation.forgetting import as_csv
from mtsp.figures.masks import background_class
from mtsp.figures.panels import panel
from mtsp.files.atomic_file import write_atomically
from mtsp.indices import evenly_spaced
from mtsp.training.experiment import SOURCE
from mtsp.training.state import TrainingRun
from mtsp.types import Batch, Examples, Outputs

_LOG = logging.getLogger("mtsp")
_LONGEST_NAME = 150  # of a sample, in the name of a figure's file


def validation_due(run: TrainingRun) -> bool:
    """Return whether a validation is due at this step and has not been done yet."""
    step, config = run.position.step, run.experiment.evaluation
    at_start = step == 0 and config.at_start
    regular = step > 0 and config.every is not None and step % config.every == 0
    return run.validated_at < step and (at_start or regular or step == run.experiment.train.steps)


def validate(run: TrainingRun) -> None:
    """Evaluate the network on every entry of `evaluation.data` and on the source task; log metrics and a few figures.

    At the end of the run, also evaluate on corrupted images and between start and end, if the config says so.

    Raises:
        EvaluationStopped: a signal asked the run to stop.
        ConfigError: there is no metric of the name in `train.keep_best`.
    """
    step, config = run.position.step, run.experiment.evaluation
    last = step == run.experiment.train.steps
    validation: dict[str, Evaluation] = {}
    for name in config.data:
        examples = run.data[name]
        wanted = evenly_spaced(len(examples), run.experiment.tracking.images, centered=True)
        processes = run.state.accelerator.num_processes
        shown: set[int] = {index - index % processes for index in wanted}
        if last:
            video = _first_video(examples, processes)
            shown |= {video[i] for i in evenly_spaced(len(video), run.experiment.tracking.frames, centered=True)}
        figures: dict[str, np.ndarray] = {}
        if step == 0 and run.state.accelerator.is_main_process:
            _LOG.info("evaluating %d examples of %s first; evaluation.at_start=false skips this", len(examples), name)
        with run.ema_weights():
            drawn = partial(_draw, figures, shown, examples)
            validation[name] = _evaluated(run, run.state.model, examples, after_example=drawn)
            if last and config.corruptions is not None and name in config.corruptions.data:
                validation[f"{name}_corrupted"] = _corrupted(run, examples, config.corruptions.limit)
        run.tracker.figures(step, {f"{name}/{k}": v for k, v in figures.items()})
    if run.source is not None:
        with run.ema_weights():
            validation[SOURCE] = (run.source.start if step == 0 else None) or run.source.measure(run.network)
            if last and run.source.config.fractions:
                _write_curve(run)
    for name, evaluation in validation.items():
        run.tracker.log(step, {f"{name}/{k}": v for k, v in evaluation.values().items()})
        _LOG.info("step %d  %s", step, describe({f"{name}/{k}": v for k, v in evaluation.headlines().items()}))
    run.validation, run.validated_at = validation, step
    if (best := run.experiment.train.keep_best) is not None:
        values = {f"{name}/{k}": v for name, evaluation in validation.items() for k, v in evaluation.values().items()}
        if best.metric not in values:
            raise ConfigError(
                f"train.keep_best.metric: no {best.metric} in this validation; it has {', '.join(values)}"
            )
        if step > 0:  # the start is no checkpoint
            run.scores[step] = values[best.metric]


def evaluator(run: TrainingRun) -> Callable[[nn.Module, Examples], Evaluation]:
    """Return a function that evaluates a network with the settings of the run."""
    return partial(_evaluated, run)


def _evaluated(
    run: TrainingRun,
    model: nn.Module,
    examples: Examples,
    after_example: Callable[[int, Batch, Outputs], None] = lambda index, batch, outputs: None,
) -> Evaluation:
    return evaluate(
        run.state.accelerator,
        model,
        examples,
        tta=run.experiment.evaluation.tta.build(),
        batch_size=run.experiment.evaluation.batch_size,
        workers=run.experiment.train.worker_count(),
        channels_last=run.experiment.train.channels_last,
        after_example=after_example,
        stop=run.stop,
    )


def _corrupted(run: TrainingRun, examples: Examples, limit: int | None) -> Evaluation:
    """Return the mean of each headline over all corruptions, and top-1 accuracy under each of them."""
    found = {
        f"{name}_{strength}": _evaluated(run, run.state.model, Corrupted(examples, name, strength, limit)).headlines()
        for name in CORRUPTIONS
        for strength in STRENGTHS
    }
    names = next(iter(found.values()))
    means = {key: float(np.mean([values[key] for values in found.values()])) for key in names}
    return Evaluation(derived=means | {f"{kind}_{key}": values[key] for kind, values in found.items() for key in names})


def _write_curve(run: TrainingRun) -> None:
    """Write the source task and the evaluated data along the way from the pretrained to the fine-tuned weights."""
    assert run.source is not None
    curve = {}
    for fraction, source in run.source.between(run.network, run.source.config.fractions):
        evaluations = {
            name: _evaluated(run, run.state.model, run.data[name]) for name in run.experiment.evaluation.data
        }
        named = {**evaluations, SOURCE: source}
        curve[fraction] = {f"{name}/{k}": v for name, one in named.items() for k, v in one.headlines().items()}
    if run.state.accelerator.is_main_process:
        write_atomically(run.folder / "forgetting.csv", as_csv(curve).encode())


def _first_video(examples: Examples, processes: int) -> list[int]:
    """Return the indices of the frames of the first video that the main process evaluates; none for other data."""
    if examples.kind != "video":
        return []
    videos = [name.rpartition("/")[0] for name in getattr(examples, "ids", ())]
    return [i for i in range(0, len(videos), processes) if videos[i] == videos[0]]


def _draw(
    figures: dict[str, np.ndarray], shown: set[int], examples: Examples, index: int, batch: Batch, outputs: Outputs
) -> None:
    """Add a figure of sample `index`, by the end of its name, if it is one of `shown`."""
    if index in shown:
        classes: Sequence[str] = class_names(examples)
        background = background_class(examples.kind, classes)
        figures[batch["name"][0][-_LONGEST_NAME:]] = panel(batch, outputs, background=background, classes=classes)
