"""Score predictions saved in files against the labels of a data set. Nothing here needs torch."""

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from data.catalog.datasets import DATASETS
from data.classification.labeled_images import HELD_OUT
from data.files.flow_formats.read import read_flow
from data.files.masks import read_foreground, read_mask
from data.predictions.class_names import with_predicted_classes
from data.predictions.labels_csv import score_predictions
from data.predictions.remarks import Remarks, Seen, seen
from data.segmentation.label_map import LabelMap
from data.types import DataError, MissingDataError, SampleDataset
from data.video.davis import Davis, DavisConfig
from data.video.folder import Folder, FolderConfig
from mtsp.config import ConfigError, parse, parse_yaml
from mtsp.evaluation.metrics_by_kind import METRICS, ImageLabels, Metric, VideoMasks, VideoObjects
from mtsp.evaluation.scores import Scores, is_known, require_known, scores_of
from mtsp.files.progress import bar
from mtsp.files.read_ahead import read_ahead
from mtsp.metrics import DavisMeasure
from mtsp.metrics.kernels.jit import threads
from mtsp.text import first_names, natural_order
from mtsp.types import IGNORE

_LOG = logging.getLogger("mtsp")
_Pair = tuple[np.ndarray, dict[str, np.ndarray]]  # prediction and labels of one example
_Reader = Callable[[int, Path], _Pair]


def truth_of(
    name: str,
    root: Path | None,
    split: str | None = None,
    resolution: str | None = None,
    settings: Sequence[str] = (),
    *,
    objects: bool = False,
) -> SampleDataset:
    """Build the data set `name` and check that its files exist.

    Args:
        name: a key of `DATASETS`.
        root: folder of the data set.
        split: split to load; None uses :func:`held_out`.
        resolution: resolution of DAVIS, a folder in Annotations; None uses 480p.
        settings: other settings of the data set, `key=value`, such as `passes=[clean]`.
        objects: whether masks must hold object ids.

    Raises:
        ConfigError: the name is unknown, the data set does not have a setting, or its masks hold no object ids.
        DataError: files of the data set are missing or invalid.
    """
    if name not in DATASETS:
        raise ConfigError(f"there is no data set called {name!r}; choose one of {', '.join(sorted(DATASETS))}")
    kind = DATASETS[name].config
    if split is not None and "split" not in kind.model_fields:
        raise ConfigError(f"{name} has no splits; leave out --split")
    given = {"root": root and str(root), "split": split or held_out(name), "resolution": resolution}
    values: dict[str, Any] = {"name": name} | {key: value for key, value in given.items() if value is not None}
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
    if objects and isinstance(config, FolderConfig) and config.masks is not None and not config.foreground:
        return Folder(config, objects=True)
    if objects:
        raise ConfigError(
            f"{name}: --objects needs masks that number the objects (davis, or folder with masks and foreground: "
            "false); leave it out"
        )
    return config.build()  # pyright: ignore[reportAttributeAccessIssue]


