"""Pulls that choose when to act, a bound instead of a pull, strengths by depth: against numbers worked out by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtsp.regularizers import L2SP, MARS, SPD, CautiousL2SP, by_depth


def layer(*rows: tuple[float, ...]) -> nn.Linear:
    model = nn.Linear(len(rows[0]), len(rows), bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor(rows))
    return model


def step(model: nn.Linear, regularizer: Any, gradient: list[list[float]], **sgd: Any) -> Tensor:
    optimizer = torch.optim.SGD(model.parameters(), **{"lr": 0.1, **sgd})
    regularizer.attach(optimizer)
    model.weight.grad = torch.tensor(gradient, dtype=torch.float64)
    optimizer.step()
    return model.weight.detach()


def test_spd_takes_back_a_share_of_the_way_that_a_step_went_further() -> None:
    """d = (3, 4), ||d|| = 5. The gradient (60, -80) steps to d = (-3, 12); <g, d> = 180 - 320 < 0: nothing is done.

    With (-120, 110): d = (15, -7), ||d|| = sqrt(274), <g, d> = -360 + 440 > 0: d is scaled by 1 - (1 - 5 / sqrt(274)),
    so that its length is 5 again.
    """
    for gradient, expected in (([60.0, -80.0], (-3.0, 12.0)), ([-120.0, 110.0], (15.0, -7.0))):
        model = layer((3.0, 4.0))
        w = step(model, SPD(model, anchors={"weight": torch.zeros(1, 2)}, alpha=1.0, beta=0.0), [gradient])
        length = 1.0 if expected[0] < 0 else 5 / 274**0.5
        torch.testing.assert_close(w, torch.tensor([expected]).double() * length, rtol=1e-6, atol=0)


def test_spd_leaves_a_step_that_came_nearer_and_stops_at_the_anchor() -> None:
    model = layer((3.0, 4.0))
    w = step(model, SPD(model, anchors={"weight": torch.zeros(1, 2)}, alpha=1.0, beta=0.0), [[10.0, 10.0]])
    torch.testing.assert_close(w, torch.tensor([[2.0, 3.0]]).double())  # <g, d> > 0, but the distance shrank
    model = layer((3.0, 4.0))
    w = step(model, SPD(model, anchors={"weight": torch.zeros(1, 2)}, alpha=50.0, beta=0.0), [[-120.0, 110.0]])
    torch.testing.assert_close(w, torch.zeros(1, 2).double())  # 50 times the share would fly past


def test_spd_decays_new_weights_plainly() -> None:
    model = layer((3.0, 4.0))
    w = step(model, SPD(model, anchors=None, alpha=1.0, beta=2.0), [[0.0, 0.0]])
    torch.testing.assert_close(w, torch.tensor([[2.4, 3.2]]).double())  # times 1 - 0.1 * 2


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_cautious_pulls_only_entries_that_the_update_moves_the_same_way(momentum: float) -> None:
    """After the step d = (2, 5); the update (10, -10) agrees with the first: 2 - 0.1 * 2 * 2 = 1.6."""
    model = layer((3.0, 4.0))
    regularizer = CautiousL2SP(model, anchors={"weight": torch.zeros(1, 2)}, alpha=2.0, beta=0.0)
    w = step(model, regularizer, [[10.0, -10.0]], momentum=momentum)
    torch.testing.assert_close(w, torch.tensor([[1.6, 5.0]]).double())


def test_cautious_looks_at_adams_update_and_not_at_the_gradient() -> None:
    """The first moment is positive after a gradient of 100, whatever the sign of the small gradient that follows."""
    weights = []
    for alpha in (0.0, 1.0):
        model = layer((3.0,))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        CautiousL2SP(model, anchors={"weight": torch.zeros(1, 1)}, alpha=alpha, beta=0.0).attach(optimizer)
        for gradient in (100.0, -1.0):
            model.weight.grad = torch.full_like(model.weight, gradient)
            optimizer.step()
            weights.append(model.weight.item())
    assert weights[2] == pytest.approx(2.9 * 0.9)  # 3 - 0.1, then 0.1 * 1 of the way back
    assert weights[3] == pytest.approx((weights[2] - (weights[0] - weights[1])) * 0.9)


def test_mars_bounds_the_absolute_sum_of_every_output_channel() -> None:
    """d = (3, -5) sums to 8: scaled by 2 / 8; (1, 0.5) is within the bound of 2 and bit for bit as it was."""
    model = layer((4.0, -4.0), (1.0, 1.5))
    anchor = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    w = step(model, MARS(model, anchors={"weight": anchor}, radius=2.0), [[0.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(w, torch.tensor([[1.75, -0.25], [1.0, 1.5]]).double(), rtol=1e-14, atol=0)
    assert torch.equal(w[1], torch.tensor([1.0, 1.5]).double())


def test_mars_does_not_depend_on_the_learning_rate_and_needs_a_radius() -> None:
    model = layer((4.0, -4.0))
    regularizer = MARS(model, anchors={"weight": torch.zeros(1, 2)}, radius={"weight": 1.0})
    w = step(model, regularizer, [[0.0, 0.0]], lr=1e-9)
    torch.testing.assert_close(w, torch.tensor([[0.5, -0.5]]).double())
    with pytest.raises(ValueError, match="the radius must be above 0, got 0"):
        MARS(model, anchors={"weight": torch.zeros(1, 2)}, radius=0)


def test_l2_sp_k_holds_early_layers_more() -> None:
    """Three layers have an anchor: 3/3, 2/3 and 1/3 of alpha; the head has none."""
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(4)))
    anchors = {f"{i}.weight": torch.zeros(1, 1) for i in range(3)}
    depths = by_depth(model, 0.3, shared=anchors)
    assert depths == {"0.weight": 0.3, "1.weight": pytest.approx(0.2), "2.weight": pytest.approx(0.1)}
    targets = L2SP(model, anchors=anchors, alpha=depths, beta=7.0).targets
    assert [pull.strength for pull in targets.values()] == [0.3, pytest.approx(0.2), pytest.approx(0.1), 7.0]
