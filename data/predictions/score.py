"""Predictions stored in files, scored against the labels of a data set."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import numpy as np

from data.catalog.datasets import DATASETS
from data.classification.labeled_images import HELD_OUT
from data.files.flow_formats import read_flow
from data.files.masks import read_foreground, read_mask
from data.predictions.labels_csv import score_guesses
from data.types import DataError, MissingDataError, SampleDataset
from data.video.davis import Davis, DavisConfig
from data.video.folder import FolderConfig
from mtsp.batches import read_ahead
from mtsp.config import ConfigError, parse, parse_yaml
from mtsp.evaluation.scores import Scores, class_scores, flow_scores, label_scores, mask_scores, object_scores
from mtsp.files.progress import bar
from mtsp.metrics import ConfusionMatrix, DavisMeasure, FlowErrors
from mtsp.metrics.davis import frame_order
from mtsp.metrics.kernels.jit import threads
from mtsp.text import first_names
from mtsp.types import IGNORE


def truth_of(
    name: str,
    root: Path | None,
    split: str | None = None,
    resolution: str | None = None,
    settings: Sequence[str] = (),
    *,
    objects: bool = False,
) -> SampleDataset:
    """Return the data set called `name`, its files checked to be there.

    Args:
        name: a key of `DATASETS`.
        root: where it is.
        split: which part; None: :func:`held_out`.
        resolution: of DAVIS, the folder below Annotations: 480p.
        settings: other settings of this data set, `key=value`, as `passes=[clean]`.
        objects: masks are to have the number of each object.

    Raises:
        ConfigError: settings that this data set does not have, or it numbers no objects.
        DataError: its files are not as they should be.
    """
    kind = DATASETS[name].config
    values: dict[str, Any] = {"name": name}
    if root is not None:
        values["root"] = str(root)
    if split is not None and "split" not in kind.model_fields:
        raise ConfigError(f"{name} has no splits; leave out --split")
    if (split := split or held_out(name)) is not None:
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
    if objects and isinstance(config, DavisConfig):
        return Davis(config, objects=True)
    if objects and not (isinstance(config, FolderConfig) and config.masks is not None and not config.foreground):
        raise ConfigError(
            f"{name}: --objects is of videos whose masks number their objects: of davis, or of folder with masks and "
            "without foreground; leave it out"
        )
    return config.build()  # pyright: ignore[reportAttributeAccessIssue]


def held_out(name: str) -> str | None:
    """Return the split of the data set `name` to measure on: val, else test; None if it has neither."""
    field = DATASETS[name].config.model_fields.get("split")
    if field is None:
        return None
    choices = get_args(field.annotation) or HELD_OUT  # PASCAL VOC's may be any list's name
    return next((split for split in HELD_OUT if split in choices), None)


def score(
    dataset: SampleDataset,
    predictions: Path,
    workers: int | None = None,
    *,
    objects: bool = False,
    every_frame: bool = False,
) -> Scores:
    """Return what the predictions stored in the folder `predictions` are worth against the labels of `dataset`.

    Files are read in threads, and added up in the data set's order: the numbers do not depend on how many there are.

    Args:
        dataset: names and labels.
        predictions: has a .png or .flo for each name. Of labeled images the table of
        :mod:`data.predictions.labels_csv`, or the
            folder that has it as labels.csv.
        workers: threads; as many as there are processors if None.
        objects: masks number several objects, and J and F are of each. Predictions of the frames that do not count
            need not be there, as in the official evaluation of DAVIS 2017.
        every_frame: of videos, count the first and the last frame, too.

    Raises:
        MissingDataError: predictions that are not there, the first ten and their number.
        DataError: a file that cannot be read, is of another size than its label, or holds NaN; an object that the
            sequence does not have.
    """
    labels = dataset.labels(0)
    classes: tuple[str, ...] = getattr(dataset, "classes", ())
    if (objects or every_frame) and ("mask" not in labels or classes):
        raise DataError("--objects and --every-frame are of videos with masks of objects; leave them out")
    if "label" in labels:
        return label_scores(score_guesses(predictions, dataset), classes)
    if "mask" not in labels and "flow" not in labels:
        raise DataError(f"{labels['name']} has no mask, flow or class to compare a prediction with")
    files = [predictions / f"{name}{'.png' if 'mask' in labels else '.flo'}" for name in dataset.ids]
    if objects:
        return object_scores(_objects(dataset, predictions, files, workers, every_frame))
    _require(predictions, files)
    if "mask" in labels and classes:
        pixels = ConfusionMatrix(len(classes))
        for one in _each(lambda i: _classes(dataset, i, files[i], len(classes)), len(files), workers):
            pixels.merge(one)
        return class_scores(pixels, classes)
    if "mask" in labels:
        davis, pixels = DavisMeasure(every_frame=every_frame), ConfusionMatrix(2)
        for one in _each(lambda i: _mask(dataset, i, files[i], every_frame), len(files), workers):
            davis.merge(one[0])
            pixels.merge(one[1])
        return mask_scores(davis, pixels)
    flow = FlowErrors()
    for one in _each(lambda i: _flow(dataset, i, files[i]), len(files), workers):
        flow.merge(one)
    return flow_scores(flow)


def _objects(
    dataset: SampleDataset, folder: Path, files: Sequence[Path], workers: int | None, every_frame: bool
) -> DavisMeasure:
    frames: dict[str, list[int]] = {}
    for i in sorted(range(len(files)), key=lambda i: frame_order(dataset.ids[i].rpartition("/")[2])):
        frames.setdefault(dataset.ids[i].rpartition("/")[0], []).append(i)
    spared = set() if every_frame else {i for order in frames.values() for i in (order[0], order[-1])}
    _require(folder, [file for i, file in enumerate(files) if i not in spared])
    highest = {sequence: _highest(dataset, order[0]) for sequence, order in frames.items()}

    def measured(i: int) -> DavisMeasure:
        name, truth = dataset.ids[i], _true_mask(dataset, i)
        predicted = np.zeros_like(truth)
        if i not in spared:
            predicted = read_mask(files[i])
            _same_size(files[i], predicted, truth)
            _require_objects(files[i], predicted, highest[name.rpartition("/")[0]])
        one = DavisMeasure(every_frame=every_frame)
        one.update_objects(name, predicted, truth, IGNORE)
        return one

    davis = DavisMeasure(every_frame=every_frame)
    for one in _each(measured, len(files), workers):
        davis.merge(one)
    return davis


def _highest(dataset: SampleDataset, index: int) -> int:
    """Return the highest number of an object in a sequence's first true mask, which says what its objects are."""
    truth = _true_mask(dataset, index)
    if not (highest := int(truth[truth != IGNORE].max(initial=0))):
        only = (
            "is 0 and 255 only, and 255 means unknown: score binary masks" if truth.any() else "has no object: score it"
        )
        raise DataError(f"{dataset.ids[index]}: the first true mask of its sequence {only} without --objects")
    return highest


