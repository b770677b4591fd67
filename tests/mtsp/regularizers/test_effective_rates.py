"""Rates that are not what `lr` says: estimated ones, factors beside the rate, averages and memories of weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtsp.regularizers import L2SP, Pace, hook, rates


class Estimating(torch.optim.Optimizer):
    """Signs of gradients at a rate of lr * d, as Prodigy's and D-Adaptation's: d grows while it trains."""

    def __init__(self, params: Any, lr: float = 1.0, d: float = 1e-6, growth: float = 2.0) -> None:
        super().__init__(params, {"lr": lr, "d": d, "growth": growth, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            rate = group["lr"] * group["d"]
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.mul_(1 - rate * group["weight_decay"]).sub_(weight.grad.sign(), alpha=rate)
            group["d"] *= group["growth"]


class Remembering(torch.optim.Optimizer):
    """Computes weights anew from where they started, as dual averaging does: a move of anybody else is gone."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for weight in self.param_groups[0]["params"]:
            state = self.state[weight]
            state.setdefault("start", weight.clone())
            state["sum"] = state.get("sum", torch.zeros_like(weight)) + weight.grad
            weight.copy_(state["start"] - self.param_groups[0]["lr"] * state["sum"])


def one_weight(value: float = 2.0) -> nn.Module:
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(model.weight, value)
    model.weight.grad = torch.zeros_like(model.weight)
    return model


ONE = {"weight": torch.ones(1, 1)}


@pytest.mark.parametrize(
    ("mode", "factors"), [("decoupled", [1 - 0.1, 1 - 0.2]), ("proximal", [1 / (1 + 0.1), 1 / (1 + 0.2)])]
)
def test_an_estimated_rate_counts_as_it_is_in_each_step(mode: Any, factors: list[float]) -> None:
    """lr 1, alpha 10, d = 0.01, then 0.02: of the distance 1, a step takes 0.1, then 0.2.

    At a rate of lr it would take it ten times, and be at -8 and 82. Proximal, it goes by the rate of its own step.
    """
    model = one_weight()
    optimizer = Estimating(model.parameters(), d=0.01)
    L2SP(model, anchors=ONE, alpha=10.0, beta=0.0, mode=mode).attach(optimizer)
    seen = []
    for _ in factors:
        optimizer.step()
        seen.append(model.get_parameter("weight").item() - 1)
    assert seen == pytest.approx([factors[0], factors[0] * factors[1]])


def test_zero_as_anchor_is_the_own_decay_of_an_estimating_optimizer() -> None:
    ends = []
    for native in (True, False):
        model = one_weight()
        optimizer = Estimating(model.parameters(), d=1e-3)
        if native:
            optimizer.param_groups[0]["weight_decay"] = 3.0
        else:
            L2SP(model, anchors=None, alpha=0.0, beta=3.0).attach(optimizer)
        for _ in range(5):
            optimizer.step()
        ends.append(model.get_parameter("weight").item())
    assert ends[0] == pytest.approx(ends[1], abs=1e-15)


