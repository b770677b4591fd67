"""Try a pull on a copy of the optimizer: run a few steps with and without it, and compare.

The copy ("twin") has the class, settings and wrappers of the optimizer, and one small weight of its own. A pull that
does not arrive once and at the requested size is refused, for example because a wrapper undoes it or because the
optimizer moves weights at a learning rate other than `lr`. In coupled mode, the reference is a run in which the
gradient of the same penalty is added by hand.
"""

import copy
import random
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import isnan, nan
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mtsp.regularizers.penalties import Mode
from mtsp.regularizers.rates import estimates_lr, step_lr

_STEPS = 12
_FRACTION = 0.1
"""Fraction of the distance that the pull should remove in each step, except in coupled mode."""
_LR = 1e-4
"""Learning rate: small, so that an optimizer whose steps grow with its weights (LAMB) responds little to the pull."""
_PATIENCE = 4
"""Number of times a weight may change before the first step, for example by loading or perturbing weights."""
_KINDS = 4
"""Largest number of parameter groups that are tried; groups that differ only in the learning rate count as one."""
_RATE = ("params", "param_names", "lr", "lr_scale", "initial_lr", "full_lr", "max_lr", "min_lr", "name")
_OWN = ("__getstate__", "step")
"""Attributes that are not copied: schedulers and Accelerate replace them with wrappers bound to the optimizer."""
_NEAR, _SLOWEST, _FASTEST = 0.05, 1e-3, 1e3
"""Tolerance of the fraction that arrived; smallest and largest accepted mean move at a learning rate of 1."""


Run = Literal["free", "pulled", "by hand", "steep"]
Gradient = Callable[[], Tensor]
Attach = Callable[[Any, nn.Module, Mode, float, Tensor], Any]


class Watch:
    """Raise an error if a weight changes repeatedly although the optimizer's `step()` is never called.

    Args:
        weight: a weight that is pulled; it is compared with its last value in each backward pass.
        name: name of the optimizer, for the message.
    """

    def __init__(self, weight: nn.Parameter, name: str) -> None:
        self._name = name
        self._last: Tensor | None = None
        self._moves = 0
        self._handle = weight.register_post_accumulate_grad_hook(self._look)

    @torch.no_grad()
    def _look(self, weight: Tensor) -> None:
        self._moves += self._last is not None and not torch.equal(self._last, weight)
        self._last = weight.detach().clone()
        if self._moves >= _PATIENCE:
            raise ValueError(
                f"the weights moved {self._moves} times since attach(), but {self._name}.step() was never called, so "
                "nothing was pulled; attach to the optimizer whose step() moves them (SAM: to its base optimizer)"
            )

    def end(self) -> None:
        """Stop watching the weight."""
        self._handle.remove()


class Seen(NamedTuple):
    """Result of a rehearsal."""

    arrived: float
    """Fraction of the requested pull that arrived, in the step where it differs most from 1. The worst fifth of the
    steps is left out, since Lookahead and Ranger take back half of everything in some steps."""
    moved: float
    """Mean move per step without the pull at a learning rate of 1; NaN if it depends on the size of the gradient."""
    pauses: bool = False
    """Whether some steps do not move the weight at all, although it has a gradient; those before the first that does
    (AdaShift gathers ten gradients at its start) do not count unless that is the last."""


class Unrehearsed(Exception):
    """A copy of this optimizer cannot step outside its training loop."""


