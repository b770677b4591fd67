"""Convert paces to strengths, using the learning rate and momentum of an optimizer."""

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
    """Return the mode in which a penalty acts with this optimizer; `auto` is replaced by a definite mode."""
    if mode != "auto":
        return mode
    first = penalty.modes[0]
    sgd = is_sgd(optimizer) and first == "decoupled"
    coupled = (sgd or isinstance(optimizer, torch.optim.LBFGS)) and "coupled" in penalty.modes
    return "coupled" if coupled else first


def is_sgd(optimizer: Any) -> bool:
    """Return whether `optimizer` is torch's SGD, possibly wrapped by ZeroRedundancyOptimizer."""
    return isinstance(getattr(optimizer, "optim", optimizer), torch.optim.SGD)


def present_lr(group: Mapping[str, Any]) -> float | Tensor:
    """Return the learning rate of a parameter group in the next step.

    Raises:
        ValueError: the group has no `lr`, or the optimizer does not use it (Adafactor with relative steps).
    """
    lr = group.get("lr")
    lr = lr.reshape(()) if isinstance(lr, Tensor) else lr
    if lr is None or group.get("relative_step"):
        raise ValueError(
            "the learning rate of the optimizer is unknown, but a decoupled or proximal pull needs it; use "
            "mode='coupled', or set the optimizer's lr (Adafactor: with relative_step=False)"
        )
    return lr * _estimate(group)


def full_lr(group: Mapping[str, Any]) -> float:
    """Return a group's learning rate before any schedule lowers it; with OneCycleLR this is the peak, `max_lr`.

    The result includes `lr_scale`, the factor of layer-wise decay by which the schedules of timm, MAE and BEiT
    multiply the learning rate.
    """
    base = group.get("max_lr", group.get("full_lr", group.get("initial_lr")))
    lr = float(present_lr(group)) if base is None else float(base) * _estimate(group)
    return lr * group.get("lr_scale", 1.0)


def estimates_lr(group: Mapping[str, Any]) -> bool:
    """Return whether the optimizer estimates its learning rate, as Prodigy and D-Adaptation do (in `d`)."""
    return "d" in group and "beta2_decay" not in group  # in torch's Adafactor, `d` is a clipping threshold


def step_lr(optimizer: Any, group: Mapping[str, Any], mode: Mode) -> float | Tensor:
    """Return the factor by which the next decoupled or proximal step multiplies a strength."""
    # Momentum acts over many steps, so a single coupled step moves weights as far as a decoupled one.
    mode = "proximal" if mode == "proximal" else "decoupled"
    return present_lr(group) / momentum_divisor(optimizer, group, mode)


def check_lr_scales(groups: Iterable[tuple[Mapping[str, Any], float]]) -> None:
    """Raise ValueError if the learning rates of groups with an `lr_scale` are not multiplied by it.

    Args:
        groups: pairs of a parameter group and its :func:`full_lr` at the time the regularizer was attached.
    """
    ratios = [float(present_lr(group)) / full for group, full in groups if full and group.get("lr_scale")]
    if ratios and max(ratios) > min(ratios) * (1 + 1e-6):
        raise ValueError(
            "the parameter groups have an lr_scale, but the learning rates of this step are not multiplied by it, so "
            "the pull would not have the Pace that was set; use a schedule of timm, multiply the rates after attach(), "
            "or give the strengths as numbers"
        )


def check_full_lrs(groups: Iterable[tuple[Mapping[str, Any], float]]) -> None:
    """Raise ValueError if a learning rate is or will be above the one by which a pace became a strength.

    Args:
        groups: pairs of a parameter group and its :func:`full_lr` at the time the regularizer was attached.
    """
    for group, full in groups:
        lr = group["lr"]
        if "lr_scale" in group or (isinstance(lr, Tensor) and lr.device.type != "cpu"):
            continue  # reading it would wait for the GPU
        highest = max(full_lr(group), float(present_lr(group)))
        if highest > full * (1 + 1e-6):
            raise ValueError(
                f"the full learning rate was {full:g} at attach(), by which a Pace became a strength, and is "
                f"{highest:g} now, so the pull would be {highest / full:.3g} times as fast as was asked for; attach "
                "after the schedule is made, with the highest rate in the parameter groups, or give numbers"
            )


