"""Evaluate a network on every example once, on any number of processes, and merge their results at the end."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import groupby, islice
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from mtsp.batches import collate, evaluating, resize_maps, to_device
from mtsp.distributed.sharding import has_shards
from mtsp.evaluation.metrics_by_kind import METRICS, Metric
from mtsp.evaluation.scores import is_known
from mtsp.evaluation.tta import Tta, single_view
from mtsp.files.read_ahead import one_behind, read_ahead
from mtsp.types import Batch, Examples, Kind, Outputs


class EvaluationStopped(Exception):
    """Raised on all processes when one of them was asked to stop during an evaluation."""


class Evaluation(NamedTuple):
    """Metrics of one data set: those with labels in the data set and with an output of the network."""

    metrics: tuple[Metric, ...] = ()
    unknown: Mapping[str, Sequence[str]] = MappingProxyType({})
    """Ids of the examples of which no pixel of a label, "mask" or "flow", is known: no value counts them."""
    derived: Mapping[str, float] = MappingProxyType({})
    """Further values, computed from other evaluations; they are headlines, too."""

    def values(self) -> dict[str, float]:
        """Return all finite values, by name, for the tracker."""
        found = {name: value for metric in self.metrics for name, value in metric.compute().items()} | {**self.derived}
        return {name: float(value) for name, value in found.items() if math.isfinite(value)}

    def headlines(self) -> dict[str, float]:
        """Return the few of :meth:`values` that the console shows."""
        wanted = {name for metric in self.metrics for name in metric.headlines} | self.derived.keys()
        return {name: value for name, value in self.values().items() if name in wanted}


@torch.no_grad()
def evaluate(
    accelerator: Accelerator,
    model: nn.Module,
    examples: Examples,
    *,
    tta: Tta = single_view,
    batch_size: int = 1,
    workers: int = 0,
    channels_last: bool = True,
    after_example: Callable[[int, Batch, Outputs], None] = lambda index, batch, outputs: None,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Evaluate the network on every example once, at the resolution of the labels.

    The kind of data set determines the metrics, see :data:`~mtsp.evaluation.metrics_by_kind.METRICS`. Each of n
    processes takes every n-th example, without padding and without collective operations in the loop. All processes
    return the same result, which does not depend on their number.

    Args:
        accelerator: provides the device and the processes.
        model: wrapped or not; its training or evaluation mode is restored afterwards.
        examples: frames may be smaller than their labels; predictions are resized to the labels.
        tta: test-time augmentation; by default, a single forward pass on the whole frame.
        batch_size: largest number of examples per batch. Only consecutive examples of the same size share a batch. The
            last digits of the results may depend on the batch size.
        workers: number of threads that decode examples ahead; 0 decodes each example when it is needed.
        channels_last: memory format of the images; should match the network's.
        after_example: called after each example, on the process that evaluates it, with its index, a batch of one, and
            the outputs. Calls are in order and never at once, in a thread that measures while the network predicts.
        stop: returns whether this process asks to stop; called before each batch.

    Raises:
        EvaluationStopped: a process asked to stop; the others finish their examples first.
    """
    bare = accelerator.unwrap_model(model)
    if accelerator.num_processes > 1 and not has_shards(bare):
        for buffer in bare.buffers():  # without SyncBN they differ between processes; use those that are saved
            torch.distributed.broadcast(buffer, 0)
    on_device = partial(to_device, device=accelerator.device, channels_last=channels_last)
    measured: dict[type[Metric], Metric] = {}
    unknown: list[tuple[int, str, str]] = []
    mine = range(accelerator.process_index, len(examples), accelerator.num_processes)
    samples = read_ahead(examples.__getitem__, mine, threads=workers, ahead=2 * workers)
    groups = 0
    stopped = False

    @torch.no_grad()  # which holds in one thread only
    def measure(indices: Sequence[int], batch: Batch, predicted: Outputs) -> None:
        outputs = at_resolution(predicted, batch)
        for metric in METRICS[examples.kind]:
            if metric.label in batch and metric.output in outputs:
                prediction: Tensor = outputs[metric.output]
                measured.setdefault(metric, metric(prediction.shape[1])).update(batch["name"], prediction, batch)
        for place, index in enumerate(indices):
            one = _one_of(batch, place)
            unknown.extend(
                (index, m.label, one["name"][0]) for m in measured if m.label in one and not is_known(one, m.label)
            )
            after_example(index, one, _one_of(outputs, place))

    with closing(samples), evaluating(bare), one_behind(measure, threaded=not has_shards(bare)) as measure_beside:
        for indices, batch in _batches(zip(mine, samples, strict=True), 1 if has_shards(bare) else batch_size):
            stopped = stopped or stop()
            if stopped and not has_shards(bare):
                break
            measure_beside(indices, batch, tta(bare, on_device(batch)))
            groups += 1
        if has_shards(bare):  # every process must join every forward pass, even with one example fewer
            for _ in range(math.ceil(len(examples) / accelerator.num_processes) - groups):
                tta(bare, on_device(collate([examples[0]])))
    return _merged(accelerator, examples.kind, measured, unknown, stopped)