def check_arrival(
    chain: Sequence[Any], mode: Mode, groups: Iterable[int], attach: Attach, choose: Callable[[Any], Mode]
) -> None:
    """Raise ValueError if a pull does not arrive once and in full in the steps of this optimizer.

    Args:
        chain: the optimizer in its wrappers, the outermost first.
        mode: how the pull enters the step; never `auto`.
        groups: the parameter groups that hold weights that are pulled.
        attach: pulls the twin's weight to an anchor, as the regularizer would, and returns what stops it.
        choose: returns the mode that the regularizer has with an optimizer.
    """
    name = type(chain[0]).__name__
    inside = getattr(chain[-1], "optim", chain[-1])  # by ZeRO
    if (own := choose(inside)) != mode:
        raise ValueError(
            f"the pull is {mode} in {name}, but {own} in the {type(inside).__name__} that makes its steps; set the mode"
        )
    way_out = "another optimizer" if mode == "coupled" else "mode='coupled', which is exact in any optimizer"
    try:
        for seen in rehearse(chain, mode, groups, attach):
            if not abs(seen.arrived - 1) <= _NEAR:
                raise ValueError(
                    f"a {mode} pull does not arrive in {name} as it should: {seen.arrived + 0.0:.3g} times what was "
                    f"asked for, in a trial on a separate weight; use {way_out}"
                )
            if seen.pauses:
                raise ValueError(
                    f"not every step() of {name} moves weights, but a {mode} pull acts in each; gather the gradients "
                    "before the step, or use mode='coupled'"
                )
            if not (isnan(seen.moved) or _SLOWEST <= seen.moved <= _FASTEST):
                raise ValueError(
                    f"{name} does not move weights at its lr, by which a {mode} pull goes: its steps were "
                    f"{seen.moved:.1g} times as long, in a trial on a separate weight; use {way_out}"
                )
    except Unrehearsed as error:
        raise ValueError(
            f"whether a pull arrives in {name} cannot be tried out on a separate weight ({error}); if you know that it "
            "does, attach with verify=False"
        ) from error


def rehearse(chain: Sequence[Any], mode: Mode, groups: Iterable[int], attach: Attach) -> list[Seen]:
    """Return the result of one trial for each kind of parameter group; see :func:`check_arrival`.

    Raises:
        Unrehearsed: no twin can make a step.
    """
    optimizer, seen = chain[-1], []
    sharded = getattr(optimizer, "optim", None)  # by ZeRO
    chain = chain if sharded is None else [sharded]
    for index in _kinds(optimizer, groups):
        group = {**chain[-1].param_groups[index], **optimizer.param_groups[index]}
        with _randomness_kept(optimizer), _without_gradients(optimizer):
            seen.append(_rehearsed(chain, group, mode, attach))
    return seen


def _rehearsed(chain: Sequence[Any], group: dict[str, Any], mode: Mode, attach: Attach) -> Seen:
    error: Exception | None = None
    # A loss term in a wrapper (SAM) sees other weights than the optimizer inside: there is nothing to compare with.
    chain = chain[-1:] if mode == "coupled" else chain
    for dtype in _dtypes(group["params"][0]):
        for new, closed in ((False, False), (False, True), (True, False), (True, True)):
            try:
                seen = _measured(partial(_Twin, chain, group, dtype, new=new, closed=closed), mode, attach)
            except Exception as raised:  # whatever the step of a stranger raises on weights that are not its own
                error = error if new and error else raised
            else:
                if not isnan(seen.arrived):
                    return seen
                error = error or Unrehearsed("its steps do not move it")
    raise Unrehearsed(f"{type(error).__name__}: {error}".partition("\n")[0]) from error


def _measured(twin: "Callable[[], _Twin]", mode: Mode, attach: Attach) -> Seen:
    def run(kind: Run) -> _Course:
        return _run(twin(), kind, mode, attach)

    free, pulled = run("free"), run("pulled")
    if mode == "coupled":
        return Seen(_furthest(_compared(free, pulled, run("by hand"))), nan)
    moves, steep = free.moves(), run("steep").moves()
    moved = max((move / rate for move, rate in zip(moves, free.rates, strict=True)), default=0.0)
    by_gradient = max(steep) > 10 * max(moves)
    first = next((step for step, move in enumerate(moves) if move), len(moves))
    arrived = _furthest(_added(free, pulled, after=mode == "proximal"))
    return Seen(
        nan if abs(arrived - 1) <= _NEAR and not any(moves) else arrived,  # a pull that arrives where nothing moves
        nan if by_gradient or not moved else moved,
        not all(moves[first:]) or (len(moves) == _STEPS and first >= _STEPS - 1),
    )


