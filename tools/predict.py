"""Predict: `python tools/predict.py --config RUN/experiment.yaml --checkpoint RUN/... --frames DIR --out DIR`.

Frames are images in a folder, or in one subfolder per video, one image, or a video file (needs PyAV). The network
looks at them as `evaluation` of the config says. Under `--out` each has

    masks/<video>/<frame>.png       class of each pixel, an indexed PNG
    flow/<video>/<frame>.flo        (dx, dy) to the next frame, in pixels of the frame
    overlay/<video>/<frame>.png     the mask over the frame
    flow_color/<video>/<frame>.png  the flow in the usual color wheel

at the frame's own resolution. The last frame of a video has no next frame, and so no flow. A network without flow takes
each image by itself, and their sizes may differ. What a network says of whole images is in `labels.csv`: the five
most probable classes of each, their names if the data of `evaluation` are here to tell them.
"""

import argparse
import csv
import io
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console

from data import DataError, MissingDataError
from data.augment.crops import center_crop
from data.files.flow_formats import write_flo
from data.files.images import IMAGE_SUFFIXES, read_image, write_image
from data.files.masks import write_mask
from data.predictions.labels_csv import BEST
from data.prepared import resized, to_tensors
from data.video.folder import FolderConfig
from models.pretrained.load_trained import load_trained
from mtsp.batches import to_device
from mtsp.config import ConfigError
from mtsp.distributed.accelerator import make_accelerator
from mtsp.evaluation.tta import Tta, single_view
from mtsp.figures.colors import flow_to_color, overlay
from mtsp.figures.panels import resize_flow
from mtsp.files.atomic import write_atomically
from mtsp.files.progress import bar
from mtsp.types import Sample
from tools.build import AnyExperiment, above_zero, read_experiment, run_or_say_why

SUFFIXES = {"masks": ".png", "flow": ".flo", "overlay": ".png", "flow_color": ".png", "labels": ".csv"}
"""What can be written, and in which kind of file: one for each frame, but of labels one for all."""

_NEEDS = {
    "masks": "mask_logits", "overlay": "mask_logits", "flow": "flow", "flow_color": "flow", "labels": "label_logits",
}  # fmt: skip


class Look(NamedTuple):
    """How a network sees a frame."""

    tta: Tta = single_view
    size: tuple[int, int] | None = None  # height and width that frames are resized to; None: their own
    crop_pct: float | None = None  # the share of the shorter side that becomes `size`; None: all is stretched to it
    channels_last: bool = True


class Frames(NamedTuple):
    """Frames with the ones that follow them, to be read once."""

    names: Sequence[str] | None  # of each; None where only reading tells
    total: int | None
    folder: str  # below which their names are; "" for any
    pairs: Iterator[Sample]  # a frame without a following one has no next_frame


class Prediction(NamedTuple):
    """What a network says of one frame, at the frame's resolution."""

    mask: np.ndarray | None  # HW uint8
    flow: np.ndarray | None  # HW2 float32; None too for a frame that no other follows
    chances: np.ndarray | None  # K float64, the probability of each class of the whole frame
    outputs: tuple[str, ...]  # what the network has


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    arguments = _parser().parse_intermixed_args(argv)
    experiment = read_experiment(arguments.config, arguments.settings)
    look = evaluated_look(experiment)
    if arguments.size is not None:
        look = look._replace(size=arguments.size)
    model = load_trained(experiment, arguments.checkpoint)
    paired = "flow" in getattr(model, "branches", ())
    frames = frames_of(arguments.frames, paired=paired)
    if not arguments.overwrite:
        _refuse_to_overwrite(arguments.out, arguments.what or tuple(SUFFIXES), frames)
    accelerator = make_accelerator(experiment.train.precision)
    if accelerator.num_processes > 1:
        raise ConfigError("predict.py runs in one process; start one for each folder of frames")
    if look.channels_last:
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    model = accelerator.prepare_model(model, evaluation_mode=True).eval()
    with bar("predicting", frames.total) as advance:

        def predictions() -> Iterator[tuple[Sample, Prediction]]:
            for raw in frames.pairs:
                yield raw, predict(model, raw, look, accelerator.device)
                advance()

        written = _write_all(arguments, experiment, predictions())
    if not written:
        raise ValueError(f"{arguments.frames}: nothing to write: flow needs a frame that another one follows")
    Console(stderr=True).print(f"{written:,} files in {arguments.out}", markup=False, highlight=False)
    return 0


