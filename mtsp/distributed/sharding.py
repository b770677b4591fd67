"""Gather weights that FSDP2 shards over processes before saving, and scatter them after loading."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def has_shards(model: nn.Module) -> bool:
    """Return whether the weights are sharded by FSDP2. If so, all processes must gather or run forward together."""
    return any(hasattr(weight, "device_mesh") for weight in model.parameters())


def full_states(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the full states of network and optimizer. Call it on all processes: sharded weights are gathered."""
    if not has_shards(model):
        return model.state_dict(), optimizer.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_state_dict(model, optimizer, options=options)  # pyright: ignore[reportReturnType]


def load_full_states(
    model: nn.Module, optimizer: torch.optim.Optimizer, weights: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    """Load the states that :func:`full_states` returned. Raises the errors of `load_state_dict`."""
    if not has_shards(model):
        model.load_state_dict(weights)
        optimizer.load_state_dict(dict(state))
        return
    from torch.distributed.checkpoint import state_dict

    options = state_dict.StateDictOptions
    state_dict.set_model_state_dict(model, dict(weights), options=options(full_state_dict=True))
    # A branch that has not been trained yet has no optimizer state.
    loose = options(full_state_dict=True, strict=False)
    state_dict.set_optimizer_state_dict(model, optimizer, dict(state), options=loose)
