"""Every optimizer of the libraries that are installed: exact, near, or refused with a reason; never silently wrong.

What a step moves is measured on the optimizers themselves, not on the twins on which attaching measures.
"""

import functools
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mtsp.regularizers import L2SP
from tools.bench.optimizers import LIBRARIES, Row, rows

PAGE = Path(__file__).resolve().parents[3] / "docs/optimizers.md"
SOUND = re.compile(
    r"(coupled|decoupled), (exact|within [\d.e-]+ %)|refused: .{20,}|does not run here \(.+\)", re.DOTALL
)


@functools.cache
def survey(library: str) -> list[Row]:
    try:
        with torch.compiler.set_stance("force_eager"):  # timm's Kron would compile itself for half a minute
            return rows(library)
    except ImportError as error:
        pytest.skip(f"needs {LIBRARIES[library]}: {error}")


@pytest.mark.parametrize("library", LIBRARIES)
def test_no_optimizer_is_silently_wrong(library: str) -> None:
    found = survey(library)
    assert found
    for row in found:
        for cell in (row.chosen, row.coupled):
            assert SOUND.fullmatch(cell), (row.name, cell)
            if percent := re.search(r"within ([\d.e+-]+) %", cell):
                assert float(percent[1]) < 10, (row.name, cell)


@pytest.mark.parametrize(
    ("library", "exact", "refused"),
    [
        ("torch", "ASGD Adadelta Adagrad Adam AdamW Adamax Muon NAdam RAdam RMSprop Rprop SGD", ""),
        ("timm", "adamw adamp lamb lars lion muon kron adopt sgd sgdp", "madgrad madgradw"),
        ("pytorch_optimizer", "prodigy dadaptadam lion soap ranger sgdw", "madgrad nero schedulefreeadamw dadaptsgd"),
        ("schedulefree", "", "AdamWScheduleFree SGDScheduleFree RAdamScheduleFree"),
        ("prodigyopt", "Prodigy", ""),
        ("dadaptation", "DAdaptAdam DAdaptAdan DAdaptLion", "DAdaptAdaGrad DAdaptSGD"),
        ("lion_pytorch", "Lion", ""),
        ("transformers", "Adafactor", ""),
    ],
)
def test_what_is_exact_and_what_is_refused(library: str, exact: str, refused: str) -> None:
    found = {row.name: row for row in survey(library)}
    for name in exact.split():
        assert found[name].chosen.endswith(", exact"), found[name]
    for name in refused.split():
        assert found[name].chosen.startswith("refused: "), found[name]
        assert found[name].coupled == "coupled, exact", found[name]


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_page_says_what_is_seen(library: str) -> None:
    """Of the version that the page is of: each optimizer is as exact, or refused, as it says."""
    lines = PAGE.read_text().splitlines()
    told = next(i for i, line in enumerate(lines) if line.startswith(f"| {library} "))
    if (here := installed(library)) != lines[told].split()[2]:
        pytest.skip(f"{library} {here}, the page is of {lines[told].split()[2]}")
    said = {}
    for line in lines[told + 2 : lines.index("", told)]:
        names, *cells = line.strip("| ").split(" | ")
        said |= {name: [kind_of(cell) for cell in cells] for name in names.split(", ")}
    assert said == {row.name: [kind_of(row.chosen), kind_of(row.coupled)] for row in survey(library)}


def kind_of(cell: str) -> str:
    """exact, within some percent, refused, or not run: numbers may differ between machines."""
    kind = re.search(r"exact|within|refused|does not run", cell)
    assert kind is not None, cell
    return kind[0].replace("within", "exact")


def installed(library: str) -> str:
    try:
        return version(LIBRARIES[library])
    except PackageNotFoundError:
        pytest.skip(f"needs {LIBRARIES[library]}")


def two_from_anchor_one() -> tuple[nn.Module, L2SP]:
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(model.weight, 2.0)
    model.weight.grad = torch.zeros_like(model.weight)
    return model, L2SP(model, anchors={"weight": torch.ones(1, 1)}, alpha=1.0, beta=0.0)


@pytest.mark.parametrize("name", ["SAM", "WSAM", "GSAM", "LookSAM", "Lookahead", "PCGrad", "OrthoGrad"])
def test_wrappers_of_pytorch_optimizer_pull_once(name: str) -> None:
    """2 - 0.1 * (2 - 1) = 1.9, for none of them changes anything where there is no gradient."""
    library = pytest.importorskip("pytorch_optimizer", reason="needs pytorch_optimizer")
    kind = getattr(library, name)
    model, regularizer = two_from_anchor_one()
    if name in ("Lookahead", "PCGrad", "OrthoGrad"):
        optimizer = kind(torch.optim.SGD(model.parameters(), lr=0.1))
    elif name == "GSAM":
        base = torch.optim.SGD(model.parameters(), lr=0.1)
        rho = library.ProportionScheduler(torch.optim.lr_scheduler.ConstantLR(base, 1.0), max_lr=0.1, max_value=0.1)
        optimizer = kind(model.parameters(), base_optimizer=base, model=model, rho_scheduler=rho)
    else:
        model_first = {"model": model} if name == "WSAM" else {}
        optimizer = kind(params=model.parameters(), base_optimizer=torch.optim.SGD, lr=0.1, **model_first)
    regularizer.attach(optimizer)
    if "SAM" in name:
        inner = optimizer.base_optimizer
        inner.step()
    else:
        optimizer.step()
    assert model.get_parameter("weight").item() == pytest.approx(1.9)


