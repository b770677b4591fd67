"""Predict: `python tools/predict.py --config RUN/experiment.yaml --checkpoint RUN/... --frames DIR --out DIR`.

Frames are pictures in a folder, or in one subfolder per video, or a video file (needs PyAV). Under `--out` each has

    masks/<video>/<frame>.png       class of each pixel, an indexed PNG
    flow/<video>/<frame>.flo        (dx, dy) to the next frame, in pixels of the frame
    overlay/<video>/<frame>.png     the mask over the frame
    flow_color/<video>/<frame>.png  the flow in the usual color wheel

at the frame's own resolution. The last frame of a video has no next frame, and so no flow.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data import DataError, MissingDataError
from data.examples import resized, to_tensors
from data.folder import FolderConfig
from data.io import write_flo, write_image, write_mask
from mtsp.config import ConfigError
from mtsp.engine import to_device
from mtsp.types import Raw
from mtsp.visualize import flow_to_color, overlay, resize_flow
from tools.parts import AnyExperiment, accelerator_of, read_experiment, run_or_say_why
from tools.trained import load_trained

SUFFIXES = {"masks": ".png", "flow": ".flo", "overlay": ".png", "flow_color": ".png"}
"""What can be written, and in which kind of file."""

_NEEDS = {"masks": "mask_logits", "overlay": "mask_logits", "flow": "flow", "flow_color": "flow"}


class Frames(NamedTuple):
    """Frames with the ones that follow them, to be read once."""

    names: Sequence[str] | None  # of each; None where only reading tells
    total: int | None
    folder: str  # below which their names are; "" for any
    pairs: Iterator[Raw]  # a frame without a following one has no next_frame


class Prediction(NamedTuple):
    """What a network says of one frame, at the frame's resolution."""

    mask: np.ndarray | None  # HW uint8
    flow: np.ndarray | None  # HW2 float32; None too for a frame that no other follows
    outputs: tuple[str, ...]  # what the network has


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    arguments = _parser().parse_intermixed_args(argv)
    experiment = read_experiment(arguments.config, arguments.settings)
    size = arguments.size or evaluated_size(experiment)
    frames = frames_of(arguments.frames)
    if not arguments.overwrite:
        _refuse_to_overwrite(arguments.out, arguments.what or tuple(SUFFIXES), frames)
    model = load_trained(experiment, arguments.checkpoint)
    accelerator = accelerator_of(experiment.train.precision)
    if accelerator.num_processes > 1:
        raise ConfigError("predict.py runs in one process; start one for each folder of frames")
    model = accelerator.prepare_model(model, evaluation_mode=True).eval()
    written = 0
    console = Console(stderr=True)
    columns = (TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        for raw in progress.track(frames.pairs, total=frames.total):
            prediction = predict(model, raw, size, accelerator.device)
            if cannot := [kind for kind in arguments.what or () if _NEEDS[kind] not in prediction.outputs]:
                raise ConfigError(f"--what {cannot[0]}: this network predicts {' and '.join(prediction.outputs)} only")
            written += write(arguments.out, arguments.what or tuple(SUFFIXES), raw, prediction, arguments.flow_radius)
    console.print(f"{written:,} files in {arguments.out}", highlight=False)
    return 0


def evaluated_size(experiment: AnyExperiment) -> tuple[int, int] | None:
    """Return the height and width that the experiment evaluates frames at; None: their own, or not one size."""
    sizes = {experiment.data[name].size for name in experiment.evaluation.data}
    return sizes.pop() if len(sizes) == 1 else None


def frames_of(path: Path) -> Frames:
    """Return the frames in a folder, in a folder of folders, or in a video.

    Raises:
        MissingDataError: there is nothing at `path`, or no picture in it.
        DataError: a file that is not a video, or one picture alone; or PyAV is not installed.
    """
    if path.is_dir():
        dataset = FolderConfig(name="folder", frames=path).build()
        return Frames(dataset.names, len(dataset), "", (_without_itself(dataset[i]) for i in range(len(dataset))))
    if not path.is_file():
        raise MissingDataError(f"{path}: no such folder or video")
    return _video(path)


def predict(model: torch.nn.Module, raw: Raw, size: tuple[int, int] | None, device: torch.device) -> Prediction:
    """Return what `model` predicts of one frame, resized to `size` for the network and back for the prediction."""
    height, width = raw["frame"].shape[:2]
    small = to_tensors(resized(raw, size or (height, width)))
    batch = to_device(_of_one(small), device)
    with torch.no_grad():
        outputs = model(batch["frame"], batch.get("next_frame"))
    mask = flow = None
    if "mask_logits" in outputs:
        logits = outputs["mask_logits"].float()
        if logits.shape[-2:] != (height, width):
            logits = torch.nn.functional.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
        mask = logits[0].argmax(0).to(torch.uint8).cpu().numpy()
    if "flow" in outputs and "next_frame" in raw:
        flow = resize_flow(outputs["flow"][0], (height, width)).permute(1, 2, 0).numpy()
    return Prediction(mask, flow, tuple(outputs))


def write(out: Path, what: Sequence[str], raw: Raw, prediction: Prediction, radius: float | None) -> int:
    """Write the files of one frame that were asked for; return how many.

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
        drawn = prediction.mask if _NEEDS[kind] == "mask_logits" else prediction.flow
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


def _without_itself(raw: Raw) -> Raw:
    """Drop the next frame of a video's last one, which the data set pairs with itself: its flow means nothing."""
    if raw.get("next_frame") is raw["frame"]:
        del raw["next_frame"]
    return raw


def _video(path: Path) -> Frames:
    try:
        import av  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError(f"{path}: reading a video needs PyAV: pip install mtsp[video]; or give a folder") from error
    try:
        container: Any = av.open(str(path))
        stream = container.streams.video[0]
    except (av.FFmpegError, IndexError) as error:
        raise DataError(f"{path}: not a video that can be read ({error})") from error

    def pairs() -> Iterator[Raw]:
        with container:
            images = (frame.to_ndarray(format="rgb24") for frame in container.decode(stream))
            last: list[Any] = [None]
            try:
                for number, (image, following) in enumerate(pairwise(chain(images, last))):
                    raw = Raw(name=f"{path.stem}/{number:05d}", frame=image)
                    if following is not None:
                        raw["next_frame"] = following
                    yield raw
            except av.FFmpegError as error:
                raise DataError(f"{path}: cannot be decoded any further ({error})") from error

    return Frames(None, stream.frames or None, path.stem, pairs())


def _refuse_to_overwrite(out: Path, what: Sequence[str], frames: Frames) -> None:
    found = []
    for kind in what:
        if frames.names is not None:
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


def _pixels(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of pixels above 0")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="predict.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="the network's experiment; RUN/experiment.yaml was run")
    parser.add_argument("--checkpoint", type=Path, required=True, help="RUN/weights.safetensors or RUN/checkpoints/...")
    parser.add_argument(
        "--frames", type=Path, required=True, help="a folder of pictures or of such folders, or a video"
    )
    parser.add_argument("--out", type=Path, required=True, help="where the files go")
    parser.add_argument("--what", type=_kinds, help=f"of {','.join(SUFFIXES)} (default: all that the network predicts)")
    parser.add_argument(
        "--size", type=_size, metavar="HxW", help="of frames in the network (default: as it is evaluated)"
    )
    parser.add_argument("--flow-radius", type=_pixels, metavar="PX", help="flow with full color (default: the longest)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="changes of the config")
    return parser


if __name__ == "__main__":
    sys.exit(run_or_say_why(partial(main)))
