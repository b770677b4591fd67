"""L2 and L2-SP: pull weights to zero, or to where they started, exactly once per optimizer step.

After Li, Grandvalet, Davoine, Dong et al., "Transfer learning in computer vision tasks: remember where you come from",
Image and Vision Computing 2020, section 3. The pull acts in a hook of the optimizer's step: no autograd graph, not part
of the clipped gradient norm, not multiplied by gradient accumulation, the same on every process.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from mtsp.anchors import aliases, penalized, plain_name
from mtsp.config import Config

Placement = Literal["auto", "coupled", "decoupled"]
Strength = float | Mapping[str, float]


class L2Config(Config):
    """Weight decay as the papers' baseline has it: every convolution and linear weight is pulled to zero."""

    name: Literal["l2"]
    alpha: float = Field(ge=0)
    """Pull on pretrained weights, in loss per squared weight. A branch may set its own."""
    beta: float = Field(ge=0)
    """Pull on new weights."""
    placement: Placement = "auto"


class L2SPConfig(Config):
    """L2-SP, equation 3 of the paper: pretrained weights are pulled to their start, new ones to zero."""

    name: Literal["l2sp"]
    alpha: float = Field(ge=0)
    """Pull on pretrained weights, in loss per squared distance. A branch may set its own."""
    beta: float = Field(ge=0)
    """Pull on new weights. A branch may set its own."""
    placement: Placement = "auto"


class NoneConfig(Config):
    """No regularization: the control of every experiment."""

    name: Literal["none"]


class Pull(NamedTuple):
    """What happens to one weight."""

    strength: float
    anchor: Tensor | None  # None: pulled to zero
    shared: bool  # True: pretrained (alpha), False: new (beta)


@dataclass
class _Bucket:
    """Weights of one parameter group that are pulled alike, so that one foreach call serves them."""

    group: int
    strength: float
    weights: list[Tensor]
    anchors: list[Tensor] | None


