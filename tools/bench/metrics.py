"""Measure the time of metrics: mtsp, other implementations, and one read of the same arrays.

    python tools/bench/metrics.py [--rounds 9] [--threads 2] [--quick]

The programs take turns, and the median time is shown. "One read" adds up the arrays in as many threads as mtsp uses: a
program that reads every value cannot be faster. Other libraries are imported if installed; otherwise their published
code is reimplemented here.
"""

import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # before installed packages called tools, models or data

from mtsp.command_line import at_least_one, program
from mtsp.metrics import ClassificationScores, FlowErrors
from mtsp.metrics.kernels.jit import threads
from tools.bench import metrics_masks
from tools.bench.timing import Program, compared, machine, medians, parser

Numbers = dict[str, float]


class Flows(NamedTuple):
    """Input of the flow metrics."""

    prediction: np.ndarray  # B2HW float32
    truth: np.ndarray  # B2HW float32
    valid: np.ndarray  # BHW bool; mmflow gets float32


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    command_line = parser(__doc__, rounds=9, quick="use small arrays, only to test that the benchmark runs")
    command_line.add_argument("--threads", type=at_least_one, default=threads())
    options = command_line.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    torch.set_num_threads(options.threads)
    console = Console(width=120)
    console.print(f"{machine()}, numpy {np.__version__}")
    console.print(flow_table(options.rounds, made_up_flows(options.quick)))
    console.print(classification_table(options.rounds, *made_up_logits(options.quick)))
    for table in metrics_masks.tables(options.rounds, options.quick, options.threads):
        console.print(table)
    return 0


def flow_table(rounds: int, flows: Flows) -> Table:
    """Time all programs that compute flow errors."""
    ways: dict[str, Program] = {"one read of the arrays": lambda: one_read(*flows)}
    ways |= {name: functools.partial(way, flows) for name, way in FLOW_WAYS.items()}
    laid = paired(flows)
    ways["mtsp, all eight, of BHW2"] = functools.partial(ours_flow, laid)
    rough = flows._replace(prediction=flows.prediction.copy())
    rough.prediction[..., ::256] = np.nan
    ways["mtsp, all eight, with NaN in every block"] = functools.partial(ours_flow, rough)
    as_read = laid._replace(valid=laid.valid.astype(np.float32))
    ways["mmflow: EPE and Fl"] = functools.partial(mmflow_formulation, as_read)
    targets = {"one read of the arrays": "1/1.3", "numpy idiom": "25x"}
    targets |= {"mmflow: EPE and Fl": "70x", "ptlflow: FlowMetrics": "500x"}
    shape = "x".join(map(str, flows.valid.shape))
    title = f"Flow errors, {shape}: EPE, three speed bins, 1/3/5 px, Fl-all"
    return compared(title, medians(ways, rounds), "mtsp, all eight", targets)


