"""Measure time, memory and FLOP/s of SegFlow's training step in fp32, bf16, channels_last, and compiled.

    python tools/bench/step.py [--size 480x854] [--batch-size 4] [--encoder resnet101] [--rounds 3] [--quick]

A step is forward, both losses, backward, the pull of L2-SP, and SGD with momentum. Each variant runs in its own
process, so that its memory is measured separately. The variants take turns in several rounds, and the median step is
shown. Peak FLOP/s are those of a large matrix product of the same type, measured in the same rounds. The FLOP of a step
are counted from the network's convolutions and matrix products (torch.utils.flop_counter).
"""

import multiprocessing
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # before installed packages called tools, models or data

from models.segflow.network import SegFlowConfig
from mtsp.command_line import at_least_one, height_width, program
from mtsp.regularizers import L2SP
from mtsp.tasks import FlowConfig, SegmentationConfig, Tasks
from mtsp.types import Batch
from tools.bench.timing import machine, parser, table
from tools.bench.workers import DEVICE, Worker, take_turns, wait_for_gpu

GIB = 2**30
CUDA = DEVICE == "cuda"
SIDE = 8192 if CUDA else 1536  # of the square matrices in the measurement of peak FLOP/s


class Variant(NamedTuple):
    """Number format, memory format and compilation of a training step."""

    name: str
    bf16: bool = False
    channels_last: bool = False
    compiled: bool = False

    @property
    def layout(self) -> torch.memory_format:
        """Memory format of images and weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


VARIANTS = (
    Variant("fp32"),
    Variant("fp32, channels_last", channels_last=True),
    Variant("bf16", bf16=True),
    Variant("bf16, channels_last", bf16=True, channels_last=True),
    Variant("bf16, channels_last, compiled", bf16=True, channels_last=True, compiled=True),
)


class Workload(NamedTuple):
    """Network and batch size of a training step."""

    encoder: str
    height: int
    width: int
    batch_size: int

    def network(self) -> torch.nn.Module:
        """Return SegFlow in mode modern."""
        return SegFlowConfig(name="segflow", encoder=self.encoder).build()

    def flop(self) -> int:
        """Return the number of floating-point operations in a step, without computing the step."""
        from torch.utils.flop_counter import FlopCounterMode

        with torch.device("meta"):
            network, frame = self.network(), torch.empty(self.batch_size, 3, self.height, self.width)
        with FlopCounterMode(display=False) as counter:
            outputs = network(frame, frame)
            (outputs["mask_logits"].sum() + outputs["flow"].sum()).backward()
        return counter.get_total_flops()


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    command_line = parser(__doc__, rounds=3, quick="run one step of each variant, only to test that the benchmark runs")
    add = command_line.add_argument
    add("--size", type=height_width, metavar="HxW", help="size of frames (default: 480x854 on a GPU, else 128x224)")
    add("--batch-size", type=at_least_one, help="number of frame pairs in a step (default: 4 on a GPU, else 1)")
    add("--encoder", default="resnet101", help="encoder of the segmentation branch (default: resnet101)")
    add("--limit", type=float, help="time limit in seconds, 2/3 of it for warm-up (default: GPU 1200, CPU 170)")
    options = command_line.parse_args(arguments)
    height, width = options.size or ((480, 854) if CUDA else (64, 96) if options.quick else (128, 224))
    work = Workload(options.encoder, height, width, options.batch_size or (4 if CUDA else 1))
    rounds, steps = (1, 1) if options.quick else (options.rounds, 10 if CUDA else 2)
    limit = options.limit or (1200.0 if CUDA else 60.0 if options.quick else 170.0)
    multiprocessing.set_forkserver_preload(["torch", "timm", "segmentation_models_pytorch", "models.segflow.network"])
    console = Console(width=120)
    console.print(machine(), highlight=False)

    flop = work.flop()
    peaks = {bf16: Worker(_product, bf16) for bf16 in (False, True)}
    workers = {variant: Worker(_step, work, variant) for variant in VARIANTS}
    take_turns([*peaks.values(), *workers.values()], rounds, steps=steps, limit=limit, warm_up_fraction=2 / 3)
    console.print(_table(work, flop, peaks, workers))
    return 0


def _table(work: Workload, flop: int, peaks: dict[bool, Worker], workers: dict[Variant, Worker]) -> Table:
    size = f"{work.batch_size} x {work.height}x{work.width}"
    title = f"SegFlow, {work.encoder}, {size}: {flop / 1e9:,.0f} GFLOP a step"
    drawn = table(title, "variant", "s/step", "images/s", "GFLOP/s", "peak GFLOP/s", "of peak", "memory GiB")
    for variant, worker in workers.items():
        if not worker.seconds:
            drawn.add_row(variant.name, worker.problem)
            continue
        seconds, products = worker.median, peaks[variant.bf16].seconds
        peak = 2 * SIDE**3 / min(products) if products else float("nan")
        speeds = (f"{seconds:.3f}", f"{work.batch_size / seconds:.2f}", f"{flop / seconds / 1e9:,.0f}")
        peaks_of_this = (f"{peak / 1e9:,.0f}", f"{100 * flop / seconds / peak:.0f} %", f"{worker.peak / GIB:.2f}")
        drawn.add_row(variant.name, *speeds, *peaks_of_this)
    drawn.caption = "memory: on the GPU" if CUDA else "memory: the process's largest resident set (VmHWM)"
    return drawn


def _step(work: Workload, variant: Variant) -> Callable[[], object]:
    torch.manual_seed(0)
    model = work.network().to(DEVICE).train()
    model = model.to(memory_format=variant.layout)  # pyright: ignore[reportCallIssue]
    if variant.compiled:
        model.compile()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    L2SP(model, anchors=dict(model.named_parameters()), alpha=0.1, beta=0.1).attach(optimizer)
    size = (work.batch_size, 3, work.height, work.width)
    frame, next_frame = (torch.rand(size, device=DEVICE).contiguous(memory_format=variant.layout) for _ in range(2))
    mask = torch.randint(0, 2, (work.batch_size, work.height, work.width), device=DEVICE)
    flow = torch.randn(work.batch_size, 2, work.height, work.width, device=DEVICE)
    batch = Batch(name=["noise"] * work.batch_size, frame=frame, next_frame=next_frame, mask=mask, flow=flow)
    tasks = Tasks(segmentation=SegmentationConfig(), flow=FlowConfig())
    return training_step(model, optimizer, tasks, batch, bf16=variant.bf16)


def training_step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, tasks: Tasks, batch: Batch, *, bf16: bool
) -> Callable[[], object]:
    """Return a function that runs a training step on this batch: forward, losses, backward, optimizer."""
    counts = tasks.counts(batch)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=bf16):
            outputs = model(batch["frame"], batch.get("next_frame"))
        sums = tasks.sums(outputs, batch)
        torch.stack([total / counts[name] for name, total in sums.items()]).sum().backward()
        optimizer.step()
        wait_for_gpu()

    return step


def _product(bf16: bool) -> Callable[[], object]:
    """Return a function that multiplies square matrices; on a GPU fp32 uses TF32, as in the convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    kind = torch.bfloat16 if bf16 else torch.float32
    left, right = (torch.randn(SIDE, SIDE, device=DEVICE).to(kind) for _ in range(2))

    def product() -> None:
        torch.mm(left, right)
        wait_for_gpu()

    return product


if __name__ == "__main__":
    sys.exit(main())