def held_out(name: str) -> str | None:
    """Return the default split for scoring the data set `name`: val, or else test; None if it has neither."""
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
    objects: Literal["first", "all"] | None = None,
    every_frame: bool = False,
) -> list[Scores]:
    """Return the scores of the predictions in `predictions`, one entry per metric.

    The kind of data set and its first label determine the metrics, see
    :data:`~mtsp.evaluation.metrics_by_kind.METRICS`. If the folder has a `classes.txt`, predictions have its classes,
    which are matched to those of the data set by name. Files are read in threads and scores are summed in the order of
    the data set, so results do not depend on the number of threads.

    Args:
        dataset: data set with the true labels and the names of the predictions.
        predictions: folder with a .png or .flo file for each name. For labeled images, the table of
            :mod:`data.predictions.labels_csv`, or a folder with a labels.csv.
        workers: number of threads; None uses one per processor.
        objects: score each object separately, in masks of object ids: `first` scores the objects in the first true mask
            of each sequence, as the official evaluation of DAVIS 2017; `all` scores every object, from the first frame
            with the object in the true mask. Frames that are not scored need no prediction. None scores masks of one
            object and background.
        every_frame: whether to score the first and the last frame of a video, too.

    Raises:
        MissingDataError: predictions are missing; the message has their number and the first ten.
        DataError: a file cannot be read, differs in size from its label or holds NaN; or an object is predicted that
            the sequence does not have.
    """
    if dataset.kind != "video":
        dataset = with_predicted_classes(dataset, predictions if predictions.is_dir() else predictions.parent)
    _tell_values(dataset)
    labels = dataset.labels(0)
    classes: tuple[str, ...] = getattr(dataset, "classes", ())
    if len(classes) == 1:
        _LOG.warning("the data set has the single class %r, which any prediction gets right", classes[0])
    if (objects or every_frame) and (dataset.kind != "video" or "mask" not in labels):
        raise DataError("--objects and --every-frame need videos with masks; leave them out")
    if "label" in labels:
        metric = ImageLabels(len(classes))
        metric.scores = score_predictions(predictions, dataset)
        return scores_of([metric], classes)
    wanted = tuple(metric for metric in METRICS[dataset.kind] if metric.label in labels)
    if not wanted:
        raise DataError(f"{labels['name']} has no mask, flow or class to compare a prediction with")
    label = wanted[0].label
    files = [predictions / f"{name}{'.flo' if label == 'flow' else '.png'}" for name in dataset.ids]
    if objects:
        read = _object_reader(dataset, predictions, files, every_frame)
    else:
        _require(predictions, files)
        read = partial(_flow if label == "flow" else _object_mask if dataset.kind == "video" else _class_mask, dataset)

    def metrics() -> list[Metric]:
        if dataset.kind == "video" and objects:
            return [VideoObjects(every_frame=every_frame, objects=objects)]
        return [
            VideoMasks(every_frame=every_frame) if metric is VideoMasks else metric(len(classes))
            for metric in wanted
            if metric.label == label
        ]

    remarks = Remarks(predictions)

    def measured(i: int) -> tuple[list[Metric], bool, Seen]:
        found = metrics()
        prediction, truth = read(i, files[i])
        for metric in found:
            metric.update([dataset.ids[i]], prediction[None], {key: value[None] for key, value in truth.items()})
        return found, is_known(truth, label), seen(prediction, truth)

    total = metrics()
    unknown: list[str] = []
    workers = workers or threads()
    results = read_ahead(measured, range(len(files)), threads=workers, ahead=2 * workers)
    with closing(results), bar("scoring", len(files)) as advance:
        for name, (some, known, one_seen) in zip(dataset.ids, results, strict=True):
            remarks.add(name, one_seen)
            for metric, one in zip(total, some, strict=True):
                metric.merge(one)
            unknown += [] if known else [name]
            advance()
    require_known(label, unknown, len(files))
    remarks.tell()
    for metric in total:
        if isinstance(metric, VideoObjects):
            _check_objects(metric.davis, predictions)
    return scores_of(total, classes)


def _object_reader(dataset: SampleDataset, folder: Path, files: Sequence[Path], every_frame: bool) -> _Reader:
    """Return a reader for masks of object ids; frames that are not scored need no prediction."""
    frames: dict[str, list[int]] = {}
    for i in sorted(range(len(files)), key=lambda i: natural_order(dataset.ids[i].rpartition("/")[2])):
        frames.setdefault(dataset.ids[i].rpartition("/")[0], []).append(i)
    spared = set() if every_frame else {i for order in frames.values() for i in (order[0], order[-1])}
    _require(folder, [file for i, file in enumerate(files) if i not in spared])
    for order in frames.values():
        _require_numbers(dataset, order[0])

    def read(i: int, file: Path) -> _Pair:
        truth = _true_mask(dataset, i)
        predicted = np.zeros_like(truth)
        if i not in spared:
            predicted = read_mask(file, colors="voc")
            _same_size(dataset, i, file, predicted, truth)
            if (predicted == IGNORE).any():
                raise DataError(f"{file}: an object 255; --objects needs the number of each object")
        return predicted, {"mask": truth}

    return read


def _require_numbers(dataset: SampleDataset, index: int) -> None:
    """Raise DataError if the first true mask of a sequence has only the values 0 and 255."""
    truth = _true_mask(dataset, index)
    if truth.any() and not truth[truth != IGNORE].any():
        raise DataError(
            f"{dataset.ids[index]}: the first true mask of its sequence contains only 0 and 255 (unknown); leave out "
            "--objects"
        )


