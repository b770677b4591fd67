"""What a regularizer says about itself: strengths as paces, its report, its table, its place in a checkpoint."""

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from mtsp.anchors import capture
from mtsp.regularizers import L2SP, Pace, half_life, time_constant


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))


@pytest.mark.parametrize(
    ("pace", "left"), [(Pace(500), 1 / math.e), (half_life(500), 0.5), (Pace(500, remaining=0.2), 0.2)], ids=str
)
@pytest.mark.parametrize("mode", ["coupled", "decoupled", "proximal"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_pace_is_what_is_left_after_its_steps(pace: Pace, left: float, mode: str, momentum: float) -> None:
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=momentum)
    L2SP(model, anchors={"weight": torch.zeros(1, 1)}, alpha=pace, beta=0.0, mode=mode).attach(optimizer)  # pyright: ignore[reportArgumentType]
    for _ in range(500):
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
    assert model.weight.item() == pytest.approx(left, rel=0.07)


def test_a_pace_is_of_the_full_learning_rate_and_inverse_to_the_time_constant() -> None:
    model = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01)  # the first step of a warm-up
    regularizer = L2SP(model, anchors={"weight": torch.zeros(1, 1)}, alpha=Pace(100), beta=0.0)
    with pytest.raises(
        ValueError, match=r"the strength of weight is still a pace, Pace\(steps=100.*attach\(\) converts it"
    ):
        regularizer.penalty()
    regularizer.attach(optimizer)
    assert regularizer.targets["weight"].strength == pytest.approx(0.002)  # (1 - 0.9) / (0.5 * 100)
    assert time_constant(0.002, 0.5, coupled=True, momentum=0.9) == pytest.approx(100)


def test_a_pace_that_means_nothing_is_refused() -> None:
    model = nn.Linear(1, 1, bias=False)
    regularizer = L2SP(model, anchors={"weight": torch.zeros(1, 1)}, alpha=Pace(10), beta=0.0, mode="coupled")
    with pytest.raises(ValueError, match="coupled through Adam has no time constant, because it depends on the size"):
        regularizer.attach(torch.optim.Adam(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="has no strength at a learning rate of 0"):
        regularizer.attach(torch.optim.SGD(model.parameters(), lr=0.0))
    with pytest.raises(ValueError, match=r"a pace needs at least 1 step at the full learning rate, got 0\.5"):
        Pace(0.5)
    with pytest.raises(ValueError, match="must lie between 0 and 1, got 1"):
        Pace(3, remaining=1)


@pytest.mark.parametrize(("nesterov", "rate"), [(False, 0.1 / (1 + math.sqrt(0.9)) ** 2), (True, 0.1 / 1.9**2)])
def test_a_pace_so_short_that_momentum_would_swing_past_the_anchor_is_refused(nesterov: bool, rate: float) -> None:
    """Real roots: lr alpha up to (1 - sqrt(0.9))^2 = 0.00263, Nesterov (0.1 / 1.9)^2 = 0.00277; 10 times as a rate."""
    shortest = 1 / rate  # 37.97, and 36.1
    assert swing(alpha=rate * 0.1 * 0.99, nesterov=nesterov) > 0
    assert swing(alpha=rate * 0.1 * 1.1, nesterov=nesterov) < 0
    model = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, nesterov=nesterov)
    for mode in ("coupled", "decoupled"):
        kind: Any = mode
        short = L2SP(model, anchors=model.state_dict(), alpha=Pace(shortest - 0.1), beta=0.0, mode=kind)
        said = rf"no stable pull leaves only 0\.368 .* give {math.ceil(shortest)} steps or more, or use the mode decoup"
        with pytest.raises(ValueError, match=said) if mode == "coupled" else nullcontext():
            short.attach(optimizer)
        short.detach()
    L2SP(model, anchors=model.state_dict(), alpha=Pace(shortest), beta=0.0).attach(optimizer)


