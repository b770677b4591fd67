"""Data sets of Hugging Face: of the hub, or a folder of parquet files or images, read by the package `datasets`."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self
from unicodedata import normalize

import numpy as np
from PIL import Image
from pydantic import model_validator

from data.classification.labeled_images import tell_turned
from data.files.flow_formats.read import flow_of_array
from data.files.images import Exif, decode_image, read_file
from data.files.list_files import read_classes
from data.files.masks import OwnMasks, read_mask
from data.segmentation.label_map import LabelMap
from data.types import DataError, Labels, MissingDataError
from mtsp.config import Config
from mtsp.files.reachable import why_unreachable
from mtsp.text import first_names
from mtsp.types import IGNORE, Kind, Sample

_SUFFIXES = {
    "PNG": ".png",
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "TIFF": ".tif",
    "WEBP": ".webp",
    "BMP": ".bmp",
    "GIF": ".gif",
}


class HuggingFaceConfig(Config):
    """Config of a data set of Hugging Face; needs `pip install mtsp[hf]`. Name the columns that it has.

    With `mask` it is a data set of segmented images, with `label` one of labeled images, with `next_image` and `flow`
    one of pairs.
    """

    name: Literal["hugging_face"]
    path: str
    """Name on the hub (a download, once), or a folder with parquet files, or with images as `datasets` reads them."""
    subset: str | None = None
    """Name of the data set's configuration on the hub, if it has several."""
    split: str = "train"
    """`train`, `validation`, `test`, or a part as in `train[:80%]`."""
    image: str = "image"
    """Column of images."""
    mask: str | None = None
    """Column of masks: images of class ids."""
    label: str | None = None
    """Column of classes: numbers, or names."""
    next_image: str | None = None
    """Column of second frames."""
    flow: str | None = None
    """Column of flow: arrays HW2 or 2HW in pixels, NaN where unknown."""
    classes: tuple[str, ...] | Path | None = None
    """Class names of masks, in the order of their ids, or a text file with one name per line. Null: the names of the
    only column that has some (a ClassLabel)."""
    foreground: bool = False
    """Read any value above 0 as the second of two classes, as in masks of 0 and 255."""
    unknown: tuple[int, ...] | None = None
    """Values in masks where the class is unknown or ignored; the others are 0, 1, ... in the order of `classes`. Null:
    255, unless all masks contain only 0 and 255."""
    exif: Literal["apply", "ignore"] | None = None
    """Use of the EXIF orientation, as in `mask_folder` and `image_folder`."""

    @property
    def kind(self) -> Kind:
        """Kind of data, which decides which metrics apply."""
        return "images" if self.mask is not None else "labeled" if self.label is not None else "pairs"

    @model_validator(mode="after")
    def _columns_fit(self) -> Self:
        if sum(column is not None for column in (self.mask, self.label, self.flow)) != 1:
            raise ValueError("name the column of the labels: one of `mask`, `label` and `flow`")
        if (self.flow is None) != (self.next_image is None):
            raise ValueError("`flow` and `next_image` belong together: name both columns")
        if self.classes is not None and self.mask is None:
            raise ValueError("`classes` names the classes of masks; those of `label` are in the data")
        if self.foreground and (self.mask is None or self.unknown is not None):
            raise ValueError("`foreground` reads any value above 0 of `mask` as the object; leave out `unknown`")
        return self

    def build(self) -> "HuggingFaceImages":
        """Return the data set. Raises DataError: it cannot be read, or lacks a column."""
        return HuggingFaceImages(self)


