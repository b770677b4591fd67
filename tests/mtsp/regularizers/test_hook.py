"""Where a pull enters an optimizer's step: every kind of torch optimizer, scaled, fused, compiled, with closures."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtsp.anchors import capture
from mtsp.regularizers import L2SP, SPD, Regularizer

SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Linear(4, 2)).to(dtype)


def moved(dtype: torch.dtype = torch.float32) -> tuple[nn.Sequential, dict[str, Tensor]]:
    """A network 0.1 from its anchors, so that the pull matters from the first step on; its last layer is new."""
    model = network(dtype)
    anchors = capture(model, ["0.weight", "2.weight"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    return model, anchors


def gradients(model: nn.Module, step: int, scale: float = 1.0) -> None:
    """The same at any weights: equal gradients in, so that only the steps are compared."""
    for index, parameter in enumerate(model.parameters()):
        values = torch.linspace(-1, 1, parameter.numel(), dtype=torch.float64).sin() * (step + index + 1)
        parameter.grad = (values * scale).reshape(parameter.shape).to(parameter.dtype)


def after(
    make: Callable[..., torch.optim.Optimizer],
    *,
    dtype: torch.dtype = torch.float32,
    steps: int = 4,
    attach: Any = None,
    run: Callable[[nn.Module, Any, int], None] | None = None,
    **options: Any,
) -> list[Tensor]:
    """The weights after some steps with L2-SP."""
    model, anchors = moved(dtype)
    optimizer = make(model.parameters())
    kind: type[Regularizer] = options.pop("kind", L2SP)
    regularizer = kind(model, anchors=anchors, alpha=0.3, beta=0.1, **options)
    (attach or regularizer.attach)(optimizer)
    for step in range(steps):
        if run is not None:
            run(model, optimizer, step)
        else:
            gradients(model, step)
            optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def assert_equal(one: list[Tensor], two: list[Tensor], tolerance: float = 0.0) -> None:
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


class Scaled:
    """Steps under a GradScaler, the third of which overflows; without one, that step is left out."""

    def __init__(self, scaler: bool, *, unscale: bool = False) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if scaler else None
        self.unscale = unscale

    def __call__(self, model: nn.Module, optimizer: Any, step: int) -> None:
        if self.scaler is None:
            if step != 2:
                gradients(model, step)
                optimizer.step()
            return
        self.scaler.scale(torch.zeros(()))  # makes the scale
        gradients(model, step, 1024.0)
        if step == 2:
            next(model.parameters()).grad[0, 0] = float("inf")  # pyright: ignore[reportOptionalSubscript]
        if self.unscale:
            self.scaler.unscale_(optimizer)
        self.scaler.step(optimizer)
        self.scaler.update(1024.0)


@pytest.mark.parametrize("mode", ["coupled", "decoupled", "proximal"])
@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda p: SGD(p, lr=0.02, momentum=0.9, fused=True),
        lambda p: SGD(p, lr=0.02, momentum=0.9, foreach=True),
        lambda p: ADAM(p, lr=0.02, fused=True),
        lambda p: ADAMW(p, lr=0.02, weight_decay=0.0, fused=True),
        lambda p: ADAM(p, lr=0.02),
    ],
    ids=["fused sgd", "foreach sgd", "fused adam", "fused adamw", "adam"],
)
def test_a_scaler_with_an_overflow_changes_no_bit(make: Any, mode: Any, unscale: bool) -> None:
    """Fused optimizers unscale inside their kernels and are stepped even where gradients overflowed."""
    plain = after(make, mode=mode, run=Scaled(False))
    assert_equal(plain, after(make, mode=mode, run=Scaled(True, unscale=unscale)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "dampening": 0.3},
        {"momentum": 0.9, "maximize": True},
    ],
    ids=str,
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_decay_inside_the_fused_kernel_is_the_plain_pull(options: Any, dtype: torch.dtype, tolerance: float) -> None:
    plain = after(lambda p: SGD(p, lr=0.02, fused=False, **options), dtype=dtype)
    assert_equal(plain, after(lambda p: SGD(p, lr=0.02, fused=True, **options), dtype=dtype), tolerance)


@pytest.mark.parametrize("fused", [False, True])
def test_an_optimizer_that_maximizes_is_pulled_and_not_pushed(fused: bool) -> None:
    """w = 3, anchor 1, alpha 2, lr 0.1, no gradient: 3 - 0.1 * 2 * 2 = 2.6, not 3.4."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 3.0)
    optimizer = SGD(model.parameters(), lr=0.1, maximize=True, fused=fused)
    L2SP(model, anchors={"weight": torch.ones(1, 1)}, alpha=2.0, beta=0.0).attach(optimizer)
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    assert model.weight.item() == pytest.approx(2.6)


