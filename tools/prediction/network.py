"""Predict one frame as a network is evaluated: at the size and with the test-time augmentation of its config."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import torch

    from mtsp.evaluation.tta import Tta
    from mtsp.types import Outputs, Sample
    from tools.build import AnyExperiment

SHIPPED_CONFIG = "shipped_segflow.yaml"
SHORT_SIDE = 256  # pixels; the shipped network learned from frames of 216 rows


class Look(NamedTuple):
    """Preprocessing and test-time augmentation of a frame."""

    tta: "Tta"
    size: tuple[int, int] | None = None  # height and width to resize frames to; None keeps their size
    crop_pct: float | None = None  # fraction of the shorter side to crop before resizing; None: whole
    channels_last: bool = True
    short_side: int | None = None  # scale larger frames to this shorter side, if there is no size

    def frame_size(self, height: int, width: int) -> tuple[int, int] | None:
        """Return height and width to resize a frame of this size to; None keeps its size."""
        if self.size is not None or self.short_side is None or self.short_side >= min(height, width):
            return self.size
        factor = self.short_side / min(height, width)
        return round(height * factor), round(width * factor)


class Prediction(NamedTuple):
    """Prediction for one frame, at the resolution of the frame."""

    mask: "np.ndarray | None"  # HW uint8
    flow: "np.ndarray | None"  # HW2 float32; also None for the last frame
    label_logits: "torch.Tensor | None"  # K, for the class of the whole frame
    outputs: tuple[str, ...]  # names of the network's outputs


def evaluated_look(experiment: "AnyExperiment") -> Look:
    """Return the preprocessing of frames at evaluation; frames keep their size if the data entries differ in size."""
    sizes = {(experiment.data[name].size, experiment.data[name].crop_pct) for name in experiment.evaluation.data}
    size, crop_pct = sizes.pop() if len(sizes) == 1 else (None, None)
    return Look(experiment.evaluation.tta.build(), size, crop_pct, experiment.train.channels_last)


def class_names(experiment: "AnyExperiment") -> Sequence[str]:
    """Return the class names of the evaluation data; an empty sequence if its files cannot be read."""
    from data.types import DataError

    for name in experiment.evaluation.data or experiment.data:
        try:
            if classes := getattr(experiment.data[name].build_dataset(), "classes", ()):
                return classes
        except (DataError, OSError):
            continue
    return ()


def background_of(experiment: "AnyExperiment") -> int | None:
    """Return the class that overlays leave uncolored, as for the first data set of the evaluation."""
    from mtsp.figures.masks import background_class

    name = next(iter(experiment.evaluation.data or experiment.data))
    return background_class(experiment.data[name].dataset.kind, class_names(experiment))


def outputs_of(
    model: "torch.nn.Module", raw: "Sample", look: Look, device: "torch.device"
) -> "tuple[Outputs, tuple[int, int]]":
    """Return the network's outputs for one frame, at the network's resolution, and the frame's height and width."""
    import torch

    from data.augment.crops import center_crop
    from data.prepared import resized, to_tensors
    from mtsp.batches import collate, to_device
    from mtsp.types import Sample

    height, width = raw["frame"].shape[:2]
    if look.crop_pct is not None and look.size is not None:
        raw = Sample(name=raw["name"], frame=center_crop(raw["frame"], look.size, look.crop_pct))
    size = look.frame_size(height, width)
    small = to_tensors(resized(raw, size) if size is not None else raw)
    batch = to_device(collate([small]), device, channels_last=look.channels_last)
    with torch.no_grad():
        return look.tta(model, batch), (height, width)


def predict(model: "torch.nn.Module", raw: "Sample", look: Look, device: "torch.device") -> Prediction:
    """Return the prediction of `model` for one frame, resized from the network's input to the frame's resolution."""
    from data.files.masks import byte_ids
    from mtsp.batches import resize_maps
    from mtsp.figures.panels import resize_flow

    outputs, (height, width) = outputs_of(model, raw, look, device)
    mask = flow = label_logits = None
    if "mask_logits" in outputs:
        logits = resize_maps(outputs["mask_logits"].float(), (height, width))
        mask = byte_ids(logits[0].argmax(0).cpu().numpy())
    if "flow" in outputs and "next_frame" in raw:
        flow = resize_flow(outputs["flow"][0], (height, width)).permute(1, 2, 0).numpy()
    if "label_logits" in outputs:
        label_logits = outputs["label_logits"][0].double().cpu()
    return Prediction(mask, flow, label_logits, tuple(outputs))
