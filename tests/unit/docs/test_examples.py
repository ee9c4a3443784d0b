"""What the pages show runs, or is at least understood by whoever would run it."""

from __future__ import annotations

import ast
import re
import shlex

import pytest

from pytest_kvm.cli.main import parser
from tests.unit.docs.pages import DOCS, ROOT, Block, all_blocks, all_pages, blocks, prose, table

PYTHON = all_blocks("python")
INCLUDED = [
    block for page in all_pages() for block in blocks(page) if block.info.startswith("{literalinclude}")
]
EXECUTED = (
    "docs/**/*_example.py",
    "docs/**/conftest.py",
    "example_suites/**/*.py",
    "example_suites/**/*.nft",
    "tests/guests/network_suite.py",
)


def _target(block: Block):
    return (block.page.parent / block.info.partition(" ")[2]).resolve()


def _function(block: Block) -> str:
    found = re.search(r"^:pyobject: (\w+)$", block.text, re.MULTILINE)
    return found[1] if found else ""


# ---------------------------------------------------------------- Python


def test_no_block_is_kept_from_running():
    """docs/conftest.py runs every Python block of every page with Sybil."""
    assert not [
        page for page in all_pages() if re.search(r"<!---? *skip|^% *skip", page.read_text(), re.MULTILINE)
    ]


def test_pytest_accepts_the_guests_and_tests_of_every_block(pytester, monkeypatch):
    """Collection calls the spec functions: fields, sizes and images are checked."""
    monkeypatch.setenv("PYTEST_KVM_CACHE_DIR", str(pytester.path / "cache"))
    guests = [block for block in PYTHON if "import pytest_kvm" in block.text]
    for number, block in enumerate(guests):
        pytester.makepyfile(**{f"test_{block.page.stem.replace('-', '_')}_{number}": block.text})
    done = pytester.runpytest("--collect-only", "--quiet")
    assert done.ret is pytest.ExitCode.OK, done.stdout.str()
    wanted = sum(len(re.findall(r"^def test_", block.text, re.MULTILINE)) for block in guests)
    assert done.parseoutcomes().get("tests", 0) >= wanted > 0


@pytest.mark.parametrize("block", INCLUDED, ids=str)
def test_included_code_is_code_that_runs(block):
    target = _target(block)
    assert any(target in ROOT.glob(pattern) for pattern in EXECUTED), f"{target} is run by nobody"
    if function := _function(block):
        tree = ast.parse(target.read_text())
        assert function in {each.name for each in ast.walk(tree) if isinstance(each, ast.FunctionDef)}


def test_every_example_is_shown():
    shown = {(_target(block), _function(block)) for block in INCLUDED}
    whole = {target for target, function in shown if not function}
    for path in DOCS.rglob("*_example.py"):
        tests = re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
        assert path in whole or not [name for name in tests if (path, name) not in shown], path


def test_every_example_suite_is_listed():
    listed = table((DOCS / "tutorial" / "index.md").read_text())
    suites = {path.parent.name for path in (ROOT / "example_suites").glob("*/test_*.py")}
    assert set(listed) == suites


# ---------------------------------------------------------------- commands


def _lines(prefix: str) -> list[object]:
    return [
        pytest.param(line.removeprefix("$ ").partition("  #")[0], id=f"{block.page.stem}: {line}")
        for block in all_blocks("console")
        for line in block.text.splitlines()
        if line.startswith(prefix)
    ]


@pytest.mark.parametrize("line", _lines("$ pytest-kvm "))
def test_commands_are_understood(line):
    assert parser().parse_args(shlex.split(line)[1:]).handler


@pytest.mark.parametrize("line", _lines("$ make "))
def test_make_targets_exist(line):
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert shlex.split(line)[1] in targets


# ---------------------------------------------------------------- prose


def _offending_lines(pattern: str, flags: int = 0) -> list[str]:
    return [
        f"{page.relative_to(ROOT)}: {line}"
        for page in all_pages()
        for line in prose(page).splitlines()
        if re.search(pattern, line, flags)
    ]


def test_one_sentence_stands_on_one_line():
    assert not _offending_lines(r"^(?!\|).*[a-z`)][.:?!] (?=[A-Z][a-z])(?!.*:\*\*)")


def test_no_page_sells_anything():
    words = r"simply|easily|easy|powerful|just|obviously|seamless\w*"
    assert not _offending_lines(rf"\b({words})\b", re.IGNORECASE)


def test_a_how_to_asks_one_question():
    pages = [page for page in (DOCS / "how-to").glob("*.md") if page.name != "index.md"]
    assert not [page.name for page in pages if not re.match(r"# [A-Z][^\n]*\?\n", page.read_text())]
