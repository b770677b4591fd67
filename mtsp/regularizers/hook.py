"""Apply a regularizer in each optimizer step, through the hooks of the optimizer."""

import sys
from collections.abc import Callable, Iterable, Mapping
from types import FrameType
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from mtsp.anchors import named_weights
from mtsp.regularizers import reports
from mtsp.regularizers.buckets import Bucket, Storage, blocks, is_sharded, make_buckets
from mtsp.regularizers.checks import (
    check_names,
    check_optimizer,
    check_overshoot,
    check_pulled_once,
    check_settings,
    forbid_copy,
)
from mtsp.regularizers.fused_sgd import decay_in_kernel, fits, fused
from mtsp.regularizers.penalties import Mode, Penalty, SquaredDistance, StepFraction
from mtsp.regularizers.rates import (
    check_full_lrs,
    check_lr_scales,
    full_lr,
    has_time_constant,
    momentum_divisor,
    present_lr,
    resolve_paces,
    step_lr,
)
from mtsp.regularizers.rehearsal import Watch
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
        self.trial: Callable[..., None] | None = None  # raises where a pull does not arrive in these groups
        self._tried: tuple[int, ...] | None = None  # ids of the parameters at the last trial
        self._model = model
        self._penalties = penalties
        self._targets = targets
        self._storage = storage
        self._parameters: tuple[int, ...] | None = None  # ids of those in `_buckets`
        self._buckets: list[Bucket] = []
        self._handles: list[Any] = []
        self._watch: Watch | None = None
        self._step: FrameType | None = None  # the call of the optimizer's step that is running
        self._acts = self._evaluations = 0  # numbers in this step: of pulls, and of calls of a closure
        self._lrs: list[Any] = []  # of each parameter group, before this step
        self._full_lrs: list[float] = []  # of each parameter group, at the start
        self._paced: set[int] = set()  # parameter groups with a weight whose strength was given as a pace
        self._has_acted = False
        names = self._names()
        check_optimizer(optimizer, names, targets)
        resolve_paces(optimizer, names, targets, mode)
        self.check_overshoots(self.buckets())
        self._pulls = bool(self._buckets)

    def buckets(self) -> list[Bucket]:
        """Return the weights; they are found by name again when the optimizer's parameters were swapped (FSDP2)."""
        parameters = tuple(id(p) for group in self.optimizer.param_groups for p in group["params"])
        if parameters != self._parameters:
            names = self._names()
            resolve_paces(self.optimizer, names, self._targets, self.mode, again=False)
            if has_time_constant(self.optimizer, self.mode):
                self._full_lrs += [full_lr(group) for group in self.optimizer.param_groups[len(self._full_lrs) :]]
            check_names(names.values(), self._targets, self._model)
            self._buckets = make_buckets(names, self.optimizer, self._targets, self._penalties, self._storage)
            self._paced = {
                bucket.group
                for bucket in self._buckets
                if any(part.pace for name in bucket.names for part in self._targets[name].parts)
            }
            self._parameters = parameters
        return self._buckets

    def try_out(self) -> None:
        """Make the trial, unless it was made since the optimizer's parameters were exchanged last."""
        groups = {bucket.group for bucket in self.buckets()}
        if self.trial is not None and self._tried != self._parameters:
            with torch.enable_grad():
                self.trial(groups=groups)
            self._tried = self._parameters

    def start(self, *, watch: bool = False) -> None:
        """Register the hooks.

        Args:
            watch: until the first step, raise where the weights move without one.

        Raises:
            ValueError: one of the weights is pulled in the steps of another optimizer.
        """
        check_pulled_once(self._buckets, lambda: [bucket for other in list(_ATTACHED) for bucket in other._buckets])
        _make_hookable(type(self.optimizer))
        self._handles = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
        ]
        self.optimizer.__getstate__ = forbid_copy  # a copy has no hooks and would silently not be regularized
        _ATTACHED.add(self)
        if watch and (watched := _smallest(self._buckets)) is not None:
            self._watch = Watch(watched, type(self.optimizer).__name__)

    def stop(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._end_watch()
        del self.optimizer.__getstate__
        _ATTACHED.discard(self)

    def measure_next(self) -> None:
        """Measure pull and gradient in the next step, and forget earlier measurements."""
        self.measured, self.measuring = {}, True

    def _before_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._begins(sys._getframe(1)):
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        in_kernel = fused(optimizer) and self.mode == "coupled" and isinstance(self._penalties[True], SquaredDistance)
        if closure is None and not in_kernel and not self._hooks_follow():
            with torch.no_grad():
                self._before()
            return None
        # A closure computes the gradients inside the step, after this hook: act once it has. The fused kernel's
        # parameter groups must not be seen by other hooks, and hooks that clip gradients must not clip the pull: as a
        # closure, both are made after all hooks.
        wrapped = self._after_gradients(closure or (lambda: None))
        if len(args) > 1:
            return (args[0], wrapped, *args[2:]), kwargs
        return args, {**kwargs, "closure": wrapped}

    def _hooks_follow(self) -> bool:
        """Whether others were registered after this one that would see the pull in the gradients."""
        hooks = self.optimizer._optimizer_step_pre_hooks
        return (
            self.mode == "coupled"
            and not torch.compiler.is_compiling()
            and next(reversed(hooks), None) != self._handles[0].id
        )

    def _begins(self, step: FrameType) -> bool:
        """Whether this call of `step` is the outermost: where a subclass calls `super().step()`, hooks run again."""
        if self._step is not None and _is_called_by(step, self._step):
            return False
        self._step = step  # a call that an exception has ended is no caller any more
        self._acts = self._evaluations = 0
        self._end_watch()
        return True

    def _after_gradients(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        coupled = self.mode == "coupled"

        def evaluate() -> Any:
            with torch.enable_grad():
                loss = closure()
            if not self._evaluations or coupled:  # a decoupled pull acts once in a step
                self._evaluations += 1
                with torch.no_grad():
                    self._before()
            if isinstance(self.optimizer, torch.optim.LBFGS) and coupled:
                # A line search needs the value that belongs to the gradient.
                return loss + reports.total_penalty(self._penalties, named_weights(self._model), self._targets)
            return loss

        return evaluate

    def _before(self) -> None:
        """Validate, measure if asked to, then apply the pull."""
        self._acts += 1
        buckets = self.buckets()
        groups = {bucket.group for bucket in buckets}
        if not torch.compiler.is_compiling():
            self.try_out()
        for group in groups:
            check_settings(self.optimizer.param_groups[group])
        if self._paced and not torch.compiler.is_compiling():
            check_full_lrs((self.optimizer.param_groups[group], self._full_lrs[group]) for group in self._paced)
            if not self._has_acted:
                check_lr_scales((self.optimizer.param_groups[group], self._full_lrs[group]) for group in groups)
        if self.mode != "coupled":  # a step may change the learning rate that the optimizer estimates
            self._lrs = [step_lr(self.optimizer, group, self.mode) for group in self.optimizer.param_groups]
        self.check_overshoots(buckets)
        if self.measuring and not torch.compiler.is_compiling():
            scale = getattr(self.optimizer, "grad_scale", None)
            self.measured |= reports.measured(buckets, scale)
            self.measuring = False
        self.act_before(buckets)

    def _after_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if sys._getframe(1) is not self._step:
            return
        self._step = None
        self._check_acted()
        with torch.no_grad():
            self.act_after(self.buckets())
        self._lrs = []
        self._has_acted = True

    def _check_acted(self) -> None:
        """Raise ValueError unless the pull has acted once in this step, or once for each evaluation of a closure."""
        name = type(self.optimizer).__name__
        if not self._acts:
            raise ValueError(f"{name} made a step without evaluating its closure, so nothing was pulled in it")
        if self._acts != max(1, self._evaluations):
            raise ValueError(f"the pull acted {self._acts} times in one step of {name}")
        if self._pulls and not self._buckets:
            raise ValueError(
                f"none of the weights that were pulled is in {name} any more; attach after they are exchanged"
            )

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.end()
            self._watch = None

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
                check_overshoot(bucket, fraction, float(present_lr(self.optimizer.param_groups[bucket.group])))

    def step_fraction(self, bucket: Bucket) -> StepFraction:
        """Return how far a step moves the weights: learning rate times strength."""
        if self._lrs:
            return self._lrs[bucket.group] * bucket.strength
        return step_lr(self.optimizer, self.optimizer.param_groups[bucket.group], self.mode) * bucket.strength

    def applied_fraction(self, bucket: Bucket) -> StepFraction:
        """Return :meth:`step_fraction`, or 0 where a fused optimizer skips the step because gradients overflowed."""
        fraction = self.step_fraction(bucket)
        overflow = getattr(self.optimizer, "found_inf", None)
        device = bucket.weights[0].device
        if overflow is not None:
            fraction = fraction * (1 - overflow.to(device, torch.float64).reshape(()))
        return fraction.to(device) if isinstance(fraction, Tensor) else fraction

    def step_fractions(self, *, full: bool = False) -> dict[tuple[str, bool], tuple[float, int]]:
        """Return the fraction of the distance that the pull alone takes in a step, and the number of entries.

        There is one for each weight that learns, by its name and True for its pretrained or False for its new rows. It
        is that of the present learning rate, or of the `full` one; NaN if it is not constant.
        """
        result = {}
        for bucket in self.buckets():
            group, fraction = self.optimizer.param_groups[bucket.group], float("nan")
            if has_time_constant(self.optimizer, self.mode) and bucket.penalty.proportional:
                lr = self._full_lr(bucket.group) if full else float(present_lr(group))
                fraction = lr * bucket.strength / momentum_divisor(self.optimizer, group, self.mode)
            for name, weight in zip(bucket.names, bucket.weights, strict=True):
                if weight.requires_grad:
                    part = next(part for part in self._targets[name].parts if part.shared == bucket.shared)
                    result[name, bucket.shared] = fraction, part.size(weight)
        return result

    def _full_lr(self, group: int) -> float:
        """Return a group's full learning rate; if a schedule multiplies it by an lr_scale, as it was at the start."""
        settings = self.optimizer.param_groups[group]
        return self._full_lrs[group] if "lr_scale" in settings else full_lr(settings)

    def _names(self) -> dict[int, str]:
        return {id(weight): name for name, weight in named_weights(self._model).items()}


def attach_squared(optimizer: Any, model: nn.Module, mode: Mode, strength: float, anchor: Tensor) -> Attachment:
    """Attach the squared distance to the one weight of a model, for a trial; return the attachment."""
    squared = SquaredDistance()
    attachment = Attachment(
        optimizer,
        model,
        penalties={True: squared, False: squared},
        targets={"weight": Target(strength, anchor, True)},
        storage=Storage(),
        mode=mode,
    )
    attachment.start()
    return attachment


def _make_hookable(kind: type) -> None:
    """Let the steps of a class and its bases call hooks now; torch does so when an optimizer of each is made."""
    for base in kind.__mro__:
        step = vars(base).get("step")
        if step is not None and base is not torch.optim.Optimizer and not getattr(step, "hooked", False):
            hookable: Any = torch.optim.Optimizer.profile_hook_step(step)
            hookable.hooked = True
            base.step = hookable  # pyright: ignore[reportAttributeAccessIssue]


def _is_called_by(frame: FrameType, caller: FrameType) -> bool:
    above = frame.f_back
    while above is not None and above is not caller:
        above = above.f_back
    return above is not None


def _smallest(buckets: Iterable[Bucket]) -> nn.Parameter | None:
    """Return the smallest weight that learns and is whole in this process, or None."""
    weights = [w for bucket in buckets for w in bucket.weights if w.requires_grad and w.is_leaf and not is_sharded(w)]
    return min(weights, key=lambda weight: weight.numel(), default=None)
