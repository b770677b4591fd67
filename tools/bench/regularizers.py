"""Measure the cost of regularizers: time and memory of regularizer and optimizer in a training step.

    python tools/bench/regularizers.py [--networks resnet50 resnet101 vit_b_16] [--rounds 30] [--step 64x224] [--quick]
    python tools/bench/regularizers.py --anchors

A network is one of torchvision or timm, or that of a config, as evidence/camvid_few.yaml. Weights and gradients are
random; the measured time is the part of a step after the gradients of the loss are computed. The programs take turns,
and the median time is shown. Penalties in the loss use autograd; `as tllib` reimplements tllib's `SPRegularization`: a
loop over all named parameters with 0.5 * norm(p - p0) ** 2. Memory is the peak of a separate process, minus the peak of
the optimizer with native weight decay. With --step (the default on a GPU), the time is also shown as a fraction of a
training step of the network; on a GPU the step is in bfloat16 autocast.

With --anchors, the table of docs/optimizers.md is printed instead: memory and time of each way to keep anchors,
measured with AdamW on a small network, and computed for large ones.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # before installed packages called tools, models or data

from mtsp.anchors import capture
from mtsp.batches import tensors_in
from mtsp.command_line import height_width, program
from mtsp.regularizers import L2SP
from tools.bench.timing import Clock, machine, medians, parser, table
from tools.bench.workers import DEVICE, Worker, take_turns, wait_for_gpu
from tools.build import read_experiment

ALPHA, LR, MIB = 0.01, 1e-6, 2**20
NATIVE, OURS, TLLIB = "native weight decay, fused", "L2SP, fused", "as tllib, fused"
WITHIN, FASTER = 1.6, 5.0
"""Targets for ResNet-50: largest time as a multiple of native weight decay, and speedup over tllib."""
KEPT: dict[str, dict[str, Any]] = {
    "float32": {},
    "`anchor_dtype=torch.bfloat16`": {"anchor_dtype": torch.bfloat16},
    "`offload=True`": {"offload": True},
}
SMALL, SIZES = "vit_small_patch16_224", {"86 M (ViT-B)": 86e6, "304 M (ViT-L)": 304e6, "1.1 B": 1.1e9, "7 B": 7e9}
MEMORY_RATE, LINK_RATE = 3.35e12, 50e9
"""Bytes per second: of an H100's memory, from its data sheet; assumed from pinned CPU memory, over PCIe 5."""
_BLOCK = 4 * 2**24
"""Bytes of the converted or copied anchors that exist at a time on a GPU."""


def network(name: str) -> nn.Module:
    """Return a network of torchvision, timm or a config, with random weights and random gradients."""
    import timm
    import torchvision

    torch.manual_seed(0)
    known = getattr(torchvision.models, name, None)
    if name.endswith(".yaml"):
        model: nn.Module = read_experiment(name).model.build()
    else:
        model = timm.create_model(name) if known is None else known(weights=None)
    model = model.to(DEVICE)
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


Penalty = Callable[[nn.Module, Mapping[str, Tensor]], Any]


def in_the_loss(penalty: Penalty, model: nn.Module, **options: Any) -> Callable[[], object]:
    """Return a step that adds the penalty's gradient by autograd."""
    optimizer = sgd(model, **options)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def run() -> None:
        (ALPHA * penalty(model, start)).backward()
        optimizer.step()

    return run


def as_tllib(model: nn.Module, start: Mapping[str, Tensor]) -> Any:
    """Return half the sum of squared norms of the displacements, one `norm` for each parameter."""
    total: Any = 0.0
    for name, parameter in model.named_parameters():
        total += 0.5 * torch.norm(parameter - start[name]) ** 2
    return total


def squares(model: nn.Module, start: Mapping[str, Tensor]) -> Any:
    """Return half the sum of squared displacements, as usually written."""
    return 0.5 * sum((parameter - start[name]).pow(2).sum() for name, parameter in model.named_parameters())


PROGRAMS: dict[str, tuple[Callable[..., Callable[[], object]], dict[str, Any]]] = {
    NATIVE: (native, {"fused": True}),
    OURS: (ours, {"fused": True}),
    TLLIB: (partial(in_the_loss, as_tllib), {"fused": True}),
    "sum of squares in the loss, fused": (partial(in_the_loss, squares), {"fused": True}),
    "native weight decay, foreach": (native, {"foreach": True}),
    "L2SP, foreach": (ours, {"foreach": True}),
    "native weight decay, loop": (native, {"foreach": False}),
    "L2SP, loop": (ours, {"foreach": False}),
}


def step_of(name: str, program: str) -> Callable[[], object]:
    """Return a step of a program, on its own network."""
    build, options = PROGRAMS[program]
    return finished(build(network(name), **options))


def finished(step: Callable[[], object]) -> Callable[[], object]:
    """Return the step with a wait for the GPU at its end."""

    def run() -> None:
        step()
        wait_for_gpu()

    return run


def peak(name: str, program: str) -> float:
    """Return the peak memory in bytes of a new process that runs only this program."""
    worker = Worker(step_of, name, program)
    take_turns([worker], 1, steps=2, limit=600)
    return worker.peak


def training_step(name: str, batch_size: int, side: int) -> Callable[[], object]:
    """Return a complete training step of the network with native weight decay."""
    model = network(name)
    optimizer = sgd(model, weight_decay=ALPHA, fused=True)
    images = torch.randn(batch_size, 3, side, side, device=DEVICE)

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda"):
            loss: Any = sum(output.square().mean() for output in tensors_in(model(images)))
        loss.backward()
        optimizer.step()

    return finished(run)


