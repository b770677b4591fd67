"""Optimizers inside others, and steps inside steps: still one pull in a step, or attaching raises."""

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtsp.regularizers import L2SP, base, hook, rates
from mtsp.regularizers.checks import unwrapped
from mtsp.regularizers.hook import Attachment

SGD, ADAMW = torch.optim.SGD, torch.optim.AdamW


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimization as it is widely copied: climb, evaluate there, return, step from the start."""

    def __init__(self, params: Any, base_optimizer: Any, rho: float = 0.05, **settings: Any) -> None:
        super().__init__(params, {"rho": rho, **settings})
        self.base_optimizer = base_optimizer(self.param_groups, **settings)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                self.state[weight]["old"] = weight.clone()
                weight.add_(weight.grad.sign(), alpha=group["rho"])

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                weight.copy_(self.state[weight]["old"])
        self.base_optimizer.step()

    def step(self, closure: Any = None) -> Any:
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()


class SelfContainedSAM(torch.optim.Optimizer):
    """The same with a descent of its own, so that there is no step of a torch optimizer to hook."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def first_step(self) -> None:
        for weight in self.param_groups[0]["params"]:
            self.state[weight]["old"] = weight.clone()
            weight.add_(weight.grad.sign(), alpha=0.05)

    @torch.no_grad()
    def second_step(self) -> None:
        for weight in self.param_groups[0]["params"]:
            weight.copy_(self.state[weight]["old"]).sub_(weight.grad, alpha=self.param_groups[0]["lr"])

    def step(self, closure: Any = None) -> Any:
        if closure is None:
            raise RuntimeError("SAM needs a closure")
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()


class Lookahead(torch.optim.Optimizer):
    """By hand, around another optimizer, without Optimizer.__init__: torch hooks its step in its zero_grad() at first.

    Every k steps the weights go back half the way to where they were k steps before.
    """

    def __init__(self, inner: Any, k: int = 5) -> None:
        self._inside = inner
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = OrderedDict(), OrderedDict()  # as timm does
        self.k, self.steps = k, 0
        self.param_groups, self.defaults, self.state = inner.param_groups, inner.defaults, defaultdict(dict)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for weight in group["params"]:
                self.state[weight].setdefault("slow", weight.clone())
        loss = self._inside.step(closure)
        self.steps += 1
        if self.steps % self.k == 0:
            for group in self.param_groups:
                for weight in group["params"]:
                    weight.copy_(self.state[weight]["slow"].lerp_(weight, 0.5))
        return loss


class Surgeon:
    """Gradient surgery as published: no optimizer itself, it holds one."""

    def __init__(self, optimizer: Any) -> None:
        self._optim = optimizer

    def step(self) -> Any:
        return self._optim.step()


class Undoing(torch.optim.Optimizer):
    """A wrapper that keeps a thousandth of what its optimizer does, as those do that scale whole updates."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner.param_groups, inner.defaults)
        self.inner = inner
        self.param_groups = inner.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        before = [weight.clone() for group in self.param_groups for weight in group["params"]]
        loss = self.inner.step(closure)
        for weight, start in zip((w for g in self.param_groups for w in g["params"]), before, strict=True):
            weight.copy_(start.lerp(weight, 1e-3))
        return loss


def two_from_anchor_one() -> tuple[nn.Module, L2SP]:
    """w = 2, anchor 1, alpha 1: at a learning rate of 0.1, one pull is 0.1, and w becomes 1.9."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(model.weight, 2.0)
    model.weight.grad = torch.zeros_like(model.weight)
    return model, L2SP(model, anchors={"weight": torch.ones(1, 1)}, alpha=1.0, beta=0.0)


def show(model: nn.Module, gradient: float) -> Tensor:
    weight = model.get_parameter("weight")
    weight.grad = torch.full_like(weight, gradient)
    return weight


