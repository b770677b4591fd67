"""Score saved predictions: `python tools/score.py --dataset davis --root DAVIS --predictions DIR`.

DIR contains the files that `tools/evaluate.py --save-predictions` writes, named like the examples of the data set:

    <sequence>/<frame>.png   mask of a video frame: 0 is background, other values are the object
    <name>.png               mask of class ids for a still image
    <name of the pair>.flo   flow, in pixels at the resolution of the ground truth
    labels.csv               most probable classes of each labeled image
    classes.txt              name of class 0, 1, ... in these files, one per line; without it, the data set's classes

With `--objects`, masks hold object ids, and each object is scored by the rules of DAVIS 2017 (semi-supervised): the
objects are those in the first true mask of a sequence, the first and the last frame are not scored and need no
prediction, and the totals are means over objects. `--objects all` scores every object, from the first frame with the
object in the true mask.

The table, the JSON and the CSV have the same values. Lengths are in pixels; J, F, IoU and outlier rates are fractions
in [0, 1]. A value that was not measured is null (empty in the CSV), not 0.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before installed packages called tools, models or data

from mtsp.command_line import at_least_one, program


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    arguments = _parser().parse_intermixed_args(argv)
    from data.predictions.score import held_out, score, truth_of
    from data.video.davis import Davis
    from mtsp.evaluation.scores import joined, require_writable, show

    require_writable(arguments.json, arguments.csv)
    if arguments.objects is not None and "=" in arguments.objects:  # a setting after --objects
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
    parser.add_argument("--dataset", required=True, metavar="NAME", help="data set with ground truth, such as davis")
    parser.add_argument("--root", type=Path, help="folder of the data set")
    parser.add_argument("--predictions", type=Path, required=True, help="folder of the predictions, or a labels.csv")
    parser.add_argument("--split", help="split to score (default: val, else test)")
    parser.add_argument("--resolution", help="DAVIS folder in Annotations (default: 480p)")
    parser.add_argument(
        "--objects",
        nargs="?",
        const="first",
        metavar="first|all",
        help="score each object: those in the first true mask (DAVIS 2017, the default), or all objects",
    )
    parser.add_argument("--every-frame", action="store_true", help="score the first and last frame of videos, too")
    parser.add_argument("--workers", type=at_least_one, help="number of reader threads (default: processors)")
    parser.add_argument("--json", type=Path, help="JSON file for all values")
    parser.add_argument("--csv", type=Path, help="CSV file for the tables")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="data set settings, such as passes=[clean]")
    return parser


if __name__ == "__main__":
    sys.exit(main())
