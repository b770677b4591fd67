"""Checks made before a regularizer acts on an optimizer: nothing is regularized twice, too strongly, or not at all."""

import gc
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mtsp.anchors import aliases, named_weights, unpenalized_matrices
from mtsp.regularizers.buckets import Bucket, Storage, is_sharded, local, local_rows, placed, some_rows
from mtsp.regularizers.penalties import StepFraction
from mtsp.regularizers.targets import Target

_ZERO = "ZeroRedundancyOptimizer"
_hooked: list[Any] = []  # the hook of all optimizers, made once
NEVER_ATTACHED: WeakKeyDictionary[Any, WeakSet[Any]] = WeakKeyDictionary()
"""Regularizers that were never attached, each with the optimizers that hold none of its weights."""


def unwrapped(optimizer: Any) -> list[Any]:
    """Return the optimizer and all inside it, in whatever attributes, down to the one that moves the weights.

    Wrappers are Accelerate's and Lightning's, Lookahead, SAM and its relatives, and gradient surgery. torch's ZeRO is
    taken as a whole: the optimizer inside has a part of the weights.

    Raises:
        ValueError: there is no torch optimizer, or there are several side by side.
    """
    chain = [optimizer]
    while belongs_to_loop(chain[-1]) or not any(kind.__name__ == _ZERO for kind in type(chain[-1]).__mro__):
        inside = _optimizers_in(chain[-1])
        if len(inside) > 1:
            raise ValueError(f"{type(chain[-1]).__name__} holds {len(inside)} optimizers; attach to each of them")
        if not inside or any(inside[0] is other for other in chain):
            break
        chain.append(inside[0])
    if not isinstance(chain[-1], torch.optim.Optimizer):
        raise ValueError(f"{type(optimizer).__name__} is not a torch.optim.Optimizer, so its step cannot be hooked")
    return chain


def belongs_to_loop(wrapper: Any) -> bool:
    """Return whether Accelerate or Lightning made this wrapper, which does more in a step than an optimizer."""
    return type(wrapper).__module__.partition(".")[0] in ("accelerate", "lightning", "pytorch_lightning")


def check_optimizer(optimizer: Any, names: Mapping[int, str], targets: Mapping[str, Target]) -> None:
    """Raise ValueError if weights would be regularized twice, not at all, or towards anchors captured too late.

    Args:
        optimizer: a torch optimizer.
        names: names of the model's weights by id.
        targets: by name.
    """
    own = [
        (weight, group, targets[names[id(weight)]])
        for group in optimizer.param_groups
        for weight in group["params"]
        if names.get(id(weight)) in targets
    ]
    for _, group, _ in own:
        check_settings(group)
    others = [names[id(w)] for group in optimizer.param_groups for w in group["params"] if id(w) in names]
    if targets and not own and others:
        raise ValueError(
            f"the optimizer trains {len(others)} weights of the model, the first {others[0]}, but none that is "
            "regularized; an adapter (LoRA, IA3) trains beside frozen weights and needs no pull to keep those"
        )
    if targets and not own:
        raise ValueError("the optimizer holds none of the model's weights; give it model.parameters()")
    unmoved = [
        _equals(weight, target.anchor, target.kept)
        for weight, _, target in own
        if target.anchor is not None and _has_moved(optimizer.state.get(weight, {}))
    ]
    if unmoved and all(unmoved):
        raise ValueError(
            "every anchor equals a weight that this optimizer has trained already: they were captured too late, "
            "perhaps after a checkpoint was loaded; capture them from the pretrained weights, before"
        )


def check_names(present: Iterable[str], targets: Mapping[str, Target], model: nn.Module) -> None:
    """Raise ValueError if a regularized weight was reparametrized or pruned since, which gives it another name."""
    gone = set(targets) - set(present) - {name for name, _ in aliases(model)}
    for name in unpenalized_matrices(model) if gone else ():
        plain = re.sub(r"parametrizations\.weight\.\w+$|weight_(orig|g|v)$", "weight", name)
        if plain in gone:
            raise ValueError(
                f"{plain} is named {name} since the regularizer was built, and would not be pulled any more; "
                "reparametrize or prune a layer before, and give its anchor by the new name with every=True"
            )


