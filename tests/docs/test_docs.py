"""README, docs and the comments of configs say what is so: code runs, commands parse, links lead somewhere."""

import argparse
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mtsp.config import CONFIGS
from tests.configs.shipped import shipped
from tests.docs.pages import PAGES, ROOT, Block, anchors, blocks, commands, links, name_of
from tools import train

WITH_PYTHON = [page for page in PAGES if any(block.language == "python" for block in blocks(page.read_text()))]
PLACEHOLDERS = {
    "runs/NAME/experiment.yaml": "davis_segflow.yaml",
    "my_run.yaml": "own/masks.yaml",
    "my_videos.yaml": "own/videos.yaml",
}
"""Configs that only a reader has, and shipped ones in their place."""


class ParsedError(Exception):
    """Raised in place of what a program would do with its arguments."""


@pytest.fixture
def only_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a program stop once its command line is parsed."""
    depth = 0

    def stop_after(parse: Any) -> Any:
        def parse_and_stop(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth  # parsers call each other
            depth += 1
            result = parse(*args, **kwargs)
            depth -= 1
            if depth:
                return result
            assert not isinstance(result, tuple) or all("=" in word for word in result[1])
            raise ParsedError

        return parse_and_stop

    for method in ("parse_args", "parse_intermixed_args", "parse_known_args"):
        monkeypatch.setattr(argparse.ArgumentParser, method, stop_after(getattr(argparse.ArgumentParser, method)))


def shown_commands() -> Iterator[Any]:
    """Yield a parameter (program, arguments) for each command in README, docs and the configs' comments."""
    texts = [(name_of(page), block.text) for page in PAGES for block in blocks(page.read_text()) if not block.language]
    for config in [*shipped(CONFIGS), *sorted(CONFIGS.glob("accelerate/*.yaml"))]:
        comment = "\n".join(line.removeprefix("#") for line in config.read_text().splitlines() if line.startswith("#"))
        texts.append((name_of(config), comment))
    seen: set[tuple[str, ...]] = set()
    for place, text in texts:
        for program, arguments in commands(text):
            if (program, *arguments) not in seen:
                seen.add((program, *arguments))
                yield pytest.param(program, arguments, id=f"{place}: {Path(program).stem} {' '.join(arguments)}"[:120])


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_the_python_on_a_page_runs(page: Path) -> None:
    names: dict[str, Any] = {}
    for block in blocks(page.read_text()):
        if block.language == "python" and not block.skipped:
            exec(compile(block.setup, f"{page}, setup", "exec"), names)
            exec(compile(block.text, str(page), "exec"), names)


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_the_python_on_a_page_that_is_not_run_can_be_read(page: Path) -> None:
    for block in blocks(page.read_text()):
        if block.language == "python" and block.skipped:
            compile(block.text, str(page), "exec")


@pytest.mark.parametrize(
    ("program", "arguments"),
    [shown for shown in shown_commands() if shown.values[0] != "tools/train.py" or "--new" in shown.values[1]],
)
def test_a_command_that_is_shown_is_one_that_the_program_takes(
    program: str, arguments: list[str], only_parse: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(program.removesuffix(".py").replace("/", "."))
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    if "/examples/" in program:
        assert arguments == []
        return
    with pytest.raises(SystemExit if "--help" in arguments else ParsedError):
        module.main()


@pytest.mark.parametrize(
    ("program", "arguments"),
    [shown for shown in shown_commands() if shown.values[0] == "tools/train.py" and "--new" not in shown.values[1]],
)
def test_a_training_command_that_is_shown_gives_an_experiment(
    program: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [PLACEHOLDERS.get(argument, argument) for argument in arguments]
    if arguments[-1] == "...":  # the comments of launch files
        arguments[-1] = "davis_segflow.yaml"
    assert train.main([*arguments, "--print-config"]) == 0
    assert capsys.readouterr().out


def test_many_commands_are_found() -> None:
    assert len(list(shown_commands())) > 80


def test_the_words_of_make_that_are_shown_are_there() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    shown = {word for page in PAGES for word in re.findall(r"(?:^|`)make (\w+)", page.read_text(), flags=re.MULTILINE)}
    assert shown
    assert shown <= targets


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in links(page):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{name_of(page)}: no {link}"
        if anchor:
            assert anchor in anchors(target), f"{name_of(page)}: no heading {link}"


def test_every_page_is_in_the_table_of_contents() -> None:
    index = (ROOT / "docs/index.md").read_text() + (ROOT / "docs/reference/index.md").read_text()
    for page in PAGES[3:]:
        if page.parent.name in ("docs", "recipes") and page.stem != "index":
            assert page.relative_to(ROOT / "docs").with_suffix("").as_posix() in index
        if page.parent.name == "reference" and page.stem != "index":
            assert f"\n{page.stem}\n" in index


def test_the_readme_is_read_at_a_sitting() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_figures_of_the_docs_are_small() -> None:
    figures = list((ROOT / "docs/images").iterdir())
    assert figures
    assert all(figure.stat().st_size < 300_000 for figure in figures)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("python tools/report.py table runs/A  # last\n", [("tools/report.py", ["table", "runs/A"])]),
        (
            "accelerate launch --x y tools/train.py --config a.yaml \\\n  b='{c: 1}'",
            [("tools/train.py", ["--config", "a.yaml", "b={c: 1}"])],
        ),
        ("A=true torchrun -n 2 tools/train.py a=$seed", [("tools/train.py", ["a=0"])]),
        (
            "for s in 0 1; do\n  python tools/a.py x; done; python tools/b.py",
            [("tools/a.py", ["x"]), ("tools/b.py", [])],
        ),
        ("make test\npip install torch", []),
    ],
)
def test_commands_are_found_in_lines_of_shell(text: str, expected: list[tuple[str, list[str]]]) -> None:
    assert list(commands(text)) == expected


def test_a_setup_belongs_to_the_block_that_follows() -> None:
    text = "<!-- setup:\na = 1\n-->\n```python\nb = a\n```\n\n<!-- skip: slow -->\n```python\nc\n```\n\n```\nls\n```\n"
    assert blocks(text) == [
        Block("python", "b = a\n", "\na = 1\n", False),
        Block("python", "c\n", "", True),
        Block("", "ls\n", "", False),
    ]
