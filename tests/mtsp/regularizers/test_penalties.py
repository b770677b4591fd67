"""Every penalty against numbers worked out by hand, and every gradient against autograd through the formula."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtsp.regularizers import GLSP, L1SP, L2SP, MARS, DirectionSP, GLSPFisher, L2SPFisher, Mode, Regularizer

WEIGHT = torch.tensor([[4.0, 4.0], [1.0, 2.0]], dtype=torch.float64)
ANCHOR = torch.tensor([[1.0, 0.0], [1.0, 2.0]], dtype=torch.float64)
FISHER = torch.tensor([[1.0, 4.0], [2.0, 2.0]], dtype=torch.float64)
ROOT2, ROOT73 = math.sqrt(2), math.sqrt(73)
ALPHA, LR = 2.0, 0.1
"""d = [[3, 4], [0, 0]]: rows of length 5 and 0, of p = 2 weights each. One step moves by lr * alpha = 0.2."""


def build(kind: type[Regularizer], model: nn.Module, anchors: dict[str, Tensor], **options: Any) -> Regularizer:
    if kind in (L2SPFisher, GLSPFisher):
        options = {"fisher": {name: FISHER for name in anchors}, **options}
    return kind(model, anchors=anchors, alpha=ALPHA, beta=0.0, **options)


def layer() -> nn.Linear:
    model = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(WEIGHT)
    return model


def stepped(kind: type[Regularizer], mode: str, **sgd: Any) -> Tensor:
    """The weight after one step of SGD without a gradient from any loss."""
    model = layer()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, **sgd)
    build(kind, model, {"weight": ANCHOR}, mode=mode).attach(optimizer)
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    return model.weight.detach()


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (L2SP, 25.0),  # 2/2 (3^2 + 4^2)
        (L1SP, 14.0),  # 2 (3 + 4)
        (GLSP, 10 * ROOT2),  # 2 sqrt(2) 5
        (L2SPFisher, 73.0),  # 2/2 (1 * 3^2 + 4 * 4^2)
        (GLSPFisher, 2 * ROOT2 * ROOT73),  # 2 sqrt(2) sqrt(9 + 64)
        (DirectionSP, 16.0),  # 2/2 4^2: of (4, 4), the part across (1, 0) is (0, 4)
    ],
)
def test_the_value(kind: type[Regularizer], value: float) -> None:
    assert build(kind, layer(), {"weight": ANCHOR}).penalty() == pytest.approx(value, rel=1e-14)


@pytest.mark.parametrize(
    ("kind", "mode", "row"),
    [
        (L2SP, "coupled", (3.4, 3.2)),  # 4 - 0.2 * (3, 4)
        (L2SP, "decoupled", (3.4, 3.2)),
        (L2SP, "proximal", (3.5, 4 / 1.2)),  # (1, 0) + (3, 4) / (1 + 0.2)
        (L1SP, "coupled", (3.8, 3.8)),
        (L1SP, "proximal", (3.8, 3.8)),
        (GLSP, "coupled", (4 - 0.2 * ROOT2 * 0.6, 4 - 0.2 * ROOT2 * 0.8)),  # sqrt(2) (3, 4) / 5
        (GLSP, "proximal", (4 - 0.2 * ROOT2 * 0.6, 4 - 0.2 * ROOT2 * 0.8)),
        (L2SPFisher, "coupled", (3.4, 0.8)),  # 4 - 0.2 * (1 * 3, 4 * 4)
        (L2SPFisher, "proximal", (1 + 3 / 1.2, 4 / 1.8)),  # d / (1 + 0.2 F)
        (GLSPFisher, "coupled", (4 - 0.2 * ROOT2 * 3 / ROOT73, 4 - 0.2 * ROOT2 * 16 / ROOT73)),
        (DirectionSP, "coupled", (4.0, 3.2)),  # 4 - 0.2 * (0, 4)
        (DirectionSP, "decoupled", (4.0, 3.2)),
        (DirectionSP, "proximal", (4.0, 4 / 1.2)),
    ],
)
def test_one_step(kind: type[Regularizer], mode: str, row: tuple[float, float]) -> None:
    expected = torch.tensor([row, (1.0, 2.0)], dtype=torch.float64)  # the second row is at its anchor and stays
    torch.testing.assert_close(stepped(kind, mode), expected, rtol=0, atol=1e-12)


def test_the_proximal_group_lasso_with_fisher_is_where_its_subgradient_vanishes() -> None:
    """x minimizes 1/2 ||x - d||^2 + s sqrt(sum F x^2), s = 0.2 sqrt(2): x - d + s F x / sqrt(sum F x^2) = 0."""
    x = (stepped(GLSPFisher, "proximal") - ANCHOR)[0]
    d, f, s = torch.tensor([3.0, 4.0]).double(), FISHER[0], 0.2 * ROOT2
    torch.testing.assert_close(
        x - d + s * f * x / (f * x.square()).sum().sqrt(), torch.zeros(2).double(), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("kind", [L1SP, GLSP, GLSPFisher])
def test_a_proximal_kink_holds_what_is_near_bit_for_bit_and_a_subgradient_does_not(kind: type[Regularizer]) -> None:
    """0.05 off in float32, where w - (w - w0) is not always w0; the step shrinks by 0.2 at least."""
    results = {}
    for mode in ("proximal", "coupled"):
        torch.manual_seed(0)
        model = nn.Linear(50, 20, bias=False)
        anchors = {"weight": torch.randn(20, 50) * 0.01}
        with torch.no_grad():
            model.weight.copy_(anchors["weight"] + torch.rand(20, 50) * 0.05)
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        options: Any = {"fisher": {"weight": torch.rand(20, 50) + 0.5}} if kind is GLSPFisher else {}
        kind(model, anchors=anchors, alpha=ALPHA, beta=0.0, mode=mode, **options).attach(optimizer)
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
        results[mode] = (model.weight == anchors["weight"]).float().mean().item()
    assert results == {"proximal": 1.0, "coupled": 0.0}


def test_a_fisher_of_any_size_cannot_make_the_implicit_step_explode() -> None:
    """The explicit step multiplies d by 1 - 0.2 * 1e4 = -1999 each time; the implicit one by 1 / 2001."""
    model = layer()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    huge = {"weight": torch.full((2, 2), 1e4)}
    with pytest.raises(
        ValueError, match="times the largest Fisher information 10000 is above 1; use a strength up to 0"
    ):
        L2SPFisher(model, anchors={"weight": ANCHOR}, fisher=huge, alpha=ALPHA, beta=0.0, mode="coupled").attach(
            optimizer
        )
    L2SPFisher(model, anchors={"weight": ANCHOR}, fisher=huge, alpha=ALPHA, beta=0.0).attach(optimizer)
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), ANCHOR + (WEIGHT - ANCHOR) / 2001, rtol=1e-12, atol=0)


def test_where_the_fisher_information_is_zero_nothing_is_pulled() -> None:
    for kind in (L2SPFisher, GLSPFisher):
        for mode in ("coupled", "proximal"):
            model = layer()
            optimizer = torch.optim.SGD(model.parameters(), lr=LR)
            fisher = {"weight": torch.tensor([[0.0, 1.0], [0.0, 0.0]])}
            build(kind, model, {"weight": ANCHOR}, fisher=fisher, mode=mode).attach(optimizer)
            model.weight.grad = torch.zeros_like(model.weight)
            optimizer.step()
            assert torch.equal(model.weight.detach()[:, 0], WEIGHT[:, 0])
            assert model.weight[0, 1].item() < 4.0
            assert torch.equal(model.weight.detach()[1], WEIGHT[1])


def formula(kind: type[Regularizer], w: Tensor, w0: Tensor, f: Tensor, rows: int) -> Tensor:
    """The penalties as section 1.1 of the specification writes them, channel by channel."""
    d = w - w0
    if kind is L2SP:
        return 0.5 * (d * d).sum()
    if kind is L1SP:
        return d.abs().sum()
    if kind is L2SPFisher:
        return 0.5 * (f * d * d).sum()
    total = torch.zeros((), dtype=w.dtype)
    for channel in range(w.shape[rows]):
        dc, wc, ac, fc = (t.select(rows, channel).flatten() for t in (d, w, w0, f))
        if kind is GLSP:
            total = total + len(dc) ** 0.5 * (dc @ dc) ** 0.5
        elif kind is GLSPFisher:
            total = total + len(dc) ** 0.5 * (fc * dc) @ dc / ((fc * dc) @ dc) ** 0.5
        else:
            total = total + 0.5 * (wc @ wc) - 0.5 * (wc @ ac) ** 2 / (ac @ ac)
    return total


@pytest.mark.parametrize("kind", [L2SP, L1SP, GLSP, L2SPFisher, GLSPFisher, DirectionSP])
@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(4, 3), lambda: nn.Conv2d(2, 3, 3), lambda: nn.ConvTranspose2d(2, 3, 2)]
)
def test_value_and_gradient_are_the_formulas_for_every_kind_of_layer(kind: type[Regularizer], make: Any) -> None:
    """Output channels are dimension 0, and 1 in a transposed convolution."""
    torch.manual_seed(1)
    model = make().double()
    weight, rows = model.weight, 1 if isinstance(model, nn.ConvTranspose2d) else 0
    anchor, fisher = torch.randn_like(weight), torch.rand_like(weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    options: Any = {"fisher": {"weight": fisher}} if kind in (L2SPFisher, GLSPFisher) else {}
    regularizer = kind(model, anchors={"weight": anchor}, alpha=0.7, beta=0.0, mode="coupled", **options)
    regularizer.attach(optimizer)
    value = 0.7 * formula(kind, weight, anchor, fisher, rows)
    assert regularizer.penalty() == pytest.approx(value.item(), rel=1e-12)
    (expected,) = torch.autograd.grad(value, weight)
    start = weight.detach().clone()
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    torch.testing.assert_close((start - weight.detach()) / 0.01, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [L2SP, L1SP, GLSP, L2SPFisher, GLSPFisher, DirectionSP])
@pytest.mark.parametrize("mode", ["coupled", "proximal"])
def test_at_the_anchor_every_pull_is_exactly_zero_and_never_nan(kind: type[Regularizer], mode: Mode) -> None:
    """The square root of a sum has no gradient there: d / ||d|| is 0 / 0 at the very start of fine-tuning."""
    torch.manual_seed(0)
    model = nn.Conv2d(2, 3, 3)
    start = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    options: Any = {"fisher": {"weight": torch.rand_like(start)}} if kind in (L2SPFisher, GLSPFisher) else {}
    kind(model, anchors={"weight": start}, alpha=1.0, beta=0.0, mode=mode, **options).attach(optimizer)
    for _ in range(3):
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
    assert torch.equal(model.weight.detach(), start)


def test_momentum_and_proximal_steps_end_where_the_coupled_pull_ends() -> None:
    """Minimize g w + alpha/2 (w - 1)^2 with g = 1, alpha = 2: w = 1/2, whatever form and momentum."""
    cases: list[tuple[Mode, float]] = [("coupled", 0.5), ("proximal", 0.5), ("decoupled", -4.0)]
    for mode, expected in cases:  # decoupled: alpha counts (1 - 0.9) of it
        model = nn.Linear(1, 1, bias=False).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        L2SP(model, anchors={"weight": torch.ones(1, 1)}, alpha=2.0, beta=0.0, mode=mode).attach(optimizer)
        for _ in range(1000):
            model.weight.grad = torch.ones_like(model.weight)
            optimizer.step()
        assert model.weight.item() == pytest.approx(expected, abs=1e-6)


def test_what_a_penalty_cannot_do_is_refused() -> None:
    anchors = {"weight": ANCHOR}
    with pytest.raises(ValueError, match="L1SP cannot be decoupled; it can be proximal, coupled"):
        L1SP(layer(), anchors=anchors, alpha=1.0, beta=0.0, mode="decoupled")
    with pytest.raises(ValueError, match=r"L2SPFisher needs `fisher`, see mtsp\.fisher"):
        L2SPFisher(layer(), anchors=anchors, alpha=1.0, beta=0.0)
    with pytest.raises(ValueError, match="L2SP does not use `fisher`"):
        L2SP(layer(), anchors=anchors, alpha=1.0, beta=0.0, fisher={"weight": FISHER})
    with pytest.raises(ValueError, match="the Fisher information of weight has negative values"):
        L2SPFisher(layer(), anchors=anchors, alpha=1.0, beta=0.0, fisher={"weight": -FISHER})
    with pytest.raises(ValueError, match="weight has an anchor but no Fisher information"):
        L2SPFisher(layer(), anchors=anchors, alpha=1.0, beta=0.0, fisher={})


def of_transposed(kind: Any, groups: int, parts: list[slice], **options: Any) -> tuple[Tensor, float, float]:
    """Weight, penalty and ratio to the gradient after a step on these parts of a (6, 4, 2, 2) transposed weight."""
    weight, anchor, fisher, gradient = torch.randn(4, 6, 4, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    model = nn.ModuleList(
        [nn.ConvTranspose2d(6 // len(parts), 4 * groups, 2, groups=groups, bias=False).double() for _ in parts]
    )
    names = [f"{i}.weight" for i in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        model.get_parameter(name).data = weight[part].clone()
        model.get_parameter(name).grad = gradient[part].clone()
    if kind is GLSPFisher:
        options["fisher"] = {name: fisher[part].abs() for name, part in zip(names, parts, strict=True)}
    anchors = {name: anchor[part] for name, part in zip(names, parts, strict=True)}
    regularizer = kind(model, anchors=anchors, beta=0.0, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    regularizer.attach(optimizer)
    optimizer.step()
    after = torch.cat([parameter.detach() for parameter in model.parameters()])
    return after, regularizer.penalty(), regularizer.report()[""].pull_to_gradient


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (L2SP, {"alpha": 0.2}),
        (L1SP, {"alpha": 0.2}),
        (GLSP, {"alpha": 0.2, "mode": "coupled"}),
        (GLSP, {"alpha": 0.2, "mode": "proximal"}),
        (GLSPFisher, {"alpha": 0.02, "mode": "coupled"}),
        (GLSPFisher, {"alpha": 0.2, "mode": "proximal"}),
        (DirectionSP, {"alpha": 0.2, "mode": "coupled"}),
        (DirectionSP, {"alpha": 0.2, "mode": "decoupled"}),
        (MARS, {"radius": 0.5}),
    ],
)
def test_channels_of_a_grouped_transposed_convolution_are_those_of_its_groups(kind: Any, options: Any) -> None:
    """Channel o of group g is weight[2 g : 2 g + 2, o]: three groups are three plain convolutions, bit for bit."""
    weight, penalty, ratio = of_transposed(kind, 3, [slice(None)], **options)
    plain, their_penalty, their_ratio = of_transposed(kind, 1, [slice(0, 2), slice(2, 4), slice(4, 6)], **options)
    assert torch.equal(weight, plain)
    assert penalty == pytest.approx(their_penalty, rel=1e-12)
    assert ratio == pytest.approx(their_ratio, rel=1e-12)
    together, *_ = of_transposed(kind, 1, [slice(None)], **options)  # six input channels to each output
    looks_at_each_weight_alone = kind in (L2SP, L1SP)
    assert torch.equal(weight, together) == looks_at_each_weight_alone
