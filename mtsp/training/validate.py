"""Validate a run in progress: metrics of every entry of `evaluation.data`, and a few figures."""

import logging
from collections.abc import Sequence
from functools import partial

import numpy as np

from mtsp.evaluation.evaluate import describe, evaluate
from mtsp.figures.panels import panel
from mtsp.training.state import TrainingRun
from mtsp.types import Batch, Outputs

_LOG = logging.getLogger("mtsp")
_HEADLINES = frozenset({"J_mean", "F_mean", "iou", "miou", "pixel_accuracy", "epe", "fl_all", "top1", "top5"})


def validation_due(run: TrainingRun) -> bool:
    """Return whether the network should be validated at this step, and has not been yet."""
    step, config = run.position.step, run.experiment.evaluation
    at_start = step == 0 and config.at_start
    regular = step > 0 and config.every is not None and step % config.every == 0
    return run.validated_at < step and (at_start or regular or step == run.experiment.train.steps)


def validate(run: TrainingRun) -> None:
    """Evaluate the network on every entry of `evaluation.data`; log the metrics and a few figures."""
    accelerator, step = run.state.accelerator, run.position.step
    run.validation, run.validated_at = {}, step
    for name in run.experiment.evaluation.data:
        examples = run.data[name]
        count = min(run.experiment.tracking.images, len(examples))
        wanted = [round((i + 0.5) * len(examples) / count - 0.5) for i in range(count)]
        shown: set[int] = {index - index % accelerator.num_processes for index in wanted}
        figures: dict[str, np.ndarray] = {}
        with run.ema_weights():
            run.validation[name] = evaluate(
                accelerator,
                run.state.model,
                examples,
                tta=run.experiment.evaluation.tta.build(),
                batch_size=run.experiment.evaluation.batch,
                workers=run.experiment.train.workers,
                channels_last=run.experiment.train.channels_last,
                after_example=partial(_draw, figures, shown, getattr(examples, "classes", ())),
            )
        values = {f"{name}/{k}": v for k, v in run.validation[name].values().items()}
        run.tracker.log(step, values)
        run.tracker.figures(step, {f"{name}/{k}": v for k, v in figures.items()})
        _LOG.info("step %d  %s", step, describe({k: v for k, v in values.items() if _headline(k)}))


def _draw(
    figures: dict[str, np.ndarray],
    shown: set[int],
    classes: Sequence[str],
    index: int,
    batch: Batch,
    outputs: Outputs,
) -> None:
    """Add a figure of sample `index` if it is one of `shown`."""
    if index in shown:
        nothing = 0 if len(classes) <= 2 or "background" in classes[0].lower() else None
        figures[f"{index:05d}"] = panel(batch, outputs, background=nothing, classes=classes)


def _headline(name: str) -> bool:
    return name.rpartition("/")[2] in _HEADLINES
