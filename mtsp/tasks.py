"""Tasks: the losses of each kind of label, and what each loss is divided by.

A batch carries the labels it has; a task without its label contributes nothing. The losses of one optimizer step are
sums, divided by counts over all its micro-batches and all processes: never a mean of means.
"""

from typing import Literal, Protocol

from pydantic import Field
from torch import Tensor

from mtsp.config import Config
from mtsp.losses import (
    cross_entropy,
    end_point_error,
    flow_count,
    image_count,
    label_cross_entropy,
    mask_count,
    multiscale_epe,
    se_count,
    se_loss,
)
from mtsp.types import Batch, Outputs


class Task(Protocol):
    """A kind of label and its losses."""

    @property
    def names(self) -> list[str]:
        """Names of its losses."""
        ...

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the divisor of each loss of this batch; empty if the batch lacks the label."""
        ...

    def sums(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted losses of this batch, before division."""
        ...


class SegmentationConfig(Config):
    """Losses of the mask."""

    weight: float = Field(default=1.0, ge=0)
    class_balance: bool = True
    """Weight each pixel by 1 - (fraction of its frame's pixels that are of its class), as SegFlow's authors do."""
    reduction: Literal["mean", "sum"] = "mean"
    """`mean` over pixels, or `sum` over pixels and mean over images, as in the Caffe release."""
    aux_loss: float = Field(default=0.0, ge=0)
    """Weight of the same loss on the auxiliary head's mask; EncNet uses 0.2."""
    se_loss: float = Field(default=0.0, ge=0)
    """Weight of the semantic encoding loss (SE-loss), on which classes the image contains; EncNet uses 0.2."""

    @property
    def names(self) -> list[str]:
        """Names of its losses."""
        extra = ["segmentation_aux"] * bool(self.aux_loss) + ["segmentation_se"] * bool(self.se_loss)
        return ["segmentation", *extra]

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the divisor of each loss of this batch."""
        if "mask" not in batch:
            return {}
        mask = batch["mask"]
        counts = {"segmentation": mask_count(mask, self.reduction)}
        if self.aux_loss:
            counts["segmentation_aux"] = counts["segmentation"]
        if self.se_loss:
            counts["segmentation_se"] = se_count(mask)
        return counts

    def sums(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted losses of this batch, before division."""
        if "mask" not in batch:
            return {}
        sums = {}
        if "mask_logits" in outputs:
            sums["segmentation"] = self.weight * self._pixels(outputs["mask_logits"], batch["mask"])
        if self.aux_loss and "aux_mask_logits" in outputs:
            total = self._pixels(outputs["aux_mask_logits"], batch["mask"])
            sums["segmentation_aux"] = self.aux_loss * total
        if self.se_loss and "se_logits" in outputs:
            sums["segmentation_se"] = self.se_loss * se_loss(outputs["se_logits"], batch["mask"]).total
        return sums

    def _pixels(self, logits: Tensor, mask: Tensor) -> Tensor:
        return cross_entropy(logits, mask, class_balance=self.class_balance, reduction=self.reduction).total


class FlowConfig(Config):
    """Losses of the flow."""

    weight: float = Field(default=1.0, ge=0)
    """Weight of the end-point error, in pixels."""
    reduction: Literal["mean", "sum"] = "mean"
    """Reduction of that error: `mean` over known pixels, or `sum` over them and mean over images, as in Caffe."""
    multiscale: float = Field(default=0.0, ge=0)
    """Weight of FlowNetS's multi-scale loss, a sum over pixels and a mean over images, as its authors train it."""
    multiscale_weights: tuple[float, ...] = (0.005, 0.01, 0.02, 0.08, 0.32)
    """Weights of the scales, finest first."""
    eps: float = Field(default=1e-6, gt=0)
    """Added under the root of the end-point error, in squared pixels, so that the gradient is finite at zero."""

    @property
    def names(self) -> list[str]:
        """Names of its losses."""
        return ["flow"] * bool(self.weight) + ["flow_multiscale"] * bool(self.multiscale)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the divisor of each loss of this batch."""
        if "flow" not in batch:
            return {}
        flow, frames = batch["flow"], image_count(batch["flow"])
        counts = {}
        if self.weight:
            counts["flow"] = flow_count(flow, batch.get("flow_valid")) if self.reduction == "mean" else frames
        if self.multiscale:
            counts["flow_multiscale"] = frames
        return counts

    def sums(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted losses of this batch, before division."""
        if "flow" not in batch:
            return {}
        truth, valid = batch["flow"], batch.get("flow_valid")
        sums = {}
        if self.weight and "flow" in outputs:
            sums["flow"] = self.weight * end_point_error(outputs["flow"], truth, valid, eps=self.eps).total
        if self.multiscale and "flow_pyramid" in outputs:
            scales = multiscale_epe(outputs["flow_pyramid"], truth, valid, weights=self.multiscale_weights)
            sums["flow_multiscale"] = self.multiscale * scales.total
        return sums


class ClassificationConfig(Config):
    """Losses of the class of the whole image."""

    weight: float = Field(default=1.0, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the target that is spread evenly over all classes; Inception-V3 uses 0.1."""
    aux_loss: float = Field(default=0.0, ge=0)
    """Weight of the same loss on the auxiliary head; Inception-V3 uses 0.4."""

    @property
    def names(self) -> list[str]:
        """Names of its losses."""
        return ["classification"] + ["classification_aux"] * bool(self.aux_loss)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the divisor of each loss of this batch."""
        if "label" not in batch:
            return {}
        return dict.fromkeys(self.names, image_count(batch["label"]))

    def sums(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted losses of this batch, before division."""
        if "label" not in batch:
            return {}
        sums = {}
        if "label_logits" in outputs:
            sums["classification"] = self.weight * self._images(outputs["label_logits"], batch["label"])
        if self.aux_loss and "aux_label_logits" in outputs:
            total = self._images(outputs["aux_label_logits"], batch["label"])
            sums["classification_aux"] = self.aux_loss * total
        return sums

    def _images(self, logits: Tensor, label: Tensor) -> Tensor:
        return label_cross_entropy(logits, label, smoothing=self.label_smoothing).total


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
        """Names of all losses, whatever labels a batch has."""
        return [name for task in self.wanted for name in task.names]

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the divisor of each loss of this batch, by the loss's name."""
        return {name: count for task in self.wanted for name, count in task.counts(batch).items()}

    def sums(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted losses of this batch, before division."""
        return {name: total for task in self.wanted for name, total in task.sums(outputs, batch).items()}
