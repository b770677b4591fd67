"""Follow the object of a video's first mask: `python tools/adapt.py --frames DIR --first-mask MASK.png --out DIR`.

For each video, the network is fine-tuned on the first frame, its mask and their augmentations, with every branch
anchored to the checkpoint, and then predicts the masks of all other frames (SegFlow's online protocol, the
semi-supervised task of DAVIS). No other mask reaches the network.
With `--objects`, the mask numbers several objects: each has a network of its own, and a pixel belongs to the object
whose network is most certain of it.

    python tools/adapt.py --frames DIR --first-mask MASK.png --out DIR
    python tools/adapt.py --data davis --root inputs/DAVIS --split val --out DIR

The first form adapts to one video, the second to each sequence of DAVIS, and scores it by the rules of DAVIS. Without
--config and --checkpoint, the network is the small SegFlow that comes with mtsp. Steps, learning rate and
regularization are in --adaptation, configs/adapt/first_frame.yaml by default; key=value overrides them. `steps=0`
predicts without adaptation. Masks are written to OUT/<sequence>/<frame>.png.
"""

import argparse
import sys
import time
import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before installed packages called tools, models or data

from pydantic import Field

from data.augment.augment import AugmentConfig
from mtsp.config import Config
from mtsp.optim.optimizers import OptimizerConfig
from mtsp.regularizers.configs import AnyRegularizer
from tools.command_line import program

if TYPE_CHECKING:
    import numpy as np
    import torch
    from accelerate import Accelerator

    from data import SampleDataset
    from mtsp.types import Batch, Sample
    from tools.build import AnyExperiment
    from tools.predict import Look

ADAPTATION = "adapt/first_frame.yaml"


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
        from tools.predict import evaluated_look

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
        from mtsp.optim.groups import parameter_groups
        from mtsp.training.loop import train
        from mtsp.training.state import Position, TrainState

        experiment, accelerator, model = self.experiment, self._accelerator, self._pretrained.model
        model.load_state_dict(self._start)
        if not self.config.steps:
            return model.to(accelerator.device).eval()
        scales = experiment.lr_scales(model, self._pretrained.anchors)
        groups = parameter_groups(model, experiment.learning_rates(), scales)
        prepared, optimizer = accelerator.prepare(model, experiment.optimizer.build(groups))
        section = experiment.regularizer
        if section.name != "none":
            alpha, beta = experiment.strengths(scales)
            regularizer = section.build(model, anchors=self._pretrained.anchors, alpha=alpha, beta=beta)
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
            steps=experiment.train.steps,
            stages=experiment.train.stages,
            schedule=experiment.schedule,
            open_stream=stream,
            seed=self.config.seed,
            clip=experiment.train.clip,
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
        import torch

        from tools.predict import outputs_of

        outputs, (height, width) = outputs_of(model, frame, self.look, self._accelerator.device)
        logits = outputs["mask_logits"].float()  # pyright: ignore[reportTypedDictNotRequiredAccess]
        logits = torch.nn.functional.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
        return logits[0].softmax(0)[1].cpu().numpy()


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


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    parser = _parser()
    arguments = parser.parse_intermixed_args(argv)
    if (arguments.config is None) != (arguments.checkpoint is None):
        parser.error("--config and --checkpoint belong together; give both, or none for the shipped network")
    if (arguments.frames is None) != (arguments.first_mask is None):
        parser.error("--frames and --first-mask belong together")
    if arguments.data is not None and arguments.root is None:
        parser.error("--data needs --root, the folder of the data set")
    from data.files.masks import write_mask
    from mtsp.config import load
    from mtsp.evaluation.scores import require_writable
    from mtsp.files.progress import bar
    from tools.build import read_experiment
    from tools.predict import SHIPPED_CONFIG, SHORT_SIDE

    require_writable(arguments.json, None)
    if arguments.out.exists() and (not arguments.out.is_dir() or any(arguments.out.iterdir())):
        raise ValueError(f"{arguments.out} is not an empty folder; choose a new or empty folder for --out")
    config = load(AdaptConfig, arguments.adaptation, arguments.settings)
    adapter = Adapter(
        read_experiment(arguments.config or SHIPPED_CONFIG), str(arguments.checkpoint or "shipped"), config
    )
    if arguments.config is None:
        adapter.look = adapter.look._replace(short_side=SHORT_SIDE)
    seconds: dict[str, float] = {}
    for video in _videos(arguments):
        began = time.perf_counter()
        with bar(f"{video.name}", None) as advance:
            masks = adapter.follow(video, advance)
        for name, mask in zip(video.frames, masks, strict=True):
            path = arguments.out / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_mask(path, mask)
        seconds[video.name] = time.perf_counter() - began
        print(f"{video.name}: {len(masks)} frames, {seconds[video.name]:.1f} s", file=sys.stderr)
    if arguments.data is not None:
        _score(arguments, config, seconds)
    return 0