def at_resolution(outputs: Outputs, batch: Batch) -> Outputs:
    """Return the predictions resized to the labels of the batch; flow vectors are scaled accordingly."""
    scaled: Outputs = {}
    if "mask_logits" in outputs:
        scaled["mask_logits"] = _resized(outputs["mask_logits"].float(), batch.get("mask"))
    if "flow" in outputs:
        flow = outputs["flow"].float()
        resized = _resized(flow, batch.get("flow"))
        factors = [resized.shape[-1] / flow.shape[-1], resized.shape[-2] / flow.shape[-2]]
        scaled["flow"] = resized * flow.new_tensor(factors).view(1, 2, 1, 1)
    if "label_logits" in outputs:
        scaled["label_logits"] = outputs["label_logits"].float()
    return scaled


def _resized(values: Tensor, label: Tensor | None) -> Tensor:
    return values if label is None else resize_maps(values, (label.shape[-2], label.shape[-1]))


def _batches(decoded: Iterable[tuple[int, Batch]], size: int) -> Iterator[tuple[list[int], Batch]]:
    """Yield batches of up to `size` consecutive examples with the same labels and sizes."""
    for _, alike in groupby(decoded, key=lambda one: _shapes(one[1])):
        while some := list(islice(alike, size)):
            yield [index for index, _ in some], collate([sample for _, sample in some])


def _shapes(sample: Batch) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in sample.items() if isinstance(value, Tensor)}


def _one_of(values: Any, place: int) -> Any:
    """Return one example of a batch, or its outputs, as a batch of one."""
    return {key: value[place : place + 1] for key, value in values.items()}


def _merged(
    accelerator: Accelerator,
    kind: Kind,
    measured: dict[type[Metric], Metric],
    unknown: list[tuple[int, str, str]],
    stopped: bool,
) -> Evaluation:
    """Return the metrics merged over all processes, in the order of `METRICS`."""
    everyone, stops = [measured], [stopped]
    if accelerator.num_processes > 1:
        everyone, stops = zip(*gather_object([(measured, stopped)]), strict=True)
        unknown = sorted(gather_object(unknown))
    if any(stops):
        raise EvaluationStopped
    metrics: list[Metric] = []
    for metric in METRICS[kind]:
        present = [one[metric] for one in everyone if metric in one]
        for other in present[1:]:
            present[0].merge(other)
        metrics += present[:1]
    labels = {metric.label: [name for _, label, name in unknown if label == metric.label] for metric in metrics}
    return Evaluation(tuple(metrics), labels)


def describe(values: Mapping[str, float]) -> str:
    """Return the values and their names as one line of text."""
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())
