"""Compare EncNet's Encoding layer, training step and evaluation with other implementations.

    python tools/bench/encnet.py [--only layer step evaluation] [--encoder resnet50s] [--rounds 5] [--quick]

Layer: forward and backward of 4 feature maps of 60x60 pixels with 512 channels and 32 codewords, as after ReLU. It is
compared with the broadcast formula of mmsegmentation and PyTorch-Encoding, which makes a tensor of all residuals, and
with matrix products with autograd's backward. Step: a training step with all three losses, for several layers, memory
layouts and number formats. Evaluation: EncNet's six scales with mirror images, in batches and one image at a time.

Each variant runs in its own process, so that its memory is measured separately. The variants take turns in several
rounds, and the median time is shown. Memory is the growth of the process's peak resident set (on a GPU: of allocated
memory).
"""

import multiprocessing
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # before installed packages called tools, models or data

from models.encnet.encoding import Encoding
from models.encnet.network import EncNet, EncNetConfig
from mtsp.command_line import program
from mtsp.distributed.accelerator import computes_bf16
from mtsp.evaluation.tta import MultiScaleConfig
from mtsp.tasks import SegmentationConfig, Tasks
from mtsp.types import Batch, Outputs
from tools.bench.step import CUDA, GIB, training_step
from tools.bench.step import Variant as Format
from tools.bench.timing import machine, parser, table
from tools.bench.workers import DEVICE, Worker, take_turns, wait_for_gpu

LIMIT = 1200.0  # largest time for one table in seconds
FASTER, INPUTS = 50, 5
"""Targets for the layer: speedup over the broadcast formula, and extra memory in multiples of the layer's input."""


class BroadcastEncoding(Encoding):
    """The usual implementation: a BNKD tensor of residuals of all pixels to all codewords, and autograd's backward."""

    def forward(self, features: Tensor) -> Tensor:
        """Return E as :class:`Encoding` does."""
        x = features.flatten(2).transpose(1, 2)
        residuals = x.unsqueeze(2) - self.codewords
        assigned = torch.softmax(self.scale * residuals.square().sum(3), dim=2)
        return (assigned.unsqueeze(3) * residuals).sum(1)


class ProductEncoding(Encoding):
    """An implementation by matrix products without centering, with autograd's backward."""

    def forward(self, features: Tensor) -> Tensor:
        """Return E as :class:`Encoding` does."""
        x = features.flatten(2).transpose(1, 2)
        squares = x.square().sum(2, keepdim=True) + self.codewords.square().sum(1)
        assigned = torch.softmax(self.scale * (squares - 2 * x @ self.codewords.t()), dim=2)
        return assigned.transpose(1, 2) @ x - assigned.sum(1).unsqueeze(2) * self.codewords


class Sizes(NamedTuple):
    """Sizes of inputs and networks in the benchmark."""

    layer: tuple[int, int, int, int] = (4, 512, 60, 32)  # maps, channels, side, codewords
    batch: int = 16 if CUDA else 1
    side: int = 480
    base: int = 520 if CUDA else 260  # longer side in the evaluation
    width: int = 512  # channels in the network's head

    @property
    def crop(self) -> int:
        """Side of the windows in the evaluation."""
        return self.base * 12 // 13

    @property
    def image(self) -> tuple[int, int]:
        """Height and width of an image of PASCAL's shape, 375x500 at full size."""
        return 375 * self.base // 520, 500 * self.base // 520


