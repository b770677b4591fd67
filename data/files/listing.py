"""List the files of a data set and check them before anything is decoded.

A data set lists its files when it is built, so that a missing file is found before training and not hours later.
"""

import errno
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from unicodedata import normalize

import numpy as np

from data.files.images import IMAGE_SUFFIXES, orientation
from data.files.list_files import read_names
from data.files.undecoded import UndecodedJpeg
from data.types import DataError, MissingDataError
from mtsp.text import ambiguous_order, first_names, natural_order, similar

_LOG = logging.getLogger("mtsp")
_NO_IMAGES = {
    "", ".csv", ".db", ".flo", ".html", ".ini", ".json", ".log", ".mat", ".md", ".pfm", ".tsv", ".txt", ".xml",
    ".yaml", ".yml",
}  # fmt: skip
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}
_told: set[Path] = set()
_with_splits: set[Path] = set()
_LEFT_BEHIND = ("__MACOSX", "@eaDir")  # written by macOS into zip files, by Synology disks for thumbnails


def find_root(kind: str, root: Path, inside: str, below: Sequence[str] = ()) -> Path:
    """Return the first folder that contains `inside`: `root` or one of its subfolders `below`.

    Raises:
        MissingDataError: no folder contains it.
    """
    for place in (root, *(root / name for name in below)):
        if (place / inside).exists():
            return place
    what = f"expected {inside} inside it" if root.is_dir() else "there is no such folder"
    raise MissingDataError(f"no {kind} at {root}: {what}; see docs/data_sets.md")


def images_by_stem(folder: Path) -> dict[str, Path]:
    """Return the images in `folder` by stem, in natural order; an empty dict if the folder does not exist.

    Accented letters in the stems are composed (NFC), whatever their form in the file name.

    Raises:
        DataError: two images differ only in their suffix.
    """
    found: dict[str, Path] = {}
    entries = folder.iterdir() if folder.is_dir() else ()
    for path in sorted(entries, key=lambda path: (natural_order(path.stem), path.suffix)):
        if is_image(path):
            stem = normalize("NFC", path.stem)
            if stem in found:
                raise DataError(f"{folder}: both {found[stem].name} and {path.name}; keep one of them")
            found[stem] = path
    return found


def image_tree(folder: Path) -> dict[str, Path]:
    """Return the images in `folder` and in subfolders of any depth, by name; images of a folder are adjacent.

    A name is the path relative to `folder` without suffix, with composed accents. Raises MissingDataError if there is
    no such folder.
    """
    if not folder.is_dir():
        raise MissingDataError(f"no folder {folder.absolute()}")
    return {
        normalize("NFC", (place / stem).relative_to(folder).as_posix()): path
        for place in sorted(folders_below(folder), key=lambda place: natural_order(place.as_posix()))
        for stem, path in images_by_stem(place).items()
    }


def in_split(split: Path | None, names: Iterable[str], folder: Path) -> list[str]:
    """Return those of `names` that the text file `split` lists, in the order of `names`; all of them without a file.

    A line names an example ("park/1") or a folder of examples ("park"). Raises DataError if a line names nothing.
    """
    known = list(names)
    if split is None:
        return known
    wanted = {normalize("NFC", name) for name in read_names(split)}
    above = {name: {parent.as_posix() for parent in PurePosixPath(name).parents} for name in known}
    chosen = [name for name in known if name in wanted or not wanted.isdisjoint(above[name])]
    folders = {folder for name in chosen for folder in above[name]}
    if lacking := sorted(wanted - {*chosen} - folders):
        raise MissingDataError(
            f"{split}: {len(lacking)} of {len(wanted)} lines name no example in {folder}, for example "
            f"{lacking[0]!r}{similar(lacking[0], known)}"
        )
    return chosen


def tell_skipped(root: Path, folders: Iterable[Path]) -> None:
    """Warn, once per `root`, about files in `folders` that cannot be read as images: their number and the first ten."""
    if root in _told:
        return
    skipped = []
    for folder in folders:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if _leads_to(entry.is_file))
        skipped += [folder / name for name in names if not name.startswith(".") and _may_be_image(Path(name))]
    if skipped:
        _told.add(root)
        _LOG.warning(
            "images at %s: %s passed over, which are of no format that is read", root, first_ten(skipped, root)
        )


def _may_be_image(path: Path) -> bool:
    return path.suffix.lower() not in IMAGE_SUFFIXES | _NO_IMAGES


def split_folders(root: Path) -> list[str]:
    """Return the names of the folders directly in `root` that are called like the splits of a data set."""
    return [folder.name for folder in subfolders(root) if folder.name.lower() in _SPLITS]


def tell_splits(root: Path) -> None:
    """Warn, once per `root`, if it holds several splits of a data set, which are all read."""
    if root not in _with_splits and len(splits := split_folders(root)) > 1:
        _with_splits.add(root)
        _LOG.warning(
            "images at %s: the folders %s look like splits, and all of them are read; to read one, name %s",
            root, ", ".join(splits), root / splits[0],
        )  # fmt: skip


def named(path: Path) -> Path:
    """Return the existing file with this name in composed or decomposed letters (NFC, NFD); `path` if there is none."""
    if path.name.isascii() and path.parent.as_posix().isascii():
        return path
    if path.exists() or path == path.parent:
        return path
    folder = named(path.parent)
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    same = [name for name in names if normalize("NFC", name) == normalize("NFC", path.name)]
    return folder / (same[0] if same else path.name)


