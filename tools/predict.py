"""Predict masks and flow: `python tools/predict.py --video in.mp4 --out out --movie`.

Without --config and --checkpoint, a small SegFlow that comes with mtsp finds the moving objects and the flow of any
video. For a network of your own, give --config RUN/experiment.yaml --checkpoint RUN/weights.safetensors.

`--video` is a video file (needs PyAV). `--frames` is an image, a folder of images, or a folder with one subfolder per
video. Image size and test-time augmentation are those of the config's `evaluation`. The program writes these files to
`--out` for each frame, at the frame's resolution:

    masks/<video>/<frame>.png       class of each pixel, as an indexed PNG
    flow/<video>/<frame>.flo        (dx, dy) to the next frame, in pixels of the frame
    overlay/<video>/<frame>.png     the mask drawn over the frame
    flow_color/<video>/<frame>.png  the flow in the colors of the usual wheel

and overlay_legend.png, the colors of the classes that were drawn.

`--movie` writes movie/<video>.mp4 instead: frame, mask and flow side by side, in H.264, with the times of the video's
frames (a folder's are shown at 24 frames per second). The file appears when it is complete.

The last frame of a video has no flow. For a network without flow, images may differ in size. For a classifier,
`labels.csv` lists the five most probable classes of each image, by name if the weights or the data of `evaluation` have
class names.
"""

import argparse
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before installed packages called tools, models or data

from mtsp.command_line import above_zero, height_width, program, require_pair

if TYPE_CHECKING:
    import numpy as np
    import torch

    from mtsp.evaluation.tta import Tta
    from mtsp.types import Outputs, Sample
    from tools.build import AnyExperiment

SUFFIXES = {"masks": ".png", "flow": ".flo", "overlay": ".png", "flow_color": ".png", "labels": ".csv"}
"""File suffix of each kind of output. There is one file per frame, but a single file for all labels."""

_NEEDS = {
    "masks": "mask_logits", "overlay": "mask_logits", "flow": "flow", "flow_color": "flow", "labels": "label_logits",
}  # fmt: skip

SHIPPED_CONFIG = "shipped_segflow.yaml"
SHORT_SIDE = 256  # pixels; the shipped network learned from frames of 216 rows
_FOLDER_RATE = 24  # frames per second of a folder's movie, as DAVIS


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


class Frames(NamedTuple):
    """Frames, each with the following frame. `pairs` can be iterated only once."""

    names: Sequence[str] | None  # None for a video file, which must be read first
    total: int | None
    folder: str  # folder of the frames' names if they are from a video file, else ""
    pairs: "Iterator[tuple[Fraction, Sample]]"  # time in seconds; the last frame of a video has no next_frame


class Prediction(NamedTuple):
    """Prediction for one frame, at the resolution of the frame."""

    mask: "np.ndarray | None"  # HW uint8
    flow: "np.ndarray | None"  # HW2 float32; also None for the last frame
    label_logits: "torch.Tensor | None"  # K, for the class of the whole frame
    outputs: tuple[str, ...]  # names of the network's outputs


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    parser = _parser()
    arguments = parser.parse_intermixed_args(argv)
    require_pair(parser, arguments, "config", "checkpoint")
    import torch
    from rich.console import Console

    from models.pretrained.files import locate
    from models.pretrained.load_trained import load_trained
    from mtsp.config import ConfigError
    from mtsp.distributed.accelerator import make_accelerator
    from mtsp.files.progress import bar
    from tools.build import read_experiment

    arguments.checkpoint = arguments.checkpoint or locate("shipped")
    experiment = read_experiment(arguments.config or SHIPPED_CONFIG, arguments.settings)
    look = evaluated_look(experiment)
    if arguments.size is not None:
        look = look._replace(size=arguments.size)
    elif arguments.config is None:
        look = look._replace(short_side=SHORT_SIDE)
    model = load_trained(experiment, arguments.checkpoint)
    paired = "flow" in getattr(model, "branches", ())
    source = arguments.frames or arguments.video
    frames = frames_of(source, paired=paired)
    if not arguments.overwrite:
        _refuse_to_overwrite(arguments.out, _what(arguments), frames, movie=arguments.movie)
    accelerator = make_accelerator(experiment.train.precision)
    if accelerator.num_processes > 1:
        raise ConfigError("predict.py runs in one process; start one for each folder of frames")
    if look.channels_last:
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    model = accelerator.prepare_model(model, evaluation_mode=True).eval()
    with bar("predicting", frames.total) as advance:

        def predictions() -> "Generator[tuple[Fraction, Sample, Prediction], None, None]":
            for time, raw in frames.pairs:
                yield time, raw, predict(model, raw, look, accelerator.device)
                advance()

        written = _write_all(arguments, experiment, predictions())
    if not written:
        raise ValueError(f"{source}: nothing to write: predicting flow needs at least two frames")
    Console(stderr=True).print(f"{written:,} files in {arguments.out}", markup=False, highlight=False)
    return 0


