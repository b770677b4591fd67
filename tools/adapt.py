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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before installed packages called tools, models or data

from mtsp.command_line import program, require_empty, require_pair

if TYPE_CHECKING:
    from tools.adaptation.first_frame import AdaptConfig, Video

ADAPTATION = "adapt/first_frame.yaml"


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    parser = _parser()
    arguments = parser.parse_intermixed_args(argv)
    require_pair(parser, arguments, "config", "checkpoint")
    require_pair(parser, arguments, "frames", "first-mask")
    if arguments.data is not None and arguments.root is None:
        parser.error("--data needs --root, the folder of the data set")
    if arguments.data is None and arguments.sequences is not None:
        parser.error("--sequences needs --data")
    from data.files.masks import write_mask
    from mtsp.config import load
    from mtsp.evaluation.scores import require_writable
    from mtsp.files.progress import bar
    from tools.adaptation.first_frame import AdaptConfig, Adapter
    from tools.build import read_experiment
    from tools.prediction.network import SHIPPED_CONFIG, SHORT_SIDE

    require_writable(arguments.json, None)
    require_empty(arguments.out, "--out")
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


def _videos(arguments: argparse.Namespace) -> "list[Video]":
    import numpy as np

    from data.files.masks import read_foreground, read_mask
    from data.types import DataError
    from data.video.folder import FolderConfig
    from tools.adaptation.first_frame import videos_of

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


def _davis(arguments: argparse.Namespace) -> Any:
    from data.predictions.score import truth_of

    only = () if arguments.sequences is None else (f"sequences=[{arguments.sequences}]",)
    return truth_of(
        arguments.data, arguments.root, arguments.split, arguments.resolution, only, objects=arguments.objects
    )


def _score(arguments: argparse.Namespace, config: "AdaptConfig", seconds: "Mapping[str, float]") -> None:
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
    parser.add_argument("--sequences", metavar="A,B", help="adapt to these sequences of the data set alone")
    parser.add_argument("--resolution", help="DAVIS folder in JPEGImages and Annotations (default: 480p)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the masks")
    parser.add_argument("--json", type=Path, help="JSON file for all values of --data")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="values of the adaptation to override")
    return parser


if __name__ == "__main__":
    sys.exit(main())
