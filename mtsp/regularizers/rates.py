"""Convert between strengths and paces, by an optimizer's learning rate and momentum."""

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from mtsp.regularizers.penalties import Mode, Penalty
from mtsp.regularizers.strength import Pace
from mtsp.regularizers.targets import Target


def resolve_mode(penalty: Penalty, mode: Mode, optimizer: Any) -> Mode:
    """Return the mode in which a penalty acts on this optimizer, with `auto` decided."""
    if mode != "auto":
        return mode
    first = penalty.modes[0]
    sgd = is_sgd(optimizer) and first == "decoupled"
    coupled = (sgd or isinstance(optimizer, torch.optim.LBFGS)) and "coupled" in penalty.modes
    return "coupled" if coupled else first


def is_sgd(optimizer: Any) -> bool:
    """Return whether this is torch's SGD, also where ZeRO shards it."""
    return isinstance(getattr(optimizer, "optim", optimizer), torch.optim.SGD)


def present_lr(group: Mapping[str, Any]) -> float | Tensor:
    """Return the learning rate that a group's weights have in the next step.

    Raises:
        ValueError: the optimizer has none, or does not tell it (Adafactor with relative steps).
    """
    lr = group.get("lr")
    if lr is None or group.get("relative_step"):
        raise ValueError(
            "the optimizer does not tell its learning rate, which a pull that is not coupled needs; use "
            "mode='coupled', or give the optimizer an lr (Adafactor: and relative_step=False)"
        )
    return lr * _estimate(group)


def full_lr(group: Mapping[str, Any]) -> float:
    """Return a group's learning rate before any schedule lowers it; OneCycleLR keeps its peak as `max_lr`.

    A factor for the depth of a layer stands beside the rate as `lr_scale`; timm's schedules, and those of MAE and BEiT,
    multiply the rate by it.
    """
    base = group.get("max_lr", group.get("full_lr", group.get("initial_lr")))
    lr = float(present_lr(group)) if base is None else float(base) * _estimate(group)
    return lr * group.get("lr_scale", 1.0)


def estimates_lr(group: Mapping[str, Any]) -> bool:
    """Return whether the optimizer estimates its learning rate, as Prodigy and D-Adaptation do in `d`."""
    return "d" in group and "beta2_decay" not in group  # the `d` of torch's Adafactor is another


def step_lr(optimizer: Any, group: Mapping[str, Any], mode: Mode) -> float | Tensor:
    """Return what a strength is multiplied by in the next step, decoupled or proximal."""
    # Momentum acts over many steps: each single coupled step moves as a decoupled one.
    mode = "proximal" if mode == "proximal" else "decoupled"
    return present_lr(group) / momentum_divisor(optimizer, group, mode)


def check_lr_scales(groups: Iterable[tuple[Mapping[str, Any], float]]) -> None:
    """Raise ValueError if learning rates are not multiplied by their `lr_scale`.

    Args:
        groups: parameter groups, each with its :func:`full_lr` as it was when the regularizer was attached.
    """
    ratios = [float(present_lr(group)) / full for group, full in groups if full and group.get("lr_scale")]
    if ratios and max(ratios) > min(ratios) * (1 + 1e-6):
        raise ValueError(
            "the parameter groups have an lr_scale, but the learning rates of this step are not multiplied by it, so a "
            "Pace would be another than was asked for; use a schedule of timm, or multiply them after attach(), or "
            "give numbers"
        )


def momentum_divisor(optimizer: Any, group: Mapping[str, Any], mode: Mode) -> float:
    """Return what momentum divides a learning rate by: (1 - momentum) / (1 - dampening) for SGD, unless decoupled."""
    if mode == "decoupled" or not is_sgd(optimizer) or not group["momentum"]:
        return 1.0
    return (1 - group["momentum"]) / (1 - group["dampening"])


def has_time_constant(optimizer: Any, mode: Mode) -> bool:
    """Return whether a pull alone takes a known fraction of the distance in each step of this optimizer."""
    return mode != "coupled" or is_sgd(optimizer)


