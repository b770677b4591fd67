"""Find the weights that a training step leaves without a gradient, before the first step."""

import logging
from collections.abc import Mapping

from accelerate import Accelerator
from torch import nn

from mtsp.batches import first_sample, frame_shapes
from mtsp.cost.dry_run import reached
from mtsp.training.experiment import AnyExperiment
from mtsp.types import Examples

_LOG = logging.getLogger("mtsp")


def search_for_unused(
    experiment: AnyExperiment, accelerator: Accelerator, network: nn.Module, data: Mapping[str, Examples]
) -> None:
    """Let DistributedDataParallel search for weights without a gradient only if some stage has any.

    It exchanges gradients in the last backward pass of a step and waits for every weight's gradient, unless it searches
    for weights without one, which costs time in every step. Call this before Accelerate prepares the network.
    """
    stage = leaves_weights_unused(experiment, network, data)
    assert accelerator.ddp_handler is not None
    accelerator.ddp_handler.find_unused_parameters = stage is not None
    if accelerator.is_main_process and stage is not None:
        _LOG.info("every step searches for weights without a gradient, since there are some (%s)", stage)


def leaves_weights_unused(experiment: AnyExperiment, network: nn.Module, data: Mapping[str, Examples]) -> str | None:
    """Return what is learned in a stage whose last backward pass misses trainable weights, or None if none does.

    The backward pass runs on tensors without contents.
    """
    if frozen := [prefix for prefix, frozen in experiment.frozen.items() if frozen]:
        return f"frozen {', '.join(frozen)}"
    trainable = {name for name, weight in network.named_parameters() if weight.requires_grad}
    for stage in experiment.train.stages:
        if stage.learn is not None:
            return f"learn: {', '.join(stage.learn)}"
        sample = first_sample(data[list(stage.batch_size)[-1]])
        if reached(network, frame_shapes(sample, 2), experiment.tasks.outputs(sample), sorted(trainable)) != trainable:
            return f"{', '.join(stage.batch_size)}"
    return None
