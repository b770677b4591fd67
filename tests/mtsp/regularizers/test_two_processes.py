"""Two processes, with DDP and with FSDP2: every member of the family does what one process does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtsp.anchors import capture
from mtsp.regularizers import (
    GLSP,
    L1SP,
    L2SP,
    MARS,
    SPD,
    CautiousL2SP,
    DirectionSP,
    GLSPFisher,
    L2SPFisher,
    Regularizer,
)

SGD, ADAMW = torch.optim.SGD, torch.optim.AdamW
CASES: dict[str, tuple[type[Regularizer], dict[str, Any], Any]] = {
    "coupled": (L2SP, {}, lambda p: SGD(p, lr=0.05, momentum=0.9)),
    "decoupled": (L2SP, {}, lambda p: ADAMW(p, lr=0.05, weight_decay=0.0)),
    "fused": (L2SP, {}, lambda p: ADAMW(p, lr=0.05, weight_decay=0.0, fused=True)),
    "l1": (L1SP, {}, lambda p: SGD(p, lr=0.05)),
    "group": (GLSP, {}, lambda p: SGD(p, lr=0.05)),
    "fisher": (L2SPFisher, {"fisher": True}, lambda p: SGD(p, lr=0.05)),
    "group fisher": (GLSPFisher, {"fisher": True}, lambda p: SGD(p, lr=0.05)),
    "direction": (DirectionSP, {}, lambda p: SGD(p, lr=0.05)),
    "spd": (SPD, {}, lambda p: SGD(p, lr=0.05)),
    "cautious": (CautiousL2SP, {}, lambda p: ADAMW(p, lr=0.05, weight_decay=0.0)),
    "mars": (MARS, {}, lambda p: SGD(p, lr=0.05)),
    "rows": (L2SP, {}, lambda p: SGD(p, lr=0.05, momentum=0.9)),
    "rows group": (GLSP, {}, lambda p: SGD(p, lr=0.05)),
    "rows group fisher": (GLSPFisher, {"fisher": True}, lambda p: SGD(p, lr=0.05)),
    "rows spd": (SPD, {}, lambda p: SGD(p, lr=0.05)),
    "rows cautious": (CautiousL2SP, {}, lambda p: ADAMW(p, lr=0.05, weight_decay=0.0)),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4), nn.Tanh(), nn.Linear(4, 2))


def captured(model: nn.Module, case: str) -> dict[str, Tensor]:
    rows = {"0.weight": [1, 2]} if case.startswith("rows") else {}  # all in the shard of the first process
    return capture(model, ["0.weight", "2.weight"], rows=rows)


def trained(
    model: nn.Module, anchors: dict[str, Tensor], case: str, share: slice
) -> tuple[dict[str, Tensor], list[float]]:
    """Weights and reports after three steps on this process's share of every batch."""
    kind, options, make = CASES[case]
    given: Any = {}
    if "fisher" in options:
        given = {
            "fisher": {
                name: torch.rand(a.shape, generator=torch.Generator().manual_seed(3)) for name, a in anchors.items()
            }
        }
    strengths: Any = {"radius": 0.3, "beta": 0.1} if kind is MARS else {"alpha": 0.3, "beta": 0.1}
    regularizer = kind(model, anchors=anchors, **strengths, **given)
    kinds: list[Any] = [
        [p for p in model.parameters() if hasattr(p, "device_mesh") is sharded] for sharded in (True, False)
    ]
    optimizer = make([{"params": kind} for kind in kinds if kind])  # a fused kernel of torch's own takes no mixture
    regularizer.attach(optimizer)
    ratios = []
    for step in range(3):
        optimizer.zero_grad()
        inputs = torch.linspace(-1, 1, 20).reshape(4, 5) * (step + 1)
        model(inputs[share]).square().mean().backward()
        optimizer.step()
        if step == 1:
            ratios.append(regularizer.report()[""].pull_to_gradient)  # of the first step
            regularizer.measure_next()
    report = regularizer.report()[""]
    numbers = [regularizer.penalty(), report.distance, *ratios, report.pull_to_gradient]
    weights = {
        name.removeprefix("module."): getattr(p, "full_tensor", lambda p=p: p)() for name, p in model.named_parameters()
    }
    return {name: weight.detach().clone() for name, weight in weights.items()}, numbers


def in_one_of_two_processes(rank: int, folder: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    share = slice(2 * rank, 2 * rank + 2)
    results: dict[Any, Any] = {}
    for case in CASES:
        model = network()
        anchors = captured(model, case)
        if case in ("coupled", "spd"):
            results["ddp", case] = trained(nn.parallel.DistributedDataParallel(model), anchors, case, share)
        model = network()
        ignored = set(model[2].parameters())  # stays whole, beside sharded weights
        fully_shard(model, mesh=mesh, ignored_params=ignored)
        for parameter in ignored:
            parameter.register_hook(_averaged)
        results["fsdp", case] = trained(model, anchors, case, share)
    model = network()
    unlike = {"0.weight": torch.full((7, 5), float(rank))}
    try:
        L2SP(model, anchors=unlike, alpha=0.3, beta=0.1).attach(SGD(model.parameters(), lr=0.05))
    except ValueError as error:
        results["unlike anchors"] = str(error)
    if rank == 0:
        torch.save(results, Path(folder) / "results.pt")


def _averaged(gradient: Tensor) -> Tensor:
    """What FSDP2 leaves to us for the weights it ignores."""
    torch.distributed.all_reduce(gradient)
    return gradient / 2


def test_two_processes_equal_one(in_two_processes: Callable[..., None], tmp_path: Path) -> None:
    in_two_processes(in_one_of_two_processes, str(tmp_path))
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    assert "anchors differ between the processes" in results["unlike anchors"]
    for case in CASES:
        model = network()
        weights, numbers = trained(model, captured(model, case), case, slice(0, 4))
        for how in ("ddp", "fsdp"):
            if (how, case) not in results:
                continue
            there, their_numbers = results[how, case]
            for name, weight in weights.items():
                torch.testing.assert_close(
                    there[name], weight, rtol=0, atol=1e-6, msg=lambda m, k=(how, case): f"{k}: {m}"
                )
            torch.testing.assert_close(torch.tensor(their_numbers[:2]), torch.tensor(numbers[:2]), rtol=1e-4, atol=1e-6)
            for theirs, ours in zip(their_numbers[2:], numbers[2:], strict=True):
                torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-6, equal_nan=True)
