"""Check that what mtsp computes on a GPU equals what it computes on the CPU.

    python tools/bench/gpu/checks.py [--device cuda|cpu]

Prints a line for each check with the largest difference and whether it is within the tolerance; exits with 1 if one is
not. `--device cpu` only tests that the checks run. tools/bench/gpu.sh adds whole runs and speeds.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # before installed packages called tools, models or data

from models.segflow.network import SegFlowConfig
from mtsp.anchors import capture
from mtsp.batches import to_device
from mtsp.command_line import program
from mtsp.metrics import ClassificationScores, ConfusionMatrix, FlowErrors
from mtsp.regularizers import L2SP
from mtsp.tasks import ClassificationConfig, FlowConfig, SegmentationConfig, Tasks
from mtsp.types import Batch, Outputs
from tools.bench.timing import machine

Check = Callable[[torch.device], float]
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, foreach=False),
    "SGD foreach": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, foreach=True),
    "SGD fused": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.0, foreach=False),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.0, fused=True),
}


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Run all checks and print them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cuda", "cpu"), default=default, help=f"device to check (here: {default})")
    device = torch.device(parser.parse_args(arguments).device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # differences of fp32, not of TF32
    print(f"{machine()}\nchecked on {device.type}: largest relative difference from the CPU")
    failures = 0
    for name, check, tolerance in _checks():
        try:
            difference, problem = check(device), ""
        except (RuntimeError, ValueError) as error:
            difference, problem = float("inf"), f"  {str(error).splitlines()[0]}"
        fine = difference <= tolerance
        failures += not fine
        print(f"{'ok  ' if fine else 'FAIL'} {name:58} {difference:.1e} (at most {tolerance:.0e}){problem}", flush=True)
    print(f"{failures} of {len(list(_checks()))} checks failed")
    return min(failures, 1)


def _checks() -> Iterator[tuple[str, Check, float]]:
    yield "metrics: flow errors", _flow_errors, 1e-6
    yield "metrics: confusion matrix of logits, channels_last", _confusion, 0.0
    yield "metrics: accuracy, calibration, likelihood", _classification, 1e-5
    yield "losses of segmentation, flow, classification and gradients", _losses, 1e-4
    yield "SegFlow forward", lambda device: _forward(device), 1e-3
    yield "SegFlow forward, channels_last", lambda device: _forward(device, channels_last=True), 1e-3
    yield "SegFlow forward, compiled", lambda device: _forward(device, compiled=True), 1e-3
    yield "SegFlow forward, bf16", lambda device: _forward(device, dtype=torch.bfloat16), 0.1
    for name in OPTIMIZERS:
        yield f"L2-SP, four steps of {name}", lambda device, name=name: _steps(device, name), 1e-4
    yield "L2-SP, four steps of SGD fused, bf16", lambda d: _steps(d, "SGD fused", dtype=torch.bfloat16), 0.03
    yield "L2-SP, four steps of SGD fused, fp16 scaler", lambda d: _steps(d, "SGD fused", dtype=torch.float16), 0.03


def _apart(ours: Mapping[str, float] | Tensor, reference: Mapping[str, float] | Tensor) -> float:
    """Return the largest difference as a fraction of the largest value of the reference."""
    if isinstance(ours, Mapping) and isinstance(reference, Mapping):
        pairs = [(ours[key], value) for key, value in reference.items() if value == value]
        return max(abs(a - b) / max(1.0, abs(b)) for a, b in pairs)
    assert isinstance(ours, Tensor)
    assert isinstance(reference, Tensor)
    return float((ours.cpu().double() - reference.double()).abs().max() / reference.double().abs().max())


def _noise(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(0))


def _metric(device: torch.device, make: Callable[[], Any], *arguments: Any) -> float:
    """Return how far apart a metric of these arguments is on the device and on the CPU."""
    found = []
    for where in (device, torch.device("cpu")):
        metric = make()
        metric.update(*(value.to(where) if isinstance(value, Tensor) else value for value in arguments))
        found.append(metric.compute())
    return _apart(*found)


def _flow_errors(device: torch.device) -> float:
    prediction, truth = 5 * _noise(2, 2, 60, 80), 5 * _noise(2, 2, 60, 80).flip(0)
    return _metric(device, FlowErrors, prediction, truth, None, ["a", "b"])


def _confusion(device: torch.device) -> float:
    logits = _noise(2, 11, 60, 80).contiguous(memory_format=torch.channels_last)
    return _metric(device, lambda: ConfusionMatrix(11), logits, (_noise(2, 60, 80).abs() * 4).long().clamp(max=10))


def _classification(device: torch.device) -> float:
    logits, labels = _noise(500, 20), (_noise(500).abs() * 8).long().clamp(max=19)
    return _metric(device, lambda: ClassificationScores(20), logits, labels)


def _losses(device: torch.device) -> float:
    tasks = Tasks(segmentation=SegmentationConfig(), flow=FlowConfig(), classification=ClassificationConfig())
    mask, label = (_noise(2, 32, 48).abs() > 1).long(), torch.tensor([0, 3])
    batch = Batch(name=["a", "b"], frame=_noise(2, 3, 32, 48), mask=mask, flow=_noise(2, 2, 32, 48), label=label)
    found = []
    for where in (device, torch.device("cpu")):
        leaves = [_noise(*size).to(where).requires_grad_() for size in ((2, 2, 32, 48), (2, 2, 32, 48), (2, 5))]
        outputs = Outputs(mask_logits=leaves[0], flow=leaves[1], label_logits=leaves[2])
        there = to_device(batch, where)
        total = torch.stack(list(tasks.sums(outputs, there).values())).sum()
        gradients = torch.autograd.grad(total, leaves)
        found.append(torch.cat([total.detach().view(1) / 1e3, *(gradient.flatten() for gradient in gradients)]))
    return _apart(found[0], found[1].cpu())


def _segflow() -> nn.Module:
    torch.manual_seed(0)
    return SegFlowConfig(name="segflow", encoder="resnet18", width=16, flow_width=16).build().eval()


def _forward(
    device: torch.device, *, channels_last: bool = False, compiled: bool = False, dtype: torch.dtype | None = None
) -> float:
    frames = _noise(2, 3, 128, 192).sigmoid()
    model = _segflow()
    with torch.no_grad():
        reference = model(frames, frames.flip(0))["mask_logits"]
        model = model.to(device)
        moved = frames.to(device)
        if channels_last:
            model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            moved = moved.contiguous(memory_format=torch.channels_last)
        if compiled:
            model.compile(backend="inductor" if device.type == "cuda" else "eager")
        with nullcontext() if dtype is None else torch.autocast(device.type, dtype):
            return _apart(model(moved, moved.flip(0))["mask_logits"].float(), reference)


def _steps(device: torch.device, name: str, *, dtype: torch.dtype | None = None) -> float:
    """Compare the weights after four steps on `device` with those of float32 steps on the CPU."""
    found = []
    for where, kind in ((device, dtype), (torch.device("cpu"), None)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 8)).to(where)
        optimizer = OPTIMIZERS[name](list(model.parameters()))
        L2SP(model, anchors=capture(model, ["0.weight"]), alpha=0.3, beta=0.1).attach(optimizer)
        scaler = torch.amp.GradScaler(where.type, init_scale=256.0, enabled=kind == torch.float16)
        for step in range(4):
            optimizer.zero_grad()
            with nullcontext() if kind is None else torch.autocast(where.type, kind):
                loss = model(_noise(32, 16).to(where) * (step + 1)).float().square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        found.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    return _apart(found[0], found[1].cpu())


if __name__ == "__main__":
    sys.exit(main())
