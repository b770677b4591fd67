"""Evaluate: `python tools/evaluate.py --data davis --root DAVIS --predictions DIR --json scores.json`.

Scores stored predictions, without any network: masks DIR/<sequence>/<frame>.png, of which whatever is not 0 is the
object, or flow DIR/<name of the pair>.flo, in pixels of the truth's resolution. Names are the data set's own.

The table, the JSON and the CSV have the same numbers. Lengths are pixels; J, F, IoU and the shares of outliers are
fractions in [0, 1]; what nothing was measured of is null (empty in the CSV), not 0.
"""

import argparse
import csv
import io
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from data import AnyDataset, DataError, MissingDataError, RawDataset
from data.io import read_flow, read_foreground
from mtsp.checkpoint import write_atomically
from mtsp.config import Config, ConfigError, parse, parse_yaml
from mtsp.metrics import ConfusionMatrix, DavisMeasure, FlowErrors
from mtsp.metrics.native import threads

DATASETS: dict[str, type[Config]] = {
    get_args(kind.model_fields["name"].annotation)[0]: kind for kind in get_args(get_args(AnyDataset)[0])
}
"""The config of each data set that can be scored, by its name."""

_PASSES = ("clean", "final", "into_future", "into_past")
_SHOWN = {
    "mask": ("J_mean", "J_recall", "J_decay", "F_mean", "F_recall", "F_decay", "iou"),
    "flow": ("epe", "epe_0_10", "epe_10_40", "epe_40_plus", "out_1px", "out_3px", "out_5px", "fl_all"),
}


class Scores(NamedTuple):
    """What predictions are worth: numbers of the whole, as in the JSON, and of parts under `per_...` keys."""

    kind: str  # "mask" or "flow"
    values: dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code. A person's mistake is one `error:` line, and nothing is written then."""
    arguments = _parser().parse_args(argv)
    try:
        for file in (arguments.json, arguments.csv):
            if file is not None and not file.absolute().parent.is_dir():
                raise ValueError(f"{file}: there is no folder {file.absolute().parent} to write it in")
        dataset = truth_of(arguments.data, arguments.root, arguments.split, arguments.resolution, arguments.settings)
        scores = score(dataset, arguments.predictions, arguments.workers)
        written = {"data": arguments.data, "split": arguments.split, "predictions": str(arguments.predictions)}
        contents = {
            arguments.json: json.dumps(_plain(written | scores.values), indent=2, allow_nan=False) + "\n",
            arguments.csv: _csv(scores),
        }
        for file, text in contents.items():
            if file is not None:
                write_atomically(file, text.encode())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    _print(scores)
    return 0


def truth_of(
    name: str,
    root: Path | None,
    split: str = "val",
    resolution: str | None = None,
    settings: Sequence[str] = (),
) -> RawDataset:
    """Return the data set called `name`, its files checked to be there.

    Args:
        name: a key of `DATASETS`.
        root: where it is.
        split: which part.
        resolution: of DAVIS, the folder below Annotations: 480p.
        settings: other settings of this data set, `key=value`, as `passes=[clean]`.

    Raises:
        ConfigError: settings that this data set does not have.
        DataError: its files are not as they should be.
    """
    kind = DATASETS[name]
    values: dict[str, Any] = {"name": name}
    if root is not None:
        values["root"] = str(root)
    if "split" in kind.model_fields:
        values["split"] = split
    if resolution is not None:
        values["resolution"] = resolution
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"{setting!r} is not key=value, as in passes=[clean]")
        values[key] = parse_yaml(value)
    try:
        config = parse(kind, values)
    except ConfigError as error:
        raise ConfigError(f"{name}: " + "; ".join(str(error).splitlines())) from error
    return config.build()  # pyright: ignore[reportAttributeAccessIssue]


def score(dataset: RawDataset, predictions: Path, workers: int | None = None) -> Scores:
    """Return what the predictions stored in the folder `predictions` are worth against the labels of `dataset`.

    Files are read in threads, and added up in the data set's order: the numbers do not depend on how many there are.

    Args:
        dataset: names and labels.
        predictions: has a .png or .flo for each name.
        workers: threads; as many as there are processors if None.

    Raises:
        MissingDataError: predictions that are not there, the first ten and their number.
        DataError: a file that cannot be read, is of another size than its label, or holds NaN.
    """
    labels = dataset.labels(0)
    if "mask" not in labels and "flow" not in labels:
        raise DataError(f"{labels['name']} has neither mask nor flow: there is nothing to compare predictions with")
    kind, suffix = ("mask", ".png") if "mask" in labels else ("flow", ".flo")
    files = [predictions / f"{name}{suffix}" for name in dataset.names]
    _require(predictions, files)
    if kind == "mask":
        davis, pixels = DavisMeasure(), ConfusionMatrix(2)
        for one in _each(lambda i: _mask(dataset, i, files[i]), len(files), workers):
            davis.merge(one[0])
            pixels.merge(one[1])
        accuracy = pixels.compute()["pixel_accuracy"]
        values = davis.compute() | {"pixel_accuracy": accuracy, "per_sequence": davis.per_sequence()}
        return Scores(kind, values)
    flow = FlowErrors()
    for one in _each(lambda i: _flow(dataset, i, files[i]), len(files), workers):
        flow.merge(one)
    return Scores(kind, _flow_values(flow))