def swing(*, alpha: float, nesterov: bool) -> float:
    """The lowest that 1 comes by 400 steps of the pull to 0 alone."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, nesterov=nesterov)
    L2SP(model, anchors={"weight": torch.zeros(1, 1)}, alpha=alpha, beta=0.0).attach(optimizer)
    lowest = 1.0
    for _ in range(400):
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
        lowest = min(lowest, model.weight.item())
    return lowest


@pytest.mark.parametrize(("steps", "left"), [(400, 0.0922), (88, 0.0552)])
def test_what_a_pace_leaves_through_momentum_is_what_its_docstring_says(steps: int, left: float) -> None:
    """v = 0.9 v + alpha d, d = d - v by hand, alpha = (1 - 0.9) ln(10) / steps."""
    distance, velocity = 1.0, 0.0
    for _ in range(steps):
        velocity = 0.9 * velocity + 0.1 * Pace(steps, remaining=0.1).rate * distance
        distance -= velocity
    assert distance == pytest.approx(left, abs=1e-4)


def test_the_report_measures_the_step_after_it_was_asked() -> None:
    """w = 3, anchor 1, alpha 2: the pull is 4, the gradient 8; then w = 3 - 0.1 * 12 = 1.8, and 1.6 against 0.4."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 3.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = L2SP(model, anchors={"weight": torch.ones(1, 1)}, alpha=2.0, beta=0.0)
    regularizer.attach(optimizer)
    for gradient, distance, ratio in ((8.0, 0.8, 0.5), (0.4, 0.6, 4.0)):
        model.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
        report = regularizer.report()[""]
        assert report.distance == pytest.approx(distance)  # 1.8 - 1, then 1.8 - 0.1 * (0.4 + 1.6) - 1
        assert report.pull_to_gradient == pytest.approx(ratio)
        assert report.time_constant == pytest.approx(5.0)  # 1 / (0.1 * 2)


