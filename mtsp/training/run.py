"""Run an experiment: build its parts in the order data flows through them, train, validate, and write the results."""

import logging
import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from mtsp.distributed.accelerator import make_accelerator, other_processes_may_fail
from mtsp.evaluation.evaluate import Evaluation, EvaluationStopped, describe
from mtsp.files.atomic_file import write_atomically
from mtsp.files.lock import locked
from mtsp.files.progress import training_progress
from mtsp.regularizers import Regularizer
from mtsp.tracking.tracker import Tracker
from mtsp.training.checkpoint.atomic_save import set_aside_after
from mtsp.training.checkpoint.resume import checkpoint_to_resume, require_same_fisher, restore
from mtsp.training.checkpoint.saver import Saver
from mtsp.training.checks.classes import align_classes, with_classes
from mtsp.training.checks.frame_sizes import require_whole_images, try_sizes
from mtsp.training.checks.missing_files import missing_fisher, open_data
from mtsp.training.checks.samples import check_samples
from mtsp.training.experiment import AnyExperiment, as_yaml
from mtsp.training.loop import train
from mtsp.training.prepare import averaged_weights, prepare, source_task
from mtsp.training.results import write_results
from mtsp.training.sample_stream import Shard, micro_batches
from mtsp.training.signals import StopSignals
from mtsp.training.state import PretrainedNetwork, Requests, StepResult, TrainingRun, learned_classes
from mtsp.training.step_log import is_logged, log_step, warn_of_spike
from mtsp.training.summary import print_summary
from mtsp.training.validate import validate, validation_due
from mtsp.types import Batch

_LOG = logging.getLogger("mtsp")


def run_experiment(
    experiment: AnyExperiment,
    run_dir: Path,
    *,
    build_network: Callable[[AnyExperiment, Sequence[str]], PretrainedNetwork],
    missing_weights: Callable[[AnyExperiment], Sequence[str]] = lambda experiment: (),
    resume: str | None = None,
) -> dict[str, dict[str, float]] | None:
    """Train an experiment from the start or from a checkpoint, and write all results to `run_dir`.

    Args:
        experiment: the resolved config.
        run_dir: folder for the results; created if it does not exist.
        build_network: takes the experiment and the names of its classes; returns the network with its pretrained
            weights, and may download them.
        missing_weights: returns a line for each file of weights that is missing or cannot be downloaded. These and all
            missing files of data are told at once, before anything is downloaded, built or decoded.
        resume: None starts a new run; `auto` continues from the newest complete checkpoint, or starts a new run if
            there is none; `must` is an error if there is none; any other string is the path of a checkpoint to
            continue from.

    Returns:
        Metrics of the final weights by data entry, or None if a signal stopped the run, which is then saved.

    Raises:
        ValueError, OSError, FloatingPointError: with a message that says how to fix it.
    """
    accelerator = make_accelerator(experiment.train.precision, experiment.train.timeout)
    main, lock = accelerator.is_main_process, locked(run_dir)
    with lock if main else nullcontext(), other_processes_may_fail(accelerator), StopSignals() as signals:
        saved = checkpoint_to_resume(accelerator, run_dir, resume)
        used = {*experiment.evaluation.data, *experiment.train.entries}
        source = experiment.evaluation.source
        missing = [*missing_weights(experiment), *missing_fisher(experiment)]
        missing += [] if source is None else missing_weights(experiment.source_experiment())
        opened = open_data(experiment, used | ({source.data} if source else set()), list(dict.fromkeys(missing)))
        experiment = with_classes(experiment, {name: opened[name] for name in opened if name in used})
        data = align_classes(experiment, {name: opened[name] for name in opened if name in used})
        with accelerator.main_process_first():  # one process downloads, the others find the file
            pretrained = build_network(experiment, learned_classes(data))
        require_whole_images(experiment, {name: experiment.data[name] for name in experiment.evaluation.data})
        try_sizes(experiment, pretrained.model, data)
        state = prepare(experiment, accelerator, pretrained, data)
        ema = averaged_weights(experiment, state)
        run = TrainingRun(experiment, run_dir, state, pretrained, data, ema=ema, stop=signals.received)
        if source is not None:
            run.source = source_task(run, source, opened[source.data], build_network)
        run.fingerprints = check_samples(experiment, data)
        if saved is not None:
            restore(run, saved)
        run.regularizer = _attach_regularizer(run)
        if saved is not None:
            require_same_fisher(run, saved)
        if main:
            write_atomically(run_dir / "experiment.yaml", as_yaml(experiment).encode())
            if saved is not None and resume not in ("auto", "must"):  # these pass over damaged checkpoints alone
                set_aside_after(run_dir / "checkpoints", run.position.step)
            print_summary(run)
            tracked = None if saved is None else saved.state["tracker"]
            values = experiment.model_dump(mode="json")
            again = tuple(f"{name}/" for name in experiment.evaluation.data) if validation_due(run) else ()
            run.tracker = Tracker.open(experiment.tracking, run_dir, values, experiment.name, tracked, again)
        try:
            validation = _train(run)
            results = None if validation is None else write_results(run, validation)
        finally:
            run.tracker.close()
        accelerator.wait_for_everyone()  # without it, gloo aborts some runs while the group is torn down
        accelerator.end_training()
    return results