def is_image(path: Path) -> bool:
    """Return whether `path` has an image suffix and is not hidden, as macOS's ._1.jpg next to 1.jpg is."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def subfolders(folder: Path) -> list[Path]:
    """Return the direct subfolders of `folder`, sorted by name; an empty list if the folder does not exist.

    Folders that programs leave behind are skipped, such as .ipynb_checkpoints, __MACOSX and @eaDir.
    """
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:  # fast for a folder of a million images: only links need a call each
        names = [entry.name for entry in entries if _leads_to(entry.is_dir)]
    return [folder / name for name in sorted(names) if not name.startswith(".") and name not in _LEFT_BEHIND]


def folders_below(folder: Path, root: Path | None = None) -> list[Path]:
    """Return `folder` and its :func:`subfolders` of any depth, sorted by path, following links.

    Links to a parent folder of the link are skipped, and so are links to `root` or its parent folders.
    """
    above = frozenset() if root is None else _itself_and_above(root)
    return sorted(_below(folder, above))


def _below(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    if folder.resolve() in above:
        return
    yield folder
    above |= _itself_and_above(folder)
    for inner in subfolders(folder):
        yield from _below(inner, above)


def _itself_and_above(folder: Path) -> frozenset[Path]:
    real = folder.resolve()
    return frozenset((real, *real.parents))


def require_order(kind: str, root: Path, ids: Iterable[str]) -> None:
    """Raise DataError if the order of the frames in a folder is ambiguous by their names."""
    folders: dict[str, list[str]] = {}
    for name in ids:
        folder, _, frame = name.rpartition("/")
        folders.setdefault(folder, []).append(frame)
    for folder, frames in folders.items():
        if why := ambiguous_order(frames):
            raise DataError(f"{kind} at {root / folder}: the order of the frames cannot be told: {why}")


def inside(root: Path, entry: str, where: Path) -> Path:
    """Return the path of an entry of the split file `where`, relative to `root`; a leading slash means `root`.

    Raises:
        DataError: the path leads out of `root`, directly or through a symbolic link.
    """
    parts = PurePosixPath(entry.lstrip("/")).parts
    path = named(root.joinpath(*parts))
    if not parts or ".." in parts or "\\" in entry or "\0" in entry:
        raise DataError(f"{where}: {entry!r} is not a path inside {root}")
    try:
        real = path.resolve()
    except (OSError, RuntimeError) as error:  # a link that leads to itself
        raise DataError(f"{where}: {entry!r} cannot be followed: {error}") from error
    if not real.is_relative_to(root.resolve()):
        raise DataError(f"{where}: {entry!r} leads out of {root}, to {real}; make the root itself the link")
    return path


def require_files(kind: str, root: Path, files: Iterable[Path]) -> None:
    """Raise MissingDataError if any of `files` is missing; the message has their number and the first ten.

    Each folder is listed only once, since a call for each of the quarter million files of FlyingThings3D takes minutes
    on a network disk. Only links are checked one by one.
    """
    listed: dict[Path, dict[str, bool]] = {}  # folder -> name of entry -> whether it is a file
    missing: dict[Path, None] = {}
    no_files: dict[Path, None] = {}
    for file in files:
        folder = file.parent
        if folder not in listed:
            listed[folder] = _entries(folder)
        is_file = listed[folder].get(file.name)
        if not is_file:
            (missing if is_file is None else no_files)[file] = None
    if missing:
        first = next(iter(missing))
        raise MissingDataError(
            f"{kind} at {root}: {first_ten(missing, root)} missing{similar(first.name, listed[first.parent])}"
        )
    if no_files:
        what = f"expected {first_ten(no_files, root)}, found links to none, or folders"
        raise MissingDataError(f"{kind} at {root}: {what}")


def _entries(folder: Path) -> dict[str, bool]:
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {entry.name: _leads_to(entry.is_file) for entry in entries}


def _leads_to(asked: Callable[[], bool]) -> bool:
    """Return the result of an os.DirEntry check; False for a loop of symbolic links, for which the check raises."""
    try:
        return asked()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False


def first_ten(files: Iterable[Path], root: Path) -> str:
    """Return "12 files (a, b, ...)" with the first ten paths, relative to `root`."""
    names = [file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file) for file in files]
    return f"{len(names)} file{'s' if len(names) > 1 else ''} ({first_names(names)})"


def require_unique(kind: str, root: Path, ids: Sequence[str]) -> None:
    """Raise DataError if `ids` is empty, has duplicates, or has a name that is not Unicode."""
    if not ids:
        raise DataError(f"{kind} at {root}: no examples in what was asked for")
    require_unicode(kind, root, ids)
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        twice = [name for name in ids if name in seen or seen.add(name)]
        raise DataError(f"{kind} at {root}: {len(twice)} examples are listed twice, the first {twice[0]}")


def require_unicode(kind: str, root: Path, names: Iterable[str]) -> None:
    """Raise DataError if a name of a file or folder is not UTF-8: no table of results could hold it."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(f"{kind} at {root}: the name {name!a} is not UTF-8; rename it") from None


def require_size(frame: Path, pixels: np.ndarray | UndecodedJpeg, other: Path, labels: np.ndarray) -> None:
    """Raise DataError unless both arrays have the same height and width."""
    if pixels.shape[:2] != labels.shape[:2]:
        sizes = ("x".join(map(str, array.shape[:2])) for array in (labels, pixels))
        tag = orientation(frame) if frame.suffix.lower() in IMAGE_SUFFIXES else 1
        hint = f" and the EXIF orientation {tag}; `exif: apply` turns it" if tag != 1 else ""
        raise DataError(f"{other} has {next(sizes)} pixels, but {frame} has {next(sizes)}{hint}")
