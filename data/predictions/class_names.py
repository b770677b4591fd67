"""Read and write `classes.txt`, which lies beside stored predictions and lists the class names of the network."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from unicodedata import normalize

from data.files.list_files import read_text
from data.files.mask_colors import SameColors
from data.files.masks import byte_ids, read_mask
from data.types import DataError, Labels, SampleDataset
from mtsp.evaluation.classes import renumbering, require_among
from mtsp.files.atomic_file import write_atomically
from mtsp.types import Kind, Sample

FILE = "classes.txt"


def write_class_names(folder: Path, classes: Sequence[str]) -> None:
    """Write `classes.txt` in `folder`: the name of class 0, 1, ..., one per line."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / FILE, "".join(f"{name}\n" for name in classes).encode())


def with_predicted_classes(dataset: SampleDataset, folder: Path) -> SampleDataset:
    """Return `dataset` with the classes of `classes.txt` in `folder`, its labels renumbered by class name.

    Without the file, predictions have the classes of the data set, and it is returned unchanged.

    Raises:
        DataError: a name is listed twice.
        ConfigError: the file lacks a class of the data set.
    """
    own: tuple[str, ...] = getattr(dataset, "classes", ())
    if not own or not (folder / FILE).is_file():
        return dataset
    classes = tuple(name for name in normalize("NFC", read_text(folder / FILE)).splitlines() if name)
    if twice := sorted({name for name in classes if classes.count(name) > 1}):
        raise DataError(f"{folder / FILE}: the class {twice[0]!r} is listed twice")
    require_among("the data set", own, classes, str(folder / FILE))
    return _Renumbered(dataset, own, classes)


class _Renumbered:
    def __init__(self, dataset: SampleDataset, own: Sequence[str], classes: tuple[str, ...]) -> None:
        self.kind: Kind = dataset.kind
        self.ids, self.classes = dataset.ids, classes
        self.read_prediction = partial(read_mask, colors=getattr(dataset, "colors", None), same=SameColors())
        self._dataset = dataset
        self._labels, self._table = renumbering(own, classes)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        return Sample(**{**self._dataset[index], **self.labels(index)})

    def labels(self, index: int) -> Labels:
        found = Labels(**self._dataset.labels(index))
        if "mask" in found:
            found["mask"] = byte_ids(self._table[found["mask"]])
        if "label" in found:
            found["label"] = int(self._labels[found["label"]])
        return found