def _compared(free: "_Course", pulled: "_Course", by_hand: "_Course") -> Iterator[float]:
    """Yield the effect of the pull in each step, as a fraction of the effect of the same gradient added by hand."""
    for a, b, c in zip(free.points[1:], pulled.points[1:], by_hand.points[1:], strict=True):
        wanted = c - a
        if float(wanted.norm()) > 1e-6 * float(c.norm()) or (wanted.any() and estimates_lr(free.group)):
            yield float(((b - a) * wanted).sum() / wanted.square().sum())


def _added(free: "_Course", pulled: "_Course", *, after: bool) -> Iterator[float]:
    """Yield the distance that the pull removed in each step, as a fraction of the distance it should remove."""
    for step, fraction in enumerate(pulled.fractions):
        before, now = ([course.points[step + i] for course in (free, pulled)] for i in (0, 1))
        added = (now[1] - now[0]) - (before[1] - before[0])
        distance = (now if after else before)[1] - pulled.anchor
        yield -float((added * distance).sum() / (fraction * distance.square().sum()))


def _furthest(arrived: Iterable[float]) -> float:
    """Return the fraction that differs most from 1, after leaving out the worst fifth."""
    fractions = sorted(arrived, key=lambda fraction: abs(fraction - 1), reverse=True)
    return fractions[len(fractions) // 5] if fractions else nan


class _Course(NamedTuple):
    """Record of a trial run: anchor and values of the weight, and for each step the fraction to remove and the rate."""

    group: dict[str, Any]
    points: list[Tensor]
    anchor: Tensor
    fractions: list[float]
    rates: list[float]

    def moves(self) -> list[float]:
        pairs = zip(self.points, self.points[1:], strict=False)
        return [float((after - before).abs().mean()) for before, after in pairs]


def _run(twin: "_Twin", kind: Run, mode: Mode, attach: Attach) -> _Course:
    torch.manual_seed(0)
    weight, group, optimizer = twin.weight, twin.group, twin.optimizer
    anchor = (weight.detach() * 0.5 - 0.3).clone()
    strength = 1.0 if mode == "coupled" else _FRACTION / float(step_lr(optimizer, group, mode))
    course = _Course(group, [weight.detach().double().clone()], anchor.double(), [], [])
    attachment = attach(optimizer, twin.model, mode, strength, anchor) if kind == "pulled" else None
    for step in range(2 if estimates_lr(group) else _STEPS):  # two, until their estimate depends on the weights

        def gradient(step: int = step) -> Tensor:
            places = torch.linspace(-3, 3, weight.numel(), dtype=torch.float64, device=weight.device)
            value = (places + 0.4 * step).sin().reshape(weight.shape).to(weight.dtype)
            value = value * {"steep": 100.0}.get(kind, 0.1)
            if kind == "by hand":
                value += (-1 if group.get("maximize") else 1) * strength * (weight.detach() - anchor)
            return twin.show(value)

        gradient()
        if mode != "coupled":
            course.rates.append(float(step_lr(optimizer, group, mode)))
            course.fractions.append(course.rates[-1] * strength)
        twin.step(gradient)
        course.points.append(weight.detach().double().clone())
    if attachment is not None:
        attachment.stop()
    return course


class _Twin:
    """A new optimizer of the same class, settings and wrappers as another, over one small weight.

    Args:
        chain: the optimizer in its wrappers.
        group: the parameter group whose settings it has.
        dtype: dtype of its weight.
        new: build it by its class, for optimizers that keep more for each weight than `state`; else copy attributes.
        closed: pass a closure to its step, and gradients that can be differentiated.
    """

    def __init__(
        self, chain: Sequence[Any], group: dict[str, Any], dtype: torch.dtype, *, new: bool, closed: bool
    ) -> None:
        original, device = chain[-1], group["params"][0].device
        device = torch.device("cpu") if device.type == "meta" else device
        self.model = nn.Linear(6, 8, bias=False, device=device, dtype=dtype)
        self.weight, self._closed = self.model.weight, closed
        with torch.no_grad():
            values = torch.linspace(-2, 2, 48, dtype=torch.float64, device=device)
            self.weight.copy_(values.sin().reshape(8, 6))
        own = {key: _copied(value) for key, value in group.items() if key not in ("params", "param_names")}
        for key in own.keys() & {"step", "k"}:  # counted in the steps before
            own[key] = torch.zeros_like(own[key]) if isinstance(own[key], Tensor) else original.defaults.get(key, 0)
        if own.get("lr") is not None and not estimates_lr(own):
            own["lr"] = torch.full_like(own["lr"], _LR) if isinstance(own["lr"], Tensor) else _LR
        if new:
            self.optimizer = type(original)([{**own, "params": [self.weight]}])
        else:
            self.optimizer = _like(original)
            self.optimizer.__dict__["param_groups"] = [{**own, "params": [self.weight]}]
            shared = {key: _copied(value) for key, value in original.state.items() if isinstance(key, str)}
            self.optimizer.__dict__["state"] = defaultdict(dict, shared)
        self.group = self.optimizer.param_groups[0]
        self._outermost = self.optimizer
        for inner, wrapper in zip(chain[:0:-1], chain[-2::-1], strict=True):
            self._outermost = _wrapped(self._outermost, wrapper, inner)

    def show(self, gradient: Tensor) -> Tensor:
        """Set the gradient of the weight, and return a loss with this gradient."""
        weight, loss = self.weight, (self.weight * gradient).sum()
        if self._closed:
            with torch.enable_grad():
                loss = (weight * gradient).sum() + 1e-12 * weight.square().sum()
                gradient = torch.autograd.grad(loss, weight, create_graph=True)[0]
        weight.grad = gradient
        return loss

    def step(self, gradient: Gradient) -> None:
        self._outermost.step(*([gradient] if self._closed else []))


def _like(optimizer: Any) -> Any:
    twin = object.__new__(type(optimizer))
    twin.__dict__.update({key: _copied(value) for key, value in vars(optimizer).items() if key not in _OWN})
    twin.__dict__.update(_optimizer_step_pre_hooks=OrderedDict(), _optimizer_step_post_hooks=OrderedDict())
    return twin


def _wrapped(twin: Any, wrapper: Any, inner: Any) -> Any:
    """Copy a wrapper around the copy of the optimizer inside it."""
    outer = _like(wrapper)
    for key, value in vars(wrapper).items():
        if value is inner:
            outer.__dict__[key] = twin
    if "param_groups" in vars(wrapper):
        outer.__dict__["param_groups"] = twin.param_groups
    if "state" in vars(wrapper):
        outer.__dict__["state"] = twin.state if wrapper.state is inner.state else defaultdict(dict)
    return outer


def _kinds(optimizer: Any, groups: Iterable[int]) -> list[int]:
    found: dict[str, int] = {}
    for index in groups:
        group = optimizer.param_groups[index]
        settings = {k: v for k, v in group.items() if k not in _RATE and not isinstance(v, Tensor)}
        found.setdefault(repr(settings), index)
    return list(found.values())[:_KINDS]


def _dtypes(weight: Tensor) -> list[torch.dtype]:
    """Try float64, which shows small errors best, then float32."""
    return [torch.float32] if weight.device.type == "mps" else [torch.float64, torch.float32]


def _copied(value: Any) -> Any:
    """Copy settings and counters; share objects that may hold weights, which are not written to."""
    if isinstance(value, Tensor):
        return value.detach().clone() if value.numel() <= 64 else value
    if isinstance(value, torch.Generator):
        return value.clone_state()
    return copy.copy(value) if isinstance(value, dict | list | set | random.Random) else value


@contextmanager
def _without_gradients(optimizer: Any) -> Iterator[None]:
    """Remove the gradients of the real weights inside a `with`, so that no step changes them."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    gradients = [weight.grad for weight in weights]
    try:
        for weight in weights:
            weight.grad = None
        yield
    finally:
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient


@contextmanager
def _randomness_kept(optimizer: Any) -> Iterator[None]:
    """Restore the random number generators afterwards: some optimizers round or sample at random."""
    devices = {w.device for group in optimizer.param_groups for w in group["params"] if w.device.type == "cuda"}
    python, numpy = random.getstate(), sys.modules.get("numpy")
    state = numpy.random.get_state() if numpy is not None else None
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(state)