def check_settings(group: Mapping[str, Any]) -> None:
    """Raise ValueError if the optimizer itself decays the weights of this parameter group, or its rate is negative."""
    if group.get("weight_decay"):
        raise ValueError(
            f"the optimizer's weight_decay={group['weight_decay']} and this regularizer would both pull the same "
            "weights; set weight_decay=0 (beta pulls the new weights to zero)"
        )
    lr = group.get("lr")
    read = not isinstance(lr, Tensor) or (lr.device.type == "cpu" and not torch.compiler.is_compiling())
    if lr is not None and read and lr < 0:
        raise ValueError(
            f"a learning rate of {float(lr):g} would push the weights away from their anchors; use maximize=True and a "
            "positive one"
        )


def check_overshoot(bucket: Bucket, fraction: StepFraction, lr: float) -> None:
    """Raise ValueError if an explicit step takes more than the whole distance."""
    if bucket.penalty.step_limited and fraction * bucket.largest_fisher > 1 + 1e-6:
        times = f" times the largest Fisher information {bucket.largest_fisher:g}" if bucket.largest_fisher > 1 else ""
        raise ValueError(
            f"the pull on {bucket.names[0]} would overshoot its anchor: learning rate {lr:g} times strength "
            f"{bucket.strength:g}{times} is above 1; use a strength up to {1 / (lr * bucket.largest_fisher):g}"
        )


def check_same_anchors(fingerprint: str, weights: Iterable[Tensor]) -> None:
    """Raise ValueError if processes that each hold whole weights have different anchors: the weights would diverge."""
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


def check_pulled_once(own: Iterable[Bucket], others: Callable[[], Iterable[Bucket]]) -> None:
    """Raise ValueError if a weight is pulled in the steps of another optimizer.

    Args:
        own: the weights about to be pulled.
        others: returns those that are pulled already.
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
        gc.collect()  # an optimizer that is no longer used is kept alive by its own hooks until then
        if found := shared():
            raise ValueError(
                f"{found[0]} is pulled in the steps of another optimizer already; detach() its regularizer first, "
                "or the pull would act twice"
            )


def forbid_copy() -> Any:
    """Raise ValueError: replaces an optimizer's `__getstate__`, so that it cannot be copied or pickled."""
    raise ValueError(
        "a copy of this optimizer would not be regularized; detach() first, and attach to the copy (its state_dict() "
        "can be saved)"
    )


def expect_attachment(regularizer: Any) -> None:
    """Warn at the first step of any optimizer that moves the weights of `regularizer`, unless it is attached by then.

    An optimizer with other weights is looked at once; after the first `attach`, a step costs nothing.
    """
    if not _hooked:
        _hooked.append(register_optimizer_step_pre_hook(_before_any_step))
    NEVER_ATTACHED[regularizer] = WeakSet()


def _before_any_step(optimizer: Any, args: Any, kwargs: Any) -> None:
    for regularizer, seen in list(NEVER_ATTACHED.items()):
        if optimizer in seen:
            continue
        seen.add(optimizer)
        held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        weights = named_weights(regularizer.model)
        if any(name in regularizer.targets and id(weight) in held for name, weight in weights.items()):
            del NEVER_ATTACHED[regularizer]
            warnings.warn(
                f"{type(regularizer).__name__} was built but never attached: it does not act on the weights that "
                f"{type(optimizer).__name__} moves. Call attach(optimizer) before the first step",
                stacklevel=3,
            )


def _optimizers_in(wrapper: Any) -> list[Any]:
    values = list(getattr(wrapper, "__dict__", {}).values())
    for value in list(values):
        if isinstance(value, dict | list | tuple):
            values += value.values() if isinstance(value, dict) else value
    found = {id(value): value for value in values if isinstance(value, torch.optim.Optimizer)}
    if not found and not isinstance(wrapper, torch.optim.Optimizer) and hasattr(wrapper, "optimizer"):
        return [wrapper.optimizer]
    found.pop(id(wrapper), None)
    return list(found.values())


def _equals(weight: Tensor, anchor: Tensor, kept: Tensor | None) -> bool:
    """Return whether weight and anchor are equal in the coarser dtype, in the rows `kept` that have an anchor."""
    kept = local_rows(kept, weight)
    value, start = local(weight).detach(), local(placed(anchor, weight, Storage(anchor.dtype)))
    value, start = some_rows(value, kept), some_rows(start, kept)
    return torch.equal(value.to(start.dtype).to(value.dtype), start.to(value.device, value.dtype))


def _has_moved(state: Mapping[str, Any]) -> bool:
    """Return whether this is the state of a trained weight; FSDP2 makes states of zeros before training."""
    return any(isinstance(v, Tensor) and v.numel() > 1 and bool(local(v).any()) for v in state.values())
