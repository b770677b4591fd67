"""What happens in one step: a regularizer on one optimizer, from its hooks to the weights."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from mtsp.anchors import named_weights
from mtsp.regularizers import reports
from mtsp.regularizers.buckets import Bucket, Part, Storage, parts, sort
from mtsp.regularizers.checks import refuse, refuse_copy, refuse_decay, refuse_overshoot, refuse_twice
from mtsp.regularizers.fused_sgd import decay_in_kernel, fits, fused
from mtsp.regularizers.penalties import Mode, Penalty, Share, SquaredDistance
from mtsp.regularizers.rates import full_lr, has_pace, inertia, settle
from mtsp.regularizers.targets import Pull

_ACTING: WeakSet["Attachment"] = WeakSet()


class Attachment:
    """A regularizer on one optimizer: exactly one pull on every weight of it that learns, in each of its steps.

    Before the step: wait for the gradients if a closure computes them, measure if asked to, then :meth:`act_before`.
    After it: :meth:`act_after`. Subclasses act otherwise, or at other moments. A step that an exception cuts short may
    have pulled already, in the gradients or in the weights, and nothing undoes that: see
    :meth:`mtsp.regularizers.Anchored.attach`.

    Args:
        optimizer: the innermost one.
        model: the network, in which weights are found by name.
        forms: the penalties of pretrained (True) and of new weights.
        pulls: by name, shared by all attachments of a regularizer: their paces become numbers here, and their anchors
            move to where the weights are.
        storage: how anchors are kept.
        place: where the pull enters the step; never `auto`.

    Raises:
        ValueError: as :meth:`mtsp.regularizers.Anchored.attach`.
    """

    def __init__(
        self,
        optimizer: Any,
        model: nn.Module,
        *,
        forms: Mapping[bool, Penalty],
        pulls: dict[str, Pull],
        storage: Storage,
        place: Mode,
    ) -> None:
        self.optimizer = optimizer
        self.place: Mode = place
        self.measured: dict[str, Tensor] = {}  # by weight: squared norms of the pull and of the gradient
        self.measuring = True
        self._model = model
        self._forms = forms
        self._pulls = pulls
        self._storage = storage
        self._present: tuple[int, ...] | None = None
        self._buckets: list[Bucket] = []
        self._handles: list[Any] = []
        names = self._names()
        refuse(optimizer, names, pulls)
        settle(optimizer, names, pulls, place)
        self.refuse_overshoots(self.buckets())

    def buckets(self) -> list[Bucket]:
        """Return the weights, found by name again whenever the optimizer's parameters were swapped (FSDP2)."""
        present = tuple(id(p) for group in self.optimizer.param_groups for p in group["params"])
        if present != self._present:
            names = self._names()
            settle(self.optimizer, names, self._pulls, self.place, anew=False)  # new weights, or new tensors for them
            self._buckets = sort(names, self.optimizer, self._pulls, self._forms, self._storage)
            self._present = present
        return self._buckets

    def start(self) -> None:
        """Act in every step from now on.

        Raises:
            ValueError: one of the weights is pulled in the steps of another optimizer.
        """
        refuse_twice(self._buckets, lambda: [bucket for other in list(_ACTING) for bucket in other._buckets])
        self._handles = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
        ]
        self.optimizer.__getstate__ = refuse_copy  # copies have no hooks: they would not be regularized, silently
        _ACTING.add(self)

    def stop(self) -> None:
        """Act no more."""
        for handle in self._handles:
            handle.remove()
        del self.optimizer.__getstate__
        _ACTING.discard(self)

    def measure_next(self) -> None:
        """Measure pull and gradient in the next step, and forget what was measured before."""
        self.measured, self.measuring = {}, True

    @torch.no_grad()
    def _before_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        late = fused(optimizer) and self.place == "coupled" and isinstance(self._forms[True], SquaredDistance)
        if closure is None and not late:
            self._before()
            return None
        # What the kernel is shown, no other hook may see: as a closure, it comes after all of them.
        closure = closure or (lambda: None)
        # The closure computes the gradients inside the step, after this hook: act when it has done so.
        wrapped = self._after_gradients(closure)
        if len(args) > 1:
            return (args[0], wrapped, *args[2:]), kwargs
        return args, {**kwargs, "closure": wrapped}

    def _after_gradients(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        coupled, evaluations = self.place == "coupled", 0

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
                return loss + reports.penalty(self._forms, named_weights(self._model), self._pulls)
            return loss

        return evaluate

    def _before(self) -> None:
        """Refuse what may not be before anything moves, measure if asked to, and act."""
        buckets = self.buckets()
        for group in {bucket.group for bucket in buckets}:
            refuse_decay(self.optimizer.param_groups[group])
        self.refuse_overshoots(buckets)
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
        """Act where the gradients are known and the step is not made."""
        if self.place == "decoupled":
            self.move(buckets, proximal=False)
        elif self.place == "coupled":
            if isinstance(self._forms[True], SquaredDistance) and fits(self.optimizer, buckets):
                decay_in_kernel(self.optimizer, buckets)
            else:
                self._add(buckets)

    def act_after(self, buckets: list[Bucket]) -> None:
        """Act where the step has been made."""
        if self.place == "proximal":
            self.move(buckets, proximal=True)

    def _add(self, buckets: list[Bucket]) -> None:
        scale = getattr(self.optimizer, "grad_scale", None)  # set while a fused optimizer unscales inside its kernel
        for bucket in buckets:
            sign = -1 if self.optimizer.param_groups[bucket.group].get("maximize") else 1
            for near, gradients, _ in _parts(bucket):
                pull = bucket.form.gradients(near)
                if scale is not None:
                    torch._foreach_mul_(pull, scale.to(pull[0].device))
                torch._foreach_add_(gradients, pull, alpha=sign * bucket.strength)

    def move(self, buckets: list[Bucket], *, proximal: bool) -> None:
        """Move the weights by one explicit step of the pull, or where its proximal operator says."""
        for bucket in buckets:
            share = self.share_made(bucket)
            for near, _, _ in _parts(bucket):
                bucket.form.move(near, share, proximal=proximal)

    def refuse_overshoots(self, buckets: Iterable[Bucket]) -> None:
        """Raise ValueError if an explicit step goes beyond an anchor; a schedule may have raised the learning rate."""
        if self.place == "proximal" or not has_pace(self.optimizer, self.place):
            return
        for bucket in buckets:
            share = self.step_share(bucket)
            if not isinstance(share, Tensor) or share.device.type == "cpu":  # else reading it would wait for the GPU
                refuse_overshoot(bucket, share, float(self.optimizer.param_groups[bucket.group]["lr"]))

    def step_share(self, bucket: Bucket) -> Share:
        """Return how far a step goes: learning rate times strength."""
        group = self.optimizer.param_groups[bucket.group]
        # Coupled through momentum, each single step is plain.
        plain = "proximal" if self.place == "proximal" else "decoupled"
        return group["lr"] * bucket.strength / inertia(self.optimizer, group, plain)

    def share_made(self, bucket: Bucket) -> Share:
        """Return :meth:`step_share`, or 0 where a fused optimizer makes no step because gradients overflowed."""
        share = self.step_share(bucket)
        overflow = getattr(self.optimizer, "found_inf", None)
        device = bucket.weights[0].device
        if overflow is not None:
            share = share * (1 - overflow.to(device, torch.float64).reshape(()))
        return share.to(device) if isinstance(share, Tensor) else share

    def known_shares(self, *, full: bool = False) -> dict[str, tuple[float, int]]:
        """Return, by weight, the share of the distance that the pull alone takes away in a step, and the weight's size.

        NaN where there is no such number. At the present learning rate, or at the `full` one.
        """
        result = {}
        for bucket in self.buckets():
            group, share = self.optimizer.param_groups[bucket.group], float("nan")
            if has_pace(self.optimizer, self.place) and bucket.form.proportional:
                lr = full_lr(group) if full else float(group["lr"])
                share = lr * bucket.strength / inertia(self.optimizer, group, self.place)
            result |= {n: (share, w.numel()) for n, w in zip(bucket.names, bucket.weights, strict=True)}
        return result

    def _names(self) -> dict[int, str]:
        return {id(weight): name for name, weight in named_weights(self._model).items()}


def _parts(bucket: Bucket) -> Iterable[Part]:
    return parts(bucket, whole=bucket.form.by_row)
