"""Print, as Markdown, what L2-SP does under each optimizer, wrapper and precision: found by running it.

    python tools/regularizer_support.py

Every cell takes four steps and compares the weights with an independent reference in the plain network: a term in the
loss where the pull is coupled, weights moved by hand where it is decoupled. *exact*: equal to 1e-6. *supported*: not
further apart than two steps' length, which rounding to 16 bits makes of the sign of an update. Otherwise, what was
refused, and by whom. One process; two are in the tests.
"""

import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mtsp.anchors import capture
from mtsp.regularizers import L2SP

ALPHA, BETA, LR = 0.3, 0.1, 0.02
Make = Callable[[Any], Any]
OPTIMIZERS: dict[str, Make] = {
    "SGD, momentum": lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9),
    "SGD, foreach": lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9, foreach=True),
    "SGD, fused": lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=LR),
    "Adam, fused": lambda p: torch.optim.Adam(p, lr=LR, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=LR, weight_decay=0.0),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=LR, weight_decay=0.0, fused=True),
    "AdamW, tensor lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(LR), weight_decay=0.0),
    "Muon": lambda p: torch.optim.Muon(p, lr=LR, weight_decay=0.0),  # pyright: ignore[reportAttributeAccessIssue]
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=LR),
}
WRAPPERS = ("plain", "Accelerate", "compiled step", "DDP", "FSDP2")
PRECISIONS = ("float32", "bf16 autocast", "fp16 scaler", "bf16 weights")


def network(precision: str) -> nn.Module:
    """Return matrices alone: Muon takes nothing else."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6, bias=False), nn.Tanh(), nn.Linear(6, 4, bias=False))
    return model.bfloat16() if precision == "bf16 weights" else model


def result(name: str, wrapper: str, precision: str, *, reference: bool) -> list[Tensor]:
    """Return the weights after four steps, by the regularizer or by the reference."""
    model = network(precision)
    anchors = capture(model, ["0.weight"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    model, optimizer = _wrapped(model, OPTIMIZERS[name], "plain" if reference else wrapper)
    coupled = name.startswith("SGD")
    if not reference:
        L2SP(model, anchors=anchors, alpha=ALPHA, beta=BETA).attach(optimizer)
    torch.compiler.reset()  # every cell compiles anew
    step = torch.compile(optimizer.step, backend="eager") if wrapper == "compiled step" and not reference else None
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0) if precision == "fp16 scaler" else None
    for number in range(4):
        optimizer.zero_grad()
        inputs = torch.linspace(-1, 1, 20).reshape(4, 5) * (number + 1)
        inputs = inputs.bfloat16() if precision == "bf16 weights" else inputs
        with torch.autocast("cpu", torch.bfloat16) if precision == "bf16 autocast" else nullcontext():
            loss = model(inputs).float().square().mean()
        if reference and coupled:
            loss = loss + _penalty(model, anchors)
        (scaler.scale(loss) if scaler else loss).backward()
        if reference and not coupled:
            _decay(model, anchors)
        if scaler and step is None:
            scaler.step(optimizer)
            scaler.update()
        else:
            (step or optimizer.step)()
    return [getattr(p, "full_tensor", lambda p=p: p)().detach().float() for p in model.parameters()]


def _wrapped(model: nn.Module, make: Make, wrapper: str) -> tuple[nn.Module, Any]:
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


def _penalty(model: nn.Module, anchors: dict[str, Tensor]) -> Tensor:
    old, new = model.get_parameter("0.weight"), model.get_parameter("2.weight")
    return ALPHA / 2 * (old - anchors["0.weight"]).float().square().sum() + BETA / 2 * new.float().square().sum()


@torch.no_grad()
def _decay(model: nn.Module, anchors: dict[str, Tensor]) -> None:
    old, new = model.get_parameter("0.weight"), model.get_parameter("2.weight")
    old.sub_(LR * ALPHA * (old - anchors["0.weight"]))
    new.sub_(LR * BETA * new)


def cell(name: str, wrapper: str, precision: str) -> str:
    """Return what happened."""
    if wrapper == "compiled step" and precision == "fp16 scaler":
        return "the scaler steps it itself"
    try:
        expected = result(name, wrapper, precision, reference=True)
        found = result(name, wrapper, precision, reference=False)
    except Exception as error:
        return f"refused by {_module(error)}: {str(error).splitlines()[0][:60]}"
    worst = max(float((a - b).abs().max()) for a, b in zip(expected, found, strict=True))
    if worst <= 1e-6:
        return "exact"
    return "supported" if precision == "bf16 weights" and worst < 2 * LR else f"differs by {worst:.1e}"


def _module(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "mtsp" if trace is not None and "mtsp" in trace.tb_frame.f_globals.get("__name__", "") else "torch"


@contextmanager
def _group_of_one() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        try:
            yield
        finally:
            torch.distributed.destroy_process_group()


def main() -> int:
    """Run every cell and print the table."""
    warnings.simplefilter("ignore")
    logging.getLogger("torch").setLevel(logging.ERROR)
    print(f"torch {torch.__version__}, CPU. Coupled for SGD, decoupled for the others.\n")
    print(f"| optimizer | precision | {' | '.join(WRAPPERS)} |")
    print("|" + " --- |" * (len(WRAPPERS) + 2))
    with _group_of_one():
        for name in OPTIMIZERS:
            if name == "Muon" and not hasattr(torch.optim, "Muon"):
                continue
            for precision in PRECISIONS:
                cells = [cell(name, wrapper, precision) for wrapper in WRAPPERS]
                print(f"| {name} | {precision} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