def _attach_regularizer(run: TrainingRun) -> Regularizer | None:
    """Attach the regularizer. Restore a checkpoint before: loading may make torch step a sharded optimizer."""
    regularizer = run.experiment.build_regularizer(run.network, run.pretrained.anchors)
    if regularizer is not None:
        regularizer.attach(run.state.optimizer)
    return regularizer


def _train(run: TrainingRun) -> dict[str, Evaluation] | None:
    """Train to the end; return the last validation, or None if a signal stopped the run, which is then saved."""
    config, position = run.experiment.train, run.position
    with Saver(run) as saver:
        try:
            if validation_due(run):  # before the first step, or if the run stopped between a step and its validation
                validate(run)
            run.meter.restart()
            with training_progress(run.state.accelerator.is_main_process, config.steps, position.step) as advance:
                stopped = train(
                    run.state,
                    position,
                    config,
                    run.experiment.schedule,
                    seed=run.experiment.seed,
                    open_stream=partial(_open_stream, run),
                    requests=lambda: Requests(run.stop(), saver.asks()),
                    before_step=partial(_before_step, run),
                    after_step=partial(_after_step, run, saver, advance),
                )
            if run.validation is None and not stopped:  # resumed at its last step: the curves already have it
                run.tracker.close()
                run.tracker = Tracker.silent()
                validate(run)
        except EvaluationStopped:
            stopped = True
            saver.save()
    if not stopped:
        return run.validation
    _LOG.warning("stopped and saved at step %d of %d; continue with --resume auto", position.step, config.steps)
    return None


def _open_stream(run: TrainingRun, name: str, size: int, first: int) -> Generator[Batch, None, None]:
    """Yield this process's micro-batches of a data entry, in global batches of `size`, starting at batch `first`."""
    accelerator, config = run.state.accelerator, run.experiment.train
    return micro_batches(
        run.data[name],
        batch_size=size,
        start=first,
        seed=(run.experiment.seed, zlib.crc32(name.encode())),
        shard=Shard(accelerator.process_index, accelerator.num_processes, config.accumulate),
        collate=run.experiment.tasks.collate,
        workers=config.worker_count(),
        pin_memory=accelerator.device.type == "cuda",
        channels_last=run.state.channels_last,
        timeout=config.timeout,
    )


def _before_step(run: TrainingRun) -> None:
    """Measure pull and gradient only in logged steps, so that a resumed run measures them in the same steps."""
    if run.regularizer is not None and is_logged(run, run.position.step + 1):
        run.regularizer.measure_next()


def _after_step(
    run: TrainingRun,
    saver: Saver,
    advance: Callable[[int, str], None],
    result: StepResult,
    rates: Mapping[str, float],
) -> None:
    """Update the averages, and log, save and validate in steps where these are due."""
    config, step = run.experiment.train, run.position.step
    if run.ema is not None:
        run.ema.update(run.network)
    run.meter.add(result)
    advance(step, describe(result.losses))
    if is_logged(run, step):
        log_step(run, rates)
    warn_of_spike(run, saver, result)
    saver.check()
    validates = validation_due(run) and not result.requests.stop  # after a signal there may be no time for it
    asked = any(result.requests) or step == config.steps
    if asked or saver.due() or (validates and config.keep_best is not None):
        saver.save()  # before validation, so that neither an error in it nor its end loses steps
        run.meter.restart()
    if validates:
        validate(run)
        run.meter.restart()