class L2SP:
    """L2-SP: alpha/2 ||w_S - w_S0||^2 + beta/2 ||w_N||^2 over weights S with an anchor w_S0 and new weights N.

    Build it after the pretrained weights are loaded, attach it to the optimizer, and train as always::

        regularizer = L2SP(model, anchors=anchors, alpha=0.1, beta=0.01)
        regularizer.attach(optimizer)

    *Coupled* adds the gradient alpha (w - w0) to the weight's gradient before the step, which is the paper's form: it
    enters the momentum. *Decoupled* moves w by lr * alpha of the way to w0 before the step, so that Adam's scaling does
    not touch it; it is to L2-SP what AdamW is to L2. `auto` is coupled for SGD, decoupled for everything else. Weights
    whose gradient is None (frozen, held or unused) do not move. Unlike a term in the loss, the pull is not clipped.

    Args:
        model: the network, wrapped or not. Held by reference, so that parameters that FSDP2 swaps are found again.
        anchors: w0 by parameter name. Names of biases and normalization layers of the model are passed over; the values
            are copied to the weight's dtype and device. With `zero=True` only the names count.
        alpha: strength on the weights that have an anchor, one number or by name prefix (`{"flow": 0.1}`; the longest
            prefix wins, and every weight concerned must have one).
        beta: strength on the other convolution and linear weights, likewise.
        placement: see above.
        zero: pull weights with an anchor to zero instead: plain L2 with two strengths.

    Raises:
        ValueError: an anchor names nothing in the model, or has another shape, or no anchor concerns a convolution or
            linear weight, or a strength is negative or missing. Passing over it would leave a renamed module, or a
            wrong checkpoint, without regularization and without a word.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        anchors: Mapping[str, Tensor],
        alpha: Strength,
        beta: Strength,
        placement: Placement = "auto",
        zero: bool = False,
    ) -> None:
        self.model = model
        self.placement: Placement = placement
        self.pulls = _pulls(model, anchors, alpha, beta, zero)
        self._handles: list[Any] = []
        self._buckets: dict[int, tuple[tuple[int, ...], list[_Bucket]]] = {}

    def attach(self, optimizer: Any) -> None:
        """Act before every step of `optimizer`, which may be wrapped by Accelerate, before or after `prepare`.

        Raises:
            ValueError: the optimizer decays a weight that is pulled here (two regularizers on one weight), or holds no
                weight that is pulled here, or this regularizer is attached already.
        """
        while hasattr(optimizer, "optimizer"):
            optimizer = optimizer.optimizer
        if self._handles:
            raise ValueError("this regularizer is attached already; detach() it first, or the pull would act twice")
        pulled = {id(weight) for weight, _ in self._named_pulls()}
        if any(isinstance(getattr(hook, "__self__", None), L2SP) for hook in _pre_hooks(optimizer)):
            raise ValueError("another regularizer acts on this optimizer already; detach() it first")
        decayed = [
            group["weight_decay"]
            for group in optimizer.param_groups
            if group.get("weight_decay") and any(id(p) in pulled for p in group["params"])
        ]
        if decayed:
            raise ValueError(
                f"the optimizer's weight_decay={decayed[0]} and this regularizer would both pull the same weights; "
                "set weight_decay=0 (beta pulls the new weights to zero)"
            )
        if self.pulls and not any(id(p) in pulled for group in optimizer.param_groups for p in group["params"]):
            raise ValueError("the optimizer holds none of the model's weights; give it model.parameters()")
        self._handles.append(optimizer.register_step_pre_hook(self._before_step))

    def detach(self) -> None:
        """Act no more."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._buckets.clear()

    def penalty(self) -> float:
        """Return the penalty at the current weights, summed in float64. For reports: training never needs it."""
        return sum(0.5 * pull.strength * _squared(weight, pull.anchor) for weight, pull in self._named_pulls())

    def distances(self, prefixes: Iterable[str]) -> dict[str, float]:
        """Return ||w_S - w_S0|| / ||w_S0|| for each name prefix under which something is anchored."""
        result = {}
        for prefix in prefixes:
            moved = start = 0.0
            for name, weight in self._named_weights():
                pull = self.pulls.get(name)
                if pull is not None and pull.anchor is not None and _under(name, prefix):
                    moved += _squared(weight, pull.anchor)
                    start += _squared(pull.anchor, None)
            if start:
                result[prefix] = (moved / start) ** 0.5
        return result

    def coupled(self, optimizer: Any) -> bool:
        """Return whether the pull enters the gradient of `optimizer`."""
        while hasattr(optimizer, "optimizer"):
            optimizer = optimizer.optimizer
        return self.placement == "coupled" or (self.placement == "auto" and isinstance(optimizer, torch.optim.SGD))

    def _named_weights(self) -> Iterable[tuple[str, nn.Parameter]]:
        return ((plain_name(name), weight) for name, weight in self.model.named_parameters())

    def _named_pulls(self) -> Iterable[tuple[nn.Parameter, Pull]]:
        return ((weight, self.pulls[name]) for name, weight in self._named_weights() if name in self.pulls)

    @torch.no_grad()
    def _before_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.coupled(optimizer):
            self._decoupled(optimizer)
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._coupled(optimizer)
            return None
        # The closure computes the gradients inside the step, after this hook: add the pull when it has done so.
        wrapped = self._after(closure, optimizer)
        if len(args) > 1:
            return (args[0], wrapped, *args[2:]), kwargs
        return args, {**kwargs, "closure": wrapped}

    def _after(self, closure: Callable[[], Any], optimizer: Any) -> Callable[[], Any]:
        def evaluate() -> Any:
            with torch.enable_grad():
                loss = closure()
            with torch.no_grad():
                self._coupled(optimizer)
            return loss

        return evaluate

    def _coupled(self, optimizer: Any) -> None:
        scale = getattr(optimizer, "grad_scale", None)  # set while a fused optimizer unscales inside its own kernel
        for bucket in self._resolved(optimizer):
            weights, anchors = _with_gradient(bucket)
            if not weights:
                continue
            grads = [weight.grad for weight in weights if weight.grad is not None]
            if scale is not None:
                pull = torch._foreach_sub(weights, anchors) if anchors else [weight.clone() for weight in weights]
                torch._foreach_mul_(pull, scale.to(pull[0].device))
                torch._foreach_add_(grads, pull, alpha=bucket.strength)
            elif anchors:
                torch._foreach_add_(grads, torch._foreach_sub(weights, anchors), alpha=bucket.strength)
            else:
                torch._foreach_add_(grads, weights, alpha=bucket.strength)

    def _decoupled(self, optimizer: Any) -> None:
        overflow = getattr(optimizer, "found_inf", None)  # a fused optimizer is stepped even where gradients overflowed
        for bucket in self._resolved(optimizer):
            weights, anchors = _with_gradient(bucket)
            if not weights:
                continue
            lr = optimizer.param_groups[bucket.group]["lr"]
            if isinstance(lr, Tensor) or overflow is not None:
                share = torch.as_tensor(lr, device=weights[0].device) * bucket.strength
                if overflow is not None:
                    share = share * (1 - overflow.to(share.device).reshape(()))
                pull = torch._foreach_sub(weights, anchors) if anchors else [weight.clone() for weight in weights]
                torch._foreach_mul_(pull, share.to(weights[0].dtype))
                torch._foreach_sub_(weights, pull)
            elif anchors:
                torch._foreach_lerp_(weights, anchors, lr * bucket.strength)
            else:
                torch._foreach_mul_(weights, 1 - lr * bucket.strength)

    def _resolved(self, optimizer: Any) -> list[_Bucket]:
        """Find the optimizer's weights by name, again whenever its parameters were swapped (FSDP2)."""
        present = tuple(id(p) for group in optimizer.param_groups for p in group["params"])
        known = self._buckets.get(id(optimizer))
        if known is None or known[0] != present:
            known = (present, self._sort(optimizer))
            self._buckets[id(optimizer)] = known
        return known[1]

    def _sort(self, optimizer: Any) -> list[_Bucket]:
        names = {id(weight): name for name, weight in self._named_weights()}
        buckets: dict[tuple[Any, ...], _Bucket] = {}
        for index, group in enumerate(optimizer.param_groups):
            for weight in group["params"]:
                pull = self.pulls.get(names.get(id(weight), ""))
                if pull is None or pull.strength == 0:
                    continue
                anchored = pull.anchor is not None
                key = (index, pull.strength, anchored, type(weight.data), weight.device, weight.dtype)
                bucket = buckets.setdefault(key, _Bucket(index, pull.strength, [], [] if anchored else None))
                bucket.weights.append(weight)
                if pull.anchor is not None and bucket.anchors is not None:
                    bucket.anchors.append(_placed(pull.anchor, weight))
        return list(buckets.values())


