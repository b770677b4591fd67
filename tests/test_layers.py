"""Imports point one way, outside and inside `mtsp/`; rooms stay small; tests lie where the code that they test lies."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = {"mtsp", "models", "data", "tools", "tests"}
ALLOWED = {"mtsp": {"mtsp"}, "models": {"models", "mtsp"}, "data": {"data", "mtsp"}}
LEVELS = [  # a module imports from its own level and those below
    ["integrations", "reports"],
    ["training"],
    ["evaluation", "tracking"],
    ["transfer", "methods"],
    ["regularizers", "metrics", "figures", "tasks", "losses", "overlap_losses", "task_weights", "optim", "cost"],
    ["fisher"],
    ["anchors", "batches", "distributed", "files"],
    ["command_line", "config", "indices", "types", "text"],
]
"""`fisher` lies below `regularizers`, which reads its files; `figures` below `training`, which draws validation."""

LARGEST_ROOM = 14
LONGEST_TEST = 450
FILES = sorted(file for layer in ALLOWED for file in (ROOT / layer).rglob("*.py"))
ROOMS = sorted({file.parent for top in (*ALLOWED, "tools", "tests") for file in (ROOT / top).rglob("*.py")})


def imported(source: str) -> set[str]:
    """Modules that `source` imports, wherever in it, as dotted names; "." for an import relative to the file."""
    nodes = list(ast.walk(ast.parse(source)))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    members = {f"{node.module}.{alias.name}" for node in froms if not node.level for alias in node.names}
    return plain | members | ({"."} if any(node.level for node in froms) else set())


def level(module: str) -> int:
    """Place in LEVELS of a module of mtsp, 0 for the top."""
    room = module.split(".")[1]
    return next(place for place, rooms in enumerate(LEVELS) if room in rooms)


def module_of(file: Path) -> str:
    """Dotted name of a file: mtsp/files/atomic_file.py is mtsp.files.atomic_file."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def ours(file: Path) -> set[str]:
    """Our own modules that a file imports: `from mtsp.files import lock` and `from mtsp.files.lock import locked`."""
    known = {module_of(file) for file in FILES}
    names = imported(file.read_text(encoding="utf-8"))
    return {name if name in known else name.rpartition(".")[0] for name in names} & known - {module_of(file)}


def test_imports_are_found_wherever_they_stand() -> None:
    source = "import a.b, c as d\nfrom e.f import g\ndef h():\n    from data.files import x\n    from . import y\n"
    assert imported(source) == {"a.b", "c", "e.f.g", "data.files.x", "."}


@pytest.mark.parametrize("layer", ALLOWED)
def test_every_layer_has_files(layer: str) -> None:
    assert any(file.is_relative_to(ROOT / layer) for file in FILES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_imports_point_one_way(file: Path) -> None:
    layer = file.relative_to(ROOT).parts[0]
    names = imported(file.read_text(encoding="utf-8"))
    outward = {name.split(".")[0] for name in names} & OURS - ALLOWED[layer]
    assert not outward, f"{layer} may import {ALLOWED[layer]}, not {outward}"
    assert "." not in names, "imports are absolute: the import path is the file path"


@pytest.mark.parametrize(
    "file",
    [file for file in FILES if file.is_relative_to(ROOT / "mtsp") and file.parent != ROOT / "mtsp"]
    + [file for file in (ROOT / "mtsp").glob("*.py") if file.name != "__init__.py"],
    ids=lambda file: file.relative_to(ROOT).as_posix(),
)
def test_rooms_of_mtsp_import_from_the_levels_below(file: Path) -> None:
    own = module_of(file)
    for other in ours(file):
        if other == "mtsp" or other.split(".")[1] == own.split(".")[1]:
            continue
        assert level(other) >= level(own), f"{own} imports {other}, which is above it"


def circles(graph: dict[str, set[str]]) -> Iterator[list[str]]:
    """Yield import circles of a graph, by removing modules that import nothing that is left."""
    left = {name: set(others) for name, others in graph.items()}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    if left:
        yield sorted(left)


def test_a_circle_is_found() -> None:
    assert list(circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()})) == [["a", "b", "c"]]
    assert list(circles({"a": {"b"}, "b": set()})) == []


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {module_of(file): ours(file) for file in FILES if file.name != "__init__.py"}
    assert list(circles(graph)) == []


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.relative_to(ROOT).as_posix())
def test_a_room_is_seen_at_a_glance(room: Path) -> None:
    files = [file.name for file in room.glob("*.py") if file.name != "__init__.py"]
    assert len(files) <= LARGEST_ROOM, f"{room.relative_to(ROOT)} has {len(files)} files"


@pytest.mark.parametrize(
    "file", sorted((ROOT / "tests").rglob("*.py")), ids=lambda file: file.relative_to(ROOT).as_posix()
)
def test_a_test_file_is_read_at_a_sitting(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LONGEST_TEST


@pytest.mark.parametrize(
    "folder",
    sorted({file.parent for top in ("mtsp", "models", "data") for file in (ROOT / "tests" / top).rglob("test_*.py")}),
    ids=lambda folder: folder.relative_to(ROOT).as_posix(),
)
def test_tests_lie_in_the_rooms_that_they_test(folder: Path) -> None:
    assert (ROOT / folder.relative_to(ROOT / "tests")).is_dir()
