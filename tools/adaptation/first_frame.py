"""Fine-tune a network on a video's first frame, anchored to its checkpoint, and predict the masks of the others."""

import zlib
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field

from data.augment.augment import AugmentConfig
from mtsp.config import Config
from mtsp.optim.optimizers import OptimizerConfig
from mtsp.regularizers.configs import AnyRegularizer

if TYPE_CHECKING:
    import numpy as np
    import torch
    from accelerate import Accelerator

    from data import SampleDataset
    from mtsp.types import Batch, Sample
    from tools.build import AnyExperiment
    from tools.prediction.network import Look


class AdaptConfig(Config):
    """Config of the adaptation to a first frame; the losses are those of the experiment."""

    steps: int = Field(default=60, ge=0)
    batch_size: int = Field(default=4, gt=0)
    """Number of augmentations of the first frame in a step."""
    optimizer: OptimizerConfig
    regularizer: Annotated[AnyRegularizer, Field(discriminator="name")]
    augment: AugmentConfig = AugmentConfig()
    clip: float | None = Field(default=10.0, gt=0)
    """Clip the gradient of the losses to this norm; null: no clipping."""
    seed: int = Field(default=0, ge=0)


class Video(NamedTuple):
    """A video: its first mask, and its frames without masks."""

    name: str
    frames: Sequence[str]
    read: "Callable[[int], Sample]"
    first_mask: "np.ndarray"  # HW uint8: 0 background, 1 object (or the number of the object), 255 unknown


class Adapter:
    """Adapts the network of an experiment to one object after the other; each starts from the checkpoint.

    Args:
        experiment: the experiment of the checkpoint.
        checkpoint: weights that every branch starts from and is anchored to.
        config: how to adapt.
    """

    def __init__(self, experiment: "AnyExperiment", checkpoint: str, config: AdaptConfig) -> None:
        from mtsp.distributed.accelerator import make_accelerator
        from tools.build import build_network
        from tools.prediction.network import evaluated_look

        self.config = config
        self.experiment = _adapting(experiment, checkpoint, config)
        self.look: Look = evaluated_look(experiment)
        self._pretrained = build_network(self.experiment)
        self._start = {key: value.clone() for key, value in self._pretrained.model.state_dict().items()}
        self._accelerator: Accelerator = make_accelerator(experiment.train.precision)

    def follow(self, video: Video, after_frame: Callable[[], Any] = lambda: None) -> "list[np.ndarray]":
        """Return the mask of each frame, HW uint8; the first is the given one."""
        import numpy as np

        numbers = sorted(set(np.unique(video.first_mask).tolist()) - {0, 255})
        shape = (len(video.frames), *video.first_mask.shape)
        certain, masks = np.full(shape, 0.5, np.float16), np.zeros(shape, np.uint8)
        for number in numbers:
            model = self._adapted(video, number)
            for index in range(1, len(video.frames)):
                probability = self._probability(model, video.read(index))
                wins = probability > certain[index]
                certain[index][wins], masks[index][wins] = probability[wins], number
                after_frame()
        masks[0] = video.first_mask
        return [masks[index] for index in range(len(masks))]  # pyright: ignore[reportReturnType]

    def _adapted(self, video: Video, number: int) -> "torch.nn.Module":
        """Return the network after fine-tuning on object `number` of the first frame."""
        import numpy as np

        from data.prepared import to_tensors
        from mtsp.batches import collate
        from mtsp.training.loop import train
        from mtsp.training.state import Position, TrainState

        experiment, accelerator, model = self.experiment, self._accelerator, self._pretrained.model
        model.load_state_dict(self._start)
        if not self.config.steps:
            return model.to(accelerator.device).eval()
        anchors = self._pretrained.anchors
        prepared, optimizer = accelerator.prepare(model, experiment.build_optimizer(model, anchors))
        if (regularizer := experiment.build_regularizer(model, anchors)) is not None:
            regularizer.attach(optimizer)
        first = self._first(video, number)
        augment, batch_size = self.config.augment.build(), self.config.batch_size
        begin = [self.config.seed, zlib.crc32(video.name.encode()), number]

        def stream(name: str, size: int, start: int) -> "Generator[Batch, None, None]":
            for batch in range(start, experiment.train.steps):
                seeds = ([*begin, batch * batch_size + place] for place in range(batch_size))
                yield collate([to_tensors(augment(first, np.random.default_rng(seed))) for seed in seeds])

        branches = tuple(experiment.branches)
        channels_last = experiment.train.channels_last
        tasks = experiment.tasks
        state = TrainState(
            accelerator, prepared, optimizer, tasks, branches, frozen_norm=branches, channels_last=channels_last
        )
        train(
            state,
            Position(),
            experiment.train,
            experiment.schedule,
            seed=self.config.seed,
            open_stream=stream,
        )
        accelerator.free_memory()
        return prepared.eval()

    def _first(self, video: Video, number: int) -> "Sample":
        """Return the first frame as the network sees it, with the mask of one object."""
        import numpy as np

        from data.prepared import resized
        from mtsp.types import IGNORE

        mask = np.where(video.first_mask == IGNORE, IGNORE, video.first_mask == number).astype(np.uint8)
        sample: Sample = {**video.read(0), "mask": mask}
        size = self.look.frame_size(*mask.shape)
        return resized(sample, size) if size is not None else sample

    def _probability(self, model: "torch.nn.Module", frame: "Sample") -> "np.ndarray":
        """Return the probability of the object at each pixel of the frame, HW float32."""
        from mtsp.batches import resize_maps
        from tools.prediction.network import outputs_of

        outputs, (height, width) = outputs_of(model, frame, self.look, self._accelerator.device)
        logits = outputs["mask_logits"].float()  # pyright: ignore[reportTypedDictNotRequiredAccess]
        return resize_maps(logits, (height, width))[0].softmax(0)[1].cpu().numpy()


