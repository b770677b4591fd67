"""What a regularizer does in each optimizer step, from the optimizer's hooks to the weights."""

from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from mtsp.anchors import named_weights
from mtsp.regularizers import reports
from mtsp.regularizers.buckets import Bucket, Storage, blocks, make_buckets
from mtsp.regularizers.checks import (
    check_optimizer,
    check_overshoot,
    check_pulled_once,
    check_weight_decay,
    forbid_copy,
)
from mtsp.regularizers.fused_sgd import decay_in_kernel, fits, fused
from mtsp.regularizers.penalties import Mode, Penalty, SquaredDistance, StepFraction
from mtsp.regularizers.rates import full_lr, has_time_constant, momentum_divisor, resolve_paces
from mtsp.regularizers.targets import Target

_ATTACHED: WeakSet["Attachment"] = WeakSet()


class Attachment:
    """A regularizer on one optimizer: in each step, exactly one pull on every weight that learns.

    Before the step, or when a closure has computed the gradients: validate, measure if asked to, then
    :meth:`act_before`. After it: :meth:`act_after`. Subclasses act in other ways or at other moments. A step that an
    exception interrupts may have changed gradients or weights already, which is not undone: see
    :meth:`mtsp.regularizers.base.Regularizer.attach`.

    Args:
        optimizer: a torch optimizer, unwrapped.
        model: the network, in which weights are found by name.
        penalties: of pretrained (True) and of new weights.
        targets: by name, shared by all attachments of a regularizer: their paces are converted here, and their anchors
            moved to the weights' devices.
        storage: how anchors are kept.
        mode: how the pull enters the step; not `auto`.

    Raises:
        ValueError: as :meth:`mtsp.regularizers.base.Regularizer.attach`.
    """

    def __init__(
        self,
        optimizer: Any,
        model: nn.Module,
        *,
        penalties: Mapping[bool, Penalty],
        targets: dict[str, Target],
        storage: Storage,
        mode: Mode,
    ) -> None:
        self.optimizer = optimizer
        self.mode: Mode = mode
        self.measured: dict[str, Tensor] = {}  # by weight: squared norms of the pull and of the gradient
        self.measuring = True
        self._model = model
        self._penalties = penalties
        self._targets = targets
        self._storage = storage
        self._parameters: tuple[int, ...] | None = None
        self._buckets: list[Bucket] = []
        self._handles: list[Any] = []
        names = self._names()
        check_optimizer(optimizer, names, targets)
        resolve_paces(optimizer, names, targets, mode)
        self.check_overshoots(self.buckets())

    def buckets(self) -> list[Bucket]:
        """Return the weights; they are found by name again when the optimizer's parameters were swapped (FSDP2)."""
        parameters = tuple(id(p) for group in self.optimizer.param_groups for p in group["params"])
        if parameters != self._parameters:
            names = self._names()
            resolve_paces(self.optimizer, names, self._targets, self.mode, again=False)
            self._buckets = make_buckets(names, self.optimizer, self._targets, self._penalties, self._storage)
            self._parameters = parameters
        return self._buckets

    def start(self) -> None:
        """Register the hooks.

        Raises:
            ValueError: one of the weights is pulled in the steps of another optimizer.
        """
        check_pulled_once(self._buckets, lambda: [bucket for other in list(_ATTACHED) for bucket in other._buckets])
        self._handles = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
        ]
        self.optimizer.__getstate__ = forbid_copy  # a copy has no hooks and would silently not be regularized
        _ATTACHED.add(self)

    def stop(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        del self.optimizer.__getstate__
        _ATTACHED.discard(self)

    def measure_next(self) -> None:
        """Measure pull and gradient in the next step, and forget earlier measurements."""
        self.measured, self.measuring = {}, True

    @torch.no_grad()
    def _before_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        in_kernel = fused(optimizer) and self.mode == "coupled" and isinstance(self._penalties[True], SquaredDistance)
        if closure is None and not in_kernel:
            self._before()
            return None
        # A closure computes the gradients inside the step, after this hook: act once it has. The fused kernel's
        # parameter groups must not be seen by other hooks: as a closure, they are made after all hooks.
        wrapped = self._after_gradients(closure or (lambda: None))
        if len(args) > 1:
            return (args[0], wrapped, *args[2:]), kwargs
        return args, {**kwargs, "closure": wrapped}

    def _after_gradients(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        coupled, evaluations = self.mode == "coupled", 0

        def evaluate() -> Any:
            nonlocal evaluations
            with torch.enable_grad():
                loss = closure()
            evaluations += 1
            if evaluations == 1 or coupled:  # a decoupled pull acts once in a step
                with torch.no_grad():
                    self._before()
            if isinstance(self.optimizer, torch.optim.LBFGS) and coupled:
                # A line search needs the value that belongs to the gradient.
                return loss + reports.total_penalty(self._penalties, named_weights(self._model), self._targets)
            return loss

        return evaluate

    def _before(self) -> None:
        """Validate, measure if asked to, then apply the pull."""
        buckets = self.buckets()
        for group in {bucket.group for bucket in buckets}:
            check_weight_decay(self.optimizer.param_groups[group])
        self.check_overshoots(buckets)
        if self.measuring and not torch.compiler.is_compiling():
            scale = getattr(self.optimizer, "grad_scale", None)
            for bucket in buckets:
                self.measured |= reports.measured(bucket, scale)
            self.measuring = False
        self.act_before(buckets)

    @torch.no_grad()
    def _after_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.act_after(self.buckets())

    def act_before(self, buckets: list[Bucket]) -> None:
        """Act before the step, when the gradients are known."""
        if self.mode == "decoupled":
            self.move(buckets, proximal=False)
        elif self.mode == "coupled":
            if isinstance(self._penalties[True], SquaredDistance) and fits(self.optimizer, buckets):
                decay_in_kernel(self.optimizer, buckets)
            else:
                self._add(buckets)

    def act_after(self, buckets: list[Bucket]) -> None:
        """Act after the step."""
        if self.mode == "proximal":
            self.move(buckets, proximal=True)

    def _add(self, buckets: list[Bucket]) -> None:
        """Add the penalty's gradients to those of the loss."""
        scale = getattr(self.optimizer, "grad_scale", None)  # set while a fused optimizer unscales inside its kernel
        for bucket in buckets:
            sign = -1 if self.optimizer.param_groups[bucket.group].get("maximize") else 1
            for block in blocks(bucket):
                pull = bucket.penalty.gradients(block.values)
                if scale is not None:
                    torch._foreach_mul_(pull, scale.to(pull[0].device))
                torch._foreach_add_(block.gradients, pull, alpha=sign * bucket.strength)

    def move(self, buckets: list[Bucket], *, proximal: bool) -> None:
        """Move the weights by one explicit step of the pull, or by the proximal operator."""
        for bucket in buckets:
            fraction = self.applied_fraction(bucket)
            for block in blocks(bucket):
                bucket.penalty.move(block.values, fraction, proximal=proximal)

    def check_overshoots(self, buckets: list[Bucket]) -> None:
        """Raise ValueError if an explicit step goes beyond an anchor; a schedule may have raised the learning rate."""
        if self.mode == "proximal" or not has_time_constant(self.optimizer, self.mode):
            return
        for bucket in buckets:
            fraction = self.step_fraction(bucket)
            if not isinstance(fraction, Tensor) or fraction.device.type == "cpu":  # reading it would wait for the GPU
                check_overshoot(bucket, fraction, float(self.optimizer.param_groups[bucket.group]["lr"]))

    def step_fraction(self, bucket: Bucket) -> StepFraction:
        """Return how far a step moves the weights: learning rate times strength."""
        group = self.optimizer.param_groups[bucket.group]
        # Momentum acts over many steps: each single coupled step moves as a decoupled one.
        mode = "proximal" if self.mode == "proximal" else "decoupled"
        return group["lr"] * bucket.strength / momentum_divisor(self.optimizer, group, mode)

    def applied_fraction(self, bucket: Bucket) -> StepFraction:
        """Return :meth:`step_fraction`, or 0 where a fused optimizer skips the step because gradients overflowed."""
        fraction = self.step_fraction(bucket)
        overflow = getattr(self.optimizer, "found_inf", None)
        device = bucket.weights[0].device
        if overflow is not None:
            fraction = fraction * (1 - overflow.to(device, torch.float64).reshape(()))
        return fraction.to(device) if isinstance(fraction, Tensor) else fraction

    def step_fractions(self, *, full: bool = False) -> dict[str, tuple[float, int]]:
        """Return, for each weight, the fraction of the distance that the pull alone takes in a step, and its size.

        At the present learning rate, or at the `full` one. NaN where the fraction is not constant.
        """
        result = {}
        for bucket in self.buckets():
            group, fraction = self.optimizer.param_groups[bucket.group], float("nan")
            if has_time_constant(self.optimizer, self.mode) and bucket.penalty.proportional:
                lr = full_lr(group) if full else float(group["lr"])
                fraction = lr * bucket.strength / momentum_divisor(self.optimizer, group, self.mode)
            result |= {n: (fraction, w.numel()) for n, w in zip(bucket.names, bucket.weights, strict=True)}
        return result

    def _names(self) -> dict[int, str]:
        return {id(weight): name for name, weight in named_weights(self._model).items()}