def time_constant(strength: float, lr: float, *, coupled: bool, momentum: float = 0.0) -> float:
    """Return after how many steps a pull alone has brought a weight to 1/e of its distance; inf for no pull.

    (1 - momentum) / (lr * strength) for SGD with a coupled pull, 1 / (lr * strength) for a decoupled one. A coupled
    pull through Adam has no such constant: it depends on the gradients' size.
    """
    rate = lr * strength / ((1 - momentum) if coupled else 1)
    return 1 / rate if rate > 0 else float("inf")


def _pulls(
    model: nn.Module, anchors: Mapping[str, Tensor], alpha: Strength, beta: Strength, zero: bool
) -> dict[str, Pull]:
    weights = {plain_name(name): weight for name, weight in model.named_parameters()}
    first = dict(aliases(model))
    given = {first.get(plain_name(name), plain_name(name)): value for name, value in anchors.items()}
    buffers = {plain_name(name) for name, _ in model.named_buffers()}
    lost = [name for name in given if name not in weights and name not in buffers]
    if lost:
        near = get_close_matches(lost[0], weights, n=1, cutoff=0.3) or list(weights)[:1]
        raise ValueError(
            f"{len(lost)} of {len(given)} anchors match no weight of the model, the first {lost[0]!r}; "
            f"the weights here are named like {near[0] if near else 'nothing'!r}"
        )
    chosen = penalized(model)
    if given and not any(name in given for name in chosen):
        raise ValueError(
            f"none of the {len(given)} anchors is a convolution or linear weight, the first {next(iter(given))!r}"
        )
    for strength, word in ((alpha, "alpha"), (beta, "beta")):
        unknown = (
            [p for p in strength if not any(_under(n, p) for n in weights)] if isinstance(strength, Mapping) else []
        )
        if unknown:
            raise ValueError(f"{word} is given for {unknown[0]!r}, but no weight's name begins so")
    pulls = {}
    for name in chosen:
        anchor = given.get(name)
        if anchor is not None and anchor.shape != weights[name].shape:
            raise ValueError(
                f"the anchor of {name} has shape {tuple(anchor.shape)}, the weight {tuple(weights[name].shape)}; "
                "leave it out to treat the weight as new"
            )
        strength = _strength(name, alpha if anchor is not None else beta, "alpha" if anchor is not None else "beta")
        if anchor is not None and not anchor.is_meta and not bool(anchor.isfinite().all()):
            raise ValueError(f"the anchor of {name} has values that are NaN or infinite")
        held = None if anchor is None or zero else _copy(anchor, weights[name])
        pulls[name] = Pull(strength, held, anchor is not None)
    return pulls


