"""L2 and L2-SP: hand-computed pulls, the equivalences of the specification, and the classic silent failures."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtsp.anchors import capture
from mtsp.regularizers import L2SP, time_constant


def network(seed: int = 0) -> nn.Module:
    """Two layers with anchors to be (`old`), one new (`head`), a norm layer and biases."""
    torch.manual_seed(seed)
    model = nn.ModuleDict(
        {"old": nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 6)), "head": nn.Linear(6, 2)}
    )
    return model.double()


def forward(model: Any, inputs: Tensor) -> Tensor:
    return model["head"](model["old"](inputs)).square().sum()


def old_names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters() if name.startswith("old")]


ALPHA, BETA = 0.3, 0.07
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.02),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True),
    "foreach": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, foreach=True),
    "fused": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02),
}


def trained(optimizer: Any, how: str, steps: int = 20) -> dict[str, Tensor]:
    """Train with the pull as a hook, as a term of the loss, or by shifting weights and native weight decay."""
    model = network()
    anchors = capture(model, old_names(model))
    pulled = {name: p for name, p in model.named_parameters() if name.endswith("weight") and name != "old.1.weight"}
    with torch.no_grad():  # away from the anchors, so that the pull matters from the first step on
        for parameter in model.parameters():
            parameter.add_(0.1)
    groups = [
        {"params": [p for n, p in pulled.items() if n in anchors], "weight_decay": ALPHA if how == "shift" else 0},
        {"params": [p for n, p in pulled.items() if n not in anchors], "weight_decay": BETA if how == "shift" else 0},
        {"params": [p for n, p in model.named_parameters() if n not in pulled]},
    ]
    opt = optimizer(groups)
    if how == "hook":
        L2SP(model, anchors=anchors, alpha=ALPHA, beta=BETA, mode="coupled").attach(opt)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        loss = forward(model, torch.randn(4, 5, generator=generator, dtype=torch.float64))
        if how == "loss":
            for name, weight in pulled.items():
                strength, start = (ALPHA, anchors[name]) if name in anchors else (BETA, torch.zeros_like(weight))
                loss = loss + 0.5 * strength * (weight - start).square().sum()
        opt.zero_grad()
        loss.backward()
        if how == "shift":
            with torch.no_grad():
                for name, anchor in anchors.items():
                    pulled[name].sub_(anchor)
        opt.step()
        if how == "shift":
            with torch.no_grad():
                for name, anchor in anchors.items():
                    pulled[name].add_(anchor)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_coupled_hook_is_the_term_in_the_loss_and_shifted_weight_decay(optimizer: Any) -> None:
    hook, loss, shift = (trained(optimizer, how) for how in ("hook", "loss", "shift"))
    for name in hook:
        torch.testing.assert_close(hook[name], loss[name], rtol=0, atol=1e-13)
        torch.testing.assert_close(hook[name], shift[name], rtol=0, atol=1e-13)


@pytest.mark.parametrize("fused", [False, True])
def test_the_decoupled_pull_is_adamw_around_the_anchor(fused: bool) -> None:
    results = []
    for how in ("hook", "shift"):
        model = network()
        anchors = capture(model, old_names(model))
        weights = dict(model.named_parameters())
        with torch.no_grad():
            for weight in weights.values():
                weight.add_(0.1)
        pulled = [p for n, p in weights.items() if n in anchors]
        rest = [p for n, p in weights.items() if n not in anchors]
        decay = ALPHA if how == "shift" else 0.0
        groups = [{"params": pulled, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=0.01, fused=fused)
        if how == "hook":
            L2SP(model, anchors=anchors, alpha=ALPHA, beta=0.0).attach(optimizer)
        for step in range(20):
            optimizer.zero_grad()
            forward(model, torch.full((3, 5), 0.1 * step, dtype=torch.float64)).backward()
            for sign in (-1, 1):
                if sign == 1:
                    optimizer.step()
                if how == "shift":
                    with torch.no_grad():
                        for name, anchor in anchors.items():
                            weights[name].add_(anchor, alpha=sign)
        results.append({n: p.detach().clone() for n, p in weights.items()})
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=0, atol=1e-13)


def test_with_anchors_at_zero_and_equal_strengths_it_is_weight_decay() -> None:
    results = []
    for how in ("hook", "native"):
        model = network()
        pulled = [p for n, p in model.named_parameters() if n.endswith("weight") and n != "old.1.weight"]
        others = [p for n, p in model.named_parameters() if n.endswith("bias") or n == "old.1.weight"]
        groups = [{"params": pulled, "weight_decay": ALPHA if how == "native" else 0.0}, {"params": others}]
        optimizer = torch.optim.SGD(groups, lr=0.02, momentum=0.9)
        if how == "hook":
            anchors = {n: torch.zeros_like(p) for n, p in model.named_parameters() if n.startswith("old")}
            L2SP(model, anchors=anchors, alpha=ALPHA, beta=ALPHA).attach(optimizer)
        for step in range(20):
            optimizer.zero_grad()
            forward(model, torch.full((3, 5), 0.1 * step, dtype=torch.float64)).backward()
            optimizer.step()
        results.append([p.detach().clone() for p in model.parameters()])
    for hooked, native in zip(*results, strict=True):
        torch.testing.assert_close(hooked, native, rtol=0, atol=1.2e-16 * 20)


def test_one_step_by_hand() -> None:
    """w = 3, anchor 1, alpha 2, gradient 5, lr 0.1: w - 0.1 * (5 + 2 * (3 - 1)) = 2.1; a new weight with beta 10: 4."""
    model: Any = nn.ModuleDict({"old": nn.Linear(1, 1, bias=False), "head": nn.Linear(1, 1, bias=False)})
    with torch.no_grad():
        model["old"].weight.fill_(3.0)
        model["head"].weight.fill_(4.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = L2SP(model, anchors={"old.weight": torch.ones(1, 1)}, alpha=2.0, beta=10.0)
    regularizer.attach(optimizer)
    assert regularizer.penalty() == pytest.approx(84.0)  # 2/2 (3 - 1)^2 + 10/2 4^2
    assert regularizer.distances(["old", "head"]) == {"old": pytest.approx(2.0)}
    model["old"].weight.grad = torch.full((1, 1), 5.0)
    model["head"].weight.grad = torch.zeros(1, 1)
    optimizer.step()
    assert model["old"].weight.item() == pytest.approx(2.1)
    assert model["head"].weight.item() == pytest.approx(0.0, abs=1e-6)  # 4 - 0.1 * 10 * 4


def test_without_a_gradient_signal_the_distance_shrinks_by_one_minus_lr_lambda_each_step() -> None:
    model = nn.Linear(2, 2, bias=False).double()
    anchors = capture(model, ["weight"])
    with torch.no_grad():
        model.weight.add_(1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    L2SP(model, anchors=anchors, alpha=0.5, beta=0.0).attach(optimizer)
    for _ in range(7):
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
    expected = anchors["weight"] + (1 - 0.1 * 0.5) ** 7
    torch.testing.assert_close(model.weight.detach(), expected, rtol=0, atol=1e-14)


def test_the_pull_is_exactly_zero_at_the_start() -> None:
    model = network().float()
    anchors = capture(model, old_names(model))
    before = copy.deepcopy(model.state_dict())
    for optimizer in (torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.Adam(model.parameters(), lr=0.1)):
        regularizer = L2SP(model, anchors=anchors, alpha=10.0, beta=0.0)
        regularizer.attach(optimizer)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        regularizer.detach()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_weights_without_a_gradient_do_not_move() -> None:
    model = network()
    anchors = capture(model, old_names(model))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    model["old"].requires_grad_(False)  # pyright: ignore[reportIndexIssue]
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    L2SP(model, anchors=anchors, alpha=1.0, beta=1.0).attach(optimizer)
    forward(model, torch.ones(2, 5, dtype=torch.float64)).backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("old"), name


def test_an_alias_of_the_live_weights_as_anchor_does_not_follow_them() -> None:
    model = network()
    anchors = {name: parameter for name, parameter in model.named_parameters() if name.startswith("old")}
    regularizer = L2SP(model, anchors=anchors, alpha=2.0, beta=0.0)
    with torch.no_grad():
        model.get_parameter("old.0.weight").add_(1.0)
    assert regularizer.penalty() == pytest.approx(30.0)  # 2/2 * 1^2 * 30 entries


def test_an_anchor_that_matches_nothing_is_an_error() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"1 of 1 anchors match no weight of the model, the first 'old\.0\.wieght'"):
        L2SP(model, anchors={"old.0.wieght": torch.zeros(6, 5)}, alpha=1.0, beta=1.0)
    with pytest.raises(ValueError, match=r"has shape \(5, 6\), the weight \(6, 5\)"):
        L2SP(model, anchors={"old.0.weight": torch.zeros(5, 6)}, alpha=1.0, beta=1.0)
    with pytest.raises(ValueError, match="none of the 1 anchors is a convolution or linear weight"):
        L2SP(model, anchors={"old.0.bias": torch.zeros(6)}, alpha=1.0, beta=1.0)


def test_two_regularizers_on_one_weight_are_refused() -> None:
    model = network()
    regularizer = L2SP(model, anchors=capture(model, old_names(model)), alpha=1.0, beta=1.0)
    with pytest.raises(ValueError, match=r"weight_decay=0\.01 and this regularizer would both pull"):
        regularizer.attach(torch.optim.AdamW(model.parameters(), lr=0.1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer.attach(optimizer)
    with pytest.raises(ValueError, match="attached already"):
        regularizer.attach(optimizer)
    with pytest.raises(ValueError, match="holds none of the model's weights"):
        L2SP(model, anchors=None, alpha=1.0, beta=1.0).attach(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1))


def test_a_branch_has_its_own_strength_and_a_missing_one_is_an_error() -> None:
    model = network()
    anchors = capture(model, old_names(model))
    strengths = {"old": 1.0, "old.3": 5.0, "head": 2.0}
    targets = L2SP(model, anchors=anchors, alpha=strengths, beta=strengths).targets
    assert {name: pull.strength for name, pull in targets.items()} == {
        "old.0.weight": 1.0,
        "old.3.weight": 5.0,
        "head.weight": 2.0,
    }
    with pytest.raises(ValueError, match=r"no beta for head\.weight: there is one for old"):
        L2SP(model, anchors=anchors, alpha=1.0, beta={"old": 1.0})


def test_a_weight_that_two_layers_share_is_pulled_once() -> None:
    model: Any = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    model["b"].weight = model["a"].weight
    anchors = {"b.weight": torch.zeros(2, 2)}
    regularizer = L2SP(model, anchors=anchors, alpha=1.0, beta=0.0)
    with torch.no_grad():
        model["a"].weight.fill_(1.0)
    assert regularizer.penalty() == pytest.approx(2.0)  # 1/2 * 4 entries, not 4.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    regularizer.attach(optimizer)
    model["a"].weight.grad = torch.zeros(2, 2)
    optimizer.step()
    torch.testing.assert_close(model["a"].weight.detach(), torch.full((2, 2), 0.5))


def test_a_closure_does_not_lose_the_pull() -> None:
    weights = []
    for closure in (False, True):
        model = network()
        anchors = capture(model, old_names(model))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        L2SP(model, anchors=anchors, alpha=ALPHA, beta=BETA).attach(optimizer)

        def evaluate(model: nn.Module = model, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = forward(model, torch.ones(2, 5, dtype=torch.float64))
            loss.backward()
            return loss

        for _ in range(3):
            if closure:
                optimizer.step(evaluate)
            else:
                evaluate()
                optimizer.step()
        weights.append([p.detach().clone() for p in model.parameters()])
    for plain, with_closure in zip(*weights, strict=True):
        torch.testing.assert_close(plain, with_closure, rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["coupled", "decoupled"])
def test_a_fused_optimizer_that_unscales_in_its_kernel_gets_a_scaled_pull(mode: Any) -> None:
    """Rule 4 of the specification, on the CPU: what GradScaler sets on a fused optimizer, with one overflow step."""
    weights = []
    for fused in (False, True):
        model = network().float()
        anchors = capture(model, old_names(model))
        optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.05, fused=fused)
        L2SP(model, anchors=anchors, alpha=ALPHA, beta=BETA, mode=mode).attach(optimizer)
        with torch.no_grad():
            model.get_parameter("old.0.weight").add_(1.0)
        for step in range(4):
            optimizer.zero_grad()
            overflow = step == 2
            forward(model, torch.full((2, 5), 0.1)).backward()
            if fused:
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter.grad.mul_(float("inf") if overflow else 1024.0)
                optimizer.grad_scale = torch.tensor(1024.0)
                optimizer.found_inf = torch.tensor(float(overflow))
                optimizer.step()
            elif not overflow:
                optimizer.step()
        weights.append([p.detach().clone() for p in model.parameters()])
    for unfused, fused_weights in zip(*weights, strict=True):
        torch.testing.assert_close(unfused, fused_weights, rtol=1e-6, atol=1e-7)


def test_the_hook_reaches_the_optimizer_through_accelerate_and_acts_once_per_step() -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = nn.Linear(1, 1, bias=False)
    anchors = {"weight": torch.zeros(1, 1)}
    with torch.no_grad():
        model.weight.fill_(1.0)
    prepared, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    L2SP(prepared, anchors=anchors, alpha=1.0, beta=0.0).attach(optimizer)
    for _ in range(3):  # three micro-batches, one step
        accelerator.backward(0.0 * prepared(torch.ones(1, 1)).sum())
    optimizer.step()
    assert model.weight.item() == pytest.approx(0.9)


def test_the_time_constant_of_sgd_is_measured() -> None:
    """lr 0.01, alpha 0.1, momentum 0.9: (1 - 0.9) / (0.01 * 0.1) = 100 steps to 1/e."""
    assert time_constant(0.1, 0.01, coupled=True, momentum=0.9) == pytest.approx(100.0)
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    L2SP(model, anchors={"weight": torch.zeros(1, 1)}, alpha=0.1, beta=0.0).attach(optimizer)
    for _ in range(300):
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
    measured = -300 / math.log(model.weight.item())
    assert measured == pytest.approx(100.0, rel=0.12)  # momentum makes it a little faster than the formula
    assert time_constant(0.0, 0.1, coupled=True) == float("inf")


def test_a_second_regularizer_on_one_optimizer_is_refused() -> None:
    model = network()
    anchors = capture(model, old_names(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = L2SP(model, anchors=anchors, alpha=1.0, beta=1.0)
    first.attach(optimizer)
    second = L2SP(model, anchors=anchors, alpha=1.0, beta=1.0)
    with pytest.raises(ValueError, match="another regularizer acts on this optimizer"):
        second.attach(optimizer)
    first.detach()
    second.attach(optimizer)


def test_what_would_regularize_wrongly_without_a_word_is_refused() -> None:
    model = network()
    anchors = capture(model, old_names(model))
    with pytest.raises(ValueError, match="none of the 0 pretrained tensors"):
        capture(model, [])
    with pytest.raises(ValueError, match="alpha is given for 'backbone', but no weight's name begins with it"):
        L2SP(model, anchors=anchors, alpha={"old": 1.0, "backbone": 2.0}, beta=1.0)
    with pytest.raises(ValueError, match=r"the anchor of old\.0\.weight has values that are NaN"):
        L2SP(model, anchors=anchors | {"old.0.weight": torch.full((6, 5), float("nan"))}, alpha=1.0, beta=1.0)
