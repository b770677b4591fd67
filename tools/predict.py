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
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before installed packages called tools, models or data

from mtsp.command_line import above_zero, height_width, program, require_pair
from tools.prediction.files import SUFFIXES, Movies, require_kinds, require_new, write
from tools.prediction.frames import frames_of
from tools.prediction.network import (
    SHIPPED_CONFIG,
    SHORT_SIDE,
    Prediction,
    background_of,
    class_names,
    evaluated_look,
    predict,
)

if TYPE_CHECKING:
    from mtsp.types import Sample
    from tools.build import AnyExperiment


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    parser = _parser()
    arguments = parser.parse_intermixed_args(argv)
    require_pair(parser, arguments, "config", "checkpoint")
    from rich.console import Console

    from models.pretrained.files import locate
    from models.pretrained.load_trained import load_trained
    from mtsp.batches import in_channels_last
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
        require_new(arguments.out, _what(arguments), frames, movie=arguments.movie)
    accelerator = make_accelerator(experiment.train.precision)
    if accelerator.num_processes > 1:
        raise ConfigError("predict.py runs in one process; start one for each folder of frames")
    model = in_channels_last(model, look.channels_last)
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
    written, background = 0, background_of(experiment) if draws else 0
    classes = _classes(arguments.checkpoint, experiment) if draws or {"labels", "masks"} & {*what} else ()
    labels: list[LabelPrediction] = []
    ids: set[int] = set()
    movies = Movies(arguments.out, arguments.flow_radius, background, classes) if arguments.movie else None
    try:
        with closing(predictions), movies or ExitStack():
            for time, raw, prediction in predictions:
                require_kinds(arguments.what or (), prediction.outputs, experiment.evaluation.tta.name)
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