def momentum_divisor(optimizer: Any, group: Mapping[str, Any], mode: Mode) -> float:
    """Return the divisor of a learning rate due to momentum: (1 - momentum) / (1 - dampening) for SGD, else 1."""
    if mode == "decoupled" or not is_sgd(optimizer) or not group["momentum"]:
        return 1.0
    return (1 - group["momentum"]) / (1 - group["dampening"])


def has_time_constant(optimizer: Any, mode: Mode) -> bool:
    """Return whether a pull alone reduces the distance by a known fraction in each step of this optimizer."""
    return mode != "coupled" or is_sgd(optimizer)


def strength_of(
    pace: Pace, optimizer: Any, group: Mapping[str, Any], mode: Mode, *, may_overshoot: bool = False
) -> float:
    """Return the strength with which the weights of a parameter group are pulled at this pace.

    Args:
        pace: how fast the pull alone brings weights to their anchors, at the full learning rate.
        optimizer: a torch optimizer.
        group: a parameter group of the optimizer.
        mode: result of :func:`resolve_mode`.
        may_overshoot: allow paces so fast that the weights overshoot their anchors.

    Raises:
        ValueError: a pull in this mode has no pace or cannot reach this one, or the learning rate is 0.
    """
    if not has_time_constant(optimizer, mode):
        raise ValueError(
            f"a pull coupled through {type(optimizer).__name__} has no time constant, because it depends on the size "
            "of the gradients; use the mode decoupled or proximal, or give a number"
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
    """Convert paces to strengths; warn if 16-bit rounding would erase the pull.

    Args:
        optimizer: a torch optimizer.
        names: names of the model's weights by id.
        targets: targets by weight name; updated in place.
        mode: result of :func:`resolve_mode`.
        again: also convert paces that were already converted for another optimizer.

    Raises:
        ValueError: see :func:`strength_of`.
    """
    erased = []
    for group in optimizer.param_groups:
        for weight in group["params"]:
            name = names.get(id(weight), "")
            target = targets.get(name)
            if target is None or (all(part.is_resolved for part in target.parts) and not again):
                continue
            own, *rest = (
                part if part.pace is None else part._replace(strength=strength_of(part.pace, optimizer, group, mode))
                for part in target.parts
            )
            targets[name] = own._replace(rest=rest[0] if rest else None)
            coarse = weight.dtype in (torch.bfloat16, torch.float16) and mode != "coupled"
            if coarse and 0 < full_lr(group) * own.strength < torch.finfo(weight.dtype).eps:
                erased.append(name)
    if erased:
        warnings.warn(
            f"{len(erased)} weights, the first {erased[0]}, are kept in 16 bits, where rounding erases a pull as small "
            "as their lr * strength; keep float32 weights and use autocast",
            stacklevel=4,
        )


def _estimate(group: Mapping[str, Any]) -> float:
    """The learning rate that the optimizer has estimated and multiplies `lr` by; 1 if it estimates none."""
    if not estimates_lr(group):
        return 1.0
    correction = 1.0
    if group.get("use_bias_correction"):
        beta1, beta2 = group["betas"]
        correction = (1 - beta2 ** (group["k"] + 1)) ** 0.5 / (1 - beta1 ** (group["k"] + 1))
    return float(group["d"]) * correction


def _largest_rate(group: Mapping[str, Any]) -> float:
    """The largest rate of a pace at which a pull coupled through SGD's momentum m does not overshoot the anchor.

    With k = rate * (1 - m), the distance is a combination of powers of the roots of z^2 - (1 + m - k) z + m. They are
    real up to k = (1 - sqrt(m))^2. With Nesterov momentum, the polynomial is z^2 - (1 + m) (1 - k) z + m (1 - k), with
    real roots up to k = ((1 - m) / (1 + m))^2.
    """
    momentum = group["momentum"]
    return (1 - momentum) / (1 + (momentum if group["nesterov"] else math.sqrt(momentum))) ** 2
