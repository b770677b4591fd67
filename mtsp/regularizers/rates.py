"""What a learning rate and a momentum make of a strength, and of which strength they make a given pace."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from mtsp.regularizers.penalties import Mode, Penalty
from mtsp.regularizers.strength import Pace, fastest
from mtsp.regularizers.targets import Pull


def full_lr(group: Mapping[str, Any]) -> float:
    """Return a group's learning rate as no schedule lowers it; OneCycleLR's own peak is its `max_lr`."""
    return float(group.get("max_lr", group.get("full_lr", group.get("initial_lr", group["lr"]))))


def inertia(optimizer: Any, group: Mapping[str, Any], place: Mode) -> float:
    """Return what momentum divides a learning rate by: (1 - momentum) / (1 - dampening) for SGD, unless decoupled."""
    if place == "decoupled" or not isinstance(optimizer, torch.optim.SGD) or not group["momentum"]:
        return 1.0
    return (1 - group["momentum"]) / (1 - group["dampening"])


def automatic(form: Penalty, *, is_sgd: bool) -> Mode:
    """Return what the mode `auto` comes to, but for LBFGS."""
    return form.modes[1 if is_sgd else 0]


def has_pace(optimizer: Any, place: Mode) -> bool:
    """Return whether a pull alone closes a known share of the distance in each step."""
    return place != "coupled" or isinstance(optimizer, torch.optim.SGD)


def settle(optimizer: Any, names: Mapping[int, str], pulls: dict[str, Pull], place: Mode, *, anew: bool = True) -> None:
    """Make numbers of paces (if not `anew`, of those that are none yet), and warn where 16 bits would swallow the pull.

    Raises:
        ValueError: a pace is asked of a pull that has none, or one so short that momentum would swing past the anchor.
    """
    swallowed = []
    for group in optimizer.param_groups:
        lr = full_lr(group)
        for weight in group["params"]:
            name = names.get(id(weight), "")
            pull = pulls.get(name)
            if pull is None or not (anew or not pull.is_settled):
                continue
            if pull.pace is not None:
                if not has_pace(optimizer, place):
                    raise ValueError(
                        f"{pull.pace} needs a decoupled or proximal pull: coupled through "
                        f"{type(optimizer).__name__} it depends on the gradients' size"
                    )
                if place == "coupled":
                    _refuse_swinging(pull.pace, group)
                strength = pull.pace.strength(lr / inertia(optimizer, group, place))
                pull = pulls[name] = pull._replace(strength=strength)
            coarse = weight.dtype in (torch.bfloat16, torch.float16) and place != "coupled"
            if coarse and 0 < lr * pull.strength < torch.finfo(weight.dtype).eps:
                swallowed.append(name)
    if swallowed:
        warnings.warn(
            f"{len(swallowed)} weights, the first {swallowed[0]}, are kept in 16 bits, where a pull of lr * strength "
            "below the rounding changes nothing at all; keep float32 weights under autocast",
            stacklevel=4,
        )


def _refuse_swinging(pace: Pace, group: Mapping[str, Any]) -> None:
    limit = fastest(group["momentum"], nesterov=group["nesterov"])
    if group["momentum"] and pace.rate > limit * (1 + 1e-9):
        shortest = math.ceil(pace.steps * pace.rate / limit)
        raise ValueError(
            f"{pace} is too short for a pull coupled through momentum {group['momentum']:g}, which would swing past "
            f"its anchor; give {shortest} steps or more, or a mode that is not coupled"
        )
