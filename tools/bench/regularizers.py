"""Measure what a regularizer costs: time and memory of the regularizer's and the optimizer's part of a step.

    python tools/bench/regularizers.py [--networks resnet50 resnet101 vit_b_16] [--rounds 30] [--quick]

Weights and gradients are random; one round is what each program adds to a step after the data's gradients are computed.
The programs take turns, and the median counts. Penalties in the loss go through autograd; `as tllib` reimplements its
`SPRegularization`: a loop over all named parameters with 0.5 * norm(p - p0) ** 2. Memory is the peak of a separate
process, minus that of the optimizer with native weight decay. On a GPU, the time is also given as a fraction of a
training step of that network (batch 64, bfloat16 autocast).
"""

import argparse
import multiprocessing
import sys
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mtsp.anchors import capture
from mtsp.regularizers import L2SP
from tools.bench.timing import forget_peak, machine, medians, peak_memory

ALPHA, LR, MIB = 0.01, 1e-6, 2**20
NATIVE, OURS, TLLIB = "native weight decay, fused", "L2SP, fused", "as tllib, fused"
WITHIN, FASTER = 1.6, 5.0
"""Targets for ResNet-50: at most so many times the native decay's time; so many times as fast as tllib."""


def network(name: str, device: str) -> nn.Module:
    """Return a network of torchvision with random weights and random gradients."""
    import torchvision

    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None).to(device)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-3
    return model


def sgd(model: nn.Module, **options: Any) -> torch.optim.SGD:
    """Return SGD with momentum."""
    return torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, **options)


def native(model: nn.Module, **options: Any) -> Callable[[], object]:
    """Return a step with weight decay inside the optimizer, the baseline."""
    return sgd(model, weight_decay=ALPHA, **options).step


def ours(model: nn.Module, **options: Any) -> Callable[[], object]:
    """Return a step with L2SP attached."""
    optimizer = sgd(model, **options)
    anchors = capture(model, [name for name, _ in model.named_parameters()])
    regularizer = L2SP(model, anchors=anchors, alpha=ALPHA, beta=ALPHA)
    del anchors
    regularizer.attach(optimizer)
    return optimizer.step


def in_the_loss(penalty: Callable[[nn.Module, Mapping[str, Tensor]], Any]) -> Callable[..., Callable[[], object]]:
    """Return a builder of steps that add a penalty's gradient by autograd."""

    def build(model: nn.Module, **options: Any) -> Callable[[], object]:
        optimizer = sgd(model, **options)
        start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

        def run() -> None:
            (ALPHA * penalty(model, start)).backward()
            optimizer.step()

        return run

    return build


def as_tllib(model: nn.Module, start: Mapping[str, Tensor]) -> Any:
    """Half the squared norm of every parameter's displacement, norm by norm."""
    total: Any = 0.0
    for name, parameter in model.named_parameters():
        total += 0.5 * torch.norm(parameter - start[name]) ** 2
    return total


def squares(model: nn.Module, start: Mapping[str, Tensor]) -> Any:
    """Half the sum of squared displacements, the usual code."""
    return 0.5 * sum((parameter - start[name]).pow(2).sum() for name, parameter in model.named_parameters())


PROGRAMS: dict[str, tuple[Callable[..., Callable[[], object]], dict[str, Any]]] = {
    NATIVE: (native, {"fused": True}),
    OURS: (ours, {"fused": True}),
    TLLIB: (in_the_loss(as_tllib), {"fused": True}),
    "sum of squares in the loss, fused": (in_the_loss(squares), {"fused": True}),
    "native weight decay, foreach": (native, {"foreach": True}),
    "L2SP, foreach": (ours, {"foreach": True}),
    "native weight decay, loop": (native, {"foreach": False}),
    "L2SP, loop": (ours, {"foreach": False}),
}


def memory(name: str, program: str, device: str, answers: Connection) -> None:
    """Send the peak of this process, in bytes, after three steps."""
    torch.manual_seed(0)
    build, options = PROGRAMS[program]
    step = build(network(name, device), **options)
    forget_peak()
    for _ in range(3):
        step()
    answers.send(peak_memory())


def peak(name: str, program: str, device: str) -> int:
    """Return the peak of a new process that runs only this program."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=memory, args=(name, program, device, there))
    process.start()
    answer = here.recv()
    process.join()
    return answer


def seconds(name: str, rounds: int, device: str) -> dict[str, float]:
    """Return the median seconds of every program, each on a network of its own."""
    steps = {}
    for program, (build, options) in PROGRAMS.items():
        steps[program] = _finished(build(network(name, device), **options), device)
    return medians(steps, rounds)


def training_step(name: str, device: str) -> Callable[[], object]:
    """Return a whole step of that network with native weight decay."""
    model = network(name, device)
    optimizer = sgd(model, weight_decay=ALPHA, fused=True)
    images = torch.randn(64, 3, 224, 224, device=device)

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16):
            loss = model(images).square().mean()
        loss.backward()
        optimizer.step()

    return _finished(run, device)


def _finished(program: Callable[[], object], device: str) -> Callable[[], object]:
    """On a GPU, wait until the program is done."""
    if device == "cpu":
        return program

    def run() -> None:
        program()
        torch.cuda.synchronize()

    return run


def report(name: str, rounds: int, device: str, *, measure_memory: bool, console: Console) -> None:
    """Print one network's table."""
    spent = seconds(name, rounds, device)
    weights = sum(p.numel() * p.element_size() for p in network(name, "cpu").parameters())
    table = Table(title=f"{name}: {weights / MIB:.0f} MiB of weights; regularizer and SGD with momentum")
    for column in ("program", "ms", "of native, fused", "target", "memory over native", "target"):
        table.add_column(column, justify="left" if column == "program" else "right")
    peaks = {program: peak(name, program, device) for program in PROGRAMS} if measure_memory else {}
    for program, value in spent.items():
        extra = f"{(peaks[program] - peaks[NATIVE]) / MIB:+.0f} MiB" if peaks else "-"
        is_ours = program == OURS
        table.add_row(
            program,
            f"{value * 1e3:.1f}",
            f"{value / spent[NATIVE]:.2f}x",
            f"{WITHIN:g}x" if is_ours and name == "resnet50" else "",
            extra,
            f"{weights / MIB:.0f} MiB, the anchors" if is_ours else "",
        )
    console.print(table)
    target = f" (target for ResNet-50: {FASTER:g})" if name == "resnet50" else ""
    console.print(f"{OURS} is {spent[TLLIB] / spent[OURS]:.1f} times as fast as {TLLIB}{target}")
    if device == "cuda":
        whole = medians({"step": training_step(name, device)}, rounds)["step"]
        share = (spent[OURS] - spent[NATIVE]) / whole
        console.print(f"it adds {share:.2%} to a training step of {whole * 1e3:.1f} ms (target for ResNet-50: 1 %)")


def main() -> int:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--networks", nargs="+", default=["resnet50", "resnet101", "vit_b_16"])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="ResNet-18, five rounds, no memory")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    console = Console(width=120)
    console.print(f"{machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    networks, rounds = (["resnet18"], 5) if options.quick else (options.networks, options.rounds)
    for name in networks:
        report(name, rounds, device, measure_memory=not options.quick, console=console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
