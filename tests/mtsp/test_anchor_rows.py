"""Anchors of some rows (output channels) of a weight: these are pretrained, the other rows are new."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtsp.anchors import capture, fingerprint
from mtsp.fisher import save_fisher
from mtsp.fisher.estimate import fisher_of
from mtsp.integrations import summary
from mtsp.regularizers import GLSP, L1SP, L2SP, MARS, SPD, CautiousL2SP, DirectionSP, L2SPFisher, Pace, Regularizer

KEPT, NEW = [3, 0], [1, 2, 4]


class Whole(nn.Module):
    """Two layers; the last one has five classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, 6)
        self.last = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x).tanh())


class Split(nn.Module):
    """The same network, with the kept and the new rows of the last layer in layers of their own."""

    def __init__(self, whole: Whole) -> None:
        super().__init__()
        self.body = copy.deepcopy(whole.body)
        self.kept, self.new = nn.Linear(6, 2), nn.Linear(6, 3)
        with torch.no_grad():
            for layer, rows in ((self.kept, sorted(KEPT)), (self.new, NEW)):
                layer.weight.copy_(whole.last.weight[rows])
                layer.bias.copy_(whole.last.bias[rows])

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x).tanh()
        kept, new = self.kept(hidden), self.new(hidden)
        return torch.stack([kept[:, 0], new[:, 0], new[:, 1], kept[:, 1], new[:, 2]], dim=1)


def trained(model: nn.Module, regularizer: Regularizer, make: Callable[..., Any]) -> None:
    optimizer = make(model.parameters())
    regularizer.attach(optimizer)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.rand(8, 4, generator=generator)).square().sum().backward()
        optimizer.step()


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, foreach=True)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.0)


def fused(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, fused=True)


@pytest.mark.parametrize("make", [sgd, adam, fused])
@pytest.mark.parametrize(
    "kind",
    [L2SP, L1SP, GLSP, SPD, CautiousL2SP, DirectionSP, partial(L2SP, zero=True), MARS, L2SPFisher],
    ids=lambda kind: getattr(kind, "__name__", "L2"),
)
def test_rows_are_pulled_as_if_they_were_layers_of_their_own(kind: Any, make: Callable[..., Any]) -> None:
    whole = Whole()
    split = Split(whole)
    options: dict[str, Any] = {"radius" if kind is MARS else "alpha": 0.3, "beta": 0.2}
    anchors = capture(whole, ["body.weight", "last.weight"], rows={"last.weight": KEPT})
    apart = capture(split, ["body.weight", "kept.weight"])
    fishers: list[dict[str, Any]] = [{}, {}]
    if kind is L2SPFisher:
        values = {name: torch.rand_like(anchor) for name, anchor in capture(whole, list(anchors)).items()}
        fishers = [
            {"fisher": values},
            {"fisher": {"body.weight": values["body.weight"], "kept.weight": values["last.weight"][sorted(KEPT)]}},
        ]
    one = kind(whole, anchors=anchors, **options, **fishers[0])
    other = kind(split, anchors=apart, **options, **fishers[1])
    trained(whole, one, make)
    trained(split, other, make)
    torch.testing.assert_close(whole.body.weight, split.body.weight)
    torch.testing.assert_close(whole.last.weight[sorted(KEPT)], split.kept.weight)
    torch.testing.assert_close(whole.last.weight[NEW], split.new.weight)
    assert one.penalty() == pytest.approx(other.penalty(), rel=1e-5)
    assert one.distances([""]) == pytest.approx(other.distances([""]), rel=1e-5)  # empty for L2
    ours, theirs = one.report(["", "body"]), other.report(["", "body"])
    for prefix in ("", "body"):
        assert tuple(ours[prefix]) == pytest.approx(tuple(theirs[prefix]), rel=1e-4, nan_ok=True)


def test_alpha_pulls_the_kept_rows_and_beta_the_others() -> None:
    """Without gradients, one decoupled step of lr 0.1 leaves 1 - 0.1 alpha of d, and 1 - 0.1 beta of w."""
    model = Whole()
    anchors = capture(model, ["last.weight"], rows={"last.weight": [1]})
    start = model.last.weight.detach().clone()
    with torch.no_grad():
        model.last.weight += 1
    optimizer = torch.optim.AdamW([model.last.weight], lr=0.1, weight_decay=0.0)
    L2SP(model, anchors=anchors, alpha=2.0, beta=1.0).attach(optimizer)
    model.last.weight.grad = torch.zeros_like(start)
    optimizer.step()
    expected = (start + 1) * 0.9
    expected[1] = start[1] + 0.8
    torch.testing.assert_close(model.last.weight.detach(), expected)


