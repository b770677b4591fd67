"""Compute, without running anything, what every row of the paper costs on one and on eight GPUs.

    python tools/bench/scale.py > docs/scale.md

FLOP are counted from each network's convolutions and matrix products, forward and backward, and multiplied by steps
and batch sizes of the configs in configs/paper. Hours follow from an assumed speed, memory from the tensors that the
forward pass keeps, and the largest useful number of GPUs from the bytes that they exchange in a step. Nothing is
measured.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # before installed packages called tools, models or data

from mtsp.command_line import program
from mtsp.config import CONFIGS
from mtsp.cost.dry_run import fake_forward, fake_state, saved_bytes
from tools.build import AnyExperiment, read_experiment

PEAK = 989e12
"""FLOP/s of an H100 (SXM) in bf16 without sparsity, from its data sheet."""
UTILIZATIONS = (0.2, 0.4)
LINKS = {"NVLink": 300e9, "25 Gbit Ethernet": 2.5e9}
"""Bytes per second between GPUs that a transfer of gradients is assumed to reach."""
LAUNCH = 0.02
"""Seconds that a step takes at least, for the launches of its kernels one by one."""
GIB = 2**30

_INTRODUCTION = """# What a run costs

Computed by `python tools/bench/scale.py > docs/scale.md`; **nothing on this page is measured**. FLOP are counted from
convolutions and matrix products, forward and backward. Times assume that an H100 reaches {high:.0f} to {low:.0f} % of
its {peak:.0f} TFLOP/s in bf16, and that no step takes less than {launch:.0f} ms, for the launches of its kernels. A run
that waits for its data takes longer.

## Compute and memory

Memory of one GPU: weights, gradients, momentum and anchors in float32 (16 bytes for each parameter), and 16-bit
activations of its part of the batch. Libraries and their workspaces come on top: plan for 1 to 2 GiB.

| rows of the paper | network, image size | steps x batch | PFLOP | time, 1 GPU | 8 GPUs | GiB, 1 GPU | 8 GPUs |
|---|---|---|---|---|---|---|---|"""

_COMMUNICATION = """
## Communication of a step

DDP sends and receives 2 (n - 1) / n times the float32 gradients. FSDP2 gathers the 16-bit weights twice and scatters
the float32 gradients once: (n - 1) / n times 8 bytes for each parameter, as much as DDP, but weights, gradients,
momentum and anchors take 1 / n of the memory. The last columns are the largest number of GPUs, a power of two, that
leaves each at least one sample and whose gradients arrive while the GPU still computes, at {high:.0f} % utilization.
More GPUs want a larger batch, which is another experiment than the paper's.
"""


class Row(NamedTuple):
    """Cost of a training run."""

    network: str
    data: str
    steps: int
    batch: int
    flop: float
    """FLOP of the whole run."""
    parameters: int
    activations: int
    """Bytes that one sample keeps for the backward pass, in the largest stage, with 16-bit activations."""


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="*", help="names of configs (default: all in configs/paper)")
    options = parser.parse_args(arguments)
    names = options.configs or sorted(f"paper/{path.name}" for path in (CONFIGS / "paper").glob("*.yaml"))
    groups: dict[Row, list[str]] = defaultdict(list)
    cache: dict[str, tuple[float, int, int]] = {}
    for name in names:
        groups[cost(read_experiment(name), cache)].append(Path(name).stem)
    print(page(groups))
    return 0


def cost(experiment: AnyExperiment, cache: dict[str, tuple[float, int, int]]) -> Row:
    """Return the cost of an experiment; `cache` keeps what a network and an image size cost per sample."""
    stages = experiment.train.stages
    period = sum(stage.steps for stage in stages)
    flop, batch, parameters, activations, sizes = 0.0, 0, 0, 0, []
    for stage in stages:
        for entry, samples in stage.batch_size.items():
            size = _size(experiment, entry)
            key = f"{experiment.model!r} {size} {stage.learn}"
            if key not in cache:
                cache[key] = _per_sample(experiment, size, stage.learn)
            once, parameters, kept = cache[key]
            flop += once * samples * experiment.train.steps * stage.steps / period
            activations, batch = max(activations, kept), max(batch, samples)
            sizes.append(f"{size[0]}x{size[1]}")
    model = experiment.model
    network = getattr(model, "backbone", None) or f"{model.name}, {getattr(model, 'encoder', '')}"
    if getattr(model, "flow", "") is None:
        network += ", no flow"
    return Row(network, ", ".join(dict.fromkeys(sizes)), experiment.train.steps, batch, flop, parameters, activations)


def _size(experiment: AnyExperiment, entry: str) -> tuple[int, int]:
    section = experiment.data[entry]
    augment = section.augment
    found = section.size if augment is None else augment.crop or augment.resize
    if found is None:
        raise ValueError(f"data.{entry}: the size of its samples is that of its files; set `augment.crop` or `size`")
    return found


def _per_sample(
    experiment: AnyExperiment, size: tuple[int, int], learn: tuple[str, ...] | None
) -> tuple[float, int, int]:
    """Return FLOP of a training step, number of parameters, and bytes kept, for one sample of this size."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    network = experiment.model.build().train()
    pairs = "flow" in experiment.branches
    shapes = [(1, 3, *size)] * (2 if pairs else 1)
    learning = [name for name, _ in network.named_parameters() if learn is None or name.partition(".")[0] in learn]
    kept = saved_bytes(network, [(2, *shape[1:]) for shape in shapes], learning=learning, bf16=True) // 2
    mode = FakeTensorMode()
    state = fake_state(network, mode, learning)
    with mode, FlopCounterMode(display=False) as counter:
        outputs = fake_forward(network, state, shapes)
        floats = [value for value in outputs.values() if isinstance(value, torch.Tensor) and value.requires_grad]
        torch.stack([value.sum() for value in floats]).sum().backward()
    return counter.get_total_flops(), sum(weight.numel() for weight in network.parameters()), kept