@pytest.mark.parametrize("by_closure", [False, True])
@pytest.mark.parametrize("kind", [SGD, ADAMW])
def test_sam_pulls_once_from_where_the_step_starts(kind: Any, by_closure: bool) -> None:
    """SGD: 2 - 0.1 * (1 + 1 * (2 - 1)) = 1.8. AdamW: pulled to 1.9, then a step of 0.1 against a gradient of 1."""
    model, regularizer = two_from_anchor_one()
    settings = {} if kind is SGD else {"weight_decay": 0.0}
    optimizer = SAM(model.parameters(), kind, lr=0.1, **settings)
    regularizer.attach(optimizer)
    weight = show(model, 1.0)
    if by_closure:
        optimizer.step(lambda: show(model, 1.0).sum())
    else:
        optimizer.first_step()
        assert weight.item() == pytest.approx(2.05)
        show(model, 1.0)
        optimizer.second_step()
    assert weight.item() == pytest.approx(1.8, abs=1e-8)  # AdamW's eps


@pytest.mark.parametrize("kind", [SGD, ADAMW])
def test_sam_without_an_optimizer_inside_is_refused_where_its_step_undoes_the_pull(kind: Any) -> None:
    """A decoupled pull is gone when the weights return to where they were; the trial sees that nothing arrives."""
    model, _ = two_from_anchor_one()
    regularizer = L2SP(model, anchors={"weight": torch.ones(1, 1)}, alpha=1.0, beta=0.0, mode="decoupled")
    with pytest.raises(ValueError, match=r"in SelfContainedSAM as it should: 0 times .*use mode='coupled'"):
        regularizer.attach(SelfContainedSAM(model.parameters(), lr=0.1))


def move_by_hand(model: nn.Module) -> None:
    for step in range(6):
        model(torch.ones(1, 1, dtype=torch.float64)).sum().backward()
        if step != 2:  # gradients are accumulated without a move
            model.get_parameter("weight").data.sub_(0.1)


def test_weights_that_move_without_a_hooked_step_raise_in_the_backward_pass() -> None:
    """As in halves of a step that have names of their own: nobody but the gradients can see it."""
    model, regularizer = two_from_anchor_one()
    weight = model.get_parameter("weight")
    regularizer.attach(SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"the weights moved 4 times .* SGD\.step\(\) was never called"):
        move_by_hand(model)
    assert weight.item() == pytest.approx(1.6)  # four moves and no more


def test_the_watch_ends_with_the_first_step_and_with_detach() -> None:
    model, regularizer = two_from_anchor_one()
    weight = model.get_parameter("weight")
    optimizer = SGD(model.parameters(), lr=0.1)
    regularizer.attach(optimizer)
    assert weight._post_accumulate_grad_hooks
    regularizer.detach()
    assert not weight._post_accumulate_grad_hooks
    regularizer.attach(optimizer)
    show(model, 0.0)
    optimizer.step()
    assert not weight._post_accumulate_grad_hooks


@pytest.mark.parametrize("own_zero_grad", [False, True])
def test_lookahead_by_hand_pulls_from_its_first_step_on(own_zero_grad: bool) -> None:
    """2 - 0.1 * (2 - 1) = 1.9, then 1.9 - 0.1 * 0.9 = 1.81, 1.729, 1.6561, and at the fifth half way from 2."""
    model, regularizer = two_from_anchor_one()
    optimizer = Lookahead(SGD(model.parameters(), lr=0.1))
    regularizer.attach(optimizer)
    seen = []
    for _ in range(5):
        optimizer.zero_grad() if own_zero_grad else model.zero_grad()
        seen.append(show(model, 0.0))
        optimizer.step()
        seen[-1] = seen[-1].item()
    assert seen == pytest.approx([1.9, 1.81, 1.729, 1.6561, (2 + 1.59049) / 2])


class Bare(torch.optim.Optimizer):
    """No wrapper, and no Optimizer.__init__ either: torch has not hooked its step."""

    def __init__(self, weights: Any) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": list(weights), "lr": 0.1}]
        self.defaults, self.state = {"lr": 0.1}, defaultdict(dict)
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = OrderedDict(), OrderedDict()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for weight in self.param_groups[0]["params"]:
            weight.sub_(weight.grad, alpha=0.1)


