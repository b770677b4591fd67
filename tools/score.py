"""Score saved predictions: `python tools/score.py --dataset davis --root DAVIS --predictions DIR`.

DIR has the files that `tools/evaluate.py --save-predictions` writes, named as the data set names its examples:

    <sequence>/<frame>.png   masks of a video: 0 is background, anything else the object
    <name>.png               masks of class ids, of still images
    <name of the pair>.flo   flow, in pixels of the truth's resolution
    labels.csv               the most probable classes of each labeled image

With `--objects` masks number several objects and each is scored by the rules of DAVIS 2017 (semi-supervised): the
objects are those of a sequence's first true mask, the first and the last frame do not count and need no prediction, and
the totals are means over objects. `--objects all` scores every object, in the frames from its first true mask on.

The table, the JSON and the CSV have the same numbers. Lengths are pixels; J, F, IoU and rates of outliers are fractions
in [0, 1]; what was not measured is null (empty in the CSV), not 0.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before installed packages called tools, models or data

from tools.command_line import at_least_one, program


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    arguments = _parser().parse_intermixed_args(argv)
    from data.predictions.score import held_out, score, truth_of
    from data.video.davis import Davis
    from mtsp.evaluation.scores import joined, require_writable, show

    require_writable(arguments.json, arguments.csv)
    if arguments.objects is not None and "=" in arguments.objects:  # a setting that follows a bare --objects
        arguments.settings, arguments.objects = [arguments.objects, *arguments.settings], "first"
    if arguments.objects not in (None, "first", "all"):
        raise ValueError(f"--objects {arguments.objects}: expected first or all")
    kind, objects, every_frame = arguments.dataset, arguments.objects, arguments.every_frame
    split, settings = arguments.split, arguments.settings
    dataset = truth_of(kind, arguments.root, split, arguments.resolution, settings, objects=objects is not None)
    scores = score(dataset, arguments.predictions, arguments.workers, objects=objects, every_frame=every_frame)
    if not objects and isinstance(dataset, Davis) and (several := dataset.several_objects()):
        which = f"{len(several)} of {len(scores[0].values['per_sequence'])} sequences, as {several[0]}"
        print(f"note: several objects were scored as one in {which}; --objects scores each", file=sys.stderr)
    values: dict[str, Any] = {"dataset": kind, "split": split or held_out(kind)}
    values |= {"predictions": str(arguments.predictions)} | ({"every_frame": True} if every_frame else {})
    show(values | joined(scores), {kind: scores}, arguments.json, arguments.csv)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="score.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", required=True, metavar="NAME", help="data set with the true labels, such as davis")
    parser.add_argument("--root", type=Path, help="folder of the data set")
    parser.add_argument("--predictions", type=Path, required=True, help="folder of the predictions, or a labels.csv")
    parser.add_argument("--split", help="part of the data set (default: val or test)")
    parser.add_argument("--resolution", help="folder of DAVIS below Annotations (default: 480p)")
    parser.add_argument(
        "--objects",
        nargs="?",
        const="first",
        metavar="first|all",
        help="score each object: those of the first true mask (DAVIS 2017), or all from their first frame on",
    )
    parser.add_argument("--every-frame", action="store_true", help="count the first and the last frame of a video, too")
    parser.add_argument("--workers", type=at_least_one, help="threads that read files (default: one per processor)")
    parser.add_argument("--json", type=Path, help="write every number, of every sequence, to this file")
    parser.add_argument("--csv", type=Path, help="write the tables to this file")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the data set: passes=[clean]")
    return parser


if __name__ == "__main__":
    sys.exit(main())
