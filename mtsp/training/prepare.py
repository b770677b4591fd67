"""Prepare network, optimizer, averaged weights and source task of a run, on its device and for its processes."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from accelerate import Accelerator

from mtsp.batches import in_channels_last
from mtsp.config import ConfigError
from mtsp.cost.recompute import recompute_blocks
from mtsp.distributed.sharding import has_shards
from mtsp.distributed.sync_batchnorm import synchronize
from mtsp.evaluation.forgetting import SourceConfig, SourceTask, shared_tensors
from mtsp.task_weights import TaskWeights
from mtsp.training.checks.unused_weights import search_for_unused
from mtsp.training.ema import Ema
from mtsp.training.experiment import AnyExperiment
from mtsp.training.state import PretrainedNetwork, TrainingRun, TrainState
from mtsp.training.validate import evaluator
from mtsp.types import Examples

_LOG = logging.getLogger("mtsp")


def prepare(
    experiment: AnyExperiment, accelerator: Accelerator, pretrained: PretrainedNetwork, data: Mapping[str, Examples]
) -> TrainState:
    """Build the optimizer, and have Accelerate place and wrap network and optimizer."""
    model = in_channels_last(pretrained.model, experiment.train.channels_last)
    if accelerator.num_processes > 1:
        search_for_unused(experiment, accelerator, model, data)
        model = synchronize(model, accelerator.device)
    if experiment.train.checkpoint_activations:
        _LOG.info("the activations of %d blocks are computed anew in the backward pass", recompute_blocks(model))
    if experiment.train.compile:
        model.compile()
    model, optimizer = accelerator.prepare(model, experiment.build_optimizer(model, pretrained.anchors))
    branches, learned = experiment.branches, experiment.train.task_weights
    return TrainState(
        accelerator,
        model,
        optimizer,
        experiment.tasks,
        tuple(branches),
        frozen=tuple(prefix for prefix, frozen in experiment.frozen.items() if frozen),
        modules=tuple(prefix for prefix in experiment.prefixes if "." in prefix),
        frozen_norm=tuple(name for name, branch in branches.items() if branch.freeze_norm),
        channels_last=experiment.train.channels_last,
        task_weights=None if learned is None else TaskWeights(experiment.tasks, learned),
    )


def averaged_weights(experiment: AnyExperiment, state: TrainState) -> Ema | None:
    """Return the running average of the weights, or None if the run keeps none.

    Raises:
        ConfigError: the weights are sharded.
    """
    if experiment.train.ema is None:
        return None
    model = state.accelerator.unwrap_model(state.model)
    if has_shards(model):
        raise ConfigError("train.ema: weights sharded by FSDP cannot be averaged; leave it out, or use DDP")
    return Ema(model, experiment.train.ema)


def source_task(
    run: TrainingRun,
    source: SourceConfig[Any],
    examples: Examples,
    build_network: Callable[[AnyExperiment, Sequence[str]], PretrainedNetwork],
) -> SourceTask:
    """Build the network of the source task and measure it before fine-tuning.

    Raises:
        ConfigError: the weights are sharded.
    """
    experiment, accelerator = run.experiment, run.state.accelerator
    if has_shards(run.network):
        raise ConfigError("evaluation.source: weights sharded by FSDP are not measured; leave it out, or use DDP")
    network = build_network(experiment.source_experiment(), ()).model.to(accelerator.device)
    network = in_channels_last(network, experiment.train.channels_last)
    return SourceTask(
        source,
        network,
        examples,
        shared=shared_tensors(source, run.network, network, tuple(experiment.branches)),
        evaluate=evaluator(run),
        measure_start=experiment.evaluation.at_start,
    )