class HuggingFaceImages:
    """Rows of a data set of Hugging Face, a :class:`data.types.SampleDataset`. A row is named by its number.

    Raises:
        DataError: `datasets` is not installed, the data set cannot be read, or a column is missing or of another kind.
            Also when a row is read: its image or mask is damaged, or a mask has a value that is no class.
    """

    def __init__(self, config: HuggingFaceConfig) -> None:
        self._config = config
        self._where = f"{config.path} ({config.split})"
        self.kind: Kind = config.kind
        self._rows = _load(config)
        features: dict[str, Any] = dict(self._rows.features)
        named = {c: getattr(config, c) for c in ("image", "next_image", "mask", "label", "flow")}
        for key, column in ((key, column) for key, column in named.items() if column is not None):
            if column not in features:
                raise DataError(f"{self._where} has no column {column!r} for {key}; it has {', '.join(features)}")
        import datasets

        for column in (named[key] for key in ("image", "next_image", "mask") if named[key] is not None):
            if not isinstance(features[column], datasets.Image):
                raise DataError(f"{self._where}: the column {column!r} holds no images, but {features[column]}")
            self._rows = self._rows.cast_column(column, datasets.Image(decode=False))  # mtsp decodes, and checks
        self.classes, self._numbers = self._names(features)
        self._map = None
        if config.mask is not None:
            if config.foreground and len(self.classes) != 2:
                raise DataError(f"{self._where}: `foreground` needs 2 classes, it has {first_names(self.classes)}")
            unknown = (IGNORE,) if config.unknown is None else config.unknown
            self._map = LabelMap(self._where, self.classes, _values(len(self.classes), unknown), unknown)
        guess = config.unknown is None and len(self.classes) > 1
        self._exif: Exif = config.exif or ("ignore" if config.label is not None else "warn")
        self._masks = OwnMasks(self._stored_masks, foreground=config.foreground, guess=guess, exif=self._exif)
        self.ids = [f"{row:08d}" for row in range(len(self._rows))]
        if not self.ids:
            raise DataError(f"{self._where} is empty")
        if config.exif is None and config.label is not None:
            images = self._rows.select_columns([config.image])
            tell_turned(self._where, len(self), lambda i: self._stored(images[i], i, config.image))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        row = self._rows[range(len(self))[index]]
        sample = Sample(frame=self._image(row, index, self._config.image), **self._labels(row, index))
        if self._config.next_image is not None:
            sample["next_frame"] = self._image(row, index, self._config.next_image)
        for key in ("next_frame", "mask", "flow"):
            if key in sample and sample.get(key, sample["frame"]).shape[:2] != sample["frame"].shape[:2]:
                raise DataError(f"{self._where}, row {index}: the {key} differs in size from the image")
        return sample

    def labels(self, index: int) -> Labels:
        """Return the labels of row `index` without decoding its image."""
        columns = [c for c in (self._config.mask, self._config.label, self._config.flow) if c is not None]
        return self._labels(self._rows.select_columns(columns)[range(len(self))[index]], index)

    def _labels(self, row: dict[str, Any], index: int) -> Labels:
        config, labels = self._config, Labels(name=self.ids[index])
        if config.mask is not None and self._map is not None:
            path, data = self._stored(row, index, config.mask)
            labels["mask"] = self._map(self._masks.decode(path, data), path)
        elif config.label is not None:
            labels["label"] = self._numbers[row[config.label]]
        elif config.flow is not None:
            place = Path(f"{self._where}, row {index}")
            labels["flow"], valid = flow_of_array(place, np.asarray(row[config.flow], np.float32))
            if valid is not None:
                labels["flow_valid"] = valid
        return labels

    def _image(self, row: dict[str, Any], index: int, column: str) -> np.ndarray:
        return decode_image(*self._stored(row, index, column), any_format=True, exif=self._exif)

    def _stored_masks(self) -> Iterator[tuple[Path, bytes]]:
        assert self._config.mask is not None
        rows = self._rows.select_columns([self._config.mask])
        return (self._stored(row, index, self._config.mask) for index, row in enumerate(rows))

    def read_prediction(self, path: Path) -> np.ndarray:
        """Return the class ids of a predicted mask, whose colors are held against those of the true masks.

        Where `unknown` moves the values of the true masks, predictions still hold class ids, and have colors of their
        own.
        """
        moved = self._map is not None and self._map.values != tuple(range(len(self.classes)))
        return read_mask(path) if moved else self._masks.read_prediction(path)

    def _stored(self, row: dict[str, Any], index: int, column: str) -> tuple[Path, bytes]:
        """Return a name for messages, with the suffix of the format, and the bytes of an image."""
        stored = row[column]
        if stored is None:
            raise DataError(f"{self._where}, row {index}: {column} is empty")
        if stored["bytes"] is None:
            return Path(stored["path"]), read_file(Path(stored["path"]))
        try:
            kind = Image.open(io.BytesIO(stored["bytes"])).format or ""
        except Exception as error:  # Pillow raises many types
            raise DataError(f"{self._where}, row {index}: {column} cannot be decoded: {error}") from error
        return Path(f"{self._where}, row {index}, {column}{_SUFFIXES.get(kind, '.png')}"), stored["bytes"]

    def _names(self, features: dict[str, Any]) -> tuple[tuple[str, ...], dict[Any, int]]:
        """Return the names of the classes, and for labels that are not numbered from 0 the number of each."""
        import datasets

        config = self._config
        if config.label is not None:
            feature = features[config.label]
            if not isinstance(feature, datasets.ClassLabel | datasets.Value):
                raise DataError(f"{self._where}: the column {config.label!r} holds no classes, but {feature}")
            names: list[str] | None = getattr(feature, "names", None)
            known: dict[Any, Any] = {value: _class(value, names) for value in self._rows.unique(config.label)}
            if None in known.values():
                labels = enumerate(self._rows[config.label])
                row, value = next((row, value) for row, value in labels if _class(value, names) is None)
                raise DataError(
                    f"{self._where}, row {row}: the {config.label} is {value!r}, no class; leave out the row"
                )
            classes: Any = range(len(names)) if names else sorted({*known.values()})
            number = {name: number for number, name in enumerate(classes)}
            return tuple(names or map(str, classes)), {value: number[name] for value, name in known.items()}
        if config.mask is None:
            return (), {}
        if config.classes is not None:
            return tuple(read_classes(config.classes)) if isinstance(config.classes, Path) else config.classes, {}
        found = {tuple(names) for feature in features.values() if (names := _class_labels(feature))}
        if len(found) != 1:
            raise DataError(f"{self._where}: no column names the classes of the masks; set `classes`")
        return found.pop(), {}


