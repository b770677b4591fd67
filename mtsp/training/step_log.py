"""Log the steps of a run: losses, learning rates and pulls, and a warning when the loss suddenly grows."""

import logging
import math
from collections.abc import Mapping

from accelerate.utils import gather_object

from mtsp.training.checkpoint.saver import Saver
from mtsp.training.experiment import stage_at
from mtsp.training.state import StepResult, TrainingRun

_LOG = logging.getLogger("mtsp")


def is_logged(run: TrainingRun, step: int) -> bool:
    """Return whether a step is one of those that are logged."""
    return step % run.experiment.tracking.log_every == 0 or step == run.experiment.train.steps


def log_step(run: TrainingRun, rates: Mapping[str, float]) -> None:
    """Log averages since the last log, learning rates, and what the regularizer reports. Call it on all processes."""
    values = {f"train/{name}": value for name, value in run.meter.take().items()}
    values |= {f"lr/{branch}": rate for branch, rate in rates.items()}
    if run.state.task_weights is not None:
        values |= {f"task_weight/{task}": weight for task, weight in run.state.task_weights.by_task().items()}
    if run.regularizer is not None:  # on every process, because this gathers sharded weights
        values["penalty"] = run.regularizer.penalty()
        for branch, report in run.regularizer.report(run.state.branches).items():
            numbers = report._asdict().items()
            values |= {f"{name}/{branch}": value for name, value in numbers if math.isfinite(value)}
    run.tracker.log(run.position.step, values)


def warn_of_spike(run: TrainingRun, saver: Saver, result: StepResult) -> None:
    """Warn if the loss is suddenly many times larger, and keep the checkpoint before that. Call it on all processes."""
    step, stages, loss = run.position.step, run.experiment.train.stages, result.losses["loss"]
    before = run.spikes.add(str(stages.index(stage_at(stages, step - 1))), loss)
    if before is None:
        return
    names = gather_object(list(result.names)) if run.state.accelerator.num_processes > 1 else result.names
    kept = saver.keep_before(step)
    checkpoint = "there is no checkpoint before" if kept is None else f"the checkpoint of step {kept} is kept"
    samples = ", ".join(names[:8])
    _LOG.warning("LOSS SPIKE at step %d: %.4g, before at most %.4g; %s; %s", step, loss, before, samples, checkpoint)
