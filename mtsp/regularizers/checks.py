"""What must be so before a regularizer acts on an optimizer: once, on all it should, in numbers that mean something."""

import gc
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from mtsp.regularizers.buckets import Bucket, Storage, is_sharded, local, placed
from mtsp.regularizers.penalties import Mode, Penalty, Share
from mtsp.regularizers.targets import Pull


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


def refuse_placement(kind: str, form: Penalty, mode: Mode) -> None:
    """Raise ValueError if the penalty of this regularizer cannot act there."""
    if mode not in ("auto", *form.modes):
        choice = ", ".join(dict.fromkeys(form.modes))
        raise ValueError(f"{kind} cannot be {mode}; it can be {choice}")


def refuse_paces(kind: str, forms: Mapping[bool, Penalty], pulls: Mapping[str, Pull]) -> None:
    """Raise ValueError on a pace of a penalty that has none.

    Args:
        kind: the regularizer's name.
        forms: the penalties of pretrained (True) and of new weights.
        pulls: by name.
    """
    for name, pull in pulls.items():
        if pull.pace is not None and not forms[pull.shared].proportional:
            raise ValueError(
                f"{name} has the strength {pull.pace}, but {kind} takes no fixed share of the distance away in a "
                "step; give a number"
            )


def refuse_decay(group: Mapping[str, Any]) -> None:
    """Raise ValueError if the optimizer itself decays the weights of this parameter group."""
    if group.get("weight_decay"):
        raise ValueError(
            f"the optimizer's weight_decay={group['weight_decay']} and this regularizer would both pull the same "
            "weights; set weight_decay=0 (beta pulls the new weights to zero)"
        )


def refuse_overshoot(bucket: Bucket, share: Share, lr: float) -> None:
    """Raise ValueError if an explicit step takes more than the whole distance away, at the stiffest weight."""
    if bucket.form.stiff and share * bucket.largest > 1 + 1e-6:
        stiffest = f" times the largest Fisher information {bucket.largest:g}" if bucket.largest > 1 else ""
        raise ValueError(
            f"the pull on {bucket.names[0]} would overshoot its anchor: learning rate {lr:g} times strength "
            f"{bucket.strength:g}{stiffest} is above 1; use a strength up to {1 / (lr * bucket.largest):g}"
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


def refuse_twice(own: Iterable[Bucket], others: Callable[[], Iterable[Bucket]]) -> None:
    """Raise ValueError if a weight is pulled in the steps of another optimizer.

    Args:
        own: the weights about to be pulled.
        others: gives those that are pulled already.
    """
    weights = {id(weight) for bucket in own for weight in bucket.weights}

    def shared() -> list[str]:
        return [
            name
            for bucket in others()
            for name, weight in zip(bucket.names, bucket.weights, strict=True)
            if id(weight) in weights
        ]

    if shared():
        gc.collect()  # an optimizer that nobody has any more is held by its own hooks until then
        if found := shared():
            raise ValueError(
                f"{found[0]} is pulled in the steps of another optimizer already; detach() its regularizer first, "
                "or the pull would act twice"
            )


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
