"""Define tasks: the losses for each kind of label, and the number that each loss is divided by.

A task whose label is missing in a batch contributes nothing. The loss of one optimizer step is a sum over all its
micro-batches and processes, divided by a count over all of them: never a mean of means.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from mtsp.batches import collate, mixed
from mtsp.config import Config
from mtsp.losses import (
    SCALE_WEIGHTS,
    cross_entropy,
    end_point_error,
    flow_count,
    image_count,
    known_image_count,
    label_cross_entropy,
    mask_count,
    multiscale_epe,
    se_loss,
    sequence_count,
    sequence_loss,
)
from mtsp.overlap_losses import dice_loss, lovasz_loss
from mtsp.types import Batch, Outputs

_OUTPUTS = {
    "segmentation": "mask_logits",
    "segmentation_focal": "mask_logits",
    "segmentation_dice": "mask_logits",
    "segmentation_lovasz": "mask_logits",
    "segmentation_aux": "aux_mask_logits",
    "segmentation_se": "se_logits",
    "flow": "flow",
    "flow_multiscale": "flow_pyramid",
    "flow_sequence": "flow_sequence",
    "classification": "label_logits",
    "classification_aux": "aux_label_logits",
}
"""Output of the network that each loss needs, by the name of the loss."""


class Task(Config):
    """A kind of label and its losses."""

    label: ClassVar[str]
    """Key of the label in a batch."""

    @property
    def names(self) -> list[str]:
        """Names of the losses in use."""
        raise NotImplementedError

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return, for each loss, the number to divide it by in this batch; empty if the batch lacks the label."""
        return {name: self._count(name, batch) for name in self.names} if self.label in batch else {}

    def sums(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted losses of this batch before division. Losses with a missing output are left out."""
        if self.label not in batch:
            return {}
        given: Any = outputs
        found = {name: given[key] for name in self.names if (key := _OUTPUTS[name]) in outputs}
        return {name: self._loss(name, prediction, batch) for name, prediction in found.items()}

    def _count(self, name: str, batch: Any) -> Tensor:
        raise NotImplementedError

    def _loss(self, name: str, prediction: Any, batch: Any) -> Tensor:
        raise NotImplementedError


class SegmentationConfig(Task):
    """Losses of segmentation, computed from masks."""

    label = "mask"

    weight: float = Field(default=1.0, ge=0)
    """Weight of the cross-entropy."""
    class_balance: bool = True
    """Weight each pixel by 1 minus the fraction of pixels with the same class in its frame, as SegFlow's authors do, in
    cross-entropy and focal loss."""
    reduction: Literal["mean", "sum"] = "mean"
    """Reduction of cross-entropy and focal loss: `mean` over pixels, or `sum` over pixels and mean over images, as in
    the Caffe release."""
    focal_loss: float = Field(default=0.0, ge=0)
    """Weight of the focal loss, a cross-entropy in which pixels that are easy count little."""
    focal_gamma: float = Field(default=2.0, ge=1)
    """Exponent of the focal loss: larger values let easy pixels count less."""
    dice_loss: float = Field(default=0.0, ge=0)
    """Weight of the Dice loss, which is mean over the classes of an image, then over images."""
    lovasz_loss: float = Field(default=0.0, ge=0)
    """Weight of the Lovasz-Softmax loss, which follows the IoU; mean over the classes of an image, then over images."""
    aux_loss: float = Field(default=0.0, ge=0)
    """Weight of the cross-entropy of the auxiliary head's mask; EncNet uses 0.2."""
    se_loss: float = Field(default=0.0, ge=0)
    """Weight of the semantic encoding loss (SE-loss), which predicts the classes in the image; EncNet uses 0.2."""

    @property
    def names(self) -> list[str]:
        """Names of the losses in use."""
        return [name for name, weight in self._weights().items() if weight]

    def _weights(self) -> dict[str, float]:
        return {
            "segmentation": self.weight,
            "segmentation_focal": self.focal_loss,
            "segmentation_dice": self.dice_loss,
            "segmentation_lovasz": self.lovasz_loss,
            "segmentation_aux": self.aux_loss,
            "segmentation_se": self.se_loss,
        }

    def _count(self, name: str, batch: Any) -> Tensor:
        per_image = name in ("segmentation_dice", "segmentation_lovasz", "segmentation_se")
        return known_image_count(batch["mask"]) if per_image else mask_count(batch["mask"], self.reduction)

    def _loss(self, name: str, prediction: Any, batch: Any) -> Tensor:
        per_image = {"segmentation_dice": dice_loss, "segmentation_lovasz": lovasz_loss, "segmentation_se": se_loss}
        if name in per_image:
            loss = per_image[name](prediction, batch["mask"])
        else:
            loss = cross_entropy(
                prediction,
                batch["mask"],
                class_balance=self.class_balance,
                reduction=self.reduction,
                focal_gamma=self.focal_gamma if name == "segmentation_focal" else 0.0,
            )
        return self._weights()[name] * loss.total


class FlowConfig(Task):
    """Losses of optical flow."""

    label = "flow"

    weight: float = Field(default=1.0, ge=0)
    """Weight of the end-point error, in pixels."""
    reduction: Literal["mean", "sum"] = "mean"
    """Reduction of the end-point error: `mean` over known pixels, or `sum` over them and mean over images, as in
    Caffe."""
    multiscale: float = Field(default=0.0, ge=0)
    """Weight of FlowNetS's multi-scale loss: a sum over pixels and a mean over images, as FlowNet's authors use."""
    multiscale_weights: tuple[float, ...] = SCALE_WEIGHTS
    """Weights of the scales in the multi-scale loss, finest first: as many as the network has, SPyNet six."""
    sequence: float = Field(default=0.0, ge=0)
    """Weight of RAFT's loss, which sums the errors of all its successive estimates."""
    sequence_decay: float = Field(default=0.8, gt=0, le=1)
    """Weight of an estimate in proportion to that of the next, in the loss of successive estimates."""
    eps: float = Field(default=1e-6, gt=0)
    """Added under the root of the end-point error, in squared pixels, so that the gradient is finite at zero."""

    @property
    def names(self) -> list[str]:
        """Names of the losses in use."""
        given = {"flow": self.weight, "flow_multiscale": self.multiscale, "flow_sequence": self.sequence}
        return [name for name, weight in given.items() if weight]

    def _count(self, name: str, batch: Any) -> Tensor:
        if name == "flow_sequence":
            return sequence_count(batch["flow"], batch.get("flow_valid"))
        per_pixel = name == "flow" and self.reduction == "mean"
        return flow_count(batch["flow"], batch.get("flow_valid")) if per_pixel else image_count(batch["flow"])

    def _loss(self, name: str, prediction: Any, batch: Any) -> Tensor:
        truth, valid = batch["flow"], batch.get("flow_valid")
        if name == "flow":
            return self.weight * end_point_error(prediction, truth, valid, eps=self.eps).total
        if name == "flow_sequence":
            return self.sequence * sequence_loss(prediction, truth, valid, decay=self.sequence_decay).total
        return self.multiscale * multiscale_epe(prediction, truth, valid, weights=self.multiscale_weights).total


class ClassificationConfig(Task):
    """Losses of classification: one class for the whole image."""

    label = "label"

    weight: float = Field(default=1.0, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the target that is spread evenly over all classes; Inception-V3 uses 0.1."""
    aux_loss: float = Field(default=0.0, ge=0)
    """Weight of the cross-entropy of the auxiliary head; Inception-V3 uses 0.4."""

    @property
    def names(self) -> list[str]:
        """Names of the losses in use."""
        return ["classification"] + ["classification_aux"] * bool(self.aux_loss)

    def _count(self, name: str, batch: Any) -> Tensor:
        return image_count(batch["label"])

    def _loss(self, name: str, prediction: Any, batch: Any) -> Tensor:
        weight = self.weight if name == "classification" else self.aux_loss
        label, other, smoothing = batch["label"], batch.get("other_label"), self.label_smoothing
        if other is None:
            return weight * label_cross_entropy(prediction, label, smoothing=smoothing).total
        share = batch["label_weight"]
        mixed_in = label_cross_entropy(prediction, other, weight=1 - share, smoothing=smoothing).total
        return weight * (label_cross_entropy(prediction, label, weight=share, smoothing=smoothing).total + mixed_in)


class Tasks(Config):
    """The tasks of an experiment."""

    segmentation: SegmentationConfig | None = None
    flow: FlowConfig | None = None
    classification: ClassificationConfig | None = None

    @property
    def wanted(self) -> list[Task]:
        """The tasks that are configured."""
        return [task for task in (self.segmentation, self.flow, self.classification) if task is not None]

    @property
    def names(self) -> list[str]:
        """Names of all losses in use, also of those without a label in some batch."""
        return [name for task in self.wanted for name in task.names]

    def outputs(self, batch: Batch) -> list[str]:
        """Return the outputs of a network from which the losses of this batch's labels are computed."""
        return [_OUTPUTS[name] for task in self.wanted if task.label in batch for name in task.names]

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return, by name of the loss, the number to divide each loss by in this batch."""
        return {name: count for task in self.wanted for name, count in task.counts(batch).items()}

    def integer_counts(self, batch: Batch) -> dict[str, int]:
        """Return :meth:`counts` as integers."""
        return {name: int(count) for name, count in self.counts(batch).items()}

    def collate(self, samples: Sequence[Batch]) -> Batch:
        """Return samples as one batch, mixed where they ask for it, with its `counts`, so that a GPU need not count
        labels. Raises as :func:`mtsp.batches.collate` and :func:`mtsp.batches.mixed`.
        """
        batch = mixed(collate(samples))
        return batch | {"counts": self.integer_counts(batch)}  # pyright: ignore[reportReturnType]

    def sums(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted losses of this batch, before division."""
        return {name: total for task in self.wanted for name, total in task.sums(outputs, batch).items()}