def largest_group(row: Row, link: float, utilization: float) -> int:
    """Return the largest power of two of GPUs with at least one sample each, whose gradients arrive in time.

    In time: an all-reduce of float32 gradients, 2 (n - 1) / n times their size, takes no longer than computing, with
    which it overlaps.
    """
    compute = row.flop / row.steps / (PEAK * utilization)
    gpus = 1
    while 2 * gpus <= row.batch:
        n = 2 * gpus
        if 2 * (n - 1) / n * 4 * row.parameters / link > compute / n:
            break
        gpus = n
    return gpus


def hours(row: Row, gpus: int, utilization: float) -> float:
    """Return the hours of a run on this number of GPUs."""
    return row.steps * max(LAUNCH, row.flop / row.steps / (PEAK * utilization) / gpus) / 3600


def _times(row: Row, gpus: int) -> str:
    """Return the shortest and the longest time of a run, in hours or minutes."""
    fast, slow = (hours(row, gpus, utilization) for utilization in reversed(UTILIZATIONS))
    unit, factor = ("h", 1) if fast >= 1 else ("min", 60)
    texts = [f"{factor * time:.1f}" for time in (fast, slow)]
    return f"{' to '.join(dict.fromkeys(texts))} {unit}"


def page(groups: dict[Row, list[str]]) -> str:
    """Return the page as Markdown."""
    low, high = UTILIZATIONS
    lines = [*_INTRODUCTION.format(low=100 * low, high=100 * high, peak=PEAK / 1e12, launch=1000 * LAUNCH).splitlines()]
    for row, names in groups.items():
        states = 16 * row.parameters / GIB
        gpus = min(8, row.batch)
        eight = _times(row, gpus) if gpus > 1 else "batch of 1"
        split = f"{states + row.activations * -(-row.batch // gpus) / GIB:.1f}" if gpus > 1 else "-"
        lines.append(
            f"| {_title(names)} | {row.network}, {row.data} | {row.steps:,} x {row.batch} | {row.flop / 1e15:,.0f} | "
            f"{_times(row, 1)} | {eight} | {states + row.activations * row.batch / GIB:.1f} | {split} |"
        )
    lines += [*_COMMUNICATION.format(high=100 * high).splitlines(), ""]
    lines += [
        "| rows of the paper | parameters | MiB in a step, 8 GPUs | " + " | ".join(f"GPUs, {x}" for x in LINKS) + " |"
    ]
    lines += ["|---|---|---|" + "---|" * len(LINKS)]
    for row, names in groups.items():
        exchanged = 2 * 7 / 8 * 4 * row.parameters / 2**20
        most = [str(largest_group(row, link, high)) for link in LINKS.values()]
        cells = " | ".join(most)
        lines.append(f"| {_title(names)} | {row.parameters / 1e6:.1f} M | {exchanged:.0f} | {cells} |")
    rates = " and ".join(f"{rate / 1e9:.1f} GB/s ({link})" for link, rate in LINKS.items())
    return "\n".join([*lines, "", f"Assumed for transfers: {rates}."])


def _title(names: Sequence[str]) -> str:
    """Return the common start of the names, and how many there are."""
    first, last = min(names), max(names)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    start = first if len(names) == 1 else first[:same].rpartition("_")[0] or first[:same]
    return f"`{start}`" + (f" ({len(names)})" if len(names) > 1 else "")


if __name__ == "__main__":
    sys.exit(main())