@pytest.mark.parametrize("mended", [False, True])
def test_a_step_that_torch_has_not_hooked_is_hooked_or_refused(mended: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 - 0.1 * (2 - 1) = 1.9 in the first step; unhooked, the trial sees that nothing arrives."""
    kind = type("Bare", (Bare,), {})
    model, regularizer = two_from_anchor_one()
    if not mended:
        monkeypatch.setattr(hook, "_make_hookable", lambda kind: None)
        with pytest.raises(ValueError, match="in Bare as it should: 0 times"):
            regularizer.attach(kind(model.parameters()))
        return
    optimizer = kind(model.parameters())
    regularizer.attach(optimizer)
    optimizer.step()
    assert model.get_parameter("weight").item() == pytest.approx(1.9)


@pytest.mark.parametrize(
    "wrap",
    [Surgeon, Lookahead, lambda o: Surgeon(Lookahead(o)), lambda o: [o]],
    ids=["surgeon", "lookahead", "both", "list"],
)
def test_the_innermost_optimizer_is_found_whatever_holds_it(wrap: Callable[[Any], Any]) -> None:
    model, _ = two_from_anchor_one()
    inner = SGD(model.parameters(), lr=0.1)
    wrapper = wrap(inner)
    if isinstance(wrapper, list):  # held by a list of a wrapper
        wrapper = Surgeon([inner])
    assert unwrapped(wrapper)[-1] is inner


def test_several_optimizers_side_by_side_are_refused() -> None:
    model, regularizer = two_from_anchor_one()
    both = Surgeon([SGD(model.parameters(), lr=0.1), ADAMW(model.parameters())])
    with pytest.raises(ValueError, match="Surgeon holds 2 optimizers; attach to each of them"):
        regularizer.attach(both)


def test_a_wrapper_that_undoes_the_pull_is_refused() -> None:
    """The optimizer inside is exact, but what is left of its step is a thousandth."""
    model, regularizer = two_from_anchor_one()
    inner = ADAMW(model.parameters(), lr=0.1, weight_decay=0.0)
    with pytest.raises(ValueError, match=r"in Undoing as it should: 0\.001 times what was asked for"):
        regularizer.attach(Undoing(inner))
    regularizer.attach(Undoing(inner), verify=False)


def test_without_unwrapping_the_checks_catch_what_went_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hooked on the wrapper, SAM's step undoes a decoupled pull and has a coupled one see other weights."""
    monkeypatch.setattr(base, "unwrapped", lambda optimizer: [optimizer])
    model, regularizer = two_from_anchor_one()
    with pytest.raises(ValueError, match="in SAM as it should: 0 times"):
        regularizer.attach(SAM(model.parameters(), ADAMW, lr=0.1, weight_decay=0.0))
    with pytest.raises(ValueError, match="in SAM as it should: 0 times"):
        regularizer.attach(SAM(model.parameters(), SGD, lr=0.1))
    assert model.get_parameter("weight").item() == 2.0  # a trial moves nothing of the model


@pytest.mark.parametrize("mended", [True, False])
def test_zero_of_sgd_stays_coupled(mended: bool, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Coupled through momentum 0.9: 2 - 0.1 = 1.9, then the buffer is 0.9 * 1 + 0.9: 1.9 - 0.18 = 1.72.

    Decoupled it would be 1.81, as where ZeRO's own class is asked, which the trial finds.
    """
    from torch import distributed
    from torch.distributed.optim import ZeroRedundancyOptimizer

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model, regularizer = two_from_anchor_one()
        optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=SGD, lr=0.1, momentum=0.9)
        if not mended:
            monkeypatch.setattr(rates, "is_sgd", lambda optimizer: isinstance(optimizer, SGD))
            with pytest.raises(ValueError, match="decoupled in ZeroRedundancyOptimizer, but coupled in the SGD that"):
                regularizer.attach(optimizer)
            return
        regularizer.attach(optimizer)
        for _ in range(2):
            show(model, 0.0)
            optimizer.step()
        assert model.get_parameter("weight").item() == pytest.approx(1.72, abs=1e-14)
        assert regularizer.time_constant() == pytest.approx((1 - 0.9) / 0.1)
    finally:
        distributed.destroy_process_group()


# steps inside steps


class CallsSGD(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class CallsAdamW(torch.optim.AdamW):
    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class CallsTwice(CallsSGD):
    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


MAKES = {
    "sgd": lambda p: CallsSGD(p, lr=0.1),
    "momentum": lambda p: CallsSGD(p, lr=0.1, momentum=0.9),
    "fused sgd": lambda p: CallsSGD(p, lr=0.1, fused=True),
    "adamw": lambda p: CallsAdamW(p, lr=0.1, weight_decay=0.0),
    "fused adamw": lambda p: CallsAdamW(p, lr=0.1, weight_decay=0.0, fused=True),
    "twice": lambda p: CallsTwice(p, lr=0.1),
}


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("kind", MAKES)
def test_a_step_inside_a_step_pulls_once(kind: str, closed: bool) -> None:
    """2 - 0.1 * 1 = 1.9; pulled twice it would be 1.8 (SGD) or 1.81 (AdamW)."""
    model, regularizer = two_from_anchor_one()
    regularizer.attach(MAKES[kind](model.parameters()))
    for other in (torch.optim.SGD, torch.optim.AdamW):  # torch hooks the step of each class that is ever made
        other(nn.Linear(1, 1).parameters(), lr=0.1)
    optimizer = next(iter(regularizer._attachments.values())).optimizer
    optimizer.step(*([lambda: torch.zeros(())] if closed else []))
    assert model.get_parameter("weight").item() == pytest.approx(1.9, abs=1e-15)


@pytest.mark.parametrize("mode", ["coupled", "decoupled", "proximal"])
def test_all_modes_pull_once(mode: Any) -> None:
    """Proximal: w0 + (w - w0) / (1 + 0.1) = 1 + 1 / 1.1."""
    model, _ = two_from_anchor_one()
    regularizer = L2SP(model, anchors={"weight": torch.ones(1, 1)}, alpha=1.0, beta=0.0, mode=mode)
    optimizer = CallsSGD(model.parameters(), lr=0.1)
    regularizer.attach(optimizer)
    optimizer.step()
    expected = 1 + 1 / 1.1 if mode == "proximal" else 1.9
    assert model.get_parameter("weight").item() == pytest.approx(expected, abs=1e-15)


def test_a_step_that_an_exception_ended_does_not_hide_the_next_one() -> None:
    class FailsOnce(CallsSGD):
        failed = False

        def step(self, closure: Any = None) -> Any:
            if len(self.param_groups[0]["params"]) and not FailsOnce.failed and self.param_groups[0]["lr"] == 0.1:
                FailsOnce.failed = True
                raise RuntimeError("out of memory")
            return super().step(closure)

    model, regularizer = two_from_anchor_one()
    optimizer = FailsOnce(model.parameters(), lr=0.1)
    regularizer.attach(optimizer)
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step()
    model.get_parameter("weight").grad = torch.zeros(1, 1, dtype=torch.float64)
    optimizer.step()
    assert model.get_parameter("weight").item() == pytest.approx(1.9, abs=1e-15)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_without_the_guard_attaching_raises(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial measures the second pull, even if nobody has made an optimizer of the base class yet."""

    def every_call_begins(self: Attachment, step: Any) -> bool:
        self._step = step
        self._acts = self._evaluations = 0
        return True

    monkeypatch.setattr(Attachment, "_begins", every_call_begins)
    model, regularizer = two_from_anchor_one()
    with pytest.raises(ValueError, match=r"in Calls\w+ as it should: (2|1\.9) times what was asked for"):
        regularizer.attach(MAKES[kind](model.parameters()))


def test_riemannian_optimizers_of_peft_pull_a_trained_head_once() -> None:
    """A head with w = 1, anchor 0, alpha 1, learning rate 0.1: 0.9, not 0.8."""
    peft = pytest.importorskip("peft", reason="needs peft")
    optimizers = pytest.importorskip("peft.optimizers", reason="needs a peft with optimizers")
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2, bias=False))
    config = peft.LoraConfig(target_modules=["0"], modules_to_save=["1"], r=2)
    model = peft.get_peft_model(copy.deepcopy(network), config)
    head = model.base_model.model[1].modules_to_save["default"].weight
    nn.init.ones_(head)
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    optimizer = optimizers.create_riemannian_optimizer(model, torch.optim.SGD, lr=0.1)
    L2SP(model, anchors=None, alpha=1.0, beta=1.0).attach(optimizer)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
    optimizer.step()
    torch.testing.assert_close(head, torch.full_like(head, 0.9))
