"""Test-time augmentation: predict for whole images, or for several crops and scales, and combine the predictions."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from mtsp.config import Config
from mtsp.types import Batch, Outputs

Network = Callable[[Tensor, Tensor | None], Outputs]
"""`network(frame, next_frame)`: a network in evaluation mode; both frames are B3HW in [0, 1]."""

Size = tuple[int, int]
"""Height and width in pixels."""

Side = Annotated[int, Field(gt=0)]
Scale = Annotated[float, Field(gt=0)]

_LARGEST = 80.0  # a thousand scores of e^80 still fit into float32, which ends at e^88.7


Tta = Callable[[Network, Batch], Outputs]
"""`tta(network, batch)` returns predictions for whole images: masks at the frame's resolution, or labels."""


class NoTtaConfig(Config):
    """No augmentation: a single forward pass on the unchanged frame."""

    name: Literal["none"] = "none"

    def build(self) -> Tta:
        """Return the augmentation."""
        return single_view


def single_view(network: Network, batch: Batch) -> Outputs:
    """Return the prediction of `network` for the unchanged frame."""
    return network(batch["frame"], batch.get("next_frame"))


class MultiScaleConfig(Config):
    """EncNet's multi-scale evaluation: several scales, overlapping square windows, and flipped windows.

    The logits of the flipped window are flipped back and added to the logits of the window. The score of the window is
    the exponential of this sum, not normalized over classes. Scores are averaged where windows overlap, and summed over
    scales. For single-scale evaluation, set `scales: [1.0], flip: false`.

    Sizes, window positions, padding (black, right and below) and interpolation (bilinear, corners aligned) follow the
    authors' PyTorch-Encoding (release 0.5). Departures: all windows have the same shape, so that they can be batched;
    and all scores are divided by a common factor, which keeps the largest within float32.
    """

    name: Literal["multi_scale"]
    base: Side = 520
    """Length of the image's longer side at scale 1, in pixels."""
    crop: Side = 480
    """Side of a square window in pixels. Windows are black beyond the image."""
    scales: Annotated[tuple[Scale, ...], Field(min_length=1)] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    stride: Annotated[float, Field(gt=0, le=1)] = 2 / 3
    """Distance between windows as a fraction of `crop`, rounded down to pixels."""
    flip: bool = True
    batch_size: Annotated[int, Field(gt=0)] = 8
    """Number of windows per forward pass, flipped ones included. Changes memory and speed, not the result."""

    @model_validator(mode="after")
    def _windows_move(self) -> "MultiScaleConfig":
        if int(self.crop * self.stride) < 1:
            raise ValueError(f"stride {self.stride} of a crop of {self.crop} pixels is less than one pixel")
        return self

    def build(self) -> Tta:
        """Return the augmentation."""
        return partial(_multi_scale, self)

    def starts(self, side: int) -> range:
        """Return the first pixel of each window along a side: every stride, until a window reaches the end."""
        stride = int(self.crop * self.stride)
        return range(0, max(0, math.ceil((side - self.crop) / stride)) * stride + 1, stride)


class _Window(NamedTuple):
    """Upper left corner of a window, in the image at scale number `scale`."""

    scale: int
    top: int
    left: int