def _write_all(
    arguments: argparse.Namespace, experiment: AnyExperiment, predictions: Iterable[tuple[Sample, Prediction]]
) -> int:
    """Write what was asked for of all frames; return how many files."""
    what = arguments.what or tuple(SUFFIXES)
    written = 0
    chances: dict[str, np.ndarray] = {}
    try:
        for raw, prediction in predictions:
            _require_kinds(arguments.what or (), prediction.outputs, experiment.evaluation.tta.name)
            written += write(arguments.out, what, raw, prediction, arguments.flow_radius)
            if "labels" in what and prediction.chances is not None:
                chances[raw["name"]] = prediction.chances
    finally:  # an image that cannot be read does not take along what was said of those before it
        if chances:
            write_labels(arguments.out / "labels.csv", chances, class_names(experiment))
            written += 1
    return written


def _require_kinds(what: Sequence[str], outputs: Sequence[str], tta: str) -> None:
    """Raise ConfigError if a kind was asked for that is not predicted, or if nothing that can be written is."""
    has = " and ".join(outputs)
    seen = "" if tta == "none" else f"seen by evaluation.tta `{tta}` "
    if cannot := [kind for kind in what if _NEEDS[kind] not in outputs]:
        raise ConfigError(f"--what {cannot[0]}: {seen}this network predicts {has} only")
    if not set(outputs) & set(_NEEDS.values()):
        raise ConfigError(f"{seen}this network predicts {has or 'nothing'}, which cannot be written to files")


def evaluated_look(experiment: AnyExperiment) -> Look:
    """Return how the experiment sees frames at evaluation; at their own size if its data entries differ in theirs."""
    sizes = {(experiment.data[name].size, experiment.data[name].crop_pct) for name in experiment.evaluation.data}
    size, crop_pct = sizes.pop() if len(sizes) == 1 else (None, None)
    return Look(experiment.evaluation.tta.build(), size, crop_pct, experiment.train.channels_last)


def class_names(experiment: AnyExperiment) -> Sequence[str]:
    """Return what the data that the experiment evaluates call their classes; nothing if they are not here to ask."""
    for name in experiment.evaluation.data or experiment.data:
        try:
            if classes := getattr(experiment.data[name].build_dataset(), "classes", ()):
                return classes
        except (DataError, OSError):
            continue
    return ()


def frames_of(path: Path, *, paired: bool = True) -> Frames:
    """Return the frames in a folder, in a folder of folders, or in a video, or one image.

    Args:
        path: of the folder, video or image.
        paired: with the frame that follows each. Images that are not may differ in size.

    Raises:
        MissingDataError: there is nothing at `path`, or no image in it.
        DataError: a file that is not a video; or PyAV is not installed.
    """
    if path.is_dir():
        dataset = FolderConfig(name="folder", frames=path, next_frame=paired).build()
        return Frames(dataset.ids, len(dataset), "", (_without_itself(dataset[i]) for i in range(len(dataset))))
    if not path.is_file():
        raise MissingDataError(f"{path}: no such folder, image or video")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return Frames([path.stem], 1, "", (Sample(name=path.stem, frame=read_image(file)) for file in (path,)))
    return _video(path, paired)


def predict(model: torch.nn.Module, raw: Sample, look: Look, device: torch.device) -> Prediction:
    """Return what `model` predicts of one frame, resized for the network and back for the prediction."""
    height, width = raw["frame"].shape[:2]
    if look.crop_pct is not None and look.size is not None:
        raw = Sample(name=raw["name"], frame=center_crop(raw["frame"], look.size, look.crop_pct))
    small = to_tensors(resized(raw, look.size) if look.size is not None else raw)
    batch = to_device(_of_one(small), device, channels_last=look.channels_last)
    with torch.no_grad():
        outputs = look.tta(model, batch)
    mask = flow = chances = None
    if "mask_logits" in outputs:
        logits = outputs["mask_logits"].float()
        if logits.shape[-2:] != (height, width):
            logits = torch.nn.functional.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
        mask = logits[0].argmax(0).to(torch.uint8).cpu().numpy()
    if "flow" in outputs and "next_frame" in raw:
        flow = resize_flow(outputs["flow"][0], (height, width)).permute(1, 2, 0).numpy()
    if "label_logits" in outputs:
        chances = outputs["label_logits"][0].double().softmax(0).cpu().numpy()
    return Prediction(mask, flow, chances, tuple(outputs))