def test_a_fused_optimizer_keeps_its_own_groups_for_schedules_and_checkpoints() -> None:
    model, anchors = moved()
    optimizer: Any = SGD([{"params": list(model.parameters()), "name": "all"}], lr=0.02, momentum=0.9, fused=True)
    groups, before = optimizer.param_groups, copy.deepcopy(optimizer.state_dict()["param_groups"])
    L2SP(model, anchors=anchors, alpha=0.3, beta=0.1).attach(optimizer)
    gradients(model, 0)
    optimizer.step()
    assert optimizer.param_groups is groups
    assert optimizer.state_dict()["param_groups"] == before


def test_a_step_that_an_exception_cut_short_leaves_no_trace_in_the_checkpoint() -> None:
    model, anchors = moved()
    optimizer: Any = SGD(model.parameters(), lr=0.02, momentum=0.9, fused=True)
    L2SP(model, anchors=anchors, alpha=0.3, beta=0.1).attach(optimizer)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    gradients(model, 0)
    handle = optimizer.register_step_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    handle.remove()
    assert len(optimizer.state_dict()["param_groups"]) == 1
    assert optimizer.state_dict()["param_groups"][0]["weight_decay"] == 0


def cut_short(then: str) -> Callable[[nn.Module, Any, int], None]:
    """Steps, the second of which fails the first time, inside the step where its pull is made there."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    def fail(optimizer: Any) -> None:
        first = optimizer.param_groups[0]["params"][0]
        inside = optimizer.param_groups[0].get("fused") and "momentum_buffer" in optimizer.state[first]
        kept = dict(optimizer.state[first])
        handle = None if inside else optimizer.register_step_pre_hook(interrupt)
        if inside:
            optimizer.state[first]["momentum_buffer"] = "not a tensor"
        with pytest.raises((KeyboardInterrupt, TypeError)):
            optimizer.step()
        optimizer.state[first].update(kept)
        if handle is not None:
            handle.remove()

    def run(model: nn.Module, optimizer: Any, step: int) -> None:
        gradients(model, step)
        if step == 1:
            fail(optimizer)
            optimizer.zero_grad(set_to_none=then == "none")
            wanted = [parameter.grad for parameter in model.parameters()]
            gradients(model, step)
            if then == "zeros":  # computed anew into the same memory
                for parameter, old in zip(model.parameters(), wanted, strict=True):
                    assert old is not None
                    assert parameter.grad is not None
                    parameter.grad = old.add_(parameter.grad)
        optimizer.step()

    return run


@pytest.mark.parametrize("then", ["none", "zeros"])
@pytest.mark.parametrize("mode", ["coupled", "proximal"])
@pytest.mark.parametrize(
    "make",
    [
        lambda p: SGD(p, lr=0.02, momentum=0.9),
        lambda p: SGD(p, lr=0.02, momentum=0.9, foreach=False),
        lambda p: SGD(p, lr=0.02, momentum=0.9, fused=True),
        lambda p: ADAM(p, lr=0.02),
    ],
    ids=["sgd", "sgd loop", "fused sgd", "adam"],
)
def test_a_step_that_failed_and_is_made_again_with_new_gradients_pulls_once(make: Any, mode: Any, then: str) -> None:
    """The old gradients may have the pull; what has been computed anew has not."""
    assert_equal(after(make, mode=mode), after(make, mode=mode, run=cut_short(then)))


def fail_once(optimizer: Any, register: Callable[[Callable[..., None]], Any]) -> None:
    """Make a step in which a hook raises."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = register(interrupt)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    handle.remove()


@pytest.mark.parametrize("fused", [False, True])
def test_a_decoupled_pull_of_a_step_that_failed_stays_and_none_is_left_out_after_it(fused: bool) -> None:
    """w = 3, anchor 1, lr * alpha = 0.1, each pull leaves 0.9 of the distance: 2.8 when it fails, 2.62 after the next.

    An exception after the kernel leaves what a fused one writes without a trace in the tensor's version.
    """
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 3.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0, fused=fused)
    L2SP(model, anchors={"weight": torch.ones(1, 1)}, alpha=1.0, beta=0.0).attach(optimizer)
    model.weight.grad = torch.zeros_like(model.weight)

    fail_once(optimizer, optimizer.register_step_post_hook)
    assert model.weight.item() == pytest.approx(2.8)
    optimizer.step()
    assert model.weight.item() == pytest.approx(2.62)


