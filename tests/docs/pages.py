"""README and the pages of docs/, taken apart: code blocks, commands, headings and links."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
]
PAGES = [page for page in PAGES if "_build" not in page.parts]

_FENCE = re.compile(r"(?:^<!-- (setup|skip):(.*?)-->\n)?^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_PROGRAM = re.compile(r"(?:^|\s)(?:\S*python|accelerate launch|torchrun)\b.*?\s(tools/[\w/]+\.py)\s*(.*)$")


class Block(NamedTuple):
    """A fenced block: its language ("" for commands), what it holds, and the setup written in a comment before it."""

    language: str
    text: str
    setup: str
    skipped: bool


def name_of(page: Path) -> str:
    """Return the path of a page from the root of the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a page, in order.

    `<!-- setup: ... -->` right before a block is code that its readers need not see; `<!-- skip: why -->` keeps tests
    from running it.
    """
    return [
        Block(language.strip(), body, comment if kind == "setup" else "", kind == "skip")
        for kind, comment, language, body in _FENCE.findall(text)
    ]


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each `tools/` program in lines of shell, with its arguments. Loops are unrolled to their first round."""
    text = re.sub(r"\\\n\s*", " ", text)
    text = re.sub(r"\$\{?r%%,\*\}", "none", text).replace("$seed", "0").replace("$1", "15").replace("$2", "100")
    for line in re.split(r"\n|;|&&", text.replace("{name: $r}", "{name: none}")):
        words = line.split()
        while words and words[0] in ("do", "done"):
            words = words[1:]
        if found := _PROGRAM.search(line.strip()):
            yield (
                found[1],
                [word for word in shlex.split(found[2], comments=True) if word != "[key=value" and word != "...]"],
            )


def prose(text: str) -> str:
    """Return a page without its fenced blocks and comments."""
    return re.sub(r"<!--.*?-->", "", _FENCE.sub("", text), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return the anchors that the headings of a page have, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    """Return the links of a page that stay in the repository."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8")))
    return [link for link in found if not re.match(r"[a-z]+:", link)]