def _flow_values(flow: FlowErrors) -> dict[str, Any]:
    """Return the errors of all pairs, of each sequence (the folder of a name, else the name), pair and pass."""
    values: dict[str, Any] = {**flow.compute()}
    sequences = flow.grouped(lambda name: name.rpartition("/")[0] or name)
    values["per_sequence"] = {name: part.compute() for name, part in sequences.items()}
    values["per_image"] = flow.per_image()
    passes = flow.grouped(lambda name: "/".join(part for part in name.split("/")[:2] if part in _PASSES))
    if "" not in passes:
        values["per_pass"] = {name: part.compute() for name, part in passes.items()}
    return values


def _mask(dataset: RawDataset, index: int, file: Path) -> tuple[DavisMeasure, ConfusionMatrix]:
    truth = dataset.labels(index).get("mask")
    if truth is None:
        raise DataError(f"{dataset.names[index]} has no mask: there is nothing to compare its prediction with")
    predicted = read_foreground(file)
    _same_size(file, predicted, truth)
    if truth.max(initial=0) > 1:
        raise DataError(f"{dataset.names[index]}: the true mask has more than an object; here binary masks are scored")
    davis, pixels = DavisMeasure(), ConfusionMatrix(2)
    davis.update(dataset.names[index], predicted, truth)
    pixels.update(predicted, truth)
    return davis, pixels


def _flow(dataset: RawDataset, index: int, file: Path) -> FlowErrors:
    labels = dataset.labels(index)
    truth = labels.get("flow")
    if truth is None:
        raise DataError(f"{dataset.names[index]} has no flow: there is nothing to compare its prediction with")
    predicted, known = read_flow(file)
    _same_size(file, predicted, truth)
    if known is not None:
        raise DataError(f"{file}: {np.count_nonzero(~known):,} vectors are marked unknown; a prediction has all")
    errors = FlowErrors()
    ours, theirs = predicted.transpose(2, 0, 1), truth.transpose(2, 0, 1)
    errors.update(ours, theirs, labels.get("flow_valid"), dataset.names[index])
    return errors


def _same_size(file: Path, predicted: np.ndarray, truth: np.ndarray) -> None:
    if predicted.shape[:2] != truth.shape[:2]:
        ours, theirs = ("x".join(map(str, array.shape[:2])) for array in (predicted, truth))
        raise DataError(f"{file}: {ours} pixels, but the truth has {theirs}; predictions are scored at that resolution")


def _require(folder: Path, files: Sequence[Path]) -> None:
    if not folder.is_dir():
        raise MissingDataError(f"{folder}: there is no such folder of predictions")
    missing = [file.relative_to(folder).as_posix() for file in files if not file.is_file()]
    if missing:
        names = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        raise MissingDataError(f"{folder}: {len(missing)} of {len(files)} predictions are missing: {names}")


def _each(work: Callable[[int], Any], count: int, workers: int | None) -> Iterator[Any]:
    """Yield `work` of 0, 1, ..., in order, done in threads, with a progress bar where somebody sees it."""
    console = Console(stderr=True)
    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    pool = ThreadPoolExecutor(workers or threads())
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            yield from progress.track(pool.map(work, range(count)), total=count)
    finally:
        pool.shutdown(cancel_futures=True)


def _plain(value: Any) -> Any:
    """Return `value` with null for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csv(scores: Scores) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    keys = _SHOWN[scores.kind]
    rows.writerow(["sequence", *keys])
    for name, values in [*scores.values["per_sequence"].items(), ("all", scores.values)]:
        rows.writerow([name, *(_plain(values[key]) for key in keys)])
    return text.getvalue()


def _print(scores: Scores) -> None:
    keys, values = _SHOWN[scores.kind], scores.values
    last = "mean over sequences" if scores.kind == "mask" else "all pixels"
    table = Table()
    table.add_column("sequence", no_wrap=True)
    for key in keys:
        table.add_column(key.replace("_", " "), justify="right")  # words break where the terminal is narrow
    parts = [(name, part, False) for name, part in values["per_sequence"].items()]
    passes = [(name, part, True) for name, part in values.get("per_pass", {}).items()]
    for name, part, total in [*parts, *passes, (last, values, True)]:
        cells = ("-" if math.isnan(part[key]) else f"{part[key]:.3f}" for key in keys)
        table.add_row(name, *cells, style="bold" if total else None)
    Console().print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evaluate.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, choices=sorted(DATASETS), help="whose labels are the truth")
    parser.add_argument("--root", type=Path, help="where that data set is")
    parser.add_argument("--split", default="val", help="which part of it (default: val)")
    parser.add_argument("--resolution", help="of DAVIS, the folder below Annotations (default: 480p)")
    parser.add_argument("--predictions", type=Path, required=True, help="folder of <name>.png masks or <name>.flo flow")
    parser.add_argument("--json", type=Path, help="write every number, of every sequence, to this file")
    parser.add_argument("--csv", type=Path, help="write the table to this file")
    parser.add_argument("--workers", type=int, help="threads that read files (default: one for each processor)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="other settings of the data set")
    return parser


if __name__ == "__main__":
    sys.exit(main())
