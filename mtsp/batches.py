"""Collate samples into batches, move batches to a device, resize maps, and put a network in evaluation mode."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from mtsp.types import Batch, Examples

_ALIGNMENT = 64  # bytes
ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Failure(NamedTuple):
    """The error message of a sample that could not be read; worker processes return it instead of raising."""

    message: str


def collate(samples: Sequence[Batch]) -> Batch:
    """Return samples as one batch, with names in a list and tensors stacked.

    Raises:
        ValueError: the samples have different labels or sizes; the message names two such samples.
    """
    first = samples[0]
    keys = [key for key in first if key != "name"]
    batch: dict[str, Any] = {"name": [name for sample in samples for name in sample["name"]]}
    for other in samples[1:]:
        refusal = f"{first['name'][0]} and {other['name'][0]} cannot share a batch"
        if odd := other.keys() ^ first.keys():
            raise ValueError(f"{refusal}: only one of them has {', '.join(sorted(odd))}")
        for key in keys:
            ours, theirs = tuple(first[key].shape), tuple(other[key].shape)
            if ours != theirs:
                raise ValueError(f"{refusal}: their {key} has sizes {ours} and {theirs}; crop or resize to one size")
    return batch | {key: torch.stack([s[key] for s in samples]) for key in keys}  # pyright: ignore[reportReturnType]


class Packed(NamedTuple):
    """A batch whose tensors are parts of one, so that a worker process sends one file, not one per tensor."""

    data: Tensor
    parts: dict[str, Sequence[Any]]
    """First byte, number of bytes, type, shape and strides of each tensor, by its key in the batch."""
    rest: dict[str, Any]


def packed(batch: Batch, *, channels_last: bool = False, shared: bool = False) -> Packed:
    """Return a batch in one block of memory, of which `shared` memory reaches other processes without a copy.

    Images are in channels_last memory format if asked for, all other tensors are contiguous.
    """
    tensors = {key: value for key, value in batch.items() if isinstance(value, Tensor)}
    parts, size = {}, 0
    for key, value in tensors.items():
        form = torch.channels_last if channels_last and value.ndim == 4 else torch.contiguous_format
        strides = torch.empty(value.shape, device="meta", memory_format=form).stride()
        parts[key] = (size, value.nbytes, value.dtype, tuple(value.shape), strides)
        size += -(-value.nbytes // _ALIGNMENT) * _ALIGNMENT
    storage = torch.UntypedStorage._new_shared(size) if shared else torch.UntypedStorage(size)
    data = torch.empty(0, dtype=torch.uint8).set_(storage)
    for key, value in tensors.items():
        _part(data, parts[key]).copy_(value)
    return Packed(data, parts, {key: value for key, value in batch.items() if key not in tensors})


def unpacked(batch: Packed) -> Batch:
    """Return the batch that was given to :func:`packed`, without copying."""
    tensors: dict[str, Any] = {key: _part(batch.data, part) for key, part in batch.parts.items()}
    return batch.rest | tensors  # pyright: ignore[reportReturnType]


def _part(data: Tensor, part: Sequence[Any]) -> Tensor:
    first, size, dtype, shape, strides = part
    return data[first : first + size].view(dtype).as_strided(shape, strides)


def mixed(batch: Batch) -> Batch:
    """Return a batch whose images are mixed in pairs, 0 with 1, 2 with 3, by mixup or CutMix as their `mix` says.

    A pair is never divided among micro-batches or processes, so both give the same. The label becomes a weighted one.

    Raises:
        ValueError: the number of images is odd.
    """
    if "mix" not in batch or "label" not in batch:
        return batch
    frame, mix = batch["frame"], batch["mix"]
    if len(frame) % 2:
        raise ValueError(
            f"mixup and CutMix mix pairs of images, but a micro-batch has {len(frame)}; let train.stages batch_size be "
            "a multiple of 2 x processes x train.accumulate"
        )
    partner = torch.arange(len(frame)) ^ 1
    images = frame.clone()
    for i, (weight, *box) in enumerate(mix.tolist()):
        top, bottom, left, right = map(int, box)
        if bottom:
            images[i, :, top:bottom, left:right] = frame[partner[i], :, top:bottom, left:right]
        else:
            images[i] = frame[partner[i]].lerp(frame[i], weight)
    rest = {key: value for key, value in batch.items() if key != "mix"}
    labels = {"other_label": batch["label"][partner], "label_weight": mix[:, 0]}
    return Batch(**{**rest, "frame": images, **labels})  # pyright: ignore[reportArgumentType]


def first_sample(examples: Examples) -> Batch:
    """Return the first example as a training sample, always with the same augmentation."""
    return examples.train_sample(0, np.random.default_rng(0))


def frame_shapes(sample: Batch, count: int) -> list[tuple[int, ...]]:
    """Return the shapes of a network's inputs, the frame and, if there is one, the next, in a batch of `count`."""
    frames = [sample["frame"], *([sample["next_frame"]] if "next_frame" in sample else [])]
    return [(count, *frame.shape) for frame in frames]


def to_device(batch: Batch, device: torch.device, *, channels_last: bool = True) -> Batch:
    """Return the batch with its tensors on `device`; images are in channels_last memory format by default."""
    moved = {}
    for key, value in batch.items():
        if isinstance(value, Tensor):
            value = value.to(device, non_blocking=True)
            if value.ndim == 4 and channels_last:
                value = value.contiguous(memory_format=torch.channels_last)
        moved[key] = value
    return moved  # pyright: ignore[reportReturnType]


def in_channels_last(network: ModuleT, wanted: bool = True) -> ModuleT:
    """Return the network with its weights in the memory format channels_last, or unchanged if that is not wanted."""
    return network.to(memory_format=torch.channels_last) if wanted else network  # pyright: ignore[reportCallIssue]


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps, BCHW, resized bilinearly to height and width `size`; the maps themselves if they have this size."""
    if maps.shape[-2:] == size:
        return maps
    return nn.functional.interpolate(maps, size, mode="bilinear", align_corners=False)


def tensors_in(outputs: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested dicts and sequences."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        for value in outputs.values():
            yield from tensors_in(value)
    elif isinstance(outputs, Sequence):
        for value in outputs:
            yield from tensors_in(value)


def without_computing(model: nn.Module, *inputs: Tensor) -> Any:
    """Return what `model` would return for `inputs`, with shapes but without values, in little time and memory.

    Weights and inputs are replaced by tensors on the `meta` device. Where that fails, as in networks that look at
    values, the network is run as it is; statistics of its norm layers stay. What it then raises is raised.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    call = torch.func.functional_call
    with torch.no_grad():
        try:
            return call(
                model, {n: x.detach().to("meta") for n, x in tensors.items()}, tuple(x.to("meta") for x in inputs)
            )
        except Exception:  # of any type: layers check their inputs in many ways
            return call(model, {name: buffer.clone() for name, buffer in model.named_buffers()}, inputs)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put all modules of `model` in evaluation mode within the context; afterwards restore the mode of each."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
