"""What every member of the family is: attached to an optimizer, it acts exactly once per optimizer step."""

import gc
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn

from mtsp.anchors import fingerprint, grouped_transposed, named_weights
from mtsp.regularizers import reports
from mtsp.regularizers.attaching import (
    full_lr,
    has_pace,
    inertia,
    innermost,
    refuse,
    refuse_copy,
    refuse_decay,
    refuse_unlike_processes,
    settle,
)
from mtsp.regularizers.buckets import Bucket, Part, Storage, parts, sort, splits_rows
from mtsp.regularizers.native import decay_in_kernel, fits, fused
from mtsp.regularizers.penalties import Penalty, Placement, Share, SquaredDistance
from mtsp.regularizers.pulls import pulls, under
from mtsp.regularizers.reports import Report
from mtsp.regularizers.strength import Strength


class _Attached(NamedTuple):
    optimizer: Any
    handles: list[Any]


class _Sorted(NamedTuple):
    present: tuple[int, ...]
    buckets: list[Bucket]


_ANCHOR_DTYPES = (None, torch.float64, torch.float32, torch.bfloat16, torch.float16)
_ACTING: WeakSet["Anchored"] = WeakSet()


class Anchored:
    """A pull on every convolution and linear weight: towards its anchor, or, where it has none, towards zero.

    Build a subclass, after the pretrained weights are loaded; attach it to the optimizer, and train as always.

    *Coupled* adds the penalty's gradient to the weight's before the step, which is the papers' form: it enters the
    momentum. *Decoupled* moves w before the step by lr * strength of the way, so that Adam's scaling does not touch it;
    it is to L2-SP what AdamW is to L2. *Proximal* moves w after the step to where the penalty's proximal operator says:
    exact zeros where the penalty has a kink, and no strength is too large. Its step is lr / (1 - momentum) for SGD, so
    that it ends where the coupled form would. Unlike a term in the loss, no pull is clipped, scaled by gradient
    accumulation, or part of any graph. Weights whose gradient is None (frozen, held or unused) do not move.

    Args:
        model: the network, wrapped or not. Held by reference, so that parameters that FSDP2 swaps are found again.
        anchors: w0 by parameter name. Names of biases and normalization layers of the model are passed over; the values
            are copied. With `zero=True` only the names count. None: there are none, all is pulled to zero with beta.
        alpha: strength on the weights that have an anchor: a number, a :class:`~mtsp.regularizers.Pace`, or one of
            these by name prefix (`{"flow": 0.1}`; the longest prefix wins, and every weight concerned must have one).
        beta: strength on the other convolution and linear weights, likewise.
        placement: see above. `auto` is coupled for SGD and LBFGS and decoupled for other optimizers, or proximal for
            all (but LBFGS) where the penalty has a kink or Fisher information.
        zero: pull weights with an anchor to zero instead: plain L2 with two strengths.
        every: also biases, normalization layers and embeddings: every parameter (mode 101 of the authors' code).
        fisher: the diagonal of the Fisher information by parameter name, for the penalties that weigh with it.
        anchor_dtype: keep the anchors in this dtype; bfloat16 halves their memory, and pulls to rounded anchors.
        offload: keep the anchors in CPU memory (pinned, beside a GPU) and copy them over block by block.

    Raises:
        ValueError: an anchor names nothing in the model, or has another shape or values that are not finite, or no
            anchor concerns a convolution or linear weight, or a strength is negative or missing, or the penalty cannot
            act where `placement` says, or lacks its Fisher information. Passing over it would leave a renamed module,
            or a wrong checkpoint, without regularization and without a word.
    """

    form: ClassVar[Penalty]
    """The penalty of the weights that have an anchor; new weights have 1/2 ||w||^2."""

    def __init__(
        self,
        model: nn.Module,
        *,
        anchors: Mapping[str, Tensor] | None,
        alpha: Strength,
        beta: Strength,
        placement: Placement = "auto",
        zero: bool = False,
        every: bool = False,
        fisher: Mapping[str, Tensor] | None = None,
        anchor_dtype: torch.dtype | None = None,
        offload: bool = False,
    ) -> None:
        if placement not in ("auto", *self.form.placements):
            choice = ", ".join(dict.fromkeys(self.form.placements))
            raise ValueError(f"{type(self).__name__} cannot be {placement}; it can be {choice}")
        if (fisher is not None) != self.form.weighs:
            what = "needs `fisher`, see mtsp.fisher" if self.form.weighs else "does not use `fisher`"
            raise ValueError(f"{type(self).__name__} {what}")
        if anchor_dtype not in _ANCHOR_DTYPES:
            raise ValueError(f"anchor_dtype must be float64, float32, bfloat16 or float16, got {anchor_dtype}")
        self.model = model
        self.placement: Placement = placement
        self.pulls = pulls(model, anchors, alpha, beta, zero=zero, every=every, fisher=fisher)
        self._refuse_rows_and_paces()
        self._state = self._fingerprints()
        if anchor_dtype is not None:
            self.pulls = {
                name: pull if pull.anchor is None else pull._replace(anchor=pull.anchor.to(anchor_dtype))
                for name, pull in self.pulls.items()
            }
        self._storage = Storage(anchor_dtype, offload)
        self._attached: dict[int, _Attached] = {}
        self._sorted: dict[int, _Sorted] = {}
        self._measured: dict[str, Tensor] = {}  # by weight: squared norms of the pull and of the gradient
        self._measuring = True

    def attach(self, optimizer: Any) -> None:
        """Act in every step of `optimizer`, which may be wrapped by Accelerate, before or after `prepare`.

        Call it again for a second optimizer of the same model (Muon for matrices, AdamW for the rest).

        Raises:
            ValueError: the optimizer decays a weight that is pulled here (two regularizers on one weight), or shares
                one with an optimizer that is regularized, or holds no weight that is pulled here, or is regularized
                already, or is an LBFGS and the pull not coupled, or the anchors differ between processes, or were
                captured after training began, or a strength times its learning rate is above 1.
        """
        optimizer = innermost(optimizer)
        if id(optimizer) in self._attached:
            raise ValueError("this regularizer is attached already; detach() it first, or the pull would act twice")
        if any(isinstance(getattr(hook, "__self__", None), Anchored) for hook in _pre_hooks(optimizer)):
            raise ValueError("another regularizer acts on this optimizer already; detach() it first")
        if isinstance(optimizer, torch.optim.LBFGS) and not self.coupled(optimizer):
            raise ValueError(
                f"{type(self).__name__} is {self.acts(optimizer)} here, but LBFGS moves many times in a step and needs "
                "the pull in the gradient; use placement='coupled', or another optimizer"
            )
        names = {id(weight): name for name, weight in self._weights().items()}
        refuse(optimizer, names, self.pulls)
        settle(optimizer, names, self.pulls, self.acts(optimizer))
        for bucket in self._resolved(optimizer):
            self._rate(optimizer, bucket)
        self._refuse_twice(optimizer)
        weights = [weight for bucket in self._resolved(optimizer) for weight in bucket.weights]
        refuse_unlike_processes(self._state["anchors"], weights)
        handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        self._attached[id(optimizer)] = _Attached(optimizer, handles)
        _ACTING.add(self)
        optimizer.__getstate__ = refuse_copy  # copies have no hooks: they would not be regularized, silently

    def detach(self) -> None:
        """Act no more."""
        for optimizer, handles in self._attached.values():
            for handle in handles:
                handle.remove()
            del optimizer.__getstate__
        self._attached.clear()
        self._sorted.clear()
        _ACTING.discard(self)

    def penalty(self) -> float:
        """Return the penalty at the current weights, summed in float64. For reports: training never needs it.

        Every process must call it where weights are sharded.

        Raises:
            ValueError: a strength is a pace, which attaching makes a number.
        """
        return reports.penalty(self.form, self._weights(), self.pulls)

    def distances(self, prefixes: Iterable[str]) -> dict[str, float]:
        """Return ||w_S - w_S0|| / ||w_S0|| for each name prefix under which something is anchored."""
        return reports.distances(self._weights(), self.pulls, prefixes)

    def report(self, prefixes: Iterable[str] = ("",)) -> dict[str, Report]:
        """Return how strongly the weights under each prefix are held.

        Pull and gradient are measured on the first step after the previous call of `report` (or after `attach`).
        Every process must ask where weights are sharded.
        """
        prefixes = tuple(prefixes)
        near, rates, result = self.distances(prefixes), self._rates(), {}
        for prefix in prefixes:
            squares = [both for name, both in self._measured.items() if under(name, prefix)]
            pull, gradient = torch.stack(squares).sum(0).tolist() if squares else (0.0, 0.0)
            found = [(rate, size) for name, (rate, size) in rates.items() if under(name, prefix)]
            rate = sum(rate * size for rate, size in found) / max(1, sum(size for _, size in found))
            result[prefix] = Report(
                near.get(prefix, float("nan")),
                (pull / gradient) ** 0.5 if gradient else float("nan"),
                1 / rate if rate else float("inf"),
            )
        self._measuring = True
        return result

    def table(self) -> str:
        """Return what is anchored, pulled to zero, new and free, one weight a line, and the sums below."""
        return reports.table(self._weights(), self.pulls)

    def __str__(self) -> str:
        return f"{type(self).__name__}\n{self.table()}"

    def acts(self, optimizer: Any) -> Placement:
        """Return where the pull enters a step of `optimizer`."""
        if self.placement != "auto":
            return self.placement
        optimizer = innermost(optimizer)
        if isinstance(optimizer, torch.optim.LBFGS) and "coupled" in self.form.placements:
            return "coupled"
        return self.form.placements[1 if isinstance(optimizer, torch.optim.SGD) else 0]

    def coupled(self, optimizer: Any) -> bool:
        """Return whether the pull enters the gradient of `optimizer`."""
        return self.acts(optimizer) == "coupled"

    def state_dict(self) -> dict[str, str]:
        """Return what a checkpoint should hold: which regularizer, and the fingerprint of its anchors, not the anchors.

        Anchors belong to the pretrained weights and are loaded from there again; of Fisher information likewise. The
        strengths and the placement may change.
        """
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Check that a resumed run pulls to the anchors of the run before.

        Raises:
            ValueError: it does not; weights that were resumed may have been captured instead of the pretrained ones.
        """
        own = self.state_dict()
        wrong = [key for key in own if state.get(key) != own[key]]
        if wrong:
            raise ValueError(
                f"the checkpoint was trained with another {wrong[0]} ({state.get(wrong[0])}, here {own[wrong[0]]}); "
                "anchor to the pretrained weights that run began with, captured before any checkpoint is loaded"
            )

    def _weights(self) -> dict[str, nn.Parameter]:
        return named_weights(self.model)

    def _proportional(self, shared: bool) -> bool:
        """Whether the pull on pretrained, or on new, weights takes a known share of the distance away."""
        return self.form.proportional or not shared

    def _refuse_rows_and_paces(self) -> None:
        rowless = grouped_transposed(self.model) if self.form.by_row else []
        for name, pull in self.pulls.items():
            if pull.shared and name in rowless:
                raise ValueError(
                    f"{name} is of a transposed convolution with groups, whose output channels are no slices of it; "
                    f"{type(self).__name__} needs them: leave its anchor out, or use L2SP"
                )
            if pull.pace is not None and not self._proportional(pull.shared):
                raise ValueError(
                    f"{name} has the strength {pull.pace}, but {type(self).__name__} takes no fixed share of the "
                    "distance away in a step; give a number"
                )

    def _fingerprints(self) -> dict[str, str]:
        anchors = {name: pull.anchor for name, pull in self.pulls.items() if pull.anchor is not None}
        state = {"regularizer": type(self).__name__, "anchors": fingerprint(anchors)}
        if self.form.weighs:
            important = {name: pull.importance for name, pull in self.pulls.items() if pull.importance is not None}
            state["fisher"] = fingerprint(important)
        return state

    def _refuse_twice(self, optimizer: Any) -> None:
        """Raise ValueError if a weight of this optimizer is pulled in the steps of another one."""
        own = {id(weight) for bucket in self._resolved(optimizer) for weight in bucket.weights}

        def shared() -> list[str]:
            return [
                name
                for other in list(_ACTING)
                for key, (_, buckets) in other._sorted.items()
                if key in other._attached
                for bucket in buckets
                for name, weight in zip(bucket.names, bucket.weights, strict=True)
                if id(weight) in own
            ]

        if shared():
            gc.collect()  # an optimizer that nobody has any more is held by its own hooks until then
            if found := shared():
                raise ValueError(
                    f"{found[0]} is pulled in the steps of another optimizer already; detach() its regularizer first, "
                    "or the pull would act twice"
                )

    @torch.no_grad()
    def _before_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        late = fused(optimizer) and self.coupled(optimizer) and isinstance(self.form, SquaredDistance)
        if closure is None and not late:
            self._before(optimizer)
            return None
        # What the kernel is shown, no other hook may see: as a closure, it comes after all of them.
        closure = closure or (lambda: None)
        # The closure computes the gradients inside the step, after this hook: act when it has done so.
        wrapped = self._after_gradients(closure, optimizer)
        if len(args) > 1:
            return (args[0], wrapped, *args[2:]), kwargs
        return args, {**kwargs, "closure": wrapped}

    def _after_gradients(self, closure: Callable[[], Any], optimizer: Any) -> Callable[[], Any]:
        evaluations = 0

        def evaluate() -> Any:
            nonlocal evaluations
            with torch.enable_grad():
                loss = closure()
            evaluations += 1
            if evaluations == 1 or self.coupled(optimizer):  # a decoupled pull acts once in a step
                with torch.no_grad():
                    self._before(optimizer)
            if isinstance(optimizer, torch.optim.LBFGS) and self.coupled(optimizer):
                return loss + self.penalty()  # a line search needs the value that belongs to the gradient
            return loss

        return evaluate

    @torch.no_grad()
    def _after_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._act_after(optimizer, self._resolved(optimizer))

    def _before(self, optimizer: Any) -> None:
        buckets = self._resolved(optimizer)
        for group in {bucket.group for bucket in buckets}:
            refuse_decay(optimizer.param_groups[group])
        if self._measuring and not torch.compiler.is_compiling():
            scale = getattr(optimizer, "grad_scale", None)
            for bucket in buckets:
                self._measured |= reports.measured(self._form(bucket), bucket, scale)
            self._measuring = False
        self._act_before(optimizer, buckets)

    def _act_before(self, optimizer: Any, buckets: list[Bucket]) -> None:
        """Act where the gradients are known and the step is not made."""
        place = self.acts(optimizer)
        if place == "decoupled":
            self._move(optimizer, buckets, proximal=False)
        elif place == "coupled":
            for bucket in buckets:
                self._rate(optimizer, bucket)
            if isinstance(self.form, SquaredDistance) and fits(optimizer, buckets):
                decay_in_kernel(optimizer, buckets)
            else:
                self._add(optimizer, buckets)

    def _act_after(self, optimizer: Any, buckets: list[Bucket]) -> None:
        """Act where the step has been made."""
        if self.acts(optimizer) == "proximal":
            self._move(optimizer, buckets, proximal=True)

    def _add(self, optimizer: Any, buckets: list[Bucket]) -> None:
        scale = getattr(optimizer, "grad_scale", None)  # set while a fused optimizer unscales inside its own kernel
        for bucket in buckets:
            form = self._form(bucket)
            sign = -1 if optimizer.param_groups[bucket.group].get("maximize") else 1
            for near, gradients, _ in self._parts(bucket):
                pull = form.gradients(near)
                if scale is not None:
                    torch._foreach_mul_(pull, scale.to(pull[0].device))
                torch._foreach_add_(gradients, pull, alpha=sign * bucket.strength)

    def _move(self, optimizer: Any, buckets: list[Bucket], *, proximal: bool) -> None:
        for bucket in buckets:
            share = self._share(optimizer, bucket)
            for part in self._parts(bucket):
                self._form(bucket).move(part.near, share, proximal=proximal)

    def _form(self, bucket: Bucket) -> Penalty:
        return self.form if bucket.penalized else reports.SQUARED

    def _parts(self, bucket: Bucket) -> Iterable[Part]:
        return parts(bucket, whole=self._form(bucket).by_row)

    def _share(self, optimizer: Any, bucket: Bucket) -> Share:
        """Learning rate times strength; 0 where a fused optimizer makes no step because gradients overflowed."""
        share = self._rate(optimizer, bucket)
        overflow = getattr(optimizer, "found_inf", None)
        device = bucket.weights[0].device
        if overflow is not None:
            share = share * (1 - overflow.to(device, torch.float64).reshape(()))
        return share.to(device) if isinstance(share, Tensor) else share

    def _rate(self, optimizer: Any, bucket: Bucket) -> Share:
        """Learning rate times strength, which must not be above 1 where the step is explicit.

        Raises:
            ValueError: it is; the schedule may have raised the learning rate.
        """
        group, place = optimizer.param_groups[bucket.group], self.acts(optimizer)
        share = group["lr"] * bucket.strength / inertia(optimizer, group, place if place == "proximal" else "decoupled")
        if isinstance(share, Tensor) and share.device.type != "cpu":
            return share  # reading it would wait for the GPU
        explicit = place == "decoupled" or (place == "coupled" and isinstance(optimizer, torch.optim.SGD))
        if explicit and self._form(bucket).stiff and share * bucket.largest > 1 + 1e-6:
            lr = float(group["lr"])
            stiffest = f" times the largest Fisher information {bucket.largest:g}" if bucket.largest > 1 else ""
            raise ValueError(
                f"the pull on {bucket.names[0]} would overshoot its anchor: learning rate {lr:g} times strength "
                f"{bucket.strength:g}{stiffest} is above 1; use a strength up to {1 / (lr * bucket.largest):g}"
            )
        return share

    def time_constant(self, prefix: str = "") -> float | None:
        """Return after how many steps the pull alone leaves 1/e of the distance of pretrained weights under `prefix`.

        At the full learning rate, as for a :class:`~mtsp.regularizers.Pace`. None where there is no such number:
        nothing pretrained there is pulled, or the pull is not that of a distance alone (coupled through Adam, L1-SP).
        """
        rates = self._rates(full=True)
        found = [rates[name] for name in rates if self.pulls[name].shared and under(name, prefix)]
        rate = sum(rate * size for rate, size in found) / max(1, sum(size for _, size in found))
        return 1 / rate if rate > 0 else None

    def _rates(self, *, full: bool = False) -> dict[str, tuple[float, int]]:
        """By weight, the share of the distance that a step takes away, and the weight's size."""
        result = {}
        for optimizer, _ in self._attached.values():
            place = self.acts(optimizer)
            for bucket in self._resolved(optimizer):
                group = optimizer.param_groups[bucket.group]
                lr = full_lr(group) if full else float(group["lr"])
                rate = lr * bucket.strength / inertia(optimizer, group, place)
                known = rate if has_pace(optimizer, place) and self._proportional(bucket.penalized) else float("nan")
                result |= {n: (known, w.numel()) for n, w in zip(bucket.names, bucket.weights, strict=True)}
        return result

    def _resolved(self, optimizer: Any) -> list[Bucket]:
        """Find the optimizer's weights by name, again whenever its parameters were swapped (FSDP2)."""
        present = tuple(id(p) for group in optimizer.param_groups for p in group["params"])
        known = self._sorted.get(id(optimizer))
        if known is None or known.present != present:
            names = {id(weight): name for name, weight in self._weights().items()}
            if id(optimizer) in self._attached:  # new weights, or new tensors for the old ones
                settle(optimizer, names, self.pulls, self.acts(optimizer), anew=False)
            known = _Sorted(present, sort(names, optimizer, self.pulls, self._storage))
            for bucket in known.buckets:
                for name, weight in zip(bucket.names, bucket.weights, strict=True):
                    if self._form(bucket).by_row and splits_rows(weight, bucket.rows):
                        raise ValueError(reports.SPLIT.format(name=name))
            self._sorted[id(optimizer)] = known
        return known.buckets


def _pre_hooks(optimizer: Any) -> Iterable[Any]:
    return getattr(optimizer, "_optimizer_step_pre_hooks", {}).values()
