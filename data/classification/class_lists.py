"""Write files with the names of chosen classes, one file per data set."""

from collections.abc import Sequence
from pathlib import Path

from data.types import DataError
from mtsp.files.atomic_file import write_atomically


def write_lists(out: Path, sources: Sequence[str], names: Sequence[str], purpose: str) -> None:
    """Write classes.txt to `out`, and with several sources also a classes_<source>.txt for each chosen source.

    Args:
        out: the folder to write to.
        sources: names of the sources.
        names: names of the chosen classes; with several sources `source/class`, as in
            :func:`mtsp.transfer.centroids.merge`.
        purpose: text at the end of the comment in the first line, for example "for birds".

    Raises:
        DataError: a name cannot be stored in a list; nothing is written.
    """
    lists = {sources[0]: list(names)}
    if several := len(sources) > 1:
        pairs = [name.split("/", 1) for name in names]
        lists = {source: [label for owner, label in pairs if owner == source] for source in sources}
    for name in (name for chosen in lists.values() for name in chosen):
        if name.startswith("#") or "\t" in name or name != name.strip() or name.splitlines() != [name]:
            raise DataError(
                f"class {name!r} cannot be in a list of classes: names must not begin with # or a space, end with a "
                "space, or contain a tab or line break; rename the class in the source"
            )
    note = "; use classes_<source>.txt with each data set" if several else ""
    _write(out / "classes.txt", names, f"{len(names)} classes of {'+'.join(sources)} {purpose}{note}")
    for source, chosen in lists.items() if several else ():
        path = out / f"classes_{source}.txt"
        path.unlink(missing_ok=True)  # left by an earlier choice, with --overwrite
        if chosen:
            _write(path, chosen, f"{len(chosen)} classes of {source} {purpose}")


def _write(path: Path, names: Sequence[str], comment: str) -> None:
    write_atomically(path, "".join(f"{line}\n" for line in (f"# {comment}", *names)).encode())