def test_weights_that_are_loaded_after_a_failed_step_are_pulled() -> None:
    """w = 3, anchor 1, lr * alpha = 0.1: pulled to 2.8; the step fails, 3 is loaded again and pulled to 2.8, not 3."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 3.0)
    saved = copy.deepcopy(model.state_dict())
    optimizer = SGD(model.parameters(), lr=0.1)
    L2SP(model, anchors={"weight": torch.ones(1, 1)}, alpha=1.0, beta=0.0, mode="decoupled").attach(optimizer)
    model.weight.grad = torch.zeros_like(model.weight)

    fail_once(optimizer, optimizer.register_step_pre_hook)
    model.load_state_dict(saved)
    optimizer.step()
    assert model.weight.item() == pytest.approx(2.8)


@pytest.mark.parametrize("mode", ["coupled", "decoupled", "proximal"])
@pytest.mark.parametrize(
    "make", [lambda p: SGD(p, lr=0.02, momentum=0.9), lambda p: ADAM(p, lr=0.02)], ids=["sgd", "adam"]
)
def test_a_closure_changes_nothing_not_even_in_the_first_step(make: Any, mode: Any) -> None:
    """Lightning steps so: the gradients do not exist before the closure runs, inside the step."""

    def with_closure(model: nn.Module, optimizer: Any, step: int) -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            gradients(model, step)
            return torch.zeros(())

        optimizer.step(closure)

    assert_equal(after(make, mode=mode), after(make, mode=mode, run=with_closure))


def test_lbfgs_with_a_line_search_finds_the_minimum_of_loss_and_penalty() -> None:
    """1/2 (w - 5)^2 + 3/2 (w - 1)^2 has its minimum at (5 + 3) / 4 = 2."""
    model = nn.Linear(1, 1, bias=False).double()
    optimizer = torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe")
    L2SP(model, anchors={"weight": torch.ones(1, 1)}, alpha=3.0, beta=0.0, mode="coupled").attach(optimizer)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = 0.5 * (model.weight - 5).square().sum()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert model.weight.item() == pytest.approx(2.0, abs=1e-6)


def test_gradients_gathered_over_micro_batches_are_pulled_once() -> None:
    def four_micro_batches(model: nn.Module, optimizer: Any, step: int) -> None:
        gradients(model, step)
        wholes = [parameter.grad for parameter in model.parameters()]
        optimizer.zero_grad()
        for _ in range(4):
            for parameter, whole in zip(model.parameters(), wholes, strict=True):
                assert whole is not None
                parameter.grad = whole / 4 if parameter.grad is None else parameter.grad + whole / 4
        optimizer.step()

    def make(parameters: Any) -> Any:
        return SGD(parameters, lr=0.02, momentum=0.9)

    assert_equal(after(make), after(make, run=four_micro_batches), 1e-6)


def test_the_pull_is_not_clipped() -> None:
    """w = 3, anchor 1, alpha 2: gradient 100 clipped to 1, then pulled by 4: 3 - 0.1 * 5 = 2.5."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 3.0)
    optimizer = SGD(model.parameters(), lr=0.1)
    L2SP(model, anchors={"weight": torch.ones(1, 1)}, alpha=2.0, beta=0.0).attach(optimizer)
    model.weight.grad = torch.full((1, 1), 100.0)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert model.weight.item() == pytest.approx(2.5, abs=1e-5)


