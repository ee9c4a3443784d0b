"""Remove what ``make`` and the tools it runs have made in this checkout, and nothing else.

A name proves nothing: the checkout is its owner's, and ``.venv`` or ``docs/_build``
may be his own. So a folder goes only if it holds what its maker left there as a
mark, and a link never does. What is left alone is named. Images in the cache are
not touched, nor results of benchmarks.

Exit code 0 always: what stays is no error.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

MARKS = {
    ".venv": "pytest-kvm-setup.json",
    "docs/_build": ".buildinfo",
    ".mypy_cache": "CACHEDIR.TAG",
    ".pytest_cache": "CACHEDIR.TAG",
    ".ruff_cache": "CACHEDIR.TAG",
}
"""Folders, and the file by which one knows who made them: ``setup.py``, Sphinx, the tools."""

SOURCES = ("pytest_kvm", "scripts", "bench", "docs", "example_suites", "tests")
"""Folders below which Python keeps what it compiled."""


def main(root: Path = ROOT) -> int:
    """Clean the checkout."""
    for name, mark in MARKS.items():
        folder = root / name
        if is_folder(folder) and (folder / mark).is_file():
            shutil.rmtree(folder)
        elif folder.exists() or folder.is_symlink():
            print(f"clean: {name} has no {mark}: not made by make, left alone", file=sys.stderr)
    for folder in compiled(root):
        for file in folder.glob("*.pyc"):
            file.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()
    return 0


def compiled(root: Path) -> Iterator[Path]:
    """Yield the folders of compiled modules."""
    for name in SOURCES:
        if is_folder(root / name):
            yield from [path for path in (root / name).rglob("__pycache__") if is_folder(path)]


def is_folder(path: Path) -> bool:
    """Tell whether something is a folder, and no link to one."""
    return path.is_dir() and not path.is_symlink()


if __name__ == "__main__":
    sys.exit(main())
