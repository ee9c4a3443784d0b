"""Read the documentation as data: tables, code blocks, inclusions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"

_FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_CELL = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    info: str
    text: str

    def __str__(self) -> str:
        """Where it stands, as a test id."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def all_pages() -> list[Path]:
    return [*sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts), ROOT / "README.md"]


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in _FENCE.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        yield Block(page=page, line=line, info=found["info"].strip(), text=found["text"])


def all_blocks(info: str) -> list[Block]:
    return [block for page in all_pages() for block in blocks(page) if block.info == info]


def prose(page: Path) -> str:
    """Return a page without its blocks."""
    return _FENCE.sub("", page.read_text())


def section(page: str, heading: str) -> str:
    """Return what stands below a heading of a reference page, without its subsections' siblings."""
    text = (REFERENCE / page).read_text()
    found = re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^#{{1,2}} |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"{page} has no section {heading!r}"
    return found[2]


def rows(text: str) -> list[list[str]]:
    """Return the cells of every table's body, escapes undone."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    starts = {index - 1 for index, line in enumerate(lines) if re.fullmatch(r"[|:\- ]+", line)}
    body = [line for i, line in enumerate(lines) if i not in starts and i - 1 not in starts]
    return [[cell.strip().replace(r"\|", "|") for cell in _CELL.split(line)[1:-1]] for line in body]


def table(text: str) -> dict[str, list[str]]:
    """Return the rows by their first cell, its code marks removed."""
    return {row[0].strip("`"): row[1:] for row in rows(text)}


def directives(text: str, *names: str) -> list[str]:
    """Return the arguments of these directives, in order."""
    return re.findall(rf"^ *\.\. (?:{'|'.join(names)}):: (\S+)", text, re.MULTILINE)