def _check_objects(davis: DavisMeasure, folder: Path) -> None:
    """Warn about objects and sequences that are not scored.

    Raises:
        DataError: an object is predicted that no true mask of its sequence has, or no sequence has an object.
    """
    for sequence, frames in davis.frames.items():
        true = sorted({number for frame in frames.values() for number in frame.true})
        for name, frame in frames.items():
            if odd := sorted(frame.scores.keys() - set(true)):
                has = f"the objects {', '.join(map(str, true))}" if true else "no object"
                file = folder / f"{name if sequence == '.' else f'{sequence}/{name}'}.png"
                raise DataError(f"{file}: an object {odd[-1]}, but the true masks of its sequence have {has}")
    empty = davis.without_objects()
    if len(empty) == len(davis.frames):
        raise DataError(f"no sequence can be scored: the first true mask of each, such as {empty[0]}, has no object")
    if empty:
        _LOG.warning(
            "%d sequences without an object in their first true mask are not scored: %s",
            len(empty),
            first_names(empty),
        )
    if davis.objects == "first" and (late := davis.late_objects()):
        listed = [f"{sequence} ({', '.join(map(str, numbers))})" for sequence, numbers in late.items()]
        _LOG.warning(
            "objects that are not in the first true mask are not scored, as by DAVIS 2017's rules: %s; --objects all "
            "scores them from their first frame on", first_names(listed),
        )  # fmt: skip


def _true_mask(dataset: SampleDataset, index: int) -> np.ndarray:
    truth = dataset.labels(index).get("mask")
    if truth is None:
        raise DataError(f"{dataset.ids[index]} has no mask: there is nothing to compare its prediction with")
    return truth


def _object_mask(dataset: SampleDataset, index: int, file: Path) -> _Pair:
    truth, predicted = _true_mask(dataset, index), read_foreground(file)
    _same_size(dataset, index, file, predicted, truth)
    if truth[truth != IGNORE].max(initial=0) > 1:
        raise DataError(
            f"{dataset.ids[index]}: the true mask has several objects; --objects scores each, without it masks are "
            "object or background"
        )
    return predicted, {"mask": truth}


def _class_mask(dataset: SampleDataset, index: int, file: Path) -> _Pair:
    truth, classes = _true_mask(dataset, index), len(getattr(dataset, "classes", ()))
    predicted = getattr(dataset, "read_prediction", read_mask)(file)
    _same_size(dataset, index, file, predicted, truth)
    if (highest := predicted[truth != IGNORE].max(initial=0)) >= classes:
        raise DataError(f"{file}: a pixel of class {highest}; {classes} classes have the ids 0 to {classes - 1}")
    return predicted, {"mask": truth}


def _flow(dataset: SampleDataset, index: int, file: Path) -> _Pair:
    labels = dataset.labels(index)
    truth = labels.get("flow")
    if truth is None:
        raise DataError(f"{dataset.ids[index]} has no flow: there is nothing to compare its prediction with")
    predicted, known = read_flow(file)
    _same_size(dataset, index, file, predicted, truth)
    if known is not None:
        raise DataError(f"{file}: {np.count_nonzero(~known):,} vectors are marked unknown; a prediction has all")
    valid = {"flow_valid": labels["flow_valid"]} if "flow_valid" in labels else {}
    return predicted.transpose(2, 0, 1), {"flow": truth.transpose(2, 0, 1), **valid}


def _same_size(dataset: SampleDataset, index: int, file: Path, predicted: np.ndarray, truth: np.ndarray) -> None:
    if predicted.shape[:2] != truth.shape[:2]:
        dataset[index]  # raises if it is the truth that differs in size from its image
        ours, theirs = ("x".join(map(str, array.shape[:2])) for array in (predicted, truth))
        raise DataError(f"{file}: {ours} pixels, but the truth has {theirs}; predictions are scored at that resolution")


def _tell_values(dataset: SampleDataset) -> None:
    """Say that predictions hold class ids, if true masks have other values."""
    label_map: LabelMap | None = getattr(dataset, "label_map", None)
    if label_map is not None and label_map.values != tuple(range(len(label_map.classes))):
        _LOG.info(
            "predictions hold class ids, 0 for %s to %d for %s; true masks have other values: %s",
            label_map.classes[0], len(label_map.classes) - 1, label_map.classes[-1],
            first_names([*map(str, label_map.values)]),
        )  # fmt: skip


def _require(folder: Path, files: Sequence[Path]) -> None:
    if not folder.is_dir():
        raise MissingDataError(f"{folder}: there is no such folder of predictions")
    missing = [file.relative_to(folder).as_posix() for file in files if not file.is_file()]
    if missing:
        raise MissingDataError(
            f"{folder}: {len(missing)} of {len(files)} predictions are missing: {first_names(missing)}"
        )
