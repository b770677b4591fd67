"""Evaluation: every example once, on any number of processes, reduced once."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from mtsp.batches import collate, evaluating, read_ahead, to_device
from mtsp.distributed.sharding import is_sharded
from mtsp.evaluation.tta import Tta, single_view
from mtsp.metrics.classification import ClassificationScores
from mtsp.metrics.davis import DavisMeasure
from mtsp.metrics.flow import FlowErrors
from mtsp.metrics.segmentation import ConfusionMatrix
from mtsp.types import IGNORE, Batch, Examples, Outputs


class Evaluation(NamedTuple):
    """What was measured on one dataset. A metric whose label the data does not have is None."""

    davis: DavisMeasure | None = None
    pixels: ConfusionMatrix | None = None
    flow: FlowErrors | None = None
    labels: ClassificationScores | None = None

    def values(self) -> dict[str, float]:
        """Return the numbers a tracker wants: names and finite values."""
        found: dict[str, Any] = {}
        if self.davis is not None:
            found |= self.davis.compute()
        if self.pixels is not None:
            found |= {k: v for k, v in self.pixels.compute().items() if k in ("pixel_accuracy", "miou")}
        if self.flow is not None:
            found |= self.flow.compute()
        if self.labels is not None:
            found |= self.labels.compute()
        return {k: float(v) for k, v in found.items() if isinstance(v, int | float) and math.isfinite(v)}


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
) -> Evaluation:
    """Measure the network on every example once, at the labels' own resolution; the same on any number of processes.

    Each process takes every n-th example, without padding and without a collective inside the loop; what they measured
    is merged at the end and is the same on all of them.

    Args:
        accelerator: of the run.
        model: wrapped or not; left in the mode it was in.
        examples: frames may be smaller than their labels; predictions are scaled to the labels.
        tta: how the network looks at a batch; by default once, at the whole frame.
        batch_size: examples that follow each other are measured together, up to this many, while their sizes agree.
            Networks round differently in batches of different sizes, in the last digits.
        workers: threads that decode the examples ahead; 0 decodes each when it is its turn.
        channels_last: memory format of the images, which should be the network's.
        after_example: called on every process with its own examples: index, batch of one, outputs.
    """
    bare = accelerator.unwrap_model(model)
    if accelerator.num_processes > 1 and not is_sharded(bare):
        for buffer in bare.buffers():  # without SyncBN each process has statistics of its own: measure the saved ones
            torch.distributed.broadcast(buffer, 0)
    on_device = partial(to_device, device=accelerator.device, channels_last=channels_last)
    measured = Evaluation()
    mine = range(accelerator.process_index, len(examples), accelerator.num_processes)
    samples = read_ahead(examples.__getitem__, mine, threads=workers, ahead=2 * workers)
    groups = 0
    with closing(samples), evaluating(bare):
        for indices, batch in _batches(zip(mine, samples, strict=True), 1 if is_sharded(bare) else batch_size):
            outputs = at_resolution(tta(bare, on_device(batch)), batch)
            measured = _updated(measured, batch, outputs)
            for place, index in enumerate(indices):
                after_example(index, _one_of(batch, place), _one_of(outputs, place))
            groups += 1
        if is_sharded(bare):  # all processes take part in every forward pass, also one with an example less
            for _ in range(math.ceil(len(examples) / accelerator.num_processes) - groups):
                tta(bare, on_device(collate([examples[0]])))
    return Evaluation(*(_merged(accelerator, metric) for metric in measured))


def _updated(measured: Evaluation, batch: Batch, outputs: Outputs) -> Evaluation:
    """Return what has been measured, this batch included."""
    davis, pixels, flow, labels = measured
    if "mask" in batch and "mask_logits" in outputs:
        classes = outputs["mask_logits"].shape[1]
        pixels = pixels or ConfusionMatrix(classes)
        pixels.update(outputs["mask_logits"], batch["mask"], batch["name"])
        if classes == 2:
            davis = davis or DavisMeasure()
            known = (batch["mask"] != IGNORE).numpy()
            predicted = outputs["mask_logits"].argmax(1).cpu().numpy() == 1
            truth = batch["mask"].numpy() == 1
            for place, name in enumerate(batch["name"]):
                davis.update(name, predicted[place] & known[place], truth[place] & known[place])
    if "flow" in batch and "flow" in outputs:
        flow = flow or FlowErrors()
        flow.update(outputs["flow"].float().cpu(), batch["flow"], batch.get("flow_valid"), batch["name"])
    if "label" in batch and "label_logits" in outputs:
        labels = labels or ClassificationScores(outputs["label_logits"].shape[1])
        labels.update(outputs["label_logits"].float(), batch["label"])
    return Evaluation(davis, pixels, flow, labels)


def at_resolution(outputs: Outputs, batch: Batch) -> Outputs:
    """Return the predictions at the resolution of the batch's labels; flow vectors grow with their image."""
    scaled: Outputs = {}
    if "mask_logits" in outputs:
        logits = outputs["mask_logits"].float()
        size = tuple(batch["mask"].shape[-2:]) if "mask" in batch else tuple(logits.shape[-2:])
        scaled["mask_logits"] = _resized(logits, size)
    if "flow" in outputs:
        flow = outputs["flow"].float()
        size = tuple(batch["flow"].shape[-2:]) if "flow" in batch else tuple(flow.shape[-2:])
        factor = flow.new_tensor([size[1] / flow.shape[-1], size[0] / flow.shape[-2]])
        scaled["flow"] = _resized(flow, size) * factor.view(1, 2, 1, 1)
    if "label_logits" in outputs:
        scaled["label_logits"] = outputs["label_logits"].float()
    return scaled


def _resized(values: Tensor, size: tuple[int, ...]) -> Tensor:
    if tuple(values.shape[-2:]) == size:
        return values
    return F.interpolate(values, size=size, mode="bilinear", align_corners=False)


def _batches(decoded: Iterable[tuple[int, Batch]], size: int) -> Iterator[tuple[list[int], Batch]]:
    """Yield batches of up to `size` examples that follow each other and have the same labels and sizes."""
    indices: list[int] = []
    samples: list[Batch] = []
    for index, sample in decoded:
        if samples and (len(samples) == size or _shapes(sample) != _shapes(samples[0])):
            yield indices, collate(samples)
            indices, samples = [], []
        indices.append(index)
        samples.append(sample)
    if samples:
        yield indices, collate(samples)


def _shapes(sample: Batch) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in sample.items() if isinstance(value, Tensor)}


def _one_of(values: Any, place: int) -> Any:
    """Return one example of a batch, or of what was predicted of it, as a batch of one."""
    return {key: value[place : place + 1] for key, value in values.items()}


def _merged(accelerator: Accelerator, metric: Any) -> Any:
    if accelerator.num_processes == 1:
        return metric
    present = [other for other in gather_object([metric]) if other is not None]
    for other in present[1:]:
        present[0].merge(other)
    return present[0] if present else None


def describe(values: Mapping[str, float]) -> str:
    """Return numbers as one readable line."""
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())
