"""Write chosen classes as lists of names, one per data set."""

from collections.abc import Sequence
from pathlib import Path

from data.types import DataError
from mtsp.files.atomic import write_atomically


def _by_source(sources: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """Return the classes of each source as its own data set calls them.

    Args:
        sources: names of the sources.
        names: names of the classes, with several sources as `source/class` (:func:`mtsp.transfer.centroids.merge`).
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
        out: the folder to write to.
        sources: names of the sources.
        names: names of the chosen classes, with several sources as `source/class`.
        what: end of the comment in the first line, for example "for birds".

    Raises:
        DataError: a name that a list cannot hold; nothing is written then.
    """
    own = _by_source(sources, names)
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


def _write(path: Path, names: Sequence[str], comment: str) -> None:
    write_atomically(path, "".join(f"{line}\n" for line in (f"# {comment}", *names)).encode())
