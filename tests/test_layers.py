"""Imports point one way: tools, tests -> models, data -> mtsp."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {"mtsp": {"mtsp"}, "models": {"models", "mtsp"}, "data": {"data", "mtsp"}}
OURS = {"mtsp", "models", "data", "tools", "tests"}
FILES = sorted(file for layer in ALLOWED for file in (ROOT / layer).rglob("*.py"))


def imported(source: str) -> set[str]:
    """The first word of each module that `source` imports, wherever in it; "." for an import relative to the file."""
    nodes = list(ast.walk(ast.parse(source)))
    plain = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    return plain | {"." if node.level else (node.module or "").split(".")[0] for node in froms}


def test_imports_are_found_wherever_they_stand() -> None:
    source = (
        "import a.b, c as d\nfrom e.f import g\ndef h():\n    from data.files.images import x\n    from . import y\n"
    )
    assert imported(source) == {"a", "c", "e", "data", "."}


@pytest.mark.parametrize("layer", ALLOWED)
def test_every_layer_has_files(layer: str) -> None:
    assert any(file.is_relative_to(ROOT / layer) for file in FILES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_imports_point_one_way(file: Path) -> None:
    layer = file.relative_to(ROOT).parts[0]
    outward = imported(file.read_text(encoding="utf-8")) & OURS - ALLOWED[layer]
    assert not outward, f"{layer} may import {ALLOWED[layer]}, not {outward}"