def _strength(name: str, strength: Strength, word: str) -> float:
    if isinstance(strength, Mapping):
        prefixes = [prefix for prefix in strength if _under(name, prefix)]
        if not prefixes:
            raise ValueError(f"no {word} for {name}: there is one for {', '.join(strength) or 'nothing'}")
        strength = strength[max(prefixes, key=len)]
    if not 0 <= strength < float("inf"):
        raise ValueError(f"{word} must be a number from 0 up, got {strength} for {name}")
    return float(strength)


def _pre_hooks(optimizer: Any) -> Iterable[Any]:
    return getattr(optimizer, "_optimizer_step_pre_hooks", {}).values()


def _under(name: str, prefix: str) -> bool:
    return not prefix or name == prefix or name.startswith(f"{prefix}.")


def _copy(anchor: Tensor, weight: Tensor) -> Tensor:
    """The anchor as its own memory, in the weight's dtype: an alias of a live weight would follow it, silently."""
    return anchor.detach().to(dtype=weight.dtype, copy=True)


def _placed(anchor: Tensor, weight: Tensor) -> Tensor:
    """The anchor where the weight is, sharded as the weight is."""
    if hasattr(weight, "device_mesh") and not hasattr(anchor, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(anchor.to(weight.device), weight.device_mesh, weight.placements)  # pyright: ignore[reportAttributeAccessIssue]
    return anchor.to(weight.device)


def _with_gradient(bucket: _Bucket) -> tuple[list[Tensor], list[Tensor] | None]:
    if all(weight.grad is not None for weight in bucket.weights):
        return bucket.weights, bucket.anchors
    kept = [i for i, weight in enumerate(bucket.weights) if weight.grad is not None]
    return [bucket.weights[i] for i in kept], [bucket.anchors[i] for i in kept] if bucket.anchors is not None else None


@torch.no_grad()
def _squared(weight: Tensor, anchor: Tensor | None) -> float:
    if hasattr(weight, "full_tensor"):
        weight = weight.full_tensor()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    moved = weight.double() if anchor is None else weight.double() - anchor.to(weight.device).double()
    return float(moved.square().sum())