def held_at_one(*, alpha: float = 2.0, **sgd: Any) -> tuple[nn.Linear, torch.optim.SGD, L2SP]:
    """w = 3, anchor 1."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 3.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **sgd)
    regularizer = L2SP(model, anchors={"weight": torch.ones(1, 1)}, alpha=alpha, beta=0.0)
    regularizer.attach(optimizer)
    return model, optimizer, regularizer


@pytest.mark.parametrize("fused", [False, True])
def test_a_loop_says_which_step_is_measured_and_only_that_one_is(fused: bool) -> None:
    """Pulls of 4, 1.6, 0.32, 0.176 at w = 3, 1.8, 1.16, 1.088 against gradients of 8, 4.8, 0.4, 0.4.

    w = 3 - 0.1 * 12 = 1.8, then 1.8 - 0.1 * 6.4 = 1.16, then 1.16 - 0.1 * 0.72 = 1.088.
    """
    model, optimizer, regularizer = held_at_one(fused=fused)
    ratios = []
    for number, gradient in enumerate((8.0, 4.8, 0.4, 0.4)):
        if number in (1, 3):
            regularizer.measure_next()
            assert math.isnan(regularizer.report()[""].pull_to_gradient)  # what was before is forgotten
        model.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
        ratios.append(regularizer.report()[""].pull_to_gradient)
    assert ratios == pytest.approx([4 / 8, 1.6 / 4.8, 1.6 / 4.8, 0.176 / 0.4], rel=1e-5)


def test_a_loop_after_one_that_said_which_steps_are_measured_need_not_say_it() -> None:
    """Detached and attached again: pulls of 4 and 1.6 against gradients of 8 and 4.8, as above, each of its report."""
    model, optimizer, regularizer = held_at_one(fused=False)
    regularizer.measure_next()
    regularizer.detach()
    regularizer.attach(optimizer)
    ratios = []
    for gradient in (8.0, 4.8):
        model.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
        ratios.append(regularizer.report()[""].pull_to_gradient)
    assert ratios == pytest.approx([4 / 8, 1.6 / 4.8], rel=1e-5)


def test_a_report_of_a_step_does_not_depend_on_where_the_run_began() -> None:
    """A branch that is held has no gradient in the step that is measured, and none from a step long before."""
    told = []
    for began in (0, 2):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        regularizer = L2SP(model, anchors={"0.weight": torch.zeros(3, 2)}, alpha=1.0, beta=1.0)
        regularizer.attach(optimizer)
        for step in range(began, 4):
            if step == 3:
                regularizer.measure_next()
            for name, parameter in model.named_parameters():
                held = step == 3 and name.startswith("0.")
                parameter.grad = None if held else torch.full_like(parameter, step + 1.0)
            optimizer.step()
        told.append(str(regularizer.report(["0", "2", ""])))
    assert told[0] == told[1]
    assert "nan" in told[0]


def test_both_optimizers_of_a_model_are_measured() -> None:
    """w = (3, 3), anchors 1, alpha 2: pulls of 4 against 8 and 2: sqrt(32 / 68)."""
    model = nn.ModuleList([nn.Linear(1, 1, bias=False) for _ in range(2)])
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in model]
    regularizer = L2SP(model, anchors={f"{i}.weight": torch.ones(1, 1) for i in range(2)}, alpha=2.0, beta=0.0)
    for optimizer in optimizers:
        regularizer.attach(optimizer)
    regularizer.measure_next()
    for layer, optimizer, gradient in zip(model, optimizers, (8.0, 2.0), strict=True):
        nn.init.constant_(layer.get_parameter("weight"), 3.0)
        layer.get_parameter("weight").grad = torch.full((1, 1), gradient)
        optimizer.step()
    assert regularizer.report()[""].pull_to_gradient == pytest.approx((32 / 68) ** 0.5)


def test_a_step_whose_gradients_overflowed_has_no_ratio() -> None:
    model, optimizer, regularizer = held_at_one(fused=True)
    regularizer.measure_next()
    model.weight.grad = torch.full((1, 1), float("inf"))
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1024.0), torch.tensor(1.0)  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.step()
    assert math.isnan(regularizer.report()[""].pull_to_gradient)


def test_the_report_of_scaled_gradients_is_of_the_gradients() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 3.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    regularizer = L2SP(model, anchors={"weight": torch.ones(1, 1)}, alpha=2.0, beta=0.0)
    regularizer.attach(optimizer)
    model.weight.grad = torch.full((1, 1), 8.0 * 1024)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1024.0), torch.tensor(0.0)  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.step()
    assert regularizer.report()[""].pull_to_gradient == pytest.approx(0.5)


def test_through_adam_a_coupled_pull_has_no_time_constant() -> None:
    model = nn.Linear(1, 1, bias=False)
    regularizer = L2SP(model, anchors={"weight": torch.zeros(1, 1)}, alpha=2.0, beta=0.0, mode="coupled")
    assert regularizer.report()[""].time_constant == float("inf")  # attached to nothing yet
    regularizer.attach(torch.optim.Adam(model.parameters()))
    assert math.isnan(regularizer.report()[""].time_constant)


def test_the_table_says_what_is_anchored_new_and_free() -> None:
    model = network()
    model[1].weight.requires_grad_(False)
    regularizer = L2SP(model, anchors=capture(model, ["0.weight"]), alpha=0.5, beta=Pace(100))
    lines = [line.split() for line in str(regularizer).splitlines()]
    assert lines[0] == ["L2SP"]
    assert lines[1] == ["0.weight", "6", "anchored", "0.5"]
    assert lines[2] == ["0.bias", "3", "free", "-"]
    assert lines[3] == ["1.weight", "3", "free,", "frozen", "-"]
    assert lines[5][:3] == ["2.weight", "3", "new"]
    assert ["3", "tensors", "7", "free"] in lines
    assert "to zero" in L2SP(model, anchors=capture(model, ["0.weight"]), alpha=1.0, beta=1.0, zero=True).table()


def test_a_resumed_run_must_pull_to_the_anchors_it_began_with() -> None:
    model = network()
    anchors = capture(model, ["0.weight"])
    state = L2SP(model, anchors=anchors, alpha=1.0, beta=0.0).state_dict()
    L2SP(model, anchors=anchors, alpha=1.0, beta=0.0).load_state_dict(state)
    with torch.no_grad():
        model.get_parameter("0.weight").add_(1e-6)
    late = L2SP(model, anchors=capture(model, ["0.weight"]), alpha=1.0, beta=0.0)
    with pytest.raises(
        ValueError, match=r"was trained with another anchors .*captured before any checkpoint is loaded"
    ):
        late.load_state_dict(state)


def test_complex_weights_are_pulled_and_reported_as_pairs_of_real_ones() -> None:
    """3 + 4i is 5 from zero and its anchor 5i is 5 long; |3 - i|^2 = 10. A step leaves 0.99 of the distance."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.complex128)
    with torch.no_grad():
        model.weight.fill_(3 + 4j)
    regularizer = L2SP(model, anchors={"weight": torch.tensor([[5j]])}, alpha=0.1, beta=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer.attach(optimizer)
    assert regularizer.penalty() == pytest.approx(0.1 / 2 * 10)
    assert regularizer.distances([""])[""] == pytest.approx(10**0.5 / 5)
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    assert model.weight.item() == pytest.approx(5j + 0.99 * (3 - 1j))