def write_labels(path: Path, chances: Mapping[str, np.ndarray], classes: Sequence[str]) -> None:
    """Write the most probable classes of each image, a line each: its name, rank, number, class and probability.

    Args:
        path: the CSV file.
        chances: K probabilities for the name of each image.
        classes: K names; a class has none if there are not K.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("name", "rank", "label", "class", "probability"))
    for name, values in chances.items():
        best = np.argsort(-values, kind="stable")[:BEST].tolist()
        for rank, label in enumerate(best, start=1):
            called = classes[label] if len(classes) == len(values) else ""
            table.writerow((name, rank, label, called, f"{values[label]:.6g}"))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.getvalue().encode())


def write(out: Path, what: Sequence[str], raw: Sample, prediction: Prediction, radius: float | None) -> int:
    """Write the files of one frame that were asked for; return how many. Labels are not among them.

    Args:
        out: folder of all of them.
        what: keys of `SUFFIXES`.
        raw: the frame.
        prediction: of it.
        radius: pixels of flow with full color; None: each frame's longest vector.
    """
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
                write_image(path, overlay(raw["frame"], drawn))
            case "flow":
                write_flo(path, drawn)
            case _:
                write_image(path, flow_to_color(drawn, radius))
        count += 1
    return count


def _without_itself(raw: Sample) -> Sample:
    """Drop the next frame of a video's last one, which the data set pairs with itself: its flow means nothing."""
    if raw.get("next_frame") is raw["frame"]:
        del raw["next_frame"]
    return raw


def _video(path: Path, paired: bool) -> Frames:
    try:
        import av  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError(f"{path}: reading a video needs PyAV: pip install mtsp[video]; or give a folder") from error
    try:
        container: Any = av.open(str(path))
        stream = container.streams.video[0]
    except (av.FFmpegError, IndexError) as error:
        raise DataError(f"{path}: not a video that can be read ({error})") from error

    def pairs() -> Iterator[Sample]:
        with container:
            images = (frame.to_ndarray(format="rgb24") for frame in container.decode(stream))
            last: list[Any] = [None]
            try:
                for number, (image, following) in enumerate(pairwise(chain(images, last))):
                    raw = Sample(name=f"{path.stem}/{number:05d}", frame=image)
                    if following is not None and paired:
                        raw["next_frame"] = following
                    yield raw
            except av.FFmpegError as error:
                raise DataError(f"{path}: cannot be decoded any further ({error})") from error

    return Frames(None, stream.frames or None, path.stem, pairs())


def _refuse_to_overwrite(out: Path, what: Sequence[str], frames: Frames) -> None:
    found = []
    for kind in what:
        if kind == "labels":
            found += [p for p in [out / "labels.csv"] if p.exists()]
        elif frames.names is not None:
            found += [p for name in frames.names if (p := out / kind / f"{name}{SUFFIXES[kind]}").exists()]
        else:
            found += sorted((out / kind / frames.folder).glob(f"*{SUFFIXES[kind]}"))
    if found:
        raise ValueError(f"{len(found)} of the files are there already, as {found[0]}; add --overwrite to replace them")


def _of_one(sample: Any) -> Any:
    return {key: value[None] if isinstance(value, torch.Tensor) else value for key, value in sample.items()}


def _size(text: str) -> tuple[int, int]:
    height, x, width = text.partition("x")
    if not x or not height.isdecimal() or not width.isdecimal() or not int(height) or not int(width):
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, as 480x854")
    if max(int(height), int(width)) > 16384 or min(int(height), int(width)) < 32:
        raise argparse.ArgumentTypeError(f"{text}: a side is from 32 to 16384 pixels")
    return int(height), int(width)


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(text.split(","))
    if unknown := [kind for kind in kinds if kind not in SUFFIXES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(SUFFIXES)}")
    return kinds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="predict.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="the network's experiment; RUN/experiment.yaml was run")
    parser.add_argument("--checkpoint", type=Path, required=True, help="RUN/weights.safetensors or RUN/checkpoints/...")
    parser.add_argument(
        "--frames", type=Path, required=True, help="a folder of images or of such folders, a image or a video"
    )
    parser.add_argument("--out", type=Path, required=True, help="where the files go")
    parser.add_argument("--what", type=_kinds, help=f"of {','.join(SUFFIXES)} (default: all that the network predicts)")
    parser.add_argument(
        "--size", type=_size, metavar="HxW", help="of frames in the network (default: as it is evaluated)"
    )
    parser.add_argument(
        "--flow-radius", type=above_zero, metavar="PX", help="flow with full color (default: the longest)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="changes of the config")
    return parser


if __name__ == "__main__":
    sys.exit(run_or_say_why(partial(main)))