def strength_of(
    pace: Pace, optimizer: Any, group: Mapping[str, Any], mode: Mode, *, may_overshoot: bool = False
) -> float:
    """Return the strength that gives this pace to the weights of a parameter group.

    Args:
        pace: how fast the pull alone brings weights to their anchors, at the full learning rate.
        optimizer: a torch optimizer.
        group: one of its parameter groups.
        mode: as :func:`resolve_mode` gives it.
        may_overshoot: accept a pace so fast that the weights swing past their anchors.

    Raises:
        ValueError: a pull in this mode has no pace, or none this fast, or the learning rate is 0.
    """
    if not has_time_constant(optimizer, mode):
        raise ValueError(
            f"a pull coupled through {type(optimizer).__name__} has no time constant, it depends on the size of the "
            "gradients; use the mode decoupled or proximal, or give a number"
        )
    if estimates_lr(group):
        raise ValueError(f"{type(optimizer).__name__} estimates its learning rate, so {pace} has no strength; give one")
    limit = _largest_rate(group) if mode == "coupled" else 1.0
    if pace.rate > limit * (1 + 1e-9) and not may_overshoot:
        instead = (
            f", or use the mode decoupled, which momentum {group['momentum']:g} does not limit" if limit < 1 else ""
        )
        raise ValueError(
            f"no stable pull leaves only {pace.remaining:.3g} of the distance after {pace.steps:.4g} steps at the full "
            f"learning rate; give {math.ceil(pace.steps * pace.rate / limit)} steps or more{instead}"
        )
    lr = full_lr(group)
    if lr <= 0:
        raise ValueError(
            f"{pace} has no strength at a learning rate of {lr}; attach before a schedule lowers it, or give a number"
        )
    return pace.rate / (lr / momentum_divisor(optimizer, group, mode))


def resolve_paces(
    optimizer: Any, names: Mapping[int, str], targets: dict[str, Target], mode: Mode, *, again: bool = True
) -> None:
    """Convert paces to strengths; warn where 16-bit rounding would erase the pull.

    Args:
        optimizer: a torch optimizer.
        names: names of the model's weights by id.
        targets: by name; updated in place.
        mode: as :func:`resolve_mode` gives it.
        again: also convert paces that were converted before, for another optimizer.

    Raises:
        ValueError: see :func:`strength_of`.
    """
    erased = []
    for group in optimizer.param_groups:
        for weight in group["params"]:
            name = names.get(id(weight), "")
            target = targets.get(name)
            if target is None or (target.is_resolved and not again):
                continue
            if target.pace is not None:
                strength = strength_of(target.pace, optimizer, group, mode)
                target = targets[name] = target._replace(strength=strength)
            coarse = weight.dtype in (torch.bfloat16, torch.float16) and mode != "coupled"
            if coarse and 0 < full_lr(group) * target.strength < torch.finfo(weight.dtype).eps:
                erased.append(name)
    if erased:
        warnings.warn(
            f"{len(erased)} weights, the first {erased[0]}, are kept in 16 bits, where rounding erases a pull of "
            "lr * strength this small; keep float32 weights under autocast",
            stacklevel=4,
        )


def _estimate(group: Mapping[str, Any]) -> float:
    """The learning rate that the optimizer has estimated, which its `lr` only multiplies; else 1."""
    if not estimates_lr(group):
        return 1.0
    correction = 1.0
    if group.get("use_bias_correction"):
        beta1, beta2 = group["betas"]
        correction = (1 - beta2 ** (group["k"] + 1)) ** 0.5 / (1 - beta1 ** (group["k"] + 1))
    return float(group["d"]) * correction


def _largest_rate(group: Mapping[str, Any]) -> float:
    """The largest rate of a pace at which a pull coupled through SGD's momentum does not swing past its anchor.

    With k = rate * (1 - m), the distance goes as powers of the roots of z^2 - (1 + m - k) z + m, for Nesterov's
    momentum of z^2 - (1 + m) (1 - k) z + m (1 - k). They are real up to k = (1 - sqrt(m))^2 and ((1 - m) / (1 + m))^2.
    """
    momentum = group["momentum"]
    return (1 - momentum) / (1 + (momentum if group["nesterov"] else math.sqrt(momentum))) ** 2