@pytest.mark.parametrize("name", ["TRAC", "ScheduleFreeWrapper"])
def test_wrappers_that_scale_or_average_are_refused(name: str) -> None:
    library = pytest.importorskip("pytorch_optimizer", reason="needs pytorch_optimizer")
    model, regularizer = two_from_anchor_one()
    inner = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
    with pytest.raises(ValueError, match=rf"in {name} as it should|arrives in {name} cannot be tried"):
        regularizer.attach(getattr(library, name)(inner))


def test_prodigys_own_decay_is_what_a_pull_to_zero_does() -> None:
    """Two steps, as long as its estimate does not depend on where the weights are."""
    prodigy = pytest.importorskip("prodigyopt", reason="needs prodigyopt").Prodigy
    ends = []
    for native in (True, False):
        model = two_from_anchor_one()[0]
        weight = model.get_parameter("weight")
        optimizer = prodigy(model.parameters(), d0=0.1, weight_decay=0.5 if native else 0.0)
        if not native:
            L2SP(model, anchors=None, alpha=0.0, beta=0.5).attach(optimizer)
        for _ in range(2):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        ends.append(weight.item())
    assert ends[0] == pytest.approx(ends[1], abs=1e-7)  # it remembers a start that is pulled already


def test_a_pull_through_prodigy_stays_near() -> None:
    """At a rate of lr = 1 instead of d, the pull would be a million times as strong at first: w goes to -220 and on."""
    prodigy = pytest.importorskip("prodigyopt", reason="needs prodigyopt").Prodigy
    model = two_from_anchor_one()[0]
    weight = model.get_parameter("weight")
    optimizer = prodigy(model.parameters())
    L2SP(model, anchors={"weight": torch.ones(1, 1)}, alpha=1.0, beta=0.0).attach(optimizer)
    for _ in range(200):
        weight.grad = (weight.detach() - 1.5).clone()
        optimizer.step()
        assert 0 < weight.item() < 3


def schedule_free(name: str, model: nn.Module, **settings: Any) -> Any:
    library = pytest.importorskip("schedulefree", reason="needs schedulefree")
    optimizer = getattr(library, name)(model.parameters(), lr=0.1, **settings)
    optimizer.train()
    return optimizer


@pytest.mark.parametrize("name", ["SGDScheduleFree", "AdamWScheduleFree", "RAdamScheduleFree"])
@pytest.mark.parametrize("mode", ["auto", "decoupled", "proximal"])
def test_schedule_free_would_average_a_move_away_and_is_refused(name: str, mode: Any) -> None:
    """Its own decay moves two weights, the one it trains and the one it averages; a pull can move the first alone."""
    model = two_from_anchor_one()[0]
    regularizer = L2SP(model, anchors={"weight": torch.ones(1, 1)}, alpha=1.0, beta=0.0, mode=mode)
    with pytest.raises(ValueError, match=rf"pull does not arrive in {name} as it should: 0\.\d+ times .*'coupled'"):
        regularizer.attach(schedule_free(name, model))
    assert model.get_parameter("weight").item() == 2.0


def test_a_pull_through_schedule_free_sgd_is_by_hand() -> None:
    """y = z = 2, lr 0.1, beta 0.9, alpha 1, anchor 1, no other gradient.

    The first step averages nothing: z = y = 2 - 0.1 * (2 - 1) = 1.9. The second averages by 1/2: z = 1.9 - 0.1 * 0.9 =
    1.81, y = 1.9 - 0.1 * 0.9 * (1 - 0.9 / 2) = 1.8505. What is evaluated is x = y + (1 - 1 / 0.9) * (z - y).
    """
    model = two_from_anchor_one()[0]
    regularizer = L2SP(model, anchors={"weight": torch.ones(1, 1)}, alpha=1.0, beta=0.0, mode="coupled")
    optimizer = schedule_free("SGDScheduleFree", model, momentum=0.9)
    regularizer.attach(optimizer)
    weight = model.get_parameter("weight")
    for value in (1.9, 1.8505):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        assert weight.item() == pytest.approx(value, abs=1e-12)
    optimizer.eval()
    assert weight.item() == pytest.approx(1.8505 + (1.8505 - 1.81) / 9, abs=1e-12)


def test_a_coupled_pull_to_zero_is_the_own_decay_of_schedule_free_sgd() -> None:
    ends = []
    for native in (True, False):
        model = two_from_anchor_one()[0]
        weight = model.get_parameter("weight")
        optimizer = schedule_free("SGDScheduleFree", model, weight_decay=0.5 if native else 0.0, warmup_steps=5)
        if not native:
            L2SP(model, anchors=None, alpha=0.0, beta=0.5, mode="coupled").attach(optimizer)
        for step in range(20):
            weight.grad = torch.full_like(weight, 0.3 * (-1) ** step)
            optimizer.step()
        ends.append(weight.item())
    assert ends[0] == pytest.approx(ends[1], abs=1e-12)
    assert ends[0] < 1.9


@pytest.mark.parametrize("name", ["SGDScheduleFree", "AdamWScheduleFree", "RAdamScheduleFree"])
def test_a_coupled_pull_through_schedule_free_stays_near(name: str) -> None:
    """The loss is least at 1.5, the penalty at 1: together at (1.5 + 1) / 2 = 1.25."""
    model = two_from_anchor_one()[0]
    weight, optimizer = model.get_parameter("weight"), schedule_free(name, model)
    L2SP(model, anchors={"weight": torch.ones(1, 1)}, alpha=1.0, beta=0.0, mode="coupled").attach(optimizer)
    for _ in range(300):
        weight.grad = (weight.detach() - 1.5).clone()
        optimizer.step()
        assert 0.5 < weight.item() <= 2
    optimizer.eval()
    assert weight.item() == pytest.approx(1.25, abs=0.05)