def _adapting(experiment: "AnyExperiment", checkpoint: str, config: AdaptConfig) -> "AnyExperiment":
    """Return the experiment of an adaptation: network and losses of `experiment`, training of `config`."""
    from mtsp.config import ConfigError, parse

    if (classes := getattr(experiment.model, "classes", None)) != 2:
        found = "no masks" if classes is None else f"{classes} classes"
        raise ConfigError(f"model: adaptation needs a network of two classes, object and background; it has {found}")
    values: dict[str, Any] = experiment.model_dump(mode="json")
    values |= {"optimizer": config.optimizer.model_dump(mode="json"), "schedule": {"name": "constant"}}
    values |= {"regularizer": config.regularizer.model_dump(mode="json"), "seed": config.seed}
    values["branches"] = {name: {"weights": checkpoint, "freeze_norm": True} for name in experiment.branches}
    stage = {"steps": max(1, config.steps), "batch_size": {next(iter(experiment.data)): config.batch_size}}
    values["train"] |= {"steps": max(1, config.steps), "stages": [stage], "clip": config.clip, "ema": None}
    return parse(type(experiment), values)


def videos_of(dataset: "SampleDataset", first_mask: "Callable[[int], np.ndarray]") -> list[Video]:
    """Return the sequences of a data set; `first_mask` returns the mask of a sequence's first frame, by its index."""
    sequences: dict[str, list[int]] = {}
    for index, name in enumerate(dataset.ids):
        sequences.setdefault(name.rpartition("/")[0], []).append(index)
    return [
        Video(name, [dataset.ids[i] for i in indices], _reader(dataset, indices), first_mask(indices[0]))
        for name, indices in sequences.items()
    ]


def _reader(dataset: "SampleDataset", indices: Sequence[int]) -> "Callable[[int], Sample]":
    def read(number: int) -> "Sample":
        sample = dataset[indices[number]]
        sample.pop("mask", None)
        return sample

    return read