def _videos(arguments: argparse.Namespace) -> list[Video]:
    import numpy as np

    from data.files.masks import read_foreground, read_mask
    from data.types import DataError
    from data.video.folder import FolderConfig

    if arguments.data is not None:
        davis = _davis(arguments)
        return videos_of(davis, lambda index: davis.labels(index)["mask"])
    dataset = FolderConfig(name="folder", frames=arguments.frames).build()
    mask = read_mask(arguments.first_mask) if arguments.objects else read_foreground(arguments.first_mask)
    mask = np.asarray(mask, np.uint8)
    if (frame := dataset[0]["frame"]).shape[:2] != mask.shape:
        raise DataError(
            f"{arguments.first_mask} is {mask.shape[1]}x{mask.shape[0]}, the first frame {dataset.ids[0]} is "
            f"{frame.shape[1]}x{frame.shape[0]}: a mask has the size of its frame"
        )
    videos = videos_of(dataset, lambda index: mask)
    if len(videos) > 1:
        raise DataError(f"{arguments.frames} holds {len(videos)} videos, but there is one first mask; name one folder")
    return [videos[0]._replace(name=videos[0].name or arguments.frames.name)]


def _davis(arguments: argparse.Namespace) -> "Any":
    from data.predictions.score import truth_of

    return truth_of(
        arguments.data, arguments.root, arguments.split, arguments.resolution, (), objects=arguments.objects
    )


def _score(arguments: argparse.Namespace, config: AdaptConfig, seconds: "Mapping[str, float]") -> None:
    """Score the written masks, as tools/score.py does, and show J, F and the seconds of each sequence."""
    from data.predictions.score import score
    from mtsp.evaluation.scores import joined, show

    objects: Literal["first"] | None = "first" if arguments.objects else None
    scores = score(_davis(arguments), arguments.out, objects=objects)
    values = {"data": arguments.data, "split": arguments.split, "adaptation": config.model_dump(mode="json")}
    show(values | joined(scores) | {"seconds": dict(seconds)}, {arguments.data: scores}, arguments.json, None)
    print(f"{sum(seconds.values()) / len(seconds):.1f} s per sequence", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adapt.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", help="experiment config, as RUN/experiment.yaml (default: the shipped network)")
    parser.add_argument("--checkpoint", type=Path, help="weights of --config, as RUN/weights.safetensors")
    parser.add_argument("--adaptation", default=ADAPTATION, help=f"config of the adaptation (default: {ADAPTATION})")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--frames", type=Path, metavar="DIR", help="folder of a video's frames")
    source.add_argument("--data", choices=["davis"], help="adapt to each sequence of a data set, and score it")
    parser.add_argument("--first-mask", type=Path, metavar="FILE", help="mask of the first frame")
    parser.add_argument("--objects", action="store_true", help="masks number several objects: follow each")
    parser.add_argument("--root", type=Path, metavar="DIR", help="folder of the data set")
    parser.add_argument("--split", default="val", help="split of the data set (default: val)")
    parser.add_argument("--resolution", help="DAVIS folder in JPEGImages and Annotations (default: 480p)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the masks")
    parser.add_argument("--json", type=Path, help="JSON file for all values of --data")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="values of the adaptation to override")
    return parser


if __name__ == "__main__":
    sys.exit(main())
