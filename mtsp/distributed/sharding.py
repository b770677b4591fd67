"""Weights that FSDP2 spreads over the processes: gather them to save, scatter them to load."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def is_sharded(model: nn.Module) -> bool:
    """Return whether the weights are spread over the processes (FSDP2): all of them must then gather and run it."""
    return any(hasattr(weight, "device_mesh") for weight in model.parameters())


def full_states(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the whole state of network and optimizer. Call it on every process: sharded weights are gathered."""
    if not is_sharded(model):
        return model.state_dict(), optimizer.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_state_dict(model, optimizer, options=options)  # pyright: ignore[reportReturnType]


def load_full_states(
    model: nn.Module, optimizer: torch.optim.Optimizer, weights: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    """Give network and optimizer what :func:`full_states` returned. Raises what their `load_state_dict` raises."""
    if not is_sharded(model):
        model.load_state_dict(weights)
        optimizer.load_state_dict(dict(state))
        return
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    set_model_state_dict(model, dict(weights), options=StateDictOptions(full_state_dict=True))
    # A branch that has not learned yet has no optimizer state.
    loose = StateDictOptions(full_state_dict=True, strict=False)
    set_optimizer_state_dict(model, optimizer, dict(state), options=loose)
