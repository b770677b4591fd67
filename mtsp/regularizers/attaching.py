"""What must be so before a regularizer acts on an optimizer: once, on all it should, in numbers that mean something."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from mtsp.regularizers.buckets import Storage, is_sharded, local, placed
from mtsp.regularizers.penalties import Placement
from mtsp.regularizers.pulls import Pull


def innermost(optimizer: Any) -> Any:
    """Return the torch optimizer inside the wrappers of Accelerate or Lightning.

    Raises:
        ValueError: there is none.
    """
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"{type(optimizer).__name__} is not a torch.optim.Optimizer, so its step cannot be hooked")
    return optimizer


def refuse(optimizer: Any, names: Mapping[int, str], pulls: Mapping[str, Pull]) -> None:
    """Raise ValueError on what would regularize twice, or not at all, without a word.

    Args:
        optimizer: the innermost one.
        names: of the model's weights, by id.
        pulls: by name.
    """
    held = [
        (weight, group, pulls[names[id(weight)]])
        for group in optimizer.param_groups
        for weight in group["params"]
        if names.get(id(weight)) in pulls
    ]
    for _, group, _ in held:
        refuse_decay(group)
    if pulls and not held:
        raise ValueError("the optimizer holds none of the model's weights; give it model.parameters()")
    trained = [
        _equals(weight, pull.anchor)
        for weight, _, pull in held
        if pull.anchor is not None and _has_moved(optimizer.state.get(weight, {}))
    ]
    if trained and all(trained):
        raise ValueError(
            "every anchor equals a weight that this optimizer has trained already: they were captured too late, "
            "perhaps after a checkpoint was loaded; capture them from the pretrained weights, before"
        )


def refuse_decay(group: Mapping[str, Any]) -> None:
    """Raise ValueError if the optimizer itself decays the weights of this parameter group."""
    if group.get("weight_decay"):
        raise ValueError(
            f"the optimizer's weight_decay={group['weight_decay']} and this regularizer would both pull the same "
            "weights; set weight_decay=0 (beta pulls the new weights to zero)"
        )


def refuse_unlike_processes(fingerprint: str, weights: Iterable[Tensor]) -> None:
    """Raise ValueError if processes that each hold whole weights pull them to anchors that differ: they would part."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()) or any(is_sharded(w) for w in weights):
        return
    found: list[Any] = [None] * distributed.get_world_size()
    if len(found) > 1:
        distributed.all_gather_object(found, fingerprint)
        if len(set(found)) > 1:
            raise ValueError(
                "the anchors differ between the processes; load the same pretrained weights in all of them"
            )


def settle(
    optimizer: Any, names: Mapping[int, str], pulls: dict[str, Pull], place: Placement, *, anew: bool = True
) -> None:
    """Make numbers of paces (if not `anew`, of those that are none yet), and warn where 16 bits would swallow the pull.

    Raises:
        ValueError: a pace is asked of a pull that has none.
    """
    swallowed = []
    for group in optimizer.param_groups:
        lr = full_lr(group)
        for weight in group["params"]:
            name = names.get(id(weight), "")
            pull = pulls.get(name)
            if pull is None or not (anew or pull.strength != pull.strength):
                continue
            if pull.pace is not None:
                if not has_pace(optimizer, place):
                    raise ValueError(
                        f"{pull.pace} needs a decoupled or proximal pull: coupled through "
                        f"{type(optimizer).__name__} it depends on the gradients' size"
                    )
                strength = pull.pace.strength(lr / inertia(optimizer, group, place))
                pull = pulls[name] = pull._replace(strength=strength)
            coarse = weight.dtype in (torch.bfloat16, torch.float16) and place != "coupled"
            if coarse and 0 < lr * pull.strength < torch.finfo(weight.dtype).eps:
                swallowed.append(name)
    if swallowed:
        warnings.warn(
            f"{len(swallowed)} weights, the first {swallowed[0]}, are kept in 16 bits, where a pull of lr * strength "
            "below the rounding changes nothing at all; keep float32 weights under autocast",
            stacklevel=3,
        )


def full_lr(group: Mapping[str, Any]) -> float:
    """Return a group's learning rate as no schedule lowers it; OneCycleLR's own peak is its `max_lr`."""
    return float(group.get("max_lr", group.get("full_lr", group.get("initial_lr", group["lr"]))))


def inertia(optimizer: Any, group: Mapping[str, Any], place: Placement) -> float:
    """Return what momentum divides a learning rate by: (1 - momentum) / (1 - dampening) for SGD, unless decoupled."""
    if place == "decoupled" or not isinstance(optimizer, torch.optim.SGD) or not group["momentum"]:
        return 1.0
    return (1 - group["momentum"]) / (1 - group["dampening"])


def has_pace(optimizer: Any, place: Placement) -> bool:
    """Return whether a pull alone closes a known share of the distance in each step."""
    return place != "coupled" or isinstance(optimizer, torch.optim.SGD)


def refuse_copy() -> Any:
    """Raise ValueError: stands for an optimizer's `__getstate__`, of copies and pickles, while one is attached."""
    raise ValueError(
        "a copy of this optimizer would not be regularized; detach() first, and attach to the copy (its state_dict() "
        "can be saved)"
    )


def _equals(weight: Tensor, anchor: Tensor) -> bool:
    """Whether they are equal in the coarser of their dtypes."""
    value, start = local(weight).detach(), local(placed(anchor, weight, Storage(anchor.dtype)))
    return torch.equal(value.to(start.dtype).to(value.dtype), start.to(value.device, value.dtype))


def _has_moved(state: Mapping[str, Any]) -> bool:
    """Whether this is the state of a weight that has been trained; FSDP2 makes states of zeros before."""
    return any(isinstance(v, Tensor) and v.numel() > 1 and bool(local(v).any()) for v in state.values())
