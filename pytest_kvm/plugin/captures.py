"""Captures all segments during tests, and keeps the captures of those that failed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Container, Iterable, Iterator
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvm.errors import KvmError
from pytest_kvm.plugin.file_names import file_name
from pytest_kvm.plugin.session import existing_run

if TYPE_CHECKING:
    import pytest

    from pytest_kvm.handles.capture import Capture

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def record_segments(item: pytest.Item) -> None:
    """Begin to capture all segments that there are, for a test that is about to begin."""
    run = existing_run(item.config)
    if run is not None:
        run.captures.record(run.segments.all())


def copy_captures(captures: Iterable[tuple[str, Capture]], folder: Path) -> Iterator[str]:
    """Copy captures into a folder; yield a line for each.

    Args:
        captures: Each with a name for its file; several can have the same.
        folder: The folder.
    """
    targets: list[Path] = []
    for name, capture in captures:
        target = _free(folder / f"{file_name(name)}.pcapng", taken=targets)
        try:
            yield f"{target}{_copy(capture, target)}"
        except OSError as failure:
            yield f"{target.name} is not kept: {failure}"
        targets.append(target)


def _free(path: Path, *, taken: Container[Path]) -> Path:
    """Return a path, or that with the first number with which it is not taken."""
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
    return next(each for each in chain([path], numbered) if each not in taken)


def _copy(capture: Capture, target: Path) -> str:
    """Copy a capture's file as far as it has come; return why it is not whole, if it is not."""
    note = ""
    try:
        capture.flush()
    except KvmError as failure:
        note = f" ({failure})"
    with capture.path.open("rb") as source, os.fdopen(os.open(target, _NEW_FILE, 0o600), "wb") as copy:
        shutil.copyfileobj(source, copy)
    return note