QUICK = Sizes(layer=(1, 64, 30, 8), batch=2, side=48, base=52, width=32)
BF16_LAST = Format("bf16, channels_last", bf16=True, channels_last=True)
STEPS: tuple[tuple[Format, type[Encoding]], ...] = (
    (Format("fp32"), Encoding),
    (Format("fp32, broadcast layer"), BroadcastEncoding),
    (Format("fp32, channels_last", channels_last=True), Encoding),
    (Format("bf16", bf16=True), Encoding),
    (BF16_LAST, Encoding),
    (BF16_LAST._replace(name="bf16, channels_last, broadcast layer"), BroadcastEncoding),
)


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    command_line = parser(__doc__, rounds=5, quick="use small sizes and one round, to test the benchmark")
    command_line.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure (default: all)"
    )
    command_line.add_argument("--encoder", help="encoder of the network (default: resnet50s)")
    options = command_line.parse_args(arguments)
    sizes = QUICK if options.quick else Sizes()
    encoder = options.encoder or ("tu-resnet18" if options.quick else "resnet50s")
    rounds = 1 if options.quick else options.rounds
    multiprocessing.set_forkserver_preload(["torch", "timm", "segmentation_models_pytorch", "models.encnet.network"])
    console = Console(width=120)
    console.print(machine(), highlight=False)
    for part in options.only:
        console.print(PARTS[part](sizes, encoder, rounds))
    return 0


def _layers(sizes: Sizes, _: str, rounds: int) -> Table:
    idle = Worker(_layer, sizes, None, False)
    workers = {
        "this project, channels_last": Worker(_layer, sizes, Encoding, True),
        "this project, channels first": Worker(_layer, sizes, Encoding, False),
        "matrix products, autograd": Worker(_layer, sizes, ProductEncoding, False),
        "broadcast, autograd": Worker(_layer, sizes, BroadcastEncoding, False),
    }
    take_turns([idle, *workers.values()], rounds, steps=3, limit=LIMIT)
    images, channels, side, codewords = sizes.layer
    title = f"Encoding layer, forward and backward: {images}x{channels}x{side}x{side}, {codewords} codewords"
    drawn = table(title, "formula", "ms", "broadcast / this", "target", "extra MB", "in inputs", "target")
    slowest = workers["broadcast, autograd"].median
    input_bytes = 4 * images * channels * side * side
    for name, worker in workers.items():
        extra = worker.peak - idle.peak
        faster, inputs = (f">= {FASTER}", f"<= {INPUTS}") if name.startswith("this") else ("", "")
        times = (f"{1e3 * worker.median:.1f}", f"{slowest / worker.median:.0f}", faster)
        drawn.add_row(name, *times, f"{extra / 1e6:.0f}", f"{extra / input_bytes:.1f}", inputs)
    return drawn


def _steps(sizes: Sizes, encoder: str, rounds: int) -> Table:
    workers = {variant: Worker(_step, sizes, encoder, variant, layer) for variant, layer in STEPS}
    take_turns(list(workers.values()), rounds, steps=5 if CUDA else 1, limit=LIMIT)
    title = f"EncNet on {encoder}, a training step: {sizes.batch} x {sizes.side}x{sizes.side}"
    drawn = table(title, "variant", "s/step", "images/s", "fp32 / this", "target", "memory GiB")
    slowest = workers[STEPS[0][0]].median
    for variant, worker in workers.items():
        if worker.problem:
            drawn.add_row(variant.name, worker.problem)
            continue
        seconds, target = worker.median, ">= 2.5" if variant == BF16_LAST else ""
        speeds = (f"{seconds:.3f}", f"{sizes.batch / seconds:.2f}", f"{slowest / seconds:.2f}")
        drawn.add_row(variant.name, *speeds, target, f"{worker.peak / GIB:.2f}")
    drawn.caption = "the target is for processors that compute bf16 (AMX) and for GPUs"
    return drawn


