"""Define samples, batches and outputs, with the layout of every tensor.

Letters: B batch, K classes, H and W image height and width in pixels.

All are dicts, not dataclasses: PyTorch's collate function and Accelerate (device placement, float32 outputs, gathering)
handle dicts, but do not convert the fields of dataclasses.
"""

from __future__ import annotations  # torch is slow to import and needed only for the types

from typing import TYPE_CHECKING, Literal, NotRequired, Protocol, TypedDict

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

IGNORE = 255
"""Mask value of pixels of unknown class; losses and metrics ignore these pixels.

It is no class: a data set with more than 255 classes leaves out the number 255."""

LABELS = frozenset({"mask", "flow", "label"})
"""The keys of a `Batch` that are labels."""

Kind = Literal["video", "images", "pairs", "labeled"]
"""Kind of a data set, which decides the metrics that apply.

video: frames of sequences, with masks of an object (1) and background (0); metrics are J and F by sequence.
images: still images with masks of class ids; metrics are IoU by class and pixel accuracy.
pairs: pairs of frames with the flow between them.
labeled: images with one class each.
"""


class Sample(TypedDict):
    """One decoded example: numpy arrays, not augmented. Labels that the data set does not have are left out."""

    name: str  # unique within the dataset and a relative path without suffix: "surf/00054", "00050"
    frame: np.ndarray  # HW3 uint8, RGB
    next_frame: NotRequired[np.ndarray]  # HW3 uint8, RGB
    mask: NotRequired[np.ndarray]  # HW uint8 (uint16: over 255 classes), class of each pixel of `frame`, or IGNORE
    flow: NotRequired[np.ndarray]  # HW2 float32, (dx, dy) in pixels, frame -> next_frame; finite everywhere
    flow_valid: NotRequired[np.ndarray]  # HW bool, where flow is known; absent = everywhere
    label: NotRequired[int]  # class of the whole image
    mix: NotRequired[np.ndarray]  # 5 float32, as in `Batch`


class Batch(TypedDict):
    """One mini-batch. Labels that the data set does not have are left out."""

    name: list[str]
    frame: Tensor  # B3HW float, RGB in [0, 1]
    next_frame: NotRequired[Tensor]  # B3HW float, RGB in [0, 1]
    mask: NotRequired[Tensor]  # BHW long, class of each pixel of `frame`, IGNORE = unknown
    flow: NotRequired[Tensor]  # B2HW float, (dx, dy) in pixels of this resolution, frame -> next_frame
    flow_valid: NotRequired[Tensor]  # BHW bool, where flow is known; absent = everywhere
    label: NotRequired[Tensor]  # B long, class of the whole image
    mix: NotRequired[Tensor]  # B5 float, how `mtsp.batches.mixed` is to mix the image: weight, top, bottom, left, right
    other_label: NotRequired[Tensor]  # B long, class of the image that was mixed in
    label_weight: NotRequired[Tensor]  # B float in [0, 1], weight of `label`; the rest is that of `other_label`
    counts: NotRequired[dict[str, int]]  # numbers that the losses are divided by, see `mtsp.tasks.Tasks.counts`


class Outputs(TypedDict):
    """Predictions of a network. Outputs that the network does not have are left out."""

    mask_logits: NotRequired[Tensor]  # BKHW, at the input's resolution
    flow: NotRequired[Tensor]  # B2HW, (dx, dy) in pixels of the input's resolution, frame -> next_frame
    flow_pyramid: NotRequired[list[Tensor]]  # B2hw, finest first, pixels of the *input's* resolution; training only
    flow_sequence: NotRequired[list[Tensor]]  # B2HW like `flow`, estimates of rising quality, best last; training only
    label_logits: NotRequired[Tensor]  # BK, class of the whole image
    aux_mask_logits: NotRequired[Tensor]  # BKHW, of a head on earlier features; training only
    se_logits: NotRequired[Tensor]  # BK, whether the class is anywhere in `mask`; training only
    aux_label_logits: NotRequired[Tensor]  # BK, of a head on earlier features; training only


class Examples(Protocol):
    """A data set. Its samples have the keys of `Batch`, with tensors without the batch dimension and a list of one
    name.
    """

    @property
    def kind(self) -> Kind:
        """Kind of the data set, which decides the metrics that apply."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Batch:
        """Return sample `index` for evaluation: nothing random, native resolution."""
        ...

    def train_sample(self, index: int, rng: np.random.Generator) -> Batch:
        """Return sample `index` for training: augmented, with every random choice taken from `rng`."""
        ...
