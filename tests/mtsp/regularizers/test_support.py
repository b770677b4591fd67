"""L2-SP under each optimizer, wrapper and precision, against an independent reference in the plain network.

Each cell takes four steps. The reference has a term in the loss where the pull is coupled (SGD), and moves the weights
by hand where it is decoupled (all others). *exact*: equal to 1e-6. *supported*: at most two steps' length apart, as
rounding to 16 bits can flip the sign of an update. `python tests/mtsp/regularizers/test_support.py` prints the table as
Markdown. One process; two are in test_two_processes.py.
"""

import logging
import multiprocessing
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtsp.anchors import capture
from mtsp.optim.optimizers import AdamConfig, LambConfig, LionConfig, MuonConfig
from mtsp.regularizers import L2SP

ALPHA, BETA, LR = 0.3, 0.1, 0.02
Make = Callable[[Any], Any]
OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9),
    "SGD, foreach": lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9, foreach=True),
    "SGD, fused": lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=LR),
    "Adam, fused": lambda p: torch.optim.Adam(p, lr=LR, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=LR, weight_decay=0.0),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=LR, weight_decay=0.0, fused=True),
    "AdamW, tensor lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(LR), weight_decay=0.0),
    "Muon": lambda p: torch.optim.Muon(p, lr=LR, weight_decay=0.0),  # pyright: ignore[reportAttributeAccessIssue]
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=LR),
    "Lion": lambda p: LionConfig(name="lion", lr=LR).build([{"params": list(p)}]),
    "LAMB": lambda p: LambConfig(name="lamb", lr=LR).build([{"params": list(p)}]),
    "Muon with AdamW": lambda p: MuonConfig(name="muon", lr=LR).build([{"params": list(p)}]),
    "AdamW, layer decay": lambda p: AdamConfig(name="adamw", lr=LR).build(decayed(p)),
}
DECAY = 0.5
WRAPPERS = ("plain", "Accelerate", "compiled step", "DDP", "FSDP2")
PRECISIONS = ("float32", "bf16 autocast", "fp16 scaler", "bf16 weights")
Table = dict[tuple[str, str], list[str]]

EXPECTED = {
    "float32": ["exact", "exact", "exact", "exact", "exact"],
    "bf16 autocast": ["exact", "exact", "exact", "exact", "exact"],
    "fp16 scaler": ["exact", "exact", "the scaler steps itself", "exact", "exact"],
    "bf16 weights": ["supported", "supported", "supported", "supported", "supported"],
}
"""Cells of each precision, in the order of WRAPPERS."""
EXCEPTIONS = {
    ("SGD, fused", "float32", "FSDP2"): "refused by torch",
    ("SGD, fused", "bf16 autocast", "FSDP2"): "refused by torch",
    ("SGD, fused", "fp16 scaler", "FSDP2"): "refused by torch",
    ("SGD, fused", "bf16 weights", "FSDP2"): "refused by torch",
    ("RMSprop", "bf16 weights", "compiled step"): "differs",
}
"""Fused SGD has no sharding rule for its kernel in torch."""
COMPILED_UNDER_AUTOCAST = ("SGD", "AdamW")
"""Optimizers of the test's cells of this kind, as compiling takes a second: the step has float32 gradients anyway."""