def _require_objects(file: Path, predicted: np.ndarray, highest: int) -> None:
    if (most := int(predicted.max(initial=0))) > highest:
        hint = "; --objects needs the number of each object" if most == IGNORE else ""
        raise DataError(f"{file}: an object {most}, but its sequence has the objects 1 to {highest}{hint}")


def _true_mask(dataset: SampleDataset, index: int) -> np.ndarray:
    truth = dataset.labels(index).get("mask")
    if truth is None:
        raise DataError(f"{dataset.ids[index]} has no mask: there is nothing to compare its prediction with")
    return truth


def _mask(dataset: SampleDataset, index: int, file: Path, every_frame: bool) -> tuple[DavisMeasure, ConfusionMatrix]:
    truth, predicted = _true_mask(dataset, index), read_foreground(file)
    _same_size(file, predicted, truth)
    if truth.max(initial=0) > 1:
        raise DataError(
            f"{dataset.ids[index]}: the true mask has more than one object; here binary masks are scored, and each "
            "object with --objects"
        )
    davis, pixels = DavisMeasure(every_frame=every_frame), ConfusionMatrix(2)
    davis.update(dataset.ids[index], predicted, truth)
    pixels.update(predicted, truth)
    return davis, pixels


def _classes(dataset: SampleDataset, index: int, file: Path, classes: int) -> ConfusionMatrix:
    truth, predicted = _true_mask(dataset, index), read_mask(file)
    _same_size(file, predicted, truth)
    if (highest := predicted[truth != IGNORE].max(initial=0)) >= classes:
        raise DataError(f"{file}: a pixel of class {highest}; {classes} classes have the ids 0 to {classes - 1}")
    pixels = ConfusionMatrix(classes)
    pixels.update(predicted, truth, dataset.ids[index])
    return pixels


def _flow(dataset: SampleDataset, index: int, file: Path) -> FlowErrors:
    labels = dataset.labels(index)
    truth = labels.get("flow")
    if truth is None:
        raise DataError(f"{dataset.ids[index]} has no flow: there is nothing to compare its prediction with")
    predicted, known = read_flow(file)
    _same_size(file, predicted, truth)
    if known is not None:
        raise DataError(f"{file}: {np.count_nonzero(~known):,} vectors are marked unknown; a prediction has all")
    errors = FlowErrors()
    ours, theirs = predicted.transpose(2, 0, 1), truth.transpose(2, 0, 1)
    errors.update(ours, theirs, labels.get("flow_valid"), dataset.ids[index])
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
        raise MissingDataError(
            f"{folder}: {len(missing)} of {len(files)} predictions are missing: {first_names(missing)}"
        )


def _each(work: Callable[[int], Any], count: int, workers: int | None) -> Iterator[Any]:
    """Yield `work` of 0, 1, ..., in order, done in threads, with a progress bar where somebody sees it."""
    workers = workers or threads()
    results = read_ahead(work, range(count), threads=workers, ahead=2 * workers)
    with closing(results), bar("scoring", count) as advance:
        for result in results:
            yield result
            advance()