def _evaluations(sizes: Sizes, encoder: str, rounds: int) -> Table:
    workers = {
        "one image at a time, fp32": Worker(_evaluation, sizes, encoder, 1, False),
        "8 at once, fp32": Worker(_evaluation, sizes, encoder, 8, False),
        "36 at once, fp32": Worker(_evaluation, sizes, encoder, 36, False),
    }
    if computes_bf16():
        workers["8 at once, bf16"] = Worker(_evaluation, sizes, encoder, 8, True)
    take_turns(list(workers.values()), rounds, steps=1, limit=LIMIT)
    height, width = sizes.image
    title = f"EncNet on {encoder}, six scales and mirror images of {height}x{width}"
    drawn = table(title, "images in a forward pass", "s/image", "images/s", "one at a time / this", "memory GiB")
    slowest = workers["one image at a time, fp32"].median
    for name, worker in workers.items():
        seconds = worker.median
        speeds = (f"{seconds:.2f}", f"{1 / seconds:.3f}", f"{slowest / seconds:.2f}")
        drawn.add_row(name, *speeds, f"{worker.peak / GIB:.2f}")
    drawn.caption = f"windows of {sizes.crop} pixels, longer side {sizes.base} at scale 1"
    return drawn


PARTS = {"layer": _layers, "step": _steps, "evaluation": _evaluations}


def _layer(sizes: Sizes, kind: type[Encoding] | None, channels_last: bool) -> Callable[[], object]:
    torch.manual_seed(0)
    images, channels, side, codewords = sizes.layer
    layout = torch.channels_last if channels_last else torch.contiguous_format
    features = torch.randn(images, channels, side, side, device=DEVICE).relu_().contiguous(memory_format=layout)
    if kind is None:  # measures the memory of the libraries and the input
        kind, features = Encoding, features[:1, :, :2, :2]
    layer = kind(channels, codewords).to(DEVICE)
    gradient = torch.randn(len(features), codewords, channels, device=DEVICE)
    features.requires_grad_()

    def both() -> None:
        torch.autograd.grad(layer(features), [features, layer.codewords, layer.scale], gradient)
        wait_for_gpu()

    return both


def _network(sizes: Sizes, encoder: str, layer: type[Encoding], layout: torch.memory_format) -> EncNet:
    torch.manual_seed(0)
    network = EncNetConfig(name="encnet", encoder=encoder, width=sizes.width).build()
    context = network.head.context
    context.encoding = layer(*reversed(context.encoding.codewords.shape))
    return network.to(DEVICE, memory_format=layout)  # pyright: ignore[reportCallIssue]


def _step(sizes: Sizes, encoder: str, variant: Format, layer: type[Encoding]) -> Callable[[], object]:
    network = _network(sizes, encoder, layer, variant.layout).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6, momentum=0.9)
    tasks = Tasks(segmentation=SegmentationConfig(class_balance=False, aux_loss=0.2, se_loss=0.2))
    frame = torch.rand(sizes.batch, 3, sizes.side, sizes.side, device=DEVICE).contiguous(memory_format=variant.layout)
    mask = torch.randint(0, 59, (sizes.batch, sizes.side, sizes.side), device=DEVICE)
    batch = Batch(name=["noise"] * sizes.batch, frame=frame, mask=mask)
    return training_step(network, optimizer, tasks, batch, bf16=variant.bf16)


def _evaluation(sizes: Sizes, encoder: str, at_once: int, bf16: bool) -> Callable[[], object]:
    network = _network(sizes, encoder, Encoding, torch.channels_last).eval()
    tta = MultiScaleConfig(name="multi_scale", base=sizes.base, crop=sizes.crop, batch_size=at_once).build()
    batch = Batch(name=["noise"], frame=torch.rand(1, 3, *sizes.image, device=DEVICE))

    def alone(frame: Tensor, next_frame: Tensor | None) -> Outputs:
        return Outputs(mask_logits=torch.cat([network(one)["mask_logits"] for one in frame.split(1)]))

    def evaluate() -> None:
        with torch.inference_mode(), torch.autocast(DEVICE, torch.bfloat16, enabled=bf16):
            tta(network if at_once > 1 else alone, batch)
        wait_for_gpu()

    return evaluate


if __name__ == "__main__":
    sys.exit(main())