def decayed(parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
    """One group for each weight; the first learns at half the rate."""
    return [{"params": [p], "lr": LR * DECAY ** (1 - i)} for i, p in enumerate(parameters)]


def network(precision: str) -> nn.Module:
    """Matrices alone: Muon takes nothing else."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6, bias=False), nn.Tanh(), nn.Linear(6, 4, bias=False))
    return model.bfloat16() if precision == "bf16 weights" else model


def after_four_steps(name: str, wrapper: str, precision: str, *, reference: bool) -> list[Tensor]:
    """The weights after four steps, by the regularizer or by the reference."""
    model = network(precision)
    anchors = capture(model, ["0.weight"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    # Muon rounds to 16 bits: timm's in another order where weights are sharded, torch's (2.11) where it is compiled.
    rounds = {("Muon with AdamW", "FSDP2"), ("Muon", "compiled step"), ("Muon with AdamW", "compiled step")}
    same = not reference or (name, wrapper) in rounds
    model, optimizer = wrapped(model, OPTIMIZERS[name], wrapper if same else "plain")
    coupled = name.startswith("SGD")
    if not reference:
        L2SP(model, anchors=anchors, alpha=ALPHA, beta=BETA).attach(optimizer)
    torch.compiler.reset()  # every cell compiles anew
    step = torch.compile(optimizer.step, backend="eager") if wrapper == "compiled step" and same else None
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0) if precision == "fp16 scaler" else None
    for number in range(4):
        optimizer.zero_grad()
        inputs = torch.linspace(-1, 1, 20).reshape(4, 5) * (number + 1)
        inputs = inputs.bfloat16() if precision == "bf16 weights" else inputs
        with torch.autocast("cpu", torch.bfloat16) if precision == "bf16 autocast" else nullcontext():
            loss = model(inputs).float().square().mean()
        if reference and coupled:
            loss = loss + penalty(model, anchors)
        (scaler.scale(loss) if scaler else loss).backward()
        if reference and not coupled:
            decay(model, anchors, LR * DECAY if "layer decay" in name else LR)
        if scaler and step is None:
            scaler.step(optimizer)
            scaler.update()
        else:
            (step or optimizer.step)()
    return [getattr(p, "full_tensor", lambda p=p: p)().detach().float() for p in model.parameters()]


def wrapped(model: nn.Module, make: Make, wrapper: str) -> tuple[nn.Module, Any]:
    if wrapper == "Accelerate":
        from accelerate import Accelerator

        return Accelerator(cpu=True).prepare(model, make(model.parameters()))
    if wrapper == "DDP":
        model = nn.parallel.DistributedDataParallel(model)
    if wrapper == "FSDP2":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    return model, make(model.parameters())


def penalty(model: nn.Module, anchors: dict[str, Tensor]) -> Tensor:
    old, new = model.get_parameter("0.weight"), model.get_parameter("2.weight")
    return ALPHA / 2 * (old - anchors["0.weight"]).float().square().sum() + BETA / 2 * new.float().square().sum()


@torch.no_grad()
def decay(model: nn.Module, anchors: dict[str, Tensor], lr: float) -> None:
    weights = (model.get_parameter(name) for name in ("0.weight", "2.weight"))
    old, new = (getattr(weight, "to_local", lambda weight=weight: weight)() for weight in weights)
    old.sub_(lr * ALPHA * (old - anchors["0.weight"]))
    new.sub_(LR * BETA * new)


def cell(name: str, wrapper: str, precision: str) -> str:
    if wrapper == "compiled step" and precision == "fp16 scaler":
        return "the scaler steps itself"
    try:
        expected = after_four_steps(name, wrapper, precision, reference=True)
        found = after_four_steps(name, wrapper, precision, reference=False)
    except Exception as error:
        return f"refused by {module_of(error)}"
    worst = max(float((a - b).abs().max()) for a, b in zip(expected, found, strict=True))
    if worst <= 1e-6:
        return "exact"
    return "supported" if precision == "bf16 weights" and worst < 2 * LR else "differs"


def module_of(error: Exception) -> str:
    """Who raised it: the module of the innermost frame."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "mtsp" if trace is not None and "mtsp" in trace.tb_frame.f_globals.get("__name__", "") else "torch"


@contextmanager
def process_group_of_one() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        try:
            yield
        finally:
            torch.distributed.destroy_process_group()


def support_table(*, whole: bool = True) -> Table:
    """The cells of each optimizer and precision, in the order of WRAPPERS; "left out" where `whole` is False."""
    warnings.simplefilter("ignore")
    logging.getLogger("torch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    names = [name for name in OPTIMIZERS if name != "Muon" or hasattr(torch.optim, "Muon")]

    def left_out(name: str, wrapper: str, precision: str) -> bool:
        alike = (wrapper, precision) == ("compiled step", "bf16 autocast")
        return alike and not whole and name not in COMPILED_UNDER_AUTOCAST

    with process_group_of_one():
        return {
            (name, precision): [
                "left out" if left_out(name, wrapper, precision) else cell(name, wrapper, precision)
                for wrapper in WRAPPERS
            ]
            for name in names
            for precision in PRECISIONS
        }


def markdown(table: Table) -> str:
    """The table for the docs; optimizers with equal rows share them."""
    rows: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for (name, precision), cells in table.items():
        rows.setdefault(tuple(cells), {}).setdefault(precision, []).append(name)
    lines = [f"| optimizer | precision | {' | '.join(WRAPPERS)} |", "|" + " --- |" * (len(WRAPPERS) + 2)]
    for cells, by_precision in rows.items():
        joined: dict[str, list[str]] = {}
        for precision, names in by_precision.items():
            joined.setdefault("; ".join(names), []).append(precision)
        lines += [f"| {names} | {', '.join(p)} | {' | '.join(cells)} |" for names, p in joined.items()]
    return "\n".join(lines)


@pytest.mark.slow
def test_l2sp_is_exact_or_refused_under_every_optimizer_wrapper_and_precision() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # a process group and compiled code of its own
        found = pool.apply(support_table, kwds={"whole": False})
    differences = [
        f"{name}, {precision}, {wrapper}: {value}, expected {expected}"
        for (name, precision), cells in found.items()
        for wrapper, value, usual in zip(WRAPPERS, cells, EXPECTED[precision], strict=True)
        if value != "left out" and value != (expected := EXCEPTIONS.get((name, precision, wrapper), usual))
    ]
    assert not differences, "\n".join(differences)


if __name__ == "__main__":
    sys.stdout.write(f"torch {torch.__version__}, CPU\n\n{markdown(support_table())}\n")
