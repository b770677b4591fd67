"""Measure SegFlow's training step in fp32, bf16, channels_last, compiled: time, memory, fraction of peak FLOP/s.

    python tools/bench/train.py [--size 480x854] [--batch-size 4] [--encoder resnet101] [--rounds 3] [--quick]

A step is forward, both losses, backward, the pull of L2-SP, and SGD with momentum. Each variant runs in its own
process, so that its memory is measured apart. They take turns in several rounds, and the median step is shown. The peak
is that of a large matrix product of the same type, measured in the same rounds. FLOP are counted from the network's
convolutions and products (torch.utils.flop_counter), however they are computed.
"""

import argparse
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from models.segflow.network import SegFlowConfig
from mtsp.regularizers import L2SP
from mtsp.tasks import FlowConfig, SegmentationConfig, Tasks
from mtsp.types import Batch
from tools.bench.timing import machine
from tools.bench.workers import Worker, take_turns, wait_for_gpu

GIB = 2**30


class Variant(NamedTuple):
    """One way to compute a step."""

    name: str
    bf16: bool = False
    channels_last: bool = False
    compiled: bool = False


VARIANTS = (
    Variant("fp32"),
    Variant("fp32, channels_last", channels_last=True),
    Variant("bf16", bf16=True),
    Variant("bf16, channels_last", bf16=True, channels_last=True),
    Variant("bf16, channels_last, compiled", bf16=True, channels_last=True, compiled=True),
)


class Workload(NamedTuple):
    """Network and batch of a step."""

    encoder: str
    height: int
    width: int
    batch_size: int
    device: str

    def network(self) -> torch.nn.Module:
        """Return SegFlow in mode modern."""
        return SegFlowConfig(name="segflow", encoder=self.encoder).build()

    def flop(self) -> int:
        """Count the floating-point operations of a step, without computing them."""
        from torch.utils.flop_counter import FlopCounterMode

        with torch.device("meta"):
            network, frame = self.network(), torch.empty(self.batch_size, 3, self.height, self.width)
        with FlopCounterMode(display=False) as counter:
            outputs = network(frame, frame)
            (outputs["mask_logits"].sum() + outputs["flow"].sum()).backward()
        return counter.get_total_flops()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = _parser().parse_args(arguments)
    cuda = torch.cuda.is_available()
    height, width = options.size or ((480, 854) if cuda else (64, 96) if options.quick else (128, 224))
    batch_size = options.batch_size or (4 if cuda else 1)
    work = Workload(options.encoder, height, width, batch_size, "cuda" if cuda else "cpu")
    rounds, steps = (1, 1) if options.quick else (options.rounds, 10 if cuda else 2)
    limit = options.limit or (1200.0 if cuda else 60.0 if options.quick else 170.0)
    multiprocessing.set_forkserver_preload(["torch", "timm", "segmentation_models_pytorch", "models.segflow.network"])
    console = Console(width=120)
    console.print(f"{machine()}, {torch.get_num_threads()} threads; torch {torch.__version__}", highlight=False)

    flop = work.flop()
    peaks = {bf16: Worker(_product, work.device, bf16) for bf16 in (False, True)}
    workers = {variant: Worker(_step, work, variant) for variant in VARIANTS}
    everyone = [*peaks.values(), *workers.values()]
    with console.status(f"{len(everyone)} processes warm up and take {rounds} turns each"):
        take_turns(everyone, rounds, steps=steps, limit=limit, warm_up_fraction=2 / 3)
    console.print(_table(work, flop, peaks, workers))
    return 0


def _table(work: Workload, flop: int, peaks: dict[bool, Worker], workers: dict[Variant, Worker]) -> Table:
    size = f"{work.batch_size} x {work.height}x{work.width}"
    table = Table(title=f"SegFlow, {work.encoder}, {size}: {flop / 1e9:,.0f} GFLOP a step")
    for column in ("variant", "s/step", "images/s", "GFLOP/s", "peak GFLOP/s", "of peak", "memory GiB"):
        table.add_column(column, justify="left" if column == "variant" else "right")
    for variant, worker in workers.items():
        if not worker.seconds:
            table.add_row(variant.name, worker.problem)
            continue
        seconds, products = worker.median, peaks[variant.bf16].seconds
        peak = 2 * _side(work.device) ** 3 / min(products) if products else float("nan")
        table.add_row(
            variant.name,
            f"{seconds:.3f}",
            f"{work.batch_size / seconds:.2f}",
            f"{flop / seconds / 1e9:,.0f}",
            f"{peak / 1e9:,.0f}",
            f"{100 * flop / seconds / peak:.0f} %",
            f"{worker.peak / GIB:.2f}",
        )
    table.caption = (
        "memory: the process's largest resident set (VmHWM)" if work.device == "cpu" else "memory: on the GPU"
    )
    return table


def _step(work: Workload, variant: Variant) -> Callable[[], object]:
    """Return one training step as a function."""
    torch.manual_seed(0)
    model = work.network().to(work.device).train()
    layout = torch.channels_last if variant.channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    if variant.compiled:
        model.compile()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    L2SP(model, anchors=dict(model.named_parameters()), alpha=0.1, beta=0.1).attach(optimizer)
    tasks = Tasks(segmentation=SegmentationConfig(), flow=FlowConfig())
    size = (work.batch_size, 3, work.height, work.width)
    frame, next_frame = (torch.rand(size, device=work.device).contiguous(memory_format=layout) for _ in range(2))
    mask = torch.randint(0, 2, (work.batch_size, work.height, work.width), device=work.device)
    flow = torch.randn(work.batch_size, 2, work.height, work.width, device=work.device)
    batch = Batch(name=["noise"] * work.batch_size, frame=frame, next_frame=next_frame, mask=mask, flow=flow)
    counts = tasks.counts(batch)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(work.device, torch.bfloat16, enabled=variant.bf16):
            outputs = model(frame, next_frame)
        sums = tasks.sums(outputs, batch)
        loss = torch.stack([total / counts[name] for name, total in sums.items()]).sum()
        loss.backward()
        optimizer.step()
        wait_for_gpu()

    return step


def _side(device: str) -> int:
    return 8192 if device == "cuda" else 1536


def _product(device: str, bf16: bool) -> Callable[[], object]:
    """Return a square matrix product as a function; fp32 is TF32 on a GPU, as in the convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    kind = torch.bfloat16 if bf16 else torch.float32
    left, right = (torch.randn(_side(device), _side(device), device=device).to(kind) for _ in range(2))

    def product() -> None:
        torch.mm(left, right)
        wait_for_gpu()

    return product


def _size(text: str) -> tuple[int, int]:
    height, x, width = text.partition("x")
    if not x or not height.isdecimal() or not width.isdecimal() or not int(height) or not int(width):
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, as 480x854")
    return int(height), int(width)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--size", type=_size, metavar="HxW", help="size of frames (default: 480x854 on a GPU, else 128x224)"
    )
    parser.add_argument("--batch-size", type=_positive, help="frame pairs in a step (default: 4 on a GPU, else 1)")
    parser.add_argument(
        "--encoder", default="resnet101", help="encoder of the segmentation branch (default: resnet101)"
    )
    parser.add_argument("--rounds", type=_positive, default=3, help="turns of each variant (default: 3)")
    parser.add_argument(
        "--limit",
        type=float,
        help="seconds for everything, two thirds of it for warming up (default: 1200 on a GPU, else 170)",
    )
    parser.add_argument("--quick", action="store_true", help="one step of each, to see whether it runs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