def _what(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Return the kinds of files to write for each frame."""
    return arguments.what if arguments.what is not None else () if arguments.movie else tuple(SUFFIXES)


def _write_all(
    arguments: argparse.Namespace,
    experiment: "AnyExperiment",
    predictions: "Generator[tuple[Fraction, Sample, Prediction], None, None]",
) -> int:
    """Write the predictions of all frames; return the number of files."""
    from data.files.images import write_image
    from data.predictions.class_names import write_class_names
    from data.predictions.labels_csv import LabelPrediction, label_prediction, save_predictions
    from mtsp.figures.legends import class_legend
    from mtsp.figures.panels import TILE, seen

    what = _what(arguments)
    draws = arguments.movie or "overlay" in what
    written, background = 0, _background(experiment) if draws else 0
    classes = _classes(arguments.checkpoint, experiment) if draws or {"labels", "masks"} & {*what} else ()
    labels: list[LabelPrediction] = []
    ids: set[int] = set()
    movies = _Movies(arguments.out, arguments.flow_radius, background, classes) if arguments.movie else None
    try:
        with closing(predictions), movies or ExitStack():
            for time, raw, prediction in predictions:
                _require_kinds(arguments.what or (), prediction.outputs, experiment.evaluation.tta.name)
                written += write(arguments.out, what, raw, prediction, arguments.flow_radius, background)
                if movies is not None:
                    written += movies.add(time, raw, prediction)
                if {"overlay", "masks"} & {*what} and prediction.mask is not None:
                    ids |= seen([prediction.mask])
                if "labels" in what and prediction.label_logits is not None:
                    labels.append(label_prediction(len(labels), raw["name"], None, prediction.label_logits))
    finally:  # an unreadable image must not lose the predictions before it
        if labels:
            save_predictions(arguments.out / "labels.csv", classes, labels)
            written += 1
        for folder, holds in ((arguments.out, labels), (arguments.out / "masks", ids and "masks" in what)):
            if classes and holds:
                write_class_names(folder, classes)
    if "overlay" in what and (legend := class_legend(ids, TILE, classes, background)).size:
        write_image(arguments.out / "overlay_legend.png", legend)
        written += 1
    return written


def _classes(checkpoint: Path, experiment: "AnyExperiment") -> Sequence[str]:
    """Return the names of the network's classes; an empty sequence if neither weights nor data name them."""
    from models.pretrained.load_trained import trained_classes

    return trained_classes(checkpoint) or class_names(experiment)


class _Movies(ExitStack):
    """Writes a movie for each video; one is complete when the next begins or the context ends without an error."""

    def __init__(self, out: Path, radius: float | None, background: int | None, classes: Sequence[str]) -> None:
        super().__init__()
        self._out, self._settings = out, (background, radius, classes)
        self._video: Path | None = None

    def add(self, time: Fraction, raw: "Sample", prediction: Prediction) -> int:
        """Add a frame; return 1 if it is the first of a movie, else 0."""
        from data.files.movies import MovieWriter
        from mtsp.config import ConfigError
        from mtsp.figures.side_by_side import SideBySide

        has_flow = "flow" in prediction.outputs
        if not has_flow and prediction.mask is None:
            raise ConfigError("--movie: this network predicts neither masks nor flow")
        video = _movie_file(self._out, raw["name"])
        begins = video != self._video
        if begins:
            self.close()
            self._writer, self._video = self.enter_context(MovieWriter(video)), video
            self._panels = SideBySide(*self._settings)
        image = self._panels.draw(raw["frame"], prediction.mask, prediction.flow, has_flow=has_flow)
        self._writer.add(time, image)
        return int(begins)


def _movie_file(out: Path, name: str) -> Path:
    """Return the movie that the frame `name`, "video/frame" or "frame", belongs to."""
    return out / "movie" / f"{name.rpartition('/')[0] or 'frames'}.mp4"


def _require_kinds(what: Sequence[str], outputs: Sequence[str], tta: str) -> None:
    """Raise ConfigError if the network cannot predict a requested kind of output, or predicts none of them."""
    from mtsp.config import ConfigError

    has = " and ".join(outputs)
    seen = "" if tta == "none" else f"with evaluation.tta `{tta}` "
    if cannot := [kind for kind in what if _NEEDS[kind] not in outputs]:
        raise ConfigError(f"--what {cannot[0]}: {seen}this network predicts {has} only")
    if not set(outputs) & set(_NEEDS.values()):
        raise ConfigError(f"{seen}this network predicts {has or 'nothing'}, which cannot be written to files")


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


def _background(experiment: "AnyExperiment") -> int | None:
    """Return the class that overlays leave uncolored, as for the first data set of the evaluation."""
    from mtsp.figures.masks import background_class

    name = next(iter(experiment.evaluation.data or experiment.data))
    return background_class(experiment.data[name].dataset.kind, class_names(experiment))


def frames_of(path: Path, *, paired: bool = True) -> Frames:
    """Return the frames at `path`.

    Args:
        path: a folder of images, a folder of such folders, a video file, or an image.
        paired: whether to read the following frame of each frame, too. If False, images may differ in size.

    Raises:
        MissingDataError: `path` does not exist, or has no images.
        DataError: the file is no image and no video, or PyAV is not installed.
    """
    from data.files.images import IMAGE_SUFFIXES, read_image
    from data.types import MissingDataError
    from data.video.folder import FolderConfig
    from mtsp.types import Sample

    if path.is_dir():
        dataset = FolderConfig(name="folder", frames=path, next_frame=paired).build()
        samples = (_without_itself(dataset[i]) for i in range(len(dataset)))
        return Frames(dataset.ids, len(dataset), "", _timed(samples))
    if not path.is_file():
        raise MissingDataError(f"{path}: no such folder, image or video")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        samples = (Sample(name=path.stem, frame=read_image(file)) for file in (path,))
        return Frames([path.stem], 1, "", _timed(samples))
    return _video(path, paired)


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
    import torch

    from data.files.masks import byte_ids
    from mtsp.figures.panels import resize_flow

    outputs, (height, width) = outputs_of(model, raw, look, device)
    mask = flow = label_logits = None
    if "mask_logits" in outputs:
        logits = outputs["mask_logits"].float()
        if logits.shape[-2:] != (height, width):
            logits = torch.nn.functional.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
        mask = byte_ids(logits[0].argmax(0).cpu().numpy())
    if "flow" in outputs and "next_frame" in raw:
        flow = resize_flow(outputs["flow"][0], (height, width)).permute(1, 2, 0).numpy()
    if "label_logits" in outputs:
        label_logits = outputs["label_logits"][0].double().cpu()
    return Prediction(mask, flow, label_logits, tuple(outputs))


def write(
    out: Path,
    what: Sequence[str],
    raw: "Sample",
    prediction: Prediction,
    radius: float | None,
    background: int | None = 0,
) -> int:
    """Write the files of one frame to `out`, except labels, and return the number of files.

    `what` lists keys of `SUFFIXES`. Flow vectors of `radius` pixels are drawn in full color; None uses the length
    that 95 % of the vectors do not exceed. Overlays leave the class `background` uncolored.
    """
    from data.files.flow_formats import write_flo
    from data.files.images import write_image
    from data.files.masks import write_mask
    from mtsp.figures.flow_colors import flow_to_color, full_color_length
    from mtsp.figures.masks import overlay

    count = 0
    for kind in what:
        path = out / kind / f"{raw['name']}{SUFFIXES[kind]}"
        drawn = {"mask_logits": prediction.mask, "flow": prediction.flow}.get(_NEEDS[kind])
        if drawn is None:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        match kind:
            case "masks":
                write_mask(path, drawn)
            case "overlay":
                write_image(path, overlay(raw["frame"], drawn, background=background))
            case "flow":
                write_flo(path, drawn)
            case _:
                write_image(path, flow_to_color(drawn, radius or full_color_length(drawn)))
        count += 1
    return count


def _without_itself(raw: "Sample") -> "Sample":
    """Drop the next frame if it is the frame itself, as for the last frame of a video: there is no flow to predict."""
    if raw.get("next_frame") is raw["frame"]:
        del raw["next_frame"]
    return raw


def _timed(samples: "Iterator[Sample]") -> "Iterator[tuple[Fraction, Sample]]":
    """Yield each frame with its time in its video, at the rate of folders."""
    video, number = None, 0
    for raw in samples:
        folder = raw["name"].rpartition("/")[0]
        number = number + 1 if folder == video else 0
        video = folder
        yield Fraction(number, _FOLDER_RATE), raw


def _video(path: Path, paired: bool) -> Frames:
    from data.files.movies import open_movie
    from data.types import DataError
    from mtsp.types import Sample

    with path.open("rb") as file:
        start = file.read(1024)
    if start.isascii() and b"\0" not in start:
        raise DataError(f"{path} is no image and no video; --video takes a video, --frames an image or a folder")
    movie = open_movie(path)

    def pairs() -> "Iterator[tuple[Fraction, Sample]]":
        with closing(movie.frames):
            for number, (frame, following) in enumerate(pairwise(chain[Any](movie.frames, [None]))):
                time, image = frame
                raw = Sample(name=f"{path.stem}/{number:05d}", frame=image)
                if following is not None and paired:
                    raw["next_frame"] = following[1]
                yield time, raw

    return Frames(None, movie.total, path.stem, pairs())


def _refuse_to_overwrite(out: Path, what: Sequence[str], frames: Frames, *, movie: bool = False) -> None:
    names = frames.names if frames.names is not None else [f"{frames.folder}/0"]
    movies = dict.fromkeys(_movie_file(out, name) for name in names) if movie else ()
    found = [file for file in movies if file.exists()]
    for kind in what:
        if kind == "labels":
            files = [out / "labels.csv"]
        elif frames.names is not None:
            files = [out / kind / f"{name}{SUFFIXES[kind]}" for name in frames.names]
        else:
            files = sorted((out / kind / frames.folder).glob(f"*{SUFFIXES[kind]}"))
        found += [file for file in files if file.exists()]
    if found:
        raise ValueError(f"{len(found)} of the files exist already, as {found[0]}; add --overwrite to replace them")


def _size(text: str) -> tuple[int, int]:
    size = height_width(text)
    if max(size) > 16384 or min(size) < 32:
        raise argparse.ArgumentTypeError(f"{text}: height and width must be from 32 to 16384 pixels")
    return size


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(text.split(","))
    if unknown := [kind for kind in kinds if kind not in SUFFIXES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(SUFFIXES)}")
    return kinds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="predict.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", help="experiment config, as RUN/experiment.yaml (default: the shipped network)")
    parser.add_argument("--checkpoint", type=Path, help="weights of --config, as RUN/weights.safetensors")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--video", type=Path, metavar="FILE", help="a video file")
    source.add_argument("--frames", type=Path, help="an image, a folder of images, or a folder of such folders")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--what", type=_kinds, help=f"outputs to write: {','.join(SUFFIXES)} (default: all possible)")
    parser.add_argument("--movie", action="store_true", help="write a movie; with --what, also those files")
    parser.add_argument("--size", type=_size, metavar="HxW", help="size of resized frames (default: as in evaluation)")
    parser.add_argument(
        "--flow-radius",
        type=above_zero,
        metavar="PX",
        help="flow length drawn in full color (default: 95 %% of the frame's vectors are shorter)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="config values to override")
    return parser


if __name__ == "__main__":
    sys.exit(main())
