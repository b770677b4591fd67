"""Validate a run in progress: log metrics and a few figures of every entry of `evaluation.data`."""

import logging
from collections.abc import Sequence
from functools import partial

import numpy as np

from mtsp.config import ConfigError
from mtsp.evaluation.evaluate import Evaluation, describe, evaluate
from mtsp.figures.masks import background_class
from mtsp.figures.panels import panel
from mtsp.training.state import TrainingRun
from mtsp.types import Batch, Examples, Outputs

_LOG = logging.getLogger("mtsp")


def validation_due(run: TrainingRun) -> bool:
    """Return whether a validation is due at this step and has not been done yet."""
    step, config = run.position.step, run.experiment.evaluation
    at_start = step == 0 and config.at_start
    regular = step > 0 and config.every is not None and step % config.every == 0
    return run.validated_at < step and (at_start or regular or step == run.experiment.train.steps)


def validate(run: TrainingRun) -> None:
    """Evaluate the network on every entry of `evaluation.data`; log the metrics and a few figures.

    Raises:
        EvaluationStopped: a signal asked the run to stop.
        ConfigError: there is no metric of the name in `train.keep_best`.
    """
    accelerator, step = run.state.accelerator, run.position.step
    validation: dict[str, Evaluation] = {}
    for name in run.experiment.evaluation.data:
        examples = run.data[name]
        count = min(run.experiment.tracking.images, len(examples))
        wanted = [round((i + 0.5) * len(examples) / count - 0.5) for i in range(count)]
        shown: set[int] = {index - index % accelerator.num_processes for index in wanted}
        figures: dict[str, np.ndarray] = {}
        if step == 0 and accelerator.is_main_process:
            _LOG.info("evaluating %d examples of %s first; evaluation.at_start=false skips this", len(examples), name)
        with run.ema_weights():
            validation[name] = evaluate(
                accelerator,
                run.state.model,
                examples,
                tta=run.experiment.evaluation.tta.build(),
                batch_size=run.experiment.evaluation.batch,
                workers=run.experiment.train.worker_count(),
                channels_last=run.experiment.train.channels_last,
                after_example=partial(_draw, figures, shown, examples),
                stop=run.stop,
            )
        evaluation = validation[name]
        run.tracker.log(step, {f"{name}/{k}": v for k, v in evaluation.values().items()})
        run.tracker.figures(step, {f"{name}/{k}": v for k, v in figures.items()})
        _LOG.info("step %d  %s", step, describe({f"{name}/{k}": v for k, v in evaluation.headlines().items()}))
    run.validation, run.validated_at = validation, step
    if (best := run.experiment.train.keep_best) is not None:
        values = {f"{name}/{k}": v for name, evaluation in validation.items() for k, v in evaluation.values().items()}
        if best.metric not in values:
            raise ConfigError(
                f"train.keep_best.metric: no {best.metric} in this validation; it has {', '.join(values)}"
            )
        run.scores[step] = values[best.metric]


def _draw(
    figures: dict[str, np.ndarray], shown: set[int], examples: Examples, index: int, batch: Batch, outputs: Outputs
) -> None:
    """Add a figure of sample `index` if it is one of `shown`."""
    if index in shown:
        classes: Sequence[str] = getattr(examples, "classes", ())
        background = background_class(examples.kind, classes)
        figures[f"{index:05d}"] = panel(batch, outputs, background=background, classes=classes)