def _class(label: object, names: Sequence[str] | None) -> str | int | None:
    """Return the class that a stored label means; None for none: a missing label, -1 beside `names`, a fraction."""
    if isinstance(label, str) and names is None:
        return normalize("NFC", label).strip() or None
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return label if isinstance(label, int) and (names is None or 0 <= label < len(names)) else None


def _class_labels(feature: Any) -> list[str]:
    """Return the class names of a feature, or of the items of a list."""
    feature = getattr(feature, "feature", feature[0] if isinstance(feature, list) and feature else feature)
    return list(getattr(feature, "names", None) or [])


def _values(classes: int, unknown: tuple[int, ...]) -> tuple[int, ...]:
    known = [value for value in range(classes + len(unknown)) if value not in unknown]
    return tuple(known[:classes])


def _load(config: HuggingFaceConfig) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise DataError("data sets of Hugging Face need the package datasets: pip install mtsp[hf]") from error
    folder = Path(config.path)
    if not folder.exists():
        if folder.is_absolute() or len(folder.parts) > 2 or next(iter(folder.parts), "") in ("..", "inputs"):
            raise MissingDataError(f"no folder {folder.absolute()}")
        _stay_offline_if_unreachable()
    datasets.disable_progress_bars()
    try:
        if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
            saved: Any = datasets.load_from_disk(config.path)
            return saved[config.split] if isinstance(saved, datasets.DatasetDict) else saved
        return datasets.load_dataset(config.path, config.subset, split=config.split)
    except Exception as error:  # the type depends on the library, its file system, and the network
        why = " ".join(str(error).split())[:300]
        raise DataError(f"{config.path} cannot be read as a data set of Hugging Face: {why}") from error


def _stay_offline_if_unreachable() -> None:
    """Have the library use only what it has stored, and not try for half a minute, if the hub cannot be reached."""
    import datasets
    import huggingface_hub

    hub: Any = huggingface_hub.constants
    library: Any = datasets
    if not hub.HF_HUB_OFFLINE and why_unreachable(hub.ENDPOINT):
        hub.HF_HUB_OFFLINE = library.config.HF_HUB_OFFLINE = True