def test_both_kinds_of_rows_are_told() -> None:
    model = Whole()
    anchors = capture(model, ["last.weight"], rows={"last.weight": KEPT})
    regularizer = L2SP(model, anchors=anchors, alpha=0.3, beta=0.2)
    lines = [line.split("  ") for line in regularizer.table().splitlines()]
    told = {line[0].strip(): [part.strip() for part in line[1:] if part.strip()] for line in lines}
    assert told["last.weight (2 of 5 rows)"] == ["12", "anchored", "0.3"]
    assert told["last.weight (3 of 5 rows)"] == ["18", "new", "0.2"]
    assert summary(regularizer) == "L2SP: 1 weights anchored (12), 2 weights new (42), 2 weights free (11)"


def test_paces_are_those_of_alpha_and_beta() -> None:
    """Coupled SGD without momentum: strength = 1 / (lr * steps), so 1 / (0.1 * 20) = 0.5 and 1 / (0.1 * 100) = 0.1."""
    model = Whole()
    anchors = capture(model, ["last.weight"], rows={"last.weight": KEPT})
    regularizer = L2SP(model, anchors=anchors, alpha=Pace(20), beta=Pace(100))
    regularizer.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    assert regularizer.time_constant("last") == pytest.approx(20)
    own, rest = regularizer.targets["last.weight"].parts
    assert (own.strength, rest.strength) == pytest.approx((0.5, 0.1))


def test_a_resumed_run_must_keep_the_same_rows() -> None:
    model = Whole()
    one, same, other = (
        L2SP(model, anchors=capture(model, ["last.weight"], rows={"last.weight": rows}), alpha=0.3, beta=0.2)
        for rows in (KEPT, sorted(KEPT), [0, 1])
    )
    same.load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match="trained with another anchors"):
        other.load_state_dict(one.state_dict())
    everything = capture(model, ["last.weight"])
    assert fingerprint(everything) != one.state_dict()["anchors"]


def test_rows_that_were_captured_too_late_are_refused() -> None:
    model = Whole()
    optimizer = adam(model.parameters())
    model(torch.rand(8, 4)).sum().backward()
    optimizer.step()
    late = capture(model, ["last.weight"], rows={"last.weight": KEPT})
    with pytest.raises(ValueError, match="captured too late"):
        L2SP(model, anchors=late, alpha=0.1, beta=0.1).attach(optimizer)


def test_wrong_rows_are_refused() -> None:
    model = Whole()
    with pytest.raises(ValueError, match=r"last.weight has rows 0 to 4, got \[5\]"):
        capture(model, ["last.weight"], rows={"last.weight": [5]})
    with pytest.raises(ValueError, match=r"rows: body.weight is not among the captured weights"):
        capture(model, ["last.weight"], rows={"body.weight": [0]})
    anchors = {"last.weight": torch.zeros(5, 6)}
    anchors["last.weight"][2, 3] = torch.nan  # one value is no row
    with pytest.raises(ValueError, match=r"the anchor of last.weight has values that are NaN or infinite"):
        L2SP(model, anchors=anchors, alpha=0.1, beta=0.1)
    with pytest.raises(ValueError, match=r"the anchor of last.weight has values that are NaN or infinite"):
        L2SP(model, anchors={"last.weight": torch.full((5, 6), torch.nan)}, alpha=0.1, beta=0.1)
    transposed = nn.Sequential(nn.ConvTranspose2d(3, 4, 2))
    anchors = {"0.weight": torch.zeros(3, 4, 2, 2)}
    anchors["0.weight"][1] = torch.nan
    with pytest.raises(ValueError, match="transposed layer; its anchor must cover all channels or none"):
        L2SP(transposed, anchors=anchors, alpha=0.1, beta=0.1)


def test_fisher_files_belong_to_anchors_with_the_same_rows(tmp_path: Path) -> None:
    model = Whole()
    anchors = capture(model, ["last.weight"], rows={"last.weight": KEPT})
    save_fisher(tmp_path / "f.safetensors", {"last.weight": torch.ones(5, 6)}, anchors=anchors)
    assert list(fisher_of(tmp_path / "f.safetensors", anchors)) == ["last.weight"]
    with pytest.raises(ValueError, match=r"estimate it with tools/fisher\.py"):
        fisher_of(tmp_path / "f.safetensors", capture(model, ["last.weight"]))
