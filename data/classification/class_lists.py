"""Write chosen classes: lists of names, and folders of links to the images of several sources."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from data.classification.labeled_images import LabeledImages
from data.types import DataError
from mtsp.config import ConfigError
from mtsp.files.atomic import write_atomically


def by_source(sources: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """Return the classes of each source as its own data set calls them.

    Args:
        sources: their names.
        names: of classes: of one source its own, of several `source/class`, see :func:`mtsp.transfer.centroids.merge`.
    """
    if len(sources) == 1:
        return {sources[0]: list(names)}
    own: dict[str, list[str]] = {source: [] for source in sources}
    for name in names:
        source, _, label = name.partition("/")
        own[source].append(label)
    return own


def write_lists(out: Path, sources: Sequence[str], names: Sequence[str], what: str) -> None:
    """Write classes.txt; of several sources also classes_<source>.txt for each that has a chosen class.

    Args:
        out: a folder.
        sources: their names.
        names: of the chosen classes, as in :func:`by_source`.
        what: of the comment in the first line, "for birds".

    Raises:
        DataError: a name that a list cannot hold; nothing is written then.
    """
    own = by_source(sources, names)
    for name in (name for chosen in own.values() for name in chosen):
        if name.startswith("#") or "\t" in name or name != name.strip() or name.splitlines() != [name]:
            raise DataError(
                f"class {name!r} cannot be in a list of classes: no # or space first, no tab, no line break, no space "
                "last; rename it in the source"
            )
    several = len(sources) > 1
    note = "; use classes_<source>.txt with each data set" if several else ""
    _write(out / "classes.txt", names, f"{len(names)} classes of {'+'.join(sources)} {what}{note}")
    if several:
        for source, chosen in own.items():
            path = out / f"classes_{source}.txt"
            path.unlink(missing_ok=True)  # of another choice, with --overwrite
            if chosen:
                _write(path, chosen, f"{len(chosen)} classes of {source} {what}")


def require_linkable(directory: Path, sources: Mapping[str, object], *, overwrite: bool) -> None:
    """Refuse what :func:`link` cannot do, before anything is computed.

    Raises:
        ConfigError: a source has no images, or `directory` holds something; with `overwrite`, other than links.
    """
    if without := [name for name, images in sources.items() if not isinstance(images, LabeledImages)]:
        raise ConfigError(f"--link needs images, and {without[0]} is a file of class means; give the data set itself")
    if directory.is_dir() and any(directory.iterdir()):
        if not overwrite:
            raise ConfigError(f"--link {directory}: something is in it; add --overwrite, or give a new folder")
        for folder in directory.iterdir():
            if folder.is_symlink() or not folder.is_dir() or not all(file.is_symlink() for file in folder.iterdir()):
                raise ConfigError(f"--link {directory}: {folder.name} is no folder of links; give a new folder")


def link(directory: Path, sources: Mapping[str, LabeledImages], chosen: Mapping[str, Sequence[str]]) -> tuple[int, int]:
    """Make `directory/<source>__<class>` for each chosen class, with a link to each of its images.

    A slash in a class name becomes an underscore. What is in `directory` is replaced at once in the end.

    Args:
        directory: of folders; `image_folder` with it as root is the union of the sources.
        sources: the images.
        chosen: names of classes, by source.

    Returns:
        The numbers of classes and of images.

    Raises:
        DataError: two classes get one folder.
    """
    folders: dict[str, list[Path]] = {}
    for source, names in chosen.items():
        images = sources[source]
        members: dict[str, dict[Path, None]] = {name: {} for name in names}
        for image in images.images:
            if (name := images.classes[image.label]) in members:
                members[name][image.path.absolute()] = None
        for name, paths in members.items():
            folder = f"{source}__{name}".replace("/", "_").lstrip(".")
            if folder in folders:
                raise DataError(f"two chosen classes become the folder {folder}; rename class {name!r} of {source}")
            folders[folder] = list(paths)
    directory = directory.resolve()  # where it is a link itself
    temporary = directory.with_name(f".tmp-{directory.name}-{os.getpid()}")
    try:
        for folder, paths in folders.items():
            (temporary / folder).mkdir(parents=True)
            for name, path in _file_names(paths).items():
                (temporary / folder / name).symlink_to(path)
        if directory.exists():
            shutil.rmtree(directory)
        temporary.replace(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return len(folders), sum(map(len, folders.values()))


def _file_names(paths: Sequence[Path]) -> dict[str, Path]:
    """Return a name for each image: its own, with a number where another has it, in whatever folder or format."""
    names: dict[str, Path] = {}
    taken: set[str] = set()
    for path in paths:
        stem, number = path.stem, 1
        while stem in taken:
            number += 1
            stem = f"{path.stem}~{number}"
        taken.add(stem)
        names[f"{stem}{path.suffix}"] = path
    return names


def _write(path: Path, names: Sequence[str], comment: str) -> None:
    write_atomically(path, "".join(f"{line}\n" for line in (f"# {comment}", *names)).encode())