def test_without_the_estimate_attaching_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pull at a rate of 1 beside steps of 1e-6: the trial measures how long they are."""
    monkeypatch.setattr(rates, "_estimate", lambda group: 1.0)
    model = one_weight()
    with pytest.raises(ValueError, match=r"Estimating does not move weights at its lr.* 2e-06 times as long"):
        L2SP(model, anchors=ONE, alpha=0.1, beta=0.0).attach(Estimating(model.parameters()))


def test_a_pace_is_refused_where_the_rate_is_estimated() -> None:
    model = one_weight()
    with pytest.raises(ValueError, match="Estimating estimates its learning rate, so"):
        L2SP(model, anchors=ONE, alpha=Pace(100), beta=0.0).attach(Estimating(model.parameters()))


def test_a_pull_that_the_optimizer_forgets_is_refused_and_right_when_coupled() -> None:
    """Coupled, the sum of 0 + 1 * (2 - 1) is 1: 2 - 0.1 = 1.9, then 1 + 0.9: 2 - 0.19 = 1.81."""
    model = one_weight()
    optimizer = Remembering(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"in Remembering as it should: .*e-\d+ times what was asked for.*'coupled'"):
        L2SP(model, anchors=ONE, alpha=1.0, beta=0.0).attach(optimizer)
    L2SP(model, anchors=ONE, alpha=1.0, beta=0.0, mode="coupled").attach(optimizer)
    for _ in range(2):
        model.get_parameter("weight").grad = torch.zeros(1, 1, dtype=torch.float64)
        optimizer.step()
    assert model.get_parameter("weight").item() == pytest.approx(1.81)


class Gathering(torch.optim.AdamW):
    """AdamW that makes one step of the gradients of several calls."""

    calls, every = 0, 4

    def step(self, closure: Any = None) -> Any:
        self.calls += 1
        return super().step(closure) if self.calls % self.every == 0 else None


@pytest.mark.parametrize(
    ("every", "message"),
    [
        (2, r"not every step\(\) of Gathering moves weights, but a decoupled pull acts in each"),
        (12, r"not every step\(\) of Gathering moves weights, but a decoupled pull acts in each"),
        (100, "whether a pull arrives in Gathering cannot be tried out on a separate weight"),
    ],
)
def test_an_optimizer_that_moves_in_some_of_its_steps_only_is_refused(
    every: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pull would act in each call, so `every` times as often as the optimizer moves the weights."""
    model = one_weight()
    monkeypatch.setattr(Gathering, "every", every)
    optimizer = Gathering(model.parameters(), lr=0.1, weight_decay=0.0)
    with pytest.raises(ValueError, match=message):
        L2SP(model, anchors=ONE, alpha=0.1, beta=0.0).attach(optimizer)


def test_a_rate_that_is_a_tensor_of_one_dimension_is_the_number() -> None:
    """2 - 0.1 * 0.5 * (2 - 1) = 1.95."""
    model = one_weight()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor([0.1]), weight_decay=0.0, foreach=False)
    L2SP(model, anchors=ONE, alpha=0.5, beta=0.0).attach(optimizer)
    model.get_parameter("weight").grad = torch.zeros(1, 1, dtype=torch.float64)
    optimizer.step()
    assert model.get_parameter("weight").item() == pytest.approx(1.95)


def test_relative_steps_are_refused_unless_coupled() -> None:
    optimization = pytest.importorskip("transformers.optimization", reason="needs transformers")
    model = one_weight()
    optimizer = optimization.Adafactor(model.parameters())
    with pytest.raises(ValueError, match=r"learning rate of the optimizer is unknown.*relative_step=False"):
        L2SP(model, anchors=ONE, alpha=0.1, beta=0.0).attach(optimizer)
    L2SP(model, anchors=ONE, alpha=0.1, beta=0.0, mode="coupled").attach(optimizer)


def after_scaled_steps(prepare: Callable[[Any], Callable[[], None]], *, before_attach: bool) -> list[float]:
    """What 100 steps of the pull alone leave of a distance of 1 in three layers, with scales 0.25, 0.5 and 1."""
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False, dtype=torch.float64) for _ in range(3)))
    groups = []
    for weight, scale in zip(model.parameters(), (0.25, 0.5, 1.0), strict=True):
        nn.init.constant_(weight, 2.0)
        groups.append({"params": [weight], "lr_scale": scale})
    optimizer = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.0)
    anchors = {name: torch.ones(1, 1) for name, _ in model.named_parameters()}
    regularizer = L2SP(model, anchors=anchors, alpha=Pace(100), beta=0.0)
    advance = prepare(optimizer) if before_attach else None
    regularizer.attach(optimizer)
    advance = advance or prepare(optimizer)
    assert regularizer.time_constant() == pytest.approx(100)
    for _ in range(100):
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight)
        optimizer.step()
        advance()
    return [weight.item() - 1 for weight in model.parameters()]


def by_hand(optimizer: Any) -> Callable[[], None]:
    """As MAE and BEiT do, which have no scheduler."""
    for group in optimizer.param_groups:
        group["lr"] = 0.01 * group["lr_scale"]
    return lambda: None


def by_timm(optimizer: Any) -> Callable[[], None]:
    scheduler = pytest.importorskip("timm.scheduler", reason="needs timm").StepLRScheduler(optimizer, decay_t=1000)
    return lambda: scheduler.step(1)