def adamw(name: str, way: str) -> Callable[[], object]:
    """Return an AdamW step of a network, with L2SP whose anchors are kept in this way, or without if it is empty."""
    model = network(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=True)
    if way:
        anchors = capture(model, [name for name, _ in model.named_parameters()])
        regularizer = L2SP(model, anchors=anchors, alpha=ALPHA, beta=ALPHA, **KEPT[way])
        del anchors
        regularizer.attach(optimizer)
    return finished(optimizer.step)


def computed(weights: float, way: str) -> tuple[float, float]:
    """Return the GiB and milliseconds that anchors take on a GPU: their bytes, and those that a step moves.

    A pull reads weight and anchor and writes the weight (12 bytes); an anchor of 2 bytes is first converted (6 more),
    an offloaded one copied (4 over the link, 4 written).
    """
    size, moved, linked = {"float32": (4, 12, 0), "`offload=True`": (0, 16, 4)}.get(way, (2, 18, 0))
    block = 0 if way == "float32" else min(_BLOCK, 4 * weights)
    return (size * weights + block) / 2**30, 1e3 * weights * (moved / MEMORY_RATE + linked / LINK_RATE)


def anchors_table(rounds: int, clock: Clock) -> str:
    """Return memory and time of each way to keep anchors in Markdown, over those of AdamW alone."""
    ways = [way for way in KEPT if DEVICE == "cuda" or "offload" not in way]  # on a CPU, offload changes nothing
    spent = medians({way: adamw(SMALL, way) for way in ["", *ways]}, rounds, clock=clock)
    peaks = {}
    for way in ["", *ways]:
        worker = Worker(adamw, SMALL, way)
        take_turns([worker], 1, steps=2, limit=600)
        peaks[way] = worker.peak
    count = sum(weight.numel() for weight in network(SMALL).parameters())
    cells = [
        f"{(peaks[way] - peaks['']) / 2**30:.2f} GiB, {1e3 * (spent[way] - spent['']):.1f} ms" if way in ways else "-"
        for way in KEPT
    ]
    alone = f"AdamW alone {1e3 * spent['']:.1f} ms"
    rows = [["weights", *KEPT, "float32, FSDP2 on 8 GPUs"], ["---"] * (len(KEPT) + 2)]
    rows += [[f"{count / 1e6:.0f} M (ViT-S), measured on a {DEVICE.upper()}, {alone}", *cells, "-"]]
    for name, weights in SIZES.items():
        ways_computed = [computed(weights, way) for way in KEPT] + [computed(weights / 8, "float32")]
        rows.append([name, *(f"{gib:.2f} GiB, {ms:.1f} ms" for gib, ms in ways_computed)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def report(
    name: str,
    rounds: int,
    console: Console,
    *,
    programs: Sequence[str] = tuple(PROGRAMS),
    step: tuple[int, int] | None,
    measure_memory: bool,
    clock: Clock,
) -> None:
    """Print one network's table."""
    spent = medians({key: step_of(name, key) for key in programs}, rounds, clock=clock)
    weights = sum(p.numel() * p.element_size() for p in network(name).parameters())
    title = f"{name}: {weights / MIB:.0f} MiB of weights; regularizer and SGD with momentum"
    drawn = table(title, "program", "ms", "times native, fused", "target", "memory over native", "target")
    peaks = {key: peak(name, key) for key in programs} if measure_memory else {}
    targets = (f"{WITHIN:g}x" if name == "resnet50" else "", f"{weights / MIB:.0f} MiB, the anchors")
    for key, value in spent.items():
        extra = f"{(peaks[key] - peaks[NATIVE]) / MIB:+.0f} MiB" if peaks else "-"
        time_target, memory_target = targets if key == OURS else ("", "")
        drawn.add_row(key, f"{value * 1e3:.1f}", f"{value / spent[NATIVE]:.2f}x", time_target, extra, memory_target)
    console.print(drawn)
    if TLLIB in spent:
        target = f" (target for ResNet-50: {FASTER:g})" if name == "resnet50" else ""
        console.print(f"{OURS} is {spent[TLLIB] / spent[OURS]:.1f} times as fast as {TLLIB}{target}")
    if step is not None:
        whole = medians({"step": training_step(name, *step)}, rounds, clock=clock)["step"]
        share = (spent[OURS] - spent[NATIVE]) / whole
        told = f"{whole * 1e3:.1f} ms on {step[0]} images of {step[1]}x{step[1]}"
        console.print(f"it adds {share:.2%} to a training step of {told} (target for ResNet-50 on a GPU: 1 %)")


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    command_line = parser(__doc__, rounds=30, quick="use ResNet-18 and five rounds, and do not measure memory")
    command_line.add_argument("--networks", nargs="+", default=["resnet50", "resnet101", "vit_b_16"])
    default = (64, 224) if DEVICE == "cuda" else None
    command_line.add_argument(
        "--step", type=height_width, metavar="BxS", default=default, help="images in a training step, and their side"
    )
    command_line.add_argument("--cpu-time", action="store_true", help="measure CPU seconds: other programs matter less")
    command_line.add_argument("--brief", action="store_true", help="measure only native weight decay and L2SP, fused")
    command_line.add_argument("--anchors", action="store_true", help="print the table of ways to keep anchors")
    options = command_line.parse_args(arguments)
    programs = (NATIVE, OURS) if options.brief else tuple(PROGRAMS)
    clock = time.process_time if options.cpu_time else time.perf_counter
    if options.anchors:
        print(anchors_table(options.rounds, clock))
        return 0
    console = Console(width=120)
    console.print(machine())
    networks, rounds = (["resnet18"], 5) if options.quick else (options.networks, options.rounds)
    for name in networks:
        report(
            name,
            rounds,
            console,
            programs=programs,
            step=options.step,
            measure_memory=not options.quick,
            clock=clock,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