@pytest.mark.parametrize("mode", ["coupled", "decoupled", "proximal"])
def test_mixed_dtypes_are_each_pulled_exactly_once(mode: Any) -> None:
    """An action per dtype over all weights, the fault of timm#2750, would leave 0.81, not 0.9, of a distance of 1."""
    model = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False).double()])
    for parameter in model.parameters():
        nn.init.constant_(parameter, 1.0)
    optimizer = SGD(model.parameters(), lr=0.1)
    anchors = {name: torch.zeros(2, 2) for name, _ in model.named_parameters()}
    L2SP(model, anchors=anchors, alpha=1.0, beta=0.0, mode=mode).attach(optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    expected = 1 / 1.1 if mode == "proximal" else 0.9
    assert [p.mean().item() for p in model.parameters()] == [pytest.approx(expected)] * 2


@pytest.mark.parametrize("mode", ["coupled", "decoupled", "proximal"])
def test_a_learning_rate_that_is_a_tensor_is_the_number(mode: Any) -> None:
    number = after(lambda p: ADAM(p, lr=0.02), mode=mode)
    assert_equal(number, after(lambda p: ADAM(p, lr=torch.tensor(0.02)), mode=mode), 1e-6)


def test_muon_for_matrices_beside_adamw_for_the_rest() -> None:
    """Both without gradients of any size: the decoupled pull alone acts, lr * alpha = 0.02 * 0.3 in either."""
    muon = getattr(torch.optim, "Muon", None)
    if muon is None:
        pytest.skip("this torch has no Muon")
    model, anchors = moved()
    regularizer = L2SP(model, anchors=anchors, alpha=0.3, beta=0.1)
    optimizers = [
        muon([model[0].weight], lr=0.02, weight_decay=0.0),
        ADAMW([p for p in model.parameters() if p is not model[0].weight], lr=0.02, weight_decay=0.0),
    ]
    for optimizer in optimizers:
        regularizer.attach(optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    for name, anchor in anchors.items():
        expected = anchor + 0.1 * (1 - 0.02 * 0.3)
        torch.testing.assert_close(model.get_parameter(name).detach(), expected, rtol=0, atol=1e-7)
    regularizer.detach()
    assert not any(optimizer._optimizer_step_pre_hooks for optimizer in optimizers)


@pytest.mark.parametrize("mode", ["coupled", "decoupled", "proximal"])
def test_a_compiled_step_is_the_step(mode: Any) -> None:
    compiled: dict[int, Any] = {}

    def run(model: nn.Module, optimizer: Any, step: int) -> None:
        gradients(model, step)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about profiling inside a compiled step
            compiled.setdefault(0, torch.compile(optimizer.step, backend="eager"))()

    def make(parameters: Any) -> Any:
        return SGD(parameters, lr=0.02, momentum=0.9, foreach=True)

    assert_equal(after(make, mode=mode), after(make, mode=mode, run=run), 4e-7)


def test_a_schedule_scales_a_decoupled_pull_and_may_not_make_it_overshoot() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    optimizer = ADAM(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"rate 0\.1 times strength 11 is above 1; use a strength up to 10"):
        L2SP(model, anchors={"weight": torch.zeros(1, 1)}, alpha=11.0, beta=0.0).attach(optimizer)
    L2SP(model, anchors={"weight": torch.zeros(1, 1)}, alpha=5.0, beta=0.0).attach(optimizer)
    for lr, expected in ((0.1, 0.5), (0.05, 0.375), (0.0, 0.375)):
        optimizer.param_groups[0]["lr"] = lr
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
        assert model.weight.item() == pytest.approx(expected)
    optimizer.param_groups[0]["lr"] = 0.3
    with pytest.raises(ValueError, match=r"the pull on weight would overshoot its anchor: learning rate 0\.3 times"):
        optimizer.step()
    assert model.weight.item() == pytest.approx(0.375)


@pytest.mark.parametrize("kind", [L2SP, SPD])
def test_an_overshoot_is_refused_before_anything_moves_and_the_step_may_be_tried_again(kind: Any) -> None:
    """lr 0.1 x 5 = 0.5 of the way in the first group; 0.3 x 5 = 1.5 is too much in the second, 0.1 x 5 is not."""
    model = nn.ModuleList([nn.Linear(1, 1, bias=False) for _ in range(2)])
    for weight in model.parameters():
        nn.init.constant_(weight, 1.0)
        weight.grad = torch.zeros_like(weight)
    optimizer = ADAM([{"params": list(layer.parameters())} for layer in model], lr=0.1)
    kind(model, anchors=None, alpha=0.0, beta=5.0, mode="decoupled").attach(optimizer)
    optimizer.param_groups[1]["lr"] = 0.3
    with pytest.raises(ValueError, match=r"the pull on 1\.weight would overshoot"):
        optimizer.step()
    assert [weight.item() for weight in model.parameters()] == [1.0, 1.0]
    optimizer.param_groups[1]["lr"] = 0.1
    optimizer.step()
    assert [weight.item() for weight in model.parameters()] == pytest.approx([0.5, 0.5])