@pytest.mark.parametrize(("prepare", "before"), [(by_hand, False), (by_timm, False), (by_timm, True)])
def test_a_pace_counts_the_scale_of_a_layers_depth(prepare: Any, before: bool) -> None:
    """(1 - 1 / 100) ** 100 = 0.36603 in each layer; without the scale it would be 0.778 and 0.605 in the first two."""
    assert after_scaled_steps(prepare, before_attach=before) == pytest.approx([0.99**100] * 3)


@pytest.mark.parametrize("prepare", [by_hand, by_timm])
def test_without_the_scale_the_first_step_raises(prepare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As before it counted: the pace is converted at 0.01, but layers learn at a quarter, a half and all of it."""

    scaled = rates.full_lr
    for module in (rates, hook):
        monkeypatch.setattr(module, "full_lr", lambda group: scaled({**group, "lr_scale": 1.0}))
    with pytest.raises(ValueError, match="the learning rates of this step are not multiplied by it"):
        after_scaled_steps(prepare, before_attach=False)


def test_scales_that_nobody_applies_are_refused_at_the_first_step() -> None:
    """torch's schedules leave lr_scale alone, so all layers learn alike: the paces would be 4 and 2 times too fast."""

    def by_torch(optimizer: Any) -> Callable[[], None]:
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0).step

    with pytest.raises(ValueError, match="the learning rates of this step are not multiplied by it"):
        after_scaled_steps(by_torch, before_attach=False)


def test_timms_own_groups_with_layer_decay_leave_what_was_asked_for() -> None:
    timm = pytest.importorskip("timm", reason="needs timm")
    optim = pytest.importorskip("timm.optim", reason="needs timm")
    model = timm.create_model("vit_tiny_patch16_224", depth=3, embed_dim=24, num_heads=2, img_size=32, num_classes=2)
    groups = optim.param_groups_layer_decay(model, weight_decay=0.0, layer_decay=0.5)
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    anchors = {name: torch.zeros_like(weight) for name, weight in model.named_parameters() if weight.ndim > 1}
    regularizer = L2SP(model, anchors=anchors, alpha=Pace(20), beta=0.0)
    by_timm(optimizer)
    regularizer.attach(optimizer)
    starts: dict[str, Tensor] = {}
    for _ in range(20):
        for name, weight in model.named_parameters():
            starts.setdefault(name, weight.detach().clone())
            weight.grad = torch.zeros_like(weight)
        optimizer.step()
    left = {
        n: float(w.detach().norm() / starts[n].norm()) for n, w in model.named_parameters() if n in regularizer.targets
    }
    assert len({group["lr"] for group in optimizer.param_groups}) == 5
    assert list(left.values()) == pytest.approx([0.95**20] * len(left), rel=1e-4)


@pytest.mark.parametrize("lr", [0.0, 1e-10, 1e3])
def test_the_trial_does_not_depend_on_the_learning_rate(lr: float) -> None:
    """A warm-up begins at 0, and SegFlow's rates are tiny."""
    for kind, mode in ((torch.optim.SGD, "coupled"), (torch.optim.AdamW, "decoupled")):
        model = one_weight()
        regularizer = L2SP(model, anchors=ONE, alpha=1e-6, beta=0.0, mode=mode)  # pyright: ignore[reportArgumentType]
        regularizer.attach(kind(model.parameters(), lr=lr, weight_decay=0.0))


def test_a_model_without_memory_can_be_attached_to() -> None:
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    regularizer = L2SP(model, anchors={"weight": torch.empty(2, 2, device="meta")}, alpha=0.1, beta=0.0)
    regularizer.attach(torch.optim.AdamW(model.parameters(), weight_decay=0.0))


def test_a_step_that_a_scheduler_put_into_the_optimizer_is_not_the_twins() -> None:
    model = one_weight()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
    optimizer.step = optimizer.step  # bound to the optimizer, as schedulers of some versions of torch leave it
    L2SP(model, anchors=ONE, alpha=1.0, beta=0.0).attach(optimizer)
    optimizer.step()
    assert model.get_parameter("weight").item() == pytest.approx(1.9)