def _multi_scale(config: MultiScaleConfig, network: Network, batch: Batch) -> Outputs:
    """Return `mask_logits`, BKHW: the logarithm of the summed scores. The next frame is cropped like the frame."""
    images = torch.cat([batch["frame"], *([batch["next_frame"]] if "next_frame" in batch else [])], dim=1)
    size = (images.shape[-2], images.shape[-1])
    sizes = [_scaled(size, math.ceil(config.base * scale)) for scale in config.scales]
    enlarged = [_enlarged(config, images, scaled) for scaled in sizes]
    windows = [
        _Window(scale, top, left)
        for scale, (height, width) in enumerate(sizes)
        for top, left in product(config.starts(height), config.starts(width))
    ]
    scores = _Scores(size, sizes)
    at_once, crop = max(1, config.batch_size // (len(images) * (2 if config.flip else 1))), config.crop
    for start in range(0, len(windows), at_once):
        seen = windows[start : start + at_once]
        cut = [enlarged[scale][..., top : top + crop, left : left + crop] for scale, top, left in seen]
        logits = _window_logits(network, torch.cat(cut), config.flip)
        scores.add(seen, logits.unflatten(0, (len(seen), len(images))))
    return Outputs(mask_logits=scores.logarithm())


def _enlarged(config: MultiScaleConfig, images: Tensor, size: Size) -> Tensor:
    """Return `images` at `size`, padded with black on the right and below so that the last windows fit."""
    scaled = F.interpolate(images, size=size, mode="bilinear", align_corners=True)
    below, right = (config.starts(side)[-1] + config.crop - side for side in size)
    return F.pad(scaled, (0, max(0, right), 0, max(0, below)))


def _window_logits(network: Network, images: Tensor, flip: bool) -> Tensor:
    """Return the logits of each window, NKHW float32; with `flip`, plus those of the flipped window."""
    count = len(images)
    if flip:
        images = torch.cat([images, images.flip(-1)])
    frames = images[:, :3].contiguous(memory_format=torch.channels_last)
    following = images[:, 3:].contiguous(memory_format=torch.channels_last) if images.shape[1] > 3 else None
    outputs = network(frames, following)
    if "mask_logits" not in outputs:
        raise ValueError("tta `multi_scale` needs masks, and this network predicts none; use tta `none`")
    logits = outputs["mask_logits"].float()
    return logits[count:].flip(-1).add_(logits[:count]) if flip else logits.clone()


class _Scores:
    """Exponentials of logits, averaged over the windows of each scale and summed over scales.

    Windows must be added scale by scale. All stored scores are divided by e^offset, so that the largest score so far is
    at most e^80, which does not overflow. The largest score of the first windows is e^80, so that few become zero.
    """

    def __init__(self, size: Size, sizes: Sequence[Size]) -> None:
        self.size, self.sizes = size, sizes
        self.offset: Tensor | None = None
        self.total: Tensor | None = None
        self.scale = -1
        self.scores: Tensor | None = None  # BKHW, of the current scale
        self.windows: Tensor | None = None  # 11HW, number of windows that cover each pixel

    def add(self, windows: Sequence[_Window], logits: Tensor) -> None:
        """Add the logits of `windows`, NBKHW, which are overwritten."""
        offset = self._make_room(logits.amax())  # max() takes ten times as long where channels are last
        for window, score in zip(windows, logits.sub_(offset).exp_(), strict=True):
            if window.scale != self.scale:
                self._finish_scale()
                self.scale, size = window.scale, self.sizes[window.scale]
                scores, self.windows = score.new_zeros(*score.shape[:2], *size), score.new_zeros(1, 1, *size)
                self.scores = scores.contiguous(memory_format=_layout(score))  # adding is slow between two layouts
            assert self.scores is not None
            assert self.windows is not None
            rows, columns = (slice(at, at + score.shape[-1]) for at in (window.top, window.left))
            part = self.scores[..., rows, columns]
            part += score[..., : part.shape[-2], : part.shape[-1]]
            self.windows[..., rows, columns] += 1

    def logarithm(self) -> Tensor:
        """Return the logarithm of the sum over all scales, BKHW; a sum of 0 becomes the smallest normal float."""
        self._finish_scale()
        assert self.total is not None
        assert self.offset is not None
        return self.total.clamp_min_(torch.finfo(self.total.dtype).tiny).log_().add_(self.offset)

    def _finish_scale(self) -> None:
        if self.scores is not None and self.windows is not None:
            mean = self.scores.div_(self.windows).contiguous()  # interpolation rounds differently with channels last
            mean = F.interpolate(mean, size=self.size, mode="bilinear", align_corners=True)
            self.total = mean if self.total is None else self.total.add_(mean)
            self.scores = self.windows = None

    def _make_room(self, largest: Tensor) -> Tensor:
        """Raise the offset to fit the logit `largest`, without waiting for the device, and return the offset."""
        before = self.offset if self.offset is not None else largest - _LARGEST
        self.offset = torch.maximum(before, largest - _LARGEST)
        for kept in (self.total, self.scores):
            if kept is not None:
                kept *= (before - self.offset).exp()
        return self.offset


def _layout(images: Tensor) -> torch.memory_format:
    last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


class MultiCropConfig(Config):
    """Average the class probabilities over several crops of a labeled image.

    `sizes: [256], crop: 224, places: corners, flip: true` gives the ten crops of Krizhevsky et al. (NeurIPS 2012).
    """

    name: Literal["multi_crop"]
    sizes: Annotated[tuple[Side, ...], Field(min_length=1)] = (256,)
    """Lengths in pixels to resize the image's shorter side to; the aspect ratio is kept."""
    crop: Side = 224
    """Side of a square crop in pixels."""
    places: Literal["center", "corners"] = "corners"
    """Positions of the crops: the center only, or the four corners and the center."""
    flip: bool = True
    batch_size: Annotated[int, Field(gt=0)] = 32
    """Number of crops per forward pass. Changes memory and speed, not the result."""

    @model_validator(mode="after")
    def _crops_fit(self) -> "MultiCropConfig":
        if self.crop > min(self.sizes):
            raise ValueError(
                f"a crop of {self.crop} pixels does not fit into an image whose short side is {min(self.sizes)}"
            )
        return self

    def build(self) -> Tta:
        """Return the augmentation."""
        return partial(_multi_crop, self)


def _multi_crop(config: MultiCropConfig, network: Network, batch: Batch) -> Outputs:
    """Return `label_logits`, BK: the logarithm of each class's mean probability over the crops."""
    images = batch["frame"]
    crops = torch.cat([crop for size in config.sizes for crop in _cut_crops(config, _at_short_side(images, size))])
    if config.flip:
        crops = torch.cat([crops, crops.flip(-1)])
    logits = []
    for part in crops.contiguous(memory_format=torch.channels_last).split(config.batch_size):
        outputs = network(part, None)
        if "label_logits" not in outputs:
            raise ValueError("tta `multi_crop` needs labels, and this network predicts none; use tta `none`")
        logits.append(outputs["label_logits"].float())
    chances = torch.cat(logits).log_softmax(1).view(-1, len(images), logits[0].shape[1])
    return Outputs(label_logits=chances.logsumexp(0) - math.log(len(chances)))


def _cut_crops(config: MultiCropConfig, images: Tensor) -> list[Tensor]:
    crop = config.crop
    bottom, right = images.shape[-2] - crop, images.shape[-1] - crop
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)] if config.places == "corners" else []
    middle = (round(bottom / 2), round(right / 2))
    return [images[..., top : top + crop, left : left + crop] for top, left in (*corners, middle)]


AnyTta = Annotated[NoTtaConfig | MultiScaleConfig | MultiCropConfig, Field(discriminator="name")]
"""Test-time augmentation, selected by name: `evaluation.tta: {name: multi_scale}`."""


def _scaled(size: Size, long_side: int) -> Size:
    """Return `size` scaled to a longer side of `long_side`, with the aspect ratio kept and halves rounded up."""
    height, width = size
    if height > width:
        return long_side, max(1, int(width * long_side / height + 0.5))
    return max(1, int(height * long_side / width + 0.5)), long_side


def _at_short_side(images: Tensor, side: int) -> Tensor:
    """Return `images`, BCHW, resized to a shorter side of `side`, with antialiasing."""
    height, width = images.shape[-2:]
    short = min(height, width)
    size = (int(height * side / short), int(width * side / short))  # as torchvision rounds
    return images if size == (height, width) else F.interpolate(images, size=size, mode="bilinear", antialias=True)