def made_up_logits(quick: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return BK logits, and labels that are the highest logit for seven in ten images."""
    rng, (images, classes) = np.random.default_rng(0), (200, 20) if quick else (4096, 1000)
    logits = rng.normal(0, 3, (images, classes)).astype(np.float32)
    return logits, np.where(rng.random(images) < 0.7, logits.argmax(axis=1), rng.integers(0, classes, images))


def classification_table(rounds: int, logits: np.ndarray, labels: np.ndarray) -> Table:
    """Time all programs that compute top 1, top 5 and calibration error."""
    ways: dict[str, Program] = {"one read of the arrays": lambda: one_read(logits)}
    ways |= {name: functools.partial(way, logits, labels) for name, way in CLASSIFICATION_WAYS.items()}
    installed = importlib.util.find_spec("torchmetrics") is not None
    if installed:
        ways["torchmetrics: the same"] = functools.partial(torchmetrics_scores, logits, labels)
    title = f"Classification, {logits.shape[0]}x{logits.shape[1]}: top 1, top 5, class accuracy, ECE, NLL"
    return compared(title, medians(ways, rounds), "mtsp", {}, missing=() if installed else ["torchmetrics"])


def made_up_flows(quick: bool) -> Flows:
    """Return smooth flow up to about 60 px, with noise in the prediction and a tenth of the pixels unknown."""
    rng, (images, height, width) = np.random.default_rng(0), (2, 48, 64) if quick else (8, 436, 1024)
    y, x = np.mgrid[:height, :width] / height
    waves = [np.stack([np.sin(3 * x + k) * 40, np.cos(2 * y - k) * 20]) for k in range(images)]
    truth = np.stack(waves).astype(np.float32)
    noise = rng.normal(0, 2, truth.shape).astype(np.float32)
    return Flows(truth + noise, truth, rng.random((images, height, width)) < 0.9)


def one_read(*arrays: np.ndarray) -> float:
    """Return the sum of all items of contiguous arrays, read as words of four bytes."""
    words = [array.reshape(-1).view(np.uint8)[: array.nbytes // 4 * 4].view(np.float32) for array in arrays]
    return sum(float(torch.from_numpy(part).sum()) for part in words)


def ours_flow(flows: Flows, angular: bool = False) -> Numbers:
    """Compute all eight flow metrics with mtsp, and with `angular` also the angular error."""
    errors = FlowErrors(angular)
    errors.update(*flows)
    return errors.compute()


def paired(flows: Flows) -> Flows:
    """Return the same flow, stored in memory as BHW2."""
    ours, theirs = (np.ascontiguousarray(flow.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for flow in flows[:2])
    return Flows(ours, theirs, flows.valid)


def numpy_idiom(flows: Flows) -> Numbers:
    """Compute all eight flow metrics as RAFT's evaluation script does: error maps, indexed with the valid mask."""
    prediction, truth, valid = flows
    chosen = valid.reshape(-1)
    error = np.sqrt(np.sum((prediction - truth) ** 2, axis=1)).reshape(-1)[chosen]
    speed = np.sqrt(np.sum(truth**2, axis=1)).reshape(-1)[chosen]
    return _all_eight(error, speed, np.mean)


def torch_idiom(flows: Flows) -> Numbers:
    """Compute all eight flow metrics in torch, indexing with the valid mask."""
    prediction, truth, valid = map(torch.from_numpy, flows)
    error = (prediction - truth).square().sum(dim=1).sqrt()[valid]
    speed = truth.square().sum(dim=1).sqrt()[valid]
    return _all_eight(error, speed, lambda chosen: chosen.float().mean())


def _all_eight(error: Any, speed: Any, fraction: Callable[[Any], Any]) -> Numbers:
    middle = (speed >= 10) & (speed < 40)
    return {
        "epe": float(error.mean()),
        "epe_0_10": float(error[speed < 10].mean()),
        "epe_10_40": float(error[middle].mean()),
        "epe_40_plus": float(error[speed >= 40].mean()),
        **{f"out_{limit}px": float(fraction(error > limit)) for limit in (1, 3, 5)},
        "fl_all": float(fraction((error > 3) & (error / speed > 0.05))),
    }


def mmflow_formulation(flows: Flows) -> Numbers:
    """Compute EPE and Fl as mmflow's `eval_metrics` does: image by image, with new error maps for each metric.

    Both flows must be HW2 in memory, see :func:`paired`; the sum over the last axis takes most of the time.
    """
    images = [(p.transpose(1, 2, 0), t.transpose(1, 2, 0), v) for p, t, v in zip(*flows, strict=True)]
    errors, outliers = [], []
    for prediction, truth, valid in images:
        errors.append(_lengths(prediction - truth)[valid.reshape(-1) >= 0.5])
    for prediction, truth, valid in images:
        error, speed = _lengths(prediction - truth), _lengths(truth) + 1e-6
        outlier = ((error > 3) & (error / speed > 0.05)).astype(float)
        outliers.append(outlier[valid.reshape(-1) >= 0.5])
    return {"epe": float(np.concatenate(errors).mean()), "fl_all": float(np.concatenate(outliers).mean())}


def _lengths(flow: np.ndarray) -> np.ndarray:
    return np.sqrt(np.sum(flow**2, axis=-1)).reshape(-1)


def ptlflow_formulation(flows: Flows) -> Numbers:
    """Compute EPE, 1/3/5 px, Fl and WAUC as ptlflow's `FlowMetrics` does: `torch.norm` over the channels, 100
    thresholds for the area under the curve, and the mean over images of each image's mean.
    """
    prediction, truth, valid = map(torch.from_numpy, flows)
    error = torch.norm(prediction - truth, p=2, dim=1)
    speed = torch.norm(truth, p=2, dim=1)
    known, pixels = valid.float(), valid.sum(dim=(1, 2))

    def mean(values: torch.Tensor) -> float:
        return ((values * known).sum(dim=(1, 2)) / pixels).mean().item()

    weights = [1 - step / 100 for step in range(100)]
    area = sum(weight * mean((error <= (step + 1) / 20).float()) for step, weight in enumerate(weights))
    return {
        "epe_per_image": mean(error),
        **{f"out_{limit}px_per_image": mean((error > limit).float()) for limit in (1, 3, 5)},
        "fl_per_image": mean(((error > 3) & (error > 0.05 * speed)).float()),
        "wauc": area / sum(weights),
    }


FLOW_WAYS: dict[str, Callable[[Flows], Numbers]] = {
    "mtsp, all eight": ours_flow,
    "mtsp, with the angular error": lambda flows: ours_flow(flows, angular=True),
    "numpy idiom": numpy_idiom,
    "torch idiom": torch_idiom,
    "mmflow: EPE and Fl": mmflow_formulation,
    "ptlflow: FlowMetrics": ptlflow_formulation,
}


def ours_classification(logits: np.ndarray, labels: np.ndarray) -> Numbers:
    """Compute all classification metrics with mtsp."""
    scores = ClassificationScores(logits.shape[1])
    scores.update(logits, labels)
    return scores.compute()


def classification_idiom(logits: np.ndarray, labels: np.ndarray) -> Numbers:
    """Compute all classification metrics with typical numpy code: log-softmax, a sort for top 5, boolean masks."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    order = np.argsort(-logits, axis=1, kind="stable")
    right, confidence = order[:, 0] == labels, np.exp(log_softmax.max(axis=1))
    error = 0.0
    for edge in range(15):
        chosen = (confidence > edge / 15) & (confidence <= (edge + 1) / 15)
        if chosen.any():
            error += chosen.mean() * abs(right[chosen].mean() - confidence[chosen].mean())
    return {
        "top1": float(right.mean()),
        "top5": float((order[:, :5] == labels[:, None]).any(axis=1).mean()),
        "class_accuracy": float(np.mean([right[labels == k].mean() for k in np.unique(labels)])),
        "ece": float(error),
        "nll": float(-log_softmax[np.arange(len(labels)), labels].mean()),
    }


def torchmetrics_scores(logits: np.ndarray, labels: np.ndarray) -> Numbers:
    """Compute all classification metrics with torchmetrics and default arguments, and the likelihood with torch."""
    from torchmetrics.functional import classification as tm

    scores, truth, classes = torch.from_numpy(logits), torch.from_numpy(labels), logits.shape[1]
    return {
        "top1": tm.multiclass_accuracy(scores, truth, classes, average="micro").item(),
        "top5": tm.multiclass_accuracy(scores, truth, classes, average="micro", top_k=5).item(),
        "class_accuracy": tm.multiclass_accuracy(scores, truth, classes, average="macro").item(),
        "ece": tm.multiclass_calibration_error(scores, truth, classes).item(),
        "nll": torch.nn.functional.cross_entropy(scores, truth).item(),
    }


CLASSIFICATION_WAYS: dict[str, Callable[[np.ndarray, np.ndarray], Numbers]] = {
    "mtsp": ours_classification,
    "numpy idiom": classification_idiom,
}


if __name__ == "__main__":
    sys.exit(main())
